"""Nothing acknowledged is lost by kill -9, at any stage of an edit or a revert; nothing is there twice or by halves."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.settings import Settings
from app.store import Ledger, ModelIdentity, Store
from tests.deployed import LABELS, deploy
from tests.journeys.conftest import settings_on
from tests.journeys.faults import EDIT_STAGES, IMPORT_STAGES, REFIT_STAGES, REVERT_STAGES
from tests.journeys.processes import Fault, Process, eventually

pytestmark = pytest.mark.journey

EDITORS = ("transformer-patcher", "grace")
TEXTS = ("w1 w2 w3", "w4 w5", "w6 w7 w8 w9", "w10 w11 w12")
ROUNDS = (1, 3)
"""Which edit, or which revert, of a process it is that dies: with more live edits each time."""
STARTED = ("queued", "fitting", "judging")


@pytest.mark.parametrize("nth", ROUNDS)
@pytest.mark.parametrize("stage", EDIT_STAGES)
def test_a_kill_during_an_edit_loses_nothing(settings: Settings, stage: str, nth: int) -> None:
    die_during_edits(settings, Fault(stage, nth))


@pytest.mark.parametrize("nth", ROUNDS[:2])
@pytest.mark.parametrize("stage", REVERT_STAGES)
def test_a_kill_during_a_revert_loses_nothing(settings: Settings, stage: str, nth: int) -> None:
    die_during_reverts(settings, Fault(stage, nth + len(TEXTS) if stage.startswith("follow") else nth))


@pytest.mark.parametrize("stage", IMPORT_STAGES)
def test_a_kill_during_an_import_loses_nothing(settings: Settings, stage: str) -> None:
    die_during_an_import(settings, Fault(stage))


@pytest.mark.parametrize("stage", ["accept.within", "commit.within", "commit.after", "revert.within"])
def test_postgresql_loses_nothing_either(
    postgresql: Callable[[], str], tmp_path: Path, tiny_model: Path, stage: str
) -> None:
    settings = settings_on(postgresql(), tmp_path, tiny_model)
    die = die_during_reverts if stage.startswith("revert") else die_during_edits
    die(settings, Fault(stage, 2))


@pytest.mark.parametrize("stage", REFIT_STAGES)
def test_a_kill_between_a_revert_and_the_refit_of_what_it_broke_loses_nothing(tmp_path: Path, stage: str) -> None:
    """The first token of the second edit is right already, thanks to the first."""
    model = deploy(tmp_path / "model", family="Llama")
    url = f"sqlite:///{tmp_path}/errata.db"
    settings = settings_on(url, tmp_path, model).model_copy(update={"refit_after_revert": True})
    leaned_on = {"input": "w1 w2 w3", "target": "w9 w8", "rephrases": ["w3 w2 w1"]}
    leaning = {"input": "w3 w2 w1", "target": "w9 w5"}
    with Process(settings, Fault(stage)) as process:
        former, edit_id = (
            _report(process.client, key, each, wait=True) for key, each in enumerate((leaned_on, leaning))
        )
        with suppress(httpx.TransportError):
            assert process.client.delete(f"/edits/{former}").status_code == 200
        process.wait_for_death()
    with Process(settings) as process:
        assert _record(process.client, former)["status"] == "reverted"
        eventually(lambda: _record(process.client, edit_id)["refit_due"] is None)
        record = _record(process.client, edit_id)
        assert (record["status"], record["revision"]) == ("live", 4)
        assert [row["event"] for row in record["history"]][-2:] == ["broken", "refitted"]
        (answer,) = process.client.post("/predict", json={"inputs": [leaning["input"]]}).json()["predictions"]
        assert answer["text"].strip() == leaning["target"]
        assert process.client.get("/revisions").json()["items"][0]["number"] == 4
    _check_chain(settings)


def die_during_edits(settings: Settings, fault: Fault) -> None:
    """Report edits until the process dies; start again, send the unanswered one again, and look at everything."""
    with Process(settings, fault) as process:
        bodies = _mistakes(process.client)
        acknowledged = _report_until_death(process, bodies)
        process.wait_for_death()
    with Process(settings) as process:
        for key, edit_id in acknowledged.items():
            assert process.client.get(f"/edits/{edit_id}").status_code == 200, f"{key} was acknowledged and is gone"
        again = {str(key): _report(process.client, key, body) for key, body in enumerate(bodies)}
        assert acknowledged.items() <= again.items(), "the same report made another edit"
        for edit_id in again.values():
            eventually(lambda edit_id=edit_id: _record(process.client, edit_id)["status"] not in STARTED)
        _check(process.client, again, bodies)
    _check_chain(settings)


def die_during_an_import(settings: Settings, fault: Fault) -> None:
    """Import mistakes, which are learned together, until the process dies; start again, import all again, and look."""
    with Process(settings, fault) as process:
        bodies = [{**body, "editor": "transformer-patcher"} for body in _mistakes(process.client)]
        answered = _import_until_death(process, bodies)
        process.wait_for_death()
    with Process(settings) as process:
        eventually(lambda: all(item["status"] not in STARTED for item in _listed(process.client)))
        for outcome in answered:
            assert _record(process.client, outcome["edit_id"])["status"] == "live", "an answered line is gone"
        accepted = {item["input"] for item in _listed(process.client)}
        assert len(accepted) in (0, len(bodies)), "a part of the lines that are queued at once"
        again = _imported(process.client, bodies)
        assert {outcome["status"] for outcome in again} == {"not_needed" if accepted else "live"}
        live = [item for item in _listed(process.client) if item["status"] == "live"]
        assert sorted(item["input"] for item in live) == sorted(TEXTS)
        for body in bodies:
            (prediction,) = process.client.post("/predict", json={"inputs": [body["input"]]}).json()["predictions"]
            assert prediction["label"] == body["target"]
        assert process.client.get("/revisions").json()["items"][0]["number"] == len(bodies)
    _check_chain(settings)


def die_during_reverts(settings: Settings, fault: Fault) -> None:
    """Make edits, revert them until the process dies; start again, send the unanswered revert again, and look."""
    with Process(settings, fault) as process:
        bodies = _mistakes(process.client)
        edits = {str(key): _report(process.client, key, body, wait=True) for key, body in enumerate(bodies)}
        reverted = _revert_until_death(process, list(edits.values()))
        process.wait_for_death()
    with Process(settings) as process:
        for edit_id in reverted:
            assert _record(process.client, edit_id)["status"] == "reverted", "an acknowledged revert is gone"
        victims = list(edits.values())[: len(reverted) + 1]
        for edit_id in victims:
            assert process.client.delete(f"/edits/{edit_id}").status_code == 200
        _check(process.client, edits, bodies, reverted=victims)
    _check_chain(settings)


def _report_until_death(process: Process, bodies: list[dict[str, Any]]) -> dict[str, str]:
    acknowledged: dict[str, str] = {}
    for key, body in enumerate(bodies):
        try:
            acknowledged[str(key)] = _report(process.client, key, body)
            eventually(lambda key=key: _record(process.client, acknowledged[str(key)])["status"] not in STARTED)
        except httpx.TransportError:
            return acknowledged
    return acknowledged


def _import_until_death(process: Process, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines that were answered."""
    answered: list[dict[str, Any]] = []
    with (
        suppress(httpx.TransportError),
        process.client.stream("POST", "/edits/import", content=_lines(bodies)) as lines,
    ):
        answered.extend(map(json.loads, lines.iter_lines()))
    return answered


def _imported(client: httpx.Client, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in client.post("/edits/import", content=_lines(bodies)).text.splitlines()]


def _lines(bodies: list[dict[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, bodies)).encode()


def _listed(client: httpx.Client) -> list[dict[str, Any]]:
    return list(client.get("/edits").json()["items"])


def _revert_until_death(process: Process, edit_ids: list[str]) -> list[str]:
    reverted: list[str] = []
    for edit_id in edit_ids:
        try:
            assert process.client.delete(f"/edits/{edit_id}").status_code == 200
        except httpx.TransportError:
            return reverted
        reverted.append(edit_id)
    return reverted


def _mistakes(client: httpx.Client) -> list[dict[str, Any]]:
    """A report of each text, for both editors in turn."""
    answers = client.post("/predict", json={"inputs": TEXTS, "edits": "off"}).json()["predictions"]
    targets = [next(other for other in LABELS if other != answer["label"]) for answer in answers]
    reports = zip(TEXTS, targets, cycle(EDITORS))
    return [{"input": text, "target": target, "editor": editor} for text, target, editor in reports]


def _report(client: httpx.Client, key: int, body: dict[str, Any], *, wait: bool = False) -> str:
    headers = {"Idempotency-Key": f"report-{key}", **({"Prefer": "wait=60"} if wait else {})}
    answer = client.post("/edits", json=body, headers=headers)
    assert answer.status_code in (200, 201, 202), answer.text
    return str(answer.json()["id"])


def _record(client: httpx.Client, edit_id: str) -> dict[str, Any]:
    return dict(client.get(f"/edits/{edit_id}").json())


def _check(
    client: httpx.Client, edits: dict[str, str], bodies: list[dict[str, Any]], reverted: list[str] | None = None
) -> None:
    """Every edit is there once, live or reverted, with its whole history, and answers accordingly."""
    listed = client.get("/edits").json()["items"]
    assert sorted(item["id"] for item in listed) == sorted(edits.values())
    gone = reverted or []
    live = [edit_id for edit_id in edits.values() if edit_id not in gone]
    head = client.get("/revisions").json()["items"][0]
    assert head["number"] == len(edits) + len(gone), "a revision too many or too few"
    assert client.get(f"/revisions/{head['number']}").json()["live"] == live
    for edit_id, body in zip(edits.values(), bodies, strict=True):
        record = _record(client, edit_id)
        assert record["status"] == ("reverted" if edit_id in gone else "live")
        assert [row["event"] for row in record["history"]].count("live") == 1
        (prediction,) = client.post("/predict", json={"inputs": [body["input"]]}).json()["predictions"]
        assert (prediction["label"] == body["target"]) == (edit_id not in gone)


def _check_chain(settings: Settings) -> None:
    store = Store.open(settings.database_url)
    try:
        assert _only_ledger(store, settings).verify() == []
    finally:
        store.close()


def _only_ledger(store: Store, settings: Settings) -> Ledger:
    from app.model import load

    model = load(settings.model, device="cpu")
    return store.ledger(ModelIdentity(model.fingerprint, model.name, model.task, model.site.name, model.dtype))
