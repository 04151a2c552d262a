"""What a caller of /edits can rely on."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app import main
from app.follower import Follower
from app.settings import Settings
from app.store import Ledger
from tests.app.conftest import Caller, sentence, started
from tests.deployed import LABELS

NOBODY = "01a00000-0000-7000-8000-000000000000"


def test_a_report_without_waiting_is_accepted_and_goes_live_later(caller: Caller) -> None:
    body = {"input": sentence(1), "target": caller.mistaken(sentence(1))}
    answer = caller.client.post("/edits", json=body)
    assert answer.status_code in (201, 202)
    assert answer.headers["Location"] == f"/edits/{answer.json()['id']}"
    settled(caller, answer.json()["id"], "live")


def test_the_audit_record_shows_the_whole_life_of_an_edit(caller: Caller) -> None:
    fields = {"rephrases": [sentence(2)], "keep": [sentence(9)], "reason": "a ticket", "reporter": "me"}
    target = caller.mistaken(sentence(1))
    edit = caller.edit(sentence(1), target, **fields)
    record = caller.client.get(f"/edits/{edit['id']}").json()
    assert {name: record[name] for name in fields} == fields
    assert record["before"]["prediction"]["label"] != target
    assert record["after"]["prediction"]["label"] == target
    assert [gate["name"] for gate in record["verdict"]["gates"]] == [
        "edit_holds",
        "rephrases_hold",
        "keep_unchanged",
        "finite",
        "other_edits_hold",
        "guard_unchanged",
        "guard_fires",
    ]
    assert record["verdict"]["passed"]
    assert [row["event"] for row in record["history"]] == ["queued", "fitting", "judging", "live"]
    assert [row["actor"] for row in record["history"]] == ["local", "errata", "errata", "local"]
    assert record["revision"] == 1
    assert record["fit"]["parameters"] > 0


def test_what_is_recorded_as_before_and_after_is_what_predict_answers(caller: Caller) -> None:
    before = caller.predict(sentence(1))[0]
    edit = caller.edit(sentence(1))
    after = caller.predict(sentence(1))[0]
    assert edit["before"]["prediction"] == {name: before[name] for name in ("label", "score", "scores")}
    assert edit["after"]["prediction"] == {name: after[name] for name in ("label", "score", "scores")}


def test_an_answer_that_is_right_already_needs_no_edit(caller: Caller) -> None:
    body = {"input": sentence(1), "target": caller.label(sentence(1))}
    answer = caller.client.post("/edits", json=body, headers={"Prefer": "wait=60"})
    assert (answer.status_code, answer.json()["status"]) == (200, "not_needed")
    assert answer.json()["patch"] is None
    assert caller.client.get("/model").json()["revision"] == 0


def test_a_dry_run_reports_everything_and_changes_nothing(caller: Caller) -> None:
    before = caller.predict(sentence(1))
    body = {"input": sentence(1), "target": caller.mistaken(sentence(1)), "dry_run": True}
    answer = caller.client.post("/edits", json=body, headers={"Prefer": "wait=60"})
    assert (answer.status_code, answer.json()["status"]) == (200, "dry_run")
    assert answer.json()["after"]["prediction"]["label"] == body["target"]
    assert answer.json()["verdict"]["passed"]
    assert caller.predict(sentence(1)) == before
    assert caller.client.get("/revisions").json()["items"][0]["number"] == 0


def test_the_same_idempotency_key_makes_one_edit(caller: Caller) -> None:
    body = {"input": sentence(1), "target": caller.mistaken(sentence(1))}
    headers = {"Idempotency-Key": "ticket-7", "Prefer": "wait=60"}
    first, second = (caller.client.post("/edits", json=body, headers=headers) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["id"] == second.json()["id"]
    assert len(caller.client.get("/edits").json()["items"]) == 1


def test_an_idempotency_key_with_another_body_is_refused(caller: Caller) -> None:
    headers = {"Idempotency-Key": "ticket-7"}
    caller.client.post("/edits", json={"input": sentence(1), "target": "red"}, headers=headers)
    answer = caller.client.post("/edits", json={"input": sentence(2), "target": "red"}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")


def test_another_answer_for_an_input_that_has_an_edit_is_a_conflict(caller: Caller) -> None:
    edit = caller.edit(sentence(1))
    other = next(label for label in ("red", "green", "blue") if label != edit["target"])
    answer = caller.client.post("/edits", json={"input": f"  {sentence(1)} ", "target": other})
    assert (answer.status_code, answer.json()["code"]) == (409, "conflicting_edit")
    assert answer.json()["conflicts"] == [edit["id"]]


def test_a_superseding_edit_replaces_the_other_and_its_removal_brings_that_back(caller: Caller) -> None:
    first = caller.edit(sentence(1))
    held = caller.predict(sentence(1))
    second = caller.edit(sentence(1), caller.mistaken(sentence(1)), supersedes=first["id"])
    assert caller.label(sentence(1)) == second["target"]
    assert caller.client.get(f"/edits/{first['id']}").json()["status"] == "superseded"
    assert caller.predict(sentence(1), exclude=[second["id"]]) == held
    caller.client.delete(f"/edits/{second['id']}")
    assert caller.predict(sentence(1)) == held
    assert caller.client.get(f"/edits/{first['id']}").json()["status"] == "live"


def test_an_edit_back_to_what_the_bare_model_says_can_supersede(caller: Caller) -> None:
    bare = caller.label(sentence(1))
    first = caller.edit(sentence(1))
    caller.edit(sentence(1), bare, supersedes=first["id"])
    assert caller.label(sentence(1)) == bare


def test_a_second_delete_answers_the_same(caller: Caller) -> None:
    edit = caller.edit(sentence(1))
    first, second = (caller.client.delete(f"/edits/{edit['id']}", params={"reason": "wrong"}) for _ in range(2))
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()
    assert first.json()["status"] == "reverted"
    assert first.json()["reverted_revision"] == 2
    assert [gate["name"] for gate in first.json()["verdict"]["gates"]] == [
        "finite",
        "other_edits_hold",
        "guard_unchanged",
    ]


def test_the_removal_of_one_edit_leaves_the_others_as_they_were(caller: Caller) -> None:
    edits = [caller.edit(sentence(number)) for number in (1, 2, 3, 4)]
    caller.client.delete(f"/edits/{edits[1]['id']}")
    for edit in (edits[0], edits[2], edits[3]):
        assert caller.label(edit["input"]) == edit["target"]


def test_a_reapplied_edit_answers_as_it_did_with_the_same_patch(caller: Caller) -> None:
    edit = caller.edit(sentence(1))
    held = caller.predict(sentence(1))
    caller.client.delete(f"/edits/{edit['id']}")
    again = caller.client.post(f"/edits/{edit['id']}/reapply")
    assert (again.status_code, again.json()["status"], again.json()["revision"]) == (200, "live", 3)
    assert again.json()["patch"] == edit["patch"]
    assert caller.predict(sentence(1)) == held


def test_an_edit_that_was_never_live_cannot_be_reverted_or_reapplied(caller: Caller) -> None:
    body = {"input": sentence(1), "target": caller.label(sentence(1))}
    edit = caller.client.post("/edits", json=body, headers={"Prefer": "wait=60"}).json()
    reverted = caller.client.delete(f"/edits/{edit['id']}")
    assert (reverted.status_code, reverted.json()["code"]) == (409, "not_live")
    again = caller.client.post(f"/edits/{edit['id']}/reapply")
    assert (again.status_code, again.json()["code"]) == (409, "not_reverted")


def test_if_match_refuses_a_change_of_a_revision_that_has_moved_on(caller: Caller) -> None:
    edit = caller.edit(sentence(1))
    stale = {"If-Match": '"r0"'}
    body = {"input": sentence(2), "target": caller.mistaken(sentence(2))}
    answers = [
        caller.client.post("/edits", json=body, headers=stale),
        caller.client.delete(f"/edits/{edit['id']}", headers=stale),
        caller.client.post("/revisions/0/restore", headers=stale),
    ]
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(412, "revision_moved")}
    assert caller.client.delete(f"/edits/{edit['id']}", headers={"If-Match": '"r1"'}).status_code == 200


def test_the_patch_is_served_as_safetensors_of_the_recorded_hash(caller: Caller) -> None:
    import hashlib

    edit = caller.edit(sentence(1))
    patch = caller.client.get(f"/edits/{edit['id']}/patch")
    assert hashlib.sha256(patch.content).hexdigest() == edit["patch"]["sha256"]
    assert len(patch.content) == edit["patch"]["bytes"]


def test_hits_are_counted_and_survive_a_restart(settings: Settings) -> None:
    with started(settings) as client:
        caller = Caller(client)
        edit = caller.edit(sentence(1))
        for _ in range(3):
            caller.predict(sentence(1))
        assert client.get(f"/edits/{edit['id']}").json()["hits"]["count"] == 3
        caller.predict(sentence(1))
    with started(settings) as client:
        hits = client.get(f"/edits/{edit['id']}").json()["hits"]
        assert (hits["count"], hits["last_at"] is not None) == (4, True)


def test_the_listing_is_newest_first_in_pages_that_new_edits_do_not_shift(caller: Caller) -> None:
    edits = [caller.edit(sentence(number)) for number in range(1, 6)]
    first = caller.client.get("/edits", params={"limit": 2}).json()
    caller.edit(sentence(6))
    second = caller.client.get("/edits", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    third = caller.client.get("/edits", params={"limit": 2, "cursor": second["next_cursor"]}).json()
    seen = [item["id"] for page in (first, second, third) for item in page["items"]]
    assert seen == [edit["id"] for edit in reversed(edits)]
    assert third["next_cursor"] is None


def test_the_listing_can_be_narrowed(caller: Caller) -> None:
    edit = caller.edit(sentence(1), reason="from a Ticket")
    caller.edit(sentence(2))
    assert [item["id"] for item in caller.client.get("/edits", params={"q": "tickeT"}).json()["items"]] == [edit["id"]]
    assert len(caller.client.get("/edits", params={"status": "live"}).json()["items"]) == 2
    assert caller.client.get("/edits", params={"status": "reverted"}).json()["items"] == []
    assert caller.client.get("/edits", params={"editor": "none"}).json()["items"] == []


def test_events_tell_the_life_of_an_edit_and_resume(caller: Caller) -> None:
    edit = caller.edit(sentence(1), options={"fit": "gradient", "steps": 40})
    events = list(server_sent(caller.client, edit["id"]))
    told = [event["data"]["event"] for event in events if event["event"] == "status"]
    assert told == ["queued", "fitting", "judging", "live"]
    assert events[-1]["event"] == "verdict"
    assert events[-1]["data"]["verdict"] == edit["verdict"]
    rest = list(server_sent(caller.client, edit["id"], after=events[1]["id"]))
    assert [event["data"].get("event") for event in rest] == ["judging", "live", None]


def test_an_export_can_be_imported_into_another_database(caller: Caller, settings: Settings, tmp_path: Any) -> None:
    edits = [caller.edit(sentence(number), reason=f"r{number}") for number in (1, 2, 3)]
    lines = caller.client.get("/edits/export").text
    elsewhere = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/elsewhere.db"})
    with started(elsewhere) as client:
        answer = client.post("/edits/import", content=lines.encode())
        outcomes = [json.loads(line) for line in answer.text.splitlines()]
        assert [(outcome["line"], outcome["status"]) for outcome in outcomes] == [(1, "live"), (2, "live"), (3, "live")]
        for edit in edits:
            assert Caller(client).label(edit["input"]) == edit["target"]


def test_a_bad_line_of_an_import_is_reported_and_the_others_go_on(caller: Caller) -> None:
    good = json.dumps({"input": sentence(1), "target": caller.mistaken(sentence(1))})
    unknown = json.dumps({"input": sentence(2), "target": "mauve"})
    body = "\n".join([good, "{", unknown, "", '{"input": "x"}', good]).encode() + b"\n\xff\xfe\n"
    outcomes = [json.loads(line) for line in caller.client.post("/edits/import", content=body).text.splitlines()]
    shown = [(each["line"], each.get("status") or each["error"]["code"]) for each in outcomes]
    assert shown == [
        (1, "live"),
        (2, "malformed_request"),
        (3, "unknown_label"),
        (5, "invalid_request"),
        (6, "not_needed"),
        (7, "malformed_request"),
    ]


def test_an_edit_that_breaks_what_it_must_keep_is_rejected_with_every_failed_gate(caller: Caller) -> None:
    text = sentence(1)
    before = caller.predict(text)
    body = {"input": text, "target": caller.mistaken(text), "keep": [text]}
    answer = caller.client.post("/edits", json=body, headers={"Prefer": "wait=60"})
    assert (answer.status_code, answer.json()["code"]) == (422, "edit_rejected")
    (gate,) = answer.json()["gates"]
    assert (gate["name"], gate["measured"], gate["required"]) == ("keep_unchanged", 0.0, 1.0)
    assert gate["failures"][0]["input"] == text
    assert caller.predict(text) == before
    record = caller.client.get(f"/edits/{answer.json()['edit_id']}").json()
    assert (record["status"], record["verdict"]["passed"]) == ("rejected", False)


def test_more_edits_than_may_wait_are_turned_away(settings: Settings) -> None:
    with started(settings.model_copy(update={"max_queued_edits": 1})) as client:
        slow = {"options": {"fit": "gradient", "steps": 2000}}
        answers = [client.post("/edits", json={"input": sentence(n), "target": "red", **slow}) for n in range(12)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused
        assert refused[0].json()["code"] == "queue_full"
        assert int(refused[0].headers["Retry-After"]) >= 1


def test_a_waiting_edit_can_be_cancelled(settings: Settings) -> None:
    with started(settings) as client:
        caller = Caller(client)
        slow = {"options": {"fit": "gradient", "steps": 2000}}
        texts = [text for text in map(sentence, range(8)) if caller.label(text) != "red"]
        ids = [client.post("/edits", json={"input": text, "target": "red", **slow}).json()["id"] for text in texts]
        answer = client.delete(f"/edits/{ids[-1]}")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        assert client.delete(f"/edits/{ids[-1]}").json()["status"] == "cancelled"
        for edit_id in ids[:-1]:
            client.delete(f"/edits/{edit_id}")
        assert caller.label(texts[-1]) != "red"


def test_a_restart_serves_the_same_bits(settings: Settings) -> None:
    with started(settings) as client:
        caller = Caller(client)
        edits = [caller.edit(sentence(number)) for number in (1, 2, 3)]
        caller.client.delete(f"/edits/{edits[0]['id']}")
        before = [caller.predict(sentence(number)) for number in range(8)]
        revision = client.get("/model").json()["revision"]
    with started(settings) as client:
        assert client.get("/model").json()["revision"] == revision
        assert [Caller(client).predict(sentence(number)) for number in range(8)] == before


def test_edits_left_queued_are_worked_on_after_a_restart(settings: Settings) -> None:
    with started(settings) as client:
        caller = Caller(client)
        texts = [text for text in map(sentence, range(12)) if caller.label(text) != "red"]
        slow = {"options": {"fit": "gradient", "steps": 300}}
        ids = [client.post("/edits", json={"input": text, "target": "red", **slow}).json()["id"] for text in texts]
    with started(settings) as client:
        for edit_id in ids:
            settled(Caller(client), edit_id, "live", "not_needed", "rejected", "failed")


@pytest.mark.parametrize(
    "method, path",
    [
        ("GET", f"/edits/{NOBODY}"),
        ("GET", f"/edits/{NOBODY}/patch"),
        ("DELETE", f"/edits/{NOBODY}"),
        ("POST", f"/edits/{NOBODY}/reapply"),
        ("GET", f"/edits/{NOBODY}/events"),
        ("GET", "/revisions/9"),
        ("GET", "/revisions/0/diff/9"),
        ("POST", "/revisions/9/restore"),
        ("GET", "/nothing"),
    ],
)
def test_what_does_not_exist_answers_404(caller: Caller, method: str, path: str) -> None:
    answer = caller.client.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer.headers["Content-Type"] == "application/problem+json"


def settled(caller: Caller, edit_id: str, *statuses: str) -> None:
    """Wait for the edit to end in one of `statuses`."""
    deadline = time.monotonic() + 60
    while (status := caller.client.get(f"/edits/{edit_id}").json()["status"]) not in statuses:
        assert status in ("queued", "fitting", "judging"), status
        assert time.monotonic() < deadline


def server_sent(client: TestClient, edit_id: str, after: str | None = None) -> Iterator[dict[str, Any]]:
    """The events of an edit."""
    headers = {} if after is None else {"Last-Event-ID": after}
    for block in client.get(f"/edits/{edit_id}/events", headers=headers).text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if fields:
            yield {**fields, "data": json.loads(fields["data"])}


def test_an_edit_cannot_supersede_one_of_another_input(caller: Caller) -> None:
    first = caller.edit(sentence(1))
    body = {"input": sentence(2), "target": caller.mistaken(sentence(2)), "supersedes": first["id"]}
    answer = caller.client.post("/edits", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert caller.label(sentence(1)) == first["target"]


def test_an_edit_whose_revision_moves_on_while_it_is_worked_on_still_ends(caller: Caller) -> None:
    """Another change is made exactly between its judgement and its commit."""
    other = caller.edit(sentence(5))
    ledger = caller.client.app.state.service.parts.ledger  # type: ignore[attr-defined]
    commit, moved = ledger.commit, []

    def commit_too_late(*args: Any, **kwargs: Any) -> Any:
        if not moved:
            moved.append(ledger.revert(other["id"], actor="x", reason="", verdict={}, expected_head=ledger.head()))
        return commit(*args, **kwargs)

    ledger.commit = commit_too_late
    edit = caller.edit(sentence(1))
    assert moved
    assert (edit["status"], edit["revision"]) == ("live", 3)
    assert [row["event"] for row in edit["history"]].count("judging") == 1


def test_two_deletes_at_once_answer_the_same(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    real, edit = Ledger.revert, caller.edit(sentence(1))

    def just_before_this_one(ledger: Ledger, edit_id: str, **how: Any) -> Any:
        real(ledger, edit_id, **how)
        return real(ledger, edit_id, **how)

    monkeypatch.setattr(Ledger, "revert", just_before_this_one)
    answered = caller.client.delete(f"/edits/{edit['id']}")
    assert answered.status_code == 200, answered.text
    assert answered.json()["reverted_revision"] == 2
    assert caller.client.get("/model").json()["revision"] == 2


@pytest.mark.parametrize(("if_match", "status"), [(None, 200), ('"r3"', 200), ('"r2"', 412)])
def test_a_revert_builds_on_what_another_process_has_written_just_before(
    caller: Caller, if_match: str | None, status: int
) -> None:
    gone, other = caller.edit(sentence(1)), caller.edit(sentence(5))
    ledger = caller.client.app.state.service.parts.ledger  # type: ignore[attr-defined]
    ledger.revert(other["id"], actor="x", reason="", verdict={}, expected_head=2)
    headers = {} if if_match is None else {"If-Match": if_match}
    answer = caller.client.delete(f"/edits/{gone['id']}", headers=headers)
    assert answer.status_code == status
    if status == 200:
        assert (answer.json()["reverted_revision"], answer.headers["X-Model-Revision"]) == (4, "4")
        assert [gate["name"] for gate in answer.json()["verdict"]["gates"]][1] == "other_edits_hold"
        assert caller.label(sentence(5)) != other["target"]


def test_of_conflicting_reports_at_once_one_goes_live_and_the_others_name_it(caller: Caller) -> None:
    wanted = [label for label in LABELS if label != caller.label(sentence(1))]
    with ThreadPoolExecutor(len(wanted)) as pool:
        answers = list(
            pool.map(
                lambda target: caller.client.post(
                    "/edits", json={"input": sentence(1), "target": target}, headers={"Prefer": "wait=60"}
                ),
                wanted,
            )
        )
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409]
    (live,) = [answer.json()["id"] for answer in answers if answer.status_code == 201]
    refused = [answer.json() for answer in answers if answer.status_code == 409]
    assert [(problem["code"], problem["conflicts"]) for problem in refused] == [("conflicting_edit", [live])] * 2


def test_a_replay_of_a_report_that_was_reverted_since_is_no_creation(caller: Caller) -> None:
    body = {"input": sentence(1), "target": caller.mistaken(sentence(1))}
    headers = {"Idempotency-Key": "k", "Prefer": "wait=60"}
    edit = caller.client.post("/edits", json=body, headers=headers).json()
    caller.client.delete(f"/edits/{edit['id']}")
    replay = caller.client.post("/edits", json=body, headers=headers)
    assert (replay.status_code, replay.json()["status"]) == (200, "reverted")


def test_even_a_failure_carries_the_id_of_its_request(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("app.routes.edits.EditOut.of", broken)
    edits = caller.client.get("/edits")
    assert edits.status_code == 200
    body = {"input": sentence(1), "target": caller.mistaken(sentence(1))}
    answer = caller.client.post("/edits", json=body, headers={"X-Request-ID": "mine"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert answer.headers["X-Request-ID"] == "mine"


def test_who_is_told_that_an_edit_is_live_is_served_it(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if its record says so a while before this process has caught up."""
    monkeypatch.setattr(main, "FOLLOW_SECONDS", 1_000.0)
    committed, catch_up = threading.Event(), Follower.catch_up
    commit = Ledger.commit

    def commit_and_tell(self: Ledger, *args: Any, **named: Any) -> Any:
        revision = commit(self, *args, **named)
        committed.set()
        return revision

    async def late(self: Follower) -> Any:
        if committed.is_set():
            committed.clear()
            await asyncio.sleep(1.5)  # longer than whoever waits goes without a look into the store
        return await catch_up(self)

    monkeypatch.setattr(Ledger, "commit", commit_and_tell)
    monkeypatch.setattr(Follower, "catch_up", late)
    with started(settings) as client:
        caller = Caller(client)
        edit = caller.edit(sentence(1))
        assert (edit["status"], caller.label(sentence(1))) == ("live", edit["target"])
