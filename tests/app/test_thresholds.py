"""What a report may ask of the judge: more than the service does, never less."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.settings import Settings
from tests.app.conftest import Caller, sentence, settings_in, started
from tests.deployed import LABELS

SERVICE = {
    "rephrases_required": 0.5,
    "guard_required": 0.5,
    "guard_fires_allowed": 0.5,
    "edits_required": 0.5,
    "judge_rounds": 1,
    "memory_from_traffic": False,
}
GUARD = ["w1 w2 unheard", *(sentence(number) for number in range(60, 69))]
TEXT = "w1 w2 unseen"
"""To a tokenizer that knows neither word, the same as one input of ten of the guard."""
FAR = "w80 w81 w82"


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path) -> Settings:
    """A service that asks little, with a guard of ten inputs that are its memory, too."""
    (tmp_path / "guard").write_text("".join(json.dumps({"input": text}) + "\n" for text in GUARD))
    return settings_in(tmp_path, tiny_model, memory_file=tmp_path / "guard", **SERVICE)


@pytest.fixture
def caller(settings: Settings) -> Iterator[Caller]:
    with started(settings) as client:
        yield Caller(client)


def report(caller: Caller, **fields: Any) -> httpx.Response:
    body = {"input": TEXT, "target": caller.mistaken(TEXT), "editor": "grace", **fields}
    return caller.client.post("/edits", json=body, headers={"Prefer": "wait=60"})


def unsaid(caller: Caller, *texts: str, besides: str = "") -> str:
    """A label that the unedited model gives to none of the texts."""
    said = {besides, *(caller.label(text, edits="off") for text in texts)}
    return next(label for label in LABELS if label not in said)


@pytest.mark.parametrize(
    ("required", "measured"), [({"guard_unchanged": 0.95}, 0.9), ({"guard_fires": 0.05}, 0.1)], ids=str
)
def test_what_passes_otherwise_is_rejected_where_the_report_asks_for_more(
    caller: Caller, required: dict[str, float], measured: float
) -> None:
    ((name, value),) = required.items()
    answer = report(caller, required=required)
    assert (answer.status_code, answer.json()["code"]) == (422, "edit_rejected")
    (gate,) = answer.json()["gates"]
    assert (gate["name"], gate["required"]) == (name, value)
    assert gate["measured"] == pytest.approx(measured)
    assert caller.client.get(f"/edits/{answer.json()['edit_id']}").json()["required"] == required
    assert report(caller).status_code == 201


def test_rephrases_that_do_not_hold_reject_an_edit_that_asks_for_all_of_them(caller: Caller) -> None:
    """An entry's ball does not reach to a rephrase that shares no word with its input."""
    fields = {"rephrases": ["w1 w2 unsaid", FAR], "target": unsaid(caller, TEXT, FAR)}
    assert report(caller, **fields, dry_run=True).json()["verdict"]["passed"]
    answer = report(caller, **fields, required={"rephrases_hold": 1.0})
    (gate,) = answer.json()["gates"]
    assert (gate["name"], gate["measured"], gate["required"]) == ("rephrases_hold", 0.5, 1.0)


def test_every_gate_that_fails_is_listed_at_once(caller: Caller) -> None:
    strict = {"rephrases_hold": 1.0, "guard_fires": 0.0, "other_edits_hold": 1.0}
    other = report(caller).json()
    target = unsaid(caller, TEXT, FAR, besides=other["target"])
    fields = {"rephrases": ["w1 w2 unknown", FAR], "keep": ["w1 w2 unnamed"], "required": strict}
    answer = report(caller, input="w1 w2 unsaid", target=target, **fields)
    assert answer.status_code == 422
    assert {gate["name"] for gate in answer.json()["gates"]} == {*strict, "keep_unchanged"}
    record = caller.client.get(f"/edits/{answer.json()['edit_id']}").json()
    passed = [gate["name"] for gate in record["verdict"]["gates"] if gate["passed"]]
    assert passed == ["edit_holds", "finite", "guard_unchanged"]


@pytest.mark.parametrize(
    ("name", "value", "service"),
    [
        ("rephrases_hold", 0.4, 0.5),
        ("guard_unchanged", 0.0, 0.5),
        ("guard_fires", 0.6, 0.5),
        ("other_edits_hold", 0.49, 0.5),
    ],
)
def test_less_than_the_service_asks_for_is_refused_naming_both(
    caller: Caller, name: str, value: float, service: float
) -> None:
    answer = report(caller, required={name: value})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert all(said in answer.json()["detail"] for said in (name, str(value), str(service)))
    assert caller.client.get("/edits").json()["items"] == []


@pytest.mark.parametrize(
    "required",
    [
        {"edit_holds": 1.0},
        {"keep_unchanged": 1.0},
        {"colour": 1.0},
        {"guard_unchanged": 1.1},
        {"guard_fires": -0.1},
        {"guard_unchanged": "1"},
        {"guard_unchanged": True},
        [],
        None,
    ],
    ids=str,
)
def test_what_is_no_threshold_is_refused(caller: Caller, required: Any) -> None:
    answer = report(caller, required=required)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "required" in answer.json()["detail"]
    assert caller.client.get("/edits").json()["items"] == []


def test_what_was_required_is_part_of_the_record_and_holds_again_at_its_return(caller: Caller) -> None:
    """What an edit asked of the guard is asked again when it comes back, under the guard of that time."""
    untouched = json.dumps({"input": sentence(60)}).encode()
    caller.client.put("/guard", content=untouched, headers={"Prefer": "wait=60"})
    edit = report(caller, required={"guard_unchanged": 0.95}).json()
    assert caller.client.get(f"/edits/{edit['id']}").json()["required"] == {"guard_unchanged": 0.95}
    assert {gate["name"]: gate["required"] for gate in edit["verdict"]["gates"]}["guard_unchanged"] == 0.95
    caller.client.delete(f"/edits/{edit['id']}")
    caller.client.delete("/guard")
    again = caller.client.post(f"/edits/{edit['id']}/reapply")
    assert (again.status_code, again.json()["code"]) == (422, "edit_rejected")
    assert [(gate["name"], gate["required"]) for gate in again.json()["gates"]] == [("guard_unchanged", 0.95)]
    lenient = report(caller).json()
    caller.client.delete(f"/edits/{lenient['id']}")
    assert caller.client.post(f"/edits/{lenient['id']}/reapply").status_code == 200


def test_what_was_required_goes_with_an_export_into_another_service(
    caller: Caller, settings: Settings, tmp_path: Path
) -> None:
    asked = {"guard_unchanged": 0.75, "guard_fires": 0.25}
    assert report(caller, required=asked).status_code == 201
    assert caller.edit(sentence(5), keep=[sentence(60)])["required"] == {}
    lines = caller.client.get("/edits/export").content
    first, second = (json.loads(line) for line in lines.splitlines())
    assert (first["required"], "required" in second) == (asked, False)
    elsewhere = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/elsewhere.db"})
    with started(elsewhere) as client:
        outcomes = [json.loads(line) for line in client.post("/edits/import", content=lines).text.splitlines()]
        assert [outcome["status"] for outcome in outcomes] == ["live", "live"]
        assert client.get(f"/edits/{outcomes[0]['edit_id']}").json()["required"] == asked
    stricter = settings.model_copy(update={"guard_required": 0.8, "database_url": f"sqlite:///{tmp_path}/third.db"})
    with started(stricter) as client:
        outcomes = [json.loads(line) for line in client.post("/edits/import", content=lines).text.splitlines()]
        assert outcomes[0]["error"]["code"] == "invalid_request"
        assert outcomes[1]["status"] == "live"


def test_an_idempotency_key_stands_for_what_was_required_too(caller: Caller) -> None:
    body = {"input": TEXT, "target": caller.mistaken(TEXT), "editor": "grace"}

    def sent(key: str, **fields: Any) -> httpx.Response:
        headers = {"Idempotency-Key": key, "Prefer": "wait=60"}
        return caller.client.post("/edits", json={**body, **fields}, headers=headers)

    first, same, empty = (sent("a", **fields) for fields in ({}, {}, {"required": {}}))
    assert first.json()["id"] == same.json()["id"] == empty.json()["id"]
    other = sent("a", required={"guard_unchanged": 0.75})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    caller.client.delete(f"/edits/{first.json()['id']}")
    asked, again = (sent("b", required={"guard_unchanged": 0.75}) for _ in range(2))
    assert asked.json()["id"] == again.json()["id"] != first.json()["id"]
    assert sent("b").json()["code"] == "idempotency_key_reused"
