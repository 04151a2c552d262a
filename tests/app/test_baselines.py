"""Baseline editors through the service: refused for live edits unless a setting allows them, then like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.errors import BaselineEditor
from app.main import serve, verify
from app.settings import Settings
from tests.app.conftest import Caller, sentence, settings_in, started
from tests.deployed import deploy

ASKED = [sentence(number) for number in range(20)]
LOOSE = {"guard_required": 0.0, "guard_fires_allowed": 1.0, "edits_required": 0.0}


def assert_refused(client: TestClient, **body: object) -> None:
    answer = client.post("/edits", json={"input": ASKED[0], "target": "red", **body})
    assert (answer.status_code, answer.json()["code"]) == (422, "baseline_editor")
    assert "'ft'" in answer.json()["detail"]
    assert "ERRATA_BASELINES" in answer.json()["detail"]


def test_a_live_edit_by_a_baseline_is_refused_naming_editor_and_setting(caller: Caller) -> None:
    assert_refused(caller.client, editor="ft")
    assert caller.client.get("/edits").json()["items"] == []


def test_a_dry_run_by_a_baseline_is_not_refused_and_leaves_nothing_live(caller: Caller) -> None:
    before = caller.predict(*ASKED)
    body = {"input": ASKED[0], "target": caller.mistaken(ASKED[0]), "editor": "ft", "dry_run": True}
    record = caller.client.post("/edits", json=body, headers={"Prefer": "wait=60"}).json()
    assert record["status"] == "dry_run", record
    assert record["verdict"]["passed"]
    assert caller.predict(*ASKED) == before


def test_a_baseline_fails_the_guard_s_gates_since_it_acts_everywhere(tmp_path: Path, tiny_model: Path) -> None:
    guard = tmp_path / "guard.jsonl"
    guard.write_text("".join(json.dumps({"input": text}) + "\n" for text in ASKED[1:]))
    with started(settings_in(tmp_path, tiny_model, baselines=True, guard_file=guard)) as client:
        body = {"input": ASKED[0], "target": Caller(client).mistaken(ASKED[0]), "editor": "ft"}
        answer = client.post("/edits", json=body, headers={"Prefer": "wait=60"})
        assert answer.json()["code"] == "edit_rejected"
        (edit,) = client.get("/edits").json()["items"]
        gates = client.get(f"/edits/{edit['id']}").json()["verdict"]["gates"]
        failed = {gate["name"]: gate["measured"] for gate in gates if not gate["passed"]}
        assert failed["guard_fires"] == 1.0


def test_what_the_judge_measures_on_the_guard_is_what_is_served_to_it(tmp_path: Path, tiny_model: Path) -> None:
    guard = tmp_path / "guard.jsonl"
    guard.write_text("".join(json.dumps({"input": text}) + "\n" for text in ASKED[2:]))
    with started(settings_in(tmp_path, tiny_model, baselines=True, guard_file=guard, **LOOSE)) as client:
        caller = Caller(client)
        bare = [said(caller, text) for text in ASKED[2:]]
        shares = set()
        for text, editor in zip(ASKED[:2], ("ft", "ft-kl"), strict=True):
            record = caller.edit(text, editor=editor, options={"learning_rate": 0.01})
            (gate,) = (gate for gate in record["verdict"]["gates"] if gate["name"] == "guard_unchanged")
            now = [said(caller, text) for text in ASKED[2:]]
            unchanged = sum(one == other for one, other in zip(bare, now, strict=True)) / len(bare)
            assert gate["measured"] == pytest.approx(unchanged)
            shares.add(unchanged)
        assert shares != {1.0}


@pytest.mark.parametrize("family", ["Bert", "Llama", "Bart"])
def test_where_baselines_are_allowed_edits_go_live_and_go_without_a_trace(tmp_path: Path, family: str) -> None:
    """With other editors live beside them, and after a restart."""
    settings = settings_in(tmp_path, deploy(tmp_path / "model", family=family), baselines=True, **LOOSE)
    target = {} if family == "Bert" else {"target": "w3 w4"}
    fast = {"options": {"learning_rate": 0.01}}
    with started(settings) as client:
        caller = Caller(client)
        bare = caller.predict(*ASKED)
        first = caller.edit(ASKED[0], editor="ft", **fast, **target)
        between = caller.predict(*ASKED)
        assert between != bare
        other = caller.edit(ASKED[1], **target)
        second = caller.edit(ASKED[2], editor="ft-kl", **fast, **target)
        assert said(caller, ASKED[2]) == second["target"]
        all_three = caller.predict(*ASKED)
    with started(settings) as client:
        caller = Caller(client)
        assert caller.predict(*ASKED) == all_three
        for edit in (second, other):
            assert client.delete(f"/edits/{edit['id']}").status_code == 200
        assert without_revision(caller.predict(*ASKED)) == without_revision(between)
        assert client.delete(f"/edits/{first['id']}").status_code == 200
        assert without_revision(caller.predict(*ASKED)) == without_revision(bare)
    assert all(finding.ok for finding in verify(settings))


def said(caller: Caller, text: str) -> str:
    (answer,) = caller.predict(text)
    return str(answer["label"] if "label" in answer else answer["text"]).strip()


def without_revision(predictions: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{name: value for name, value in each.items() if name != "revision"} for each in predictions]


def test_a_baseline_is_no_default_editor_unless_the_setting_allows_it(settings: Settings) -> None:
    changed = settings.model_copy(update={"editor": "ft"})
    with pytest.raises(BaselineEditor, match=r"'ft' is a baseline.*ERRATA_BASELINES=on"):
        serve(changed)
    with started(changed.model_copy(update={"baselines": True})) as client:
        assert Caller(client).edit(ASKED[0], options={"learning_rate": 0.01})["editor"] == "ft"


def test_the_model_says_which_editors_are_baselines(client: TestClient) -> None:
    shown = {each["name"]: each["baseline"] for each in client.get("/model").json()["editors"]}
    assert shown == {"transformer-patcher": False, "grace": False, "ft": True, "ft-kl": True}


def test_a_baseline_does_not_come_back_where_baselines_may_not_go_live(tmp_path: Path, tiny_model: Path) -> None:
    settings = settings_in(tmp_path, tiny_model, baselines=True, **LOOSE)
    with started(settings) as client:
        edit = Caller(client).edit(ASKED[0], editor="ft", options={"learning_rate": 0.01})
        client.delete(f"/edits/{edit['id']}")
    with started(settings.model_copy(update={"baselines": False})) as client:
        answer = client.post(f"/edits/{edit['id']}/reapply")
        assert (answer.status_code, answer.json()["code"]) == (422, "baseline_editor")
        assert client.get("/model").json()["live_edits"] == 0
