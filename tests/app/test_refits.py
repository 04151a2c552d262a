"""What a removal breaks is said, and with the setting on it is fitted again: another patch of the same edit."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.editing.worker import Worker
from app.main import verify
from app.settings import Settings
from tests.app.conftest import Caller, sentence, settings_in, started
from tests.deployed import deploy

LEANED_ON = {"input": "w1 w2 w3", "target": "w9 w8", "rephrases": ["w3 w2 unseen", "w4 w5 w6"]}
LEANING = [{"input": "w3 w2 unseen", "target": "w9 w5"}, {"input": "w4 w5 w6", "target": "w9 w7"}]
"""Of these the first token is right already, thanks to the other edit."""
APART = {"input": "w20 w21 w22", "target": "w30"}
KNOWN = [sentence(number) for number in range(40, 60)]
PROBES = [str(each["input"]) for each in (LEANED_ON, *LEANING, APART)] + KNOWN[:6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deploy(tmp_path_factory.mktemp("model") / "llama", family="Llama")


@pytest.fixture
def settings(tmp_path: Path, folder: Path) -> Settings:
    """A service that fits again what a removal breaks."""
    (tmp_path / "memory").write_text("".join(json.dumps({"input": text}) + "\n" for text in KNOWN))
    lenient = {"guard_required": 0.0, "guard_fires_allowed": 1.0, "memory_from_traffic": False, "new_tokens": 8}
    return settings_in(tmp_path, folder, memory_file=tmp_path / "memory", refit_after_revert=True, **lenient)


def bits(client: TestClient, **options: Any) -> list[dict[str, Any]]:
    return Caller(client).predict(*PROBES, **options)


def holds(client: TestClient, record: dict[str, Any]) -> bool:
    (answer,) = Caller(client).predict(record["input"])
    return bool(answer["text"].strip() == record["target"])


def record_of(client: TestClient, edit_id: str) -> dict[str, Any]:
    return dict(client.get(f"/edits/{edit_id}").json())


def events(record: dict[str, Any]) -> list[str]:
    return [row["event"] for row in record["history"]]


def head(client: TestClient) -> int:
    return int(client.get("/revisions").json()["items"][0]["number"])


def made(client: TestClient, *editors: str) -> list[dict[str, Any]]:
    """The edits, of which the second and the third lean on the first; by these editors in turn."""
    made = []
    for body, editor in zip((LEANED_ON, *LEANING, APART), cycle(editors or ["transformer-patcher"]), strict=False):
        answer = client.post("/edits", json={**body, "editor": editor}, headers={"Prefer": "wait=60"})
        assert answer.status_code == 201, answer.text
        made.append(answer.json())
    return made


def eventually(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def broken_by(answer: dict[str, Any]) -> list[str]:
    """The edits that the answer to a removal names."""
    (gate,) = (gate for gate in answer["verdict"]["gates"] if gate["name"] == "other_edits_hold")
    return [failure["edit_id"] for failure in gate["failures"]]


def remove_what_others_lean_on(client: TestClient, edits: list[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """The answer to the removal, and what it breaks."""
    answer = client.delete(f"/edits/{edits[0]['id']}").json()
    assert broken_by(answer) == [edit["id"] for edit in edits[1:3]]
    return answer, broken_by(answer)


def refitted(client: TestClient, edit_ids: list[str]) -> None:
    eventually(lambda: all(record_of(client, edit_id)["refit_due"] is None for edit_id in edit_ids))


def in_order(settings: Settings) -> bool:
    return [finding for finding in verify(settings) if not finding.ok] == []


def test_without_the_setting_what_breaks_is_named_and_left_as_it_is(settings: Settings) -> None:
    with started(settings.model_copy(update={"refit_after_revert": False})) as client:
        edits = made(client)
        answer, broken = remove_what_others_lean_on(client, edits)
        for edit_id in broken:
            record = record_of(client, edit_id)
            assert (record["status"], record["refit_due"]) == ("live", None)
            assert not holds(client, record)
            (row,) = (row for row in record["history"] if row["event"] == "broken")
            assert row["detail"]["by"] == answer["id"]
            assert row["detail"]["revision"] == answer["reverted_revision"]
        sound = [edit["id"] for edit in edits if edit["id"] not in (*broken, answer["id"])]
        for edit_id in sound:
            record = record_of(client, edit_id)
            assert holds(client, record)
            assert "broken" not in events(record)
        time.sleep(0.2)
        assert head(client) == answer["reverted_revision"]


@pytest.mark.parametrize("editors", [("transformer-patcher",), ("transformer-patcher", "grace")], ids=" ".join)
def test_what_breaks_is_fitted_again_as_another_patch_of_the_same_edit(
    settings: Settings, editors: tuple[str, ...]
) -> None:
    with started(settings) as client:
        edits = {edit["id"]: edit for edit in made(client, *editors)}
        before = bits(client)
        was = head(client)
        answer, broken = remove_what_others_lean_on(client, list(edits.values()))
        refitted(client, broken)
        for edit_id in broken:
            record, former = record_of(client, edit_id), edits[edit_id]
            assert (record["status"], record["created_at"]) == ("live", former["created_at"])
            assert holds(client, record)
            assert record["after"]["prediction"]["text"].strip() == record["target"]
            assert record["before"]["prediction"]["text"].strip() != record["target"]
            assert record["verdict"]["passed"]
            assert record["patch"]["sha256"] != former["patch"]["sha256"]
            served = client.get(f"/edits/{edit_id}/patch")
            assert hashlib.sha256(served.content).hexdigest() == record["patch"]["sha256"]
            assert events(record)[-2:] == ["broken", "refitted"]
            revision = client.get(f"/revisions/{record['revision']}").json()
            assert (revision["cause"], revision["edit_id"]) == ("refit", edit_id)
            assert edit_id in revision["live"]
        assert head(client) == answer["reverted_revision"] + len(broken)
        assert bits(client, as_of=was) == before
        assert all(holds(client, edit) for edit in list(edits.values())[1:])
        listed = client.get("/edits").json()["items"]
        assert sorted(item["id"] for item in listed) == sorted(edits)
    assert in_order(settings)


def test_a_refitted_edit_leaves_returns_and_travels_through_revisions_like_any_other(settings: Settings) -> None:
    with started(settings) as client:
        edits = made(client)
        shown = {head(client): bits(client)}
        whole = head(client)
        _, broken = remove_what_others_lean_on(client, edits)
        refitted(client, broken)
        edit_id = broken[0]
        anew = record_of(client, edit_id)
        later = head(client)
        shown[later] = bits(client)

        promised = bits(client, exclude=[edit_id])
        assert client.delete(f"/edits/{edit_id}").json()["status"] == "reverted"
        without = head(client)
        assert bits(client, as_of=without) == promised
        shown[without] = promised

        again = client.post(f"/edits/{edit_id}/reapply")
        assert (again.status_code, again.json()["status"]) == (200, "live"), again.text
        assert again.json()["patch"] == anew["patch"]
        assert holds(client, anew)

        assert client.post(f"/revisions/{whole}/restore").status_code == 201
        assert bits(client) == shown[whole]
        assert record_of(client, edit_id)["patch"] == edits[1]["patch"]
        assert record_of(client, edit_id)["after"] == edits[1]["after"]
        assert client.post(f"/revisions/{later}/restore").status_code == 201
        assert bits(client) == shown[later]
        assert record_of(client, edit_id)["patch"] == anew["patch"]
        for revision, answers in shown.items():
            assert bits(client, as_of=revision) == answers
    assert in_order(settings)
    with started(settings) as client:
        assert bits(client) == shown[later]
        for revision, answers in shown.items():
            assert bits(client, as_of=revision) == answers


def test_an_edit_that_cannot_pass_again_stays_live_and_says_so(settings: Settings) -> None:
    """Since the edit was accepted, a guard was put that holds what is the same to the model."""
    with started(settings) as client:
        edits = made(client)
        client.put("/guard", content=b'{"input": "w3 w2 unheard"}\n', headers={"Prefer": "wait=60"})
    with started(settings.model_copy(update={"guard_required": 1.0, "judge_rounds": 1})) as client:
        remove_what_others_lean_on(client, edits)
        refitted(client, [edits[1]["id"]])
        record = record_of(client, edits[1]["id"])
        assert (record["status"], record["patch"]) == ("live", edits[1]["patch"])
        assert (record["verdict"], record["after"]) == (edits[1]["verdict"], edits[1]["after"])
        (row,) = (row for row in record["history"] if row["event"] == "refit_failed")
        assert "guard_unchanged" in row["detail"]["reason"]
        assert not row["detail"]["verdict"]["passed"]
        assert not holds(client, record)
        time.sleep(0.2)
        assert events(record_of(client, edits[1]["id"])).count("refit_failed") == 1
    assert in_order(settings)


def test_what_is_due_when_the_service_dies_is_fitted_again_by_the_next_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(worker: Worker) -> bool:
        return False

    with started(settings) as client, monkeypatch.context() as patched:
        edits = made(client)
        patched.setattr(Worker, "_refit_next", never)
        answer, broken = remove_what_others_lean_on(client, edits)
        for edit_id in broken:
            assert record_of(client, edit_id)["refit_due"] == answer["reverted_revision"]
    assert in_order(settings)
    with started(settings) as client:
        refitted(client, broken)
        for edit_id in broken:
            record = record_of(client, edit_id)
            assert events(record)[-1] == "refitted"
            assert holds(client, record)
    assert in_order(settings)


def test_a_broken_edit_that_is_reverted_meanwhile_is_not_fitted_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Worker._refit_next

    async def never(worker: Worker) -> bool:
        return False

    with started(settings) as client:
        monkeypatch.setattr(Worker, "_refit_next", never)
        _, broken = remove_what_others_lean_on(client, made(client))
        for edit_id in broken:
            record = client.delete(f"/edits/{edit_id}").json()
            assert (record["status"], record["refit_due"]) == ("reverted", None)
        now = head(client)
        due = [item["id"] for item in client.get("/edits").json()["items"] if item["refit_due"] is not None]
        monkeypatch.setattr(Worker, "_refit_next", real)
        refitted(client, due)
        for edit_id in broken:
            assert "refitted" not in events(record_of(client, edit_id))
        assert head(client) <= now + len(due)
    assert in_order(settings)


def test_a_refit_begins_anew_when_the_revision_moves_on_under_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another change is made exactly between its judgement and its exchange."""
    with started(settings) as client:
        edits = made(client)
        ledger = client.app.state.service.parts.ledger  # type: ignore[attr-defined]
        refit, moved = ledger.refit, []

        def refit_too_late(*args: Any, **kwargs: Any) -> Any:
            if not moved:
                moved.append(ledger.restore(ledger.head(), actor="x", reason="", expected_head=ledger.head()))
            return refit(*args, **kwargs)

        monkeypatch.setattr(ledger, "refit", refit_too_late, raising=False)
        _, broken = remove_what_others_lean_on(client, edits)
        refitted(client, broken)
        assert moved
        for edit_id in broken:
            record = record_of(client, edit_id)
            assert events(record).count("refitted") == 1
            assert holds(client, record)
    assert in_order(settings)


def test_an_edit_that_comes_back_is_none_of_the_others_that_it_must_leave_alone(settings: Settings) -> None:
    with started(settings.model_copy(update={"refit_after_revert": False})) as client:
        leaned_on, leaning, *_ = made(client)
        for edit in (leaned_on, leaning):
            client.delete(f"/edits/{edit['id']}")
        answer = client.post(f"/edits/{leaning['id']}/reapply")  # what it leans on is gone, so that it does not hold
        assert (answer.status_code, answer.json()["code"]) == (422, "edit_rejected")
        assert "edit_holds" in {gate["name"] for gate in answer.json()["gates"]}
        assert leaning["id"] not in answer.json()["conflicts"]
