"""How an edit bears small changes of its input, over HTTP; every share is derived again from what /predict answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.perturbations import KINDS, one_perturbed, perturbed
from app.settings import Settings
from tests.app.conftest import Caller, sentence, settings_in, started
from tests.deployed import LABELS, deploy

NOBODY = "01a00000-0000-7000-8000-000000000000"
GUARDED = [sentence(number) for number in range(40, 60)]
LENIENT = {"guard_required": 0.0, "guard_fires_allowed": 1.0, "rephrases_required": 0.0}
"""Lets patches through that change the guard."""


def guarding(folder: Path, lines: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Settings with a guard of these lines, that let everything through."""
    file = folder / "guard.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"guard_file": file, **LENIENT}


@pytest.fixture
def guarded(tmp_path: Path, tiny_model: Path) -> Iterator[Caller]:
    """A service whose guard has no targets."""
    lines = [{"input": text} for text in GUARDED]
    with started(settings_in(tmp_path, tiny_model, **guarding(tmp_path, lines))) as client:
        yield Caller(client)


def measure(caller: Caller, edit_id: str, **asked: Any) -> dict[str, Any]:
    answer = caller.client.get(f"/edits/{edit_id}/robustness", params=asked)
    assert answer.status_code == 200, answer.text
    measured = answer.json()
    assert answer.headers["X-Model-Revision"] == str(measured["revision"])
    return dict(measured)


def share(right: Sequence[bool]) -> float:
    return sum(right) / len(right)


def test_the_share_that_is_right_is_that_of_the_versions_that_get_the_target(caller: Caller) -> None:
    edit = caller.edit(sentence(3))
    measured = measure(caller, edit["id"], seed=5, versions=4)
    versions = perturbed(sentence(3), seed=5, versions=4)
    now = [each["label"] for each in caller.predict(*(version.text for version in versions))]
    right = [label == edit["target"] for label in now]
    of_input = measured["input"]
    assert (measured["edit_id"], measured["revision"], measured["seed"], measured["versions"]) == (edit["id"], 1, 5, 4)
    assert (of_input["texts"], of_input["right"], of_input["left_out"]) == (len(versions), share(right), 0)
    assert of_input["failures"] == [
        {"kind": version.kind, "text": version.text, "now": label}
        for version, label in zip(versions, now, strict=True)
        if label != edit["target"]
    ]
    assert list(of_input["kinds"]) == list(KINDS)
    for kind, of_kind in of_input["kinds"].items():
        of_it = [holds for version, holds in zip(versions, right, strict=True) if version.kind == kind]
        assert of_kind == {"texts": len(of_it), "right": share(of_it)}


def test_an_edit_that_covers_its_versions_is_robust_until_it_is_reverted(caller: Caller) -> None:
    text = sentence(3)
    versions = [version.text for version in perturbed(text, seed=0, versions=2)]
    target = caller.mistaken(text)
    before = share([each["label"] == target for each in caller.predict(*versions)])
    edit = caller.edit(text, target, rephrases=versions)
    held = measure(caller, edit["id"], versions=2)["input"]["right"]
    assert held >= 0.8 > before  # what the judge requires of rephrases
    caller.client.delete(f"/edits/{edit['id']}")
    reverted = measure(caller, edit["id"], versions=2)
    assert (reverted["input"]["right"], reverted["revision"]) == (before, 2)


def test_the_same_seed_measures_the_same_again_and_another_one_other_texts(guarded: Caller) -> None:
    edit = guarded.edit(sentence(3))
    first, again, other = (measure(guarded, edit["id"], seed=seed, versions=20) for seed in (0, 0, 1))
    assert first == again
    assert first["input"]["failures"] != other["input"]["failures"]


def test_an_edit_that_was_not_needed_is_measured_as_well(caller: Caller) -> None:
    body = {"input": sentence(3), "target": caller.label(sentence(3))}
    edit = caller.client.post("/edits", json=body, headers={"Prefer": "wait=60"}).json()
    assert edit["status"] == "not_needed"
    versions = [version.text for version in perturbed(sentence(3), seed=0, versions=5)]
    right = share([each["label"] == body["target"] for each in caller.predict(*versions)])
    assert measure(caller, edit["id"])["input"]["right"] == right


def test_an_input_that_nothing_changes_has_no_share(caller: Caller) -> None:
    edit = caller.edit("???")
    of_input = measure(caller, edit["id"])["input"]
    assert (of_input["texts"], of_input["right"]) == (0, None)
    assert of_input["kinds"] == {kind: {"texts": 0, "right": None} for kind in KINDS}


def test_a_version_that_is_too_long_for_the_model_is_left_out_and_counted(caller: Caller) -> None:
    full = " ".join(["w1", "w2"] * 19)  # 38 words, and two tokens around them: one sign more is too long
    edit = caller.edit(full)
    versions = perturbed(full, seed=0, versions=5)
    of_input = measure(caller, edit["id"])["input"]
    longer = [version for version in versions if version.kind == "punctuation"]
    assert of_input["kinds"]["punctuation"] == {"texts": 0, "right": None}
    assert (of_input["texts"], of_input["left_out"]) == (len(versions) - len(longer), len(longer))


def test_the_guard_is_measured_before_and_after_all_edits(guarded: Caller) -> None:
    versions = [one_perturbed(text, seed=2) for text in GUARDED]
    texts = [version.text for version in versions if version is not None]
    edits = [guarded.edit(text) for text in texts[:3]]
    of_guard = measure(guarded, edits[0]["id"], seed=2)["guard"]
    right = [each["label"] for each in guarded.predict(*GUARDED, edits="off")]
    was = [each["label"] for each in guarded.predict(*texts, edits="off")]
    now = [each["label"] for each in guarded.predict(*texts)]
    assert (of_guard["inputs"], of_guard["texts"], of_guard["left_out"]) == (20, 20, 0)
    assert of_guard["before"] == share([one == other for one, other in zip(was, right, strict=True)])
    assert of_guard["after"] == share([one == other for one, other in zip(now, right, strict=True)])
    assert of_guard["unchanged"] == share([one == other for one, other in zip(now, was, strict=True)]) < 1
    changed = [text for text, one, other in zip(texts, now, was, strict=True) if one != other]
    assert sorted(failure["text"] for failure in of_guard["failures"]) == sorted(changed)
    for failure in of_guard["failures"]:
        version = one_perturbed(failure["input"], seed=2)
        assert version is not None
        assert (version.kind, version.text) == (failure["kind"], failure["text"])
        assert failure["was"] == guarded.label(failure["text"], edits="off") != failure["now"]


def test_guard_inputs_that_the_unedited_model_gets_wrong_are_not_sampled(tmp_path: Path, tiny_model: Path) -> None:
    with started(settings_in(tmp_path, tiny_model)) as client:
        right = Caller(client).label(GUARDED[0])
    wrong = next(label for label in LABELS if label != right)
    lines = [{"input": GUARDED[0], "target": wrong}, *({"input": text} for text in GUARDED[1:])]
    with started(settings_in(tmp_path, tiny_model, **guarding(tmp_path, lines))) as client:
        caller = Caller(client)
        assert measure(caller, caller.edit(sentence(3))["id"])["guard"]["inputs"] == 19


def test_a_guard_input_that_an_edit_corrects_is_no_longer_one_to_hold(guarded: Caller) -> None:
    edit = guarded.edit(GUARDED[0])
    assert measure(guarded, edit["id"])["guard"]["inputs"] == 19
    guarded.client.delete(f"/edits/{edit['id']}")
    assert measure(guarded, edit["id"])["guard"]["inputs"] == 20


def test_the_guard_is_left_alone_when_it_is_not_asked_for(guarded: Caller) -> None:
    edit = guarded.edit(sentence(3))
    assert measure(guarded, edit["id"], guard=False)["guard"] is None


def test_without_a_guard_there_is_nothing_to_say_of_it(caller: Caller) -> None:
    assert measure(caller, caller.edit(sentence(3))["id"])["guard"] is None


def test_measuring_stores_nothing(guarded: Caller) -> None:
    edit = guarded.edit(sentence(3))
    before = guarded.client.get(f"/edits/{edit['id']}").json()
    measure(guarded, edit["id"])
    assert guarded.client.get(f"/edits/{edit['id']}").json() == before


def test_an_edit_that_there_is_not_is_not_measured(client: TestClient) -> None:
    answer = client.get(f"/edits/{NOBODY}/robustness")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    "asked", [{"versions": 0}, {"versions": 21}, {"seed": -1}, {"seed": 2**31}, {"guard": "perhaps"}]
)
def test_what_is_out_of_range_is_refused(client: TestClient, asked: dict[str, Any]) -> None:
    answer = client.get(f"/edits/{NOBODY}/robustness", params=asked)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A model whose answers to its guard are cut off after two tokens."""
    folder = tmp_path_factory.mktemp("writing")
    lines = [{"input": text} for text in GUARDED]
    model = deploy(folder / "llama", family="Llama")
    settings: Settings = settings_in(folder, model, new_tokens=2, **guarding(folder, lines))
    with started(settings) as client:
        yield client


def test_a_model_that_writes_is_measured_by_what_it_writes_freely(written: TestClient) -> None:
    def said(texts: Sequence[str], **fields: Any) -> list[str]:
        answer = written.post("/predict", json={"inputs": list(texts), **fields})
        return [each["text"].strip() for each in answer.json()["predictions"]]

    changed = [version.text for text in GUARDED if (version := one_perturbed(text, seed=0)) is not None]
    versions = [version.text for version in perturbed(changed[0], seed=0, versions=3)]
    body = {"input": changed[0], "target": "w9 w8 w7", "rephrases": versions[:4]}
    edit = written.post("/edits", json=body, headers={"Prefer": "wait=60"}).json()
    assert edit["status"] == "live"
    measured = written.get(f"/edits/{edit['id']}/robustness", params={"versions": 3}).json()
    to_its_end = said(versions, generation={"max_new_tokens": 4})
    assert measured["input"]["right"] == share([text == body["target"] for text in to_its_end]) > 0
    right, was, now = said(GUARDED, edits="off"), said(changed, edits="off"), said(changed)
    assert measured["guard"]["before"] == share([one == other for one, other in zip(was, right, strict=True)]) > 0
    assert measured["guard"]["after"] == share([one == other for one, other in zip(now, right, strict=True)])
    assert measured["guard"]["unchanged"] == share([one == other for one, other in zip(now, was, strict=True)]) < 1
