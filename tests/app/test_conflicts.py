"""Two edits that pull in different directions: refused at once, or found by the judge, and named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import normalizers
from transformers import AutoTokenizer

from app.settings import Settings
from tests.app.conftest import Caller, sentence, settings_in, started
from tests.deployed import LABELS, deploy

EDITORS = ("transformer-patcher", "grace")
LONG = "w1 w2 w3 w4 w5 w6 w7"
NEARLY = f"{LONG} w8"
KNOWN = [sentence(number) for number in range(40, 70)]


def uncased(folder: Path) -> Path:
    """Make a model read capitals as small letters."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["Bert", "Llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uncased(deploy(tmp_path_factory.mktemp("model") / request.param, family=request.param))


def remembering(folder: Path, model: Path, **changes: Any) -> Settings:
    (folder / "memory").write_text("".join(json.dumps({"input": text}) + "\n" for text in KNOWN))
    lenient = {"guard_required": 0.0, "guard_fires_allowed": 1.0, "memory_from_traffic": False, "new_tokens": 6}
    return settings_in(folder, model, **{**lenient, "memory_file": folder / "memory", **changes})


@pytest.fixture
def settings(tmp_path: Path, folder: Path) -> Settings:
    return remembering(tmp_path, folder)


@pytest.fixture
def caller(settings: Settings) -> Iterator[Caller]:
    with started(settings) as client:
        yield Caller(client)


def said(caller: Caller, text: str) -> str:
    (answer,) = caller.predict(text)
    return str(answer.get("label", answer.get("text"))).strip()


def mistakes(caller: Caller, *texts: str) -> list[str]:
    """Answers that the model gives to none of the texts."""
    known = caller.client.get("/model").json()["labels"] or ["w60 w61", "w62", "w63"]
    return [each for each in known if each not in {said(caller, text) for text in texts}]


def report(caller: Caller, text: str, target: str, **fields: Any) -> httpx.Response:
    return caller.client.post("/edits", json={"input": text, "target": target, **fields}, headers={"Prefer": "wait=60"})


@pytest.mark.parametrize(("first", "second"), list(product(EDITORS, EDITORS)))
def test_of_two_edits_whose_inputs_the_model_reads_as_the_same_the_second_is_rejected_naming_the_first(
    caller: Caller, first: str, second: str
) -> None:
    one, other = mistakes(caller, "w1 w2 w3")[:2]
    former = caller.edit("w1 w2 w3", one, editor=first)
    before = caller.predict("w1 w2 w3", *KNOWN)
    answer = report(caller, "W1 w2 W3", other, editor=second)
    assert (answer.status_code, answer.json()["code"]) == (422, "edit_rejected"), answer.text
    (gate,) = answer.json()["gates"]
    assert (gate["name"], gate["measured"]) == ("other_edits_hold", 0.0)
    (failure,) = gate["failures"]
    assert (failure["edit_id"], failure["input"], failure["wanted"]) == (former["id"], "w1 w2 w3", one)
    assert answer.json()["conflicts"] == [former["id"]]
    assert former["id"] in answer.json()["detail"]
    assert repr(one) in answer.json()["detail"]
    record = caller.client.get(f"/edits/{answer.json()['edit_id']}").json()
    assert record["status"] == "rejected"
    (near,) = record["verdict"]["conflicts"]
    assert near == {"edit_id": former["id"], "input": "w1 w2 w3", "wanted": one, "similarity": 1.0}
    assert caller.predict("w1 w2 w3", *KNOWN) == before


@pytest.mark.parametrize(("first", "second"), [EDITORS, EDITORS[::-1]])
def test_what_is_read_as_the_same_can_be_superseded_and_comes_back(caller: Caller, first: str, second: str) -> None:
    one, other = mistakes(caller, "w1 w2 w3")[:2]
    former = caller.edit("w1 w2 w3", one, editor=first)
    held = caller.predict("w1 w2 w3", *KNOWN)
    newer = caller.edit("W1 w2 W3", other, editor=second, supersedes=former["id"])
    assert newer["verdict"]["conflicts"] == []
    assert said(caller, "w1 w2 w3") == said(caller, "W1 w2 W3") == other
    assert caller.client.get(f"/edits/{former['id']}").json()["status"] == "superseded"
    assert caller.client.delete(f"/edits/{newer['id']}").status_code == 200
    assert caller.predict("w1 w2 w3", *KNOWN) == held
    assert caller.client.get(f"/edits/{former['id']}").json()["status"] == "live"


def test_the_same_answer_for_what_is_read_as_the_same_is_no_conflict(caller: Caller) -> None:
    (one, *_) = mistakes(caller, "w1 w2 w3")
    caller.edit("w1 w2 w3", one)
    assert report(caller, "W1 W2 W3", one).json()["status"] == "not_needed"


@pytest.mark.parametrize("folder", ["Bert"], indirect=True)
def test_what_the_model_reads_otherwise_cannot_be_superseded(caller: Caller) -> None:
    one, other = mistakes(caller, "w1 w2 w3")[:2]
    former = caller.edit("w1 w2 w3", one)
    answer = report(caller, "W1 w2 w4", other, supersedes=former["id"])
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize("folder", ["Bert"], indirect=True)
@pytest.mark.parametrize("editor", EDITORS)
def test_a_near_duplicate_that_wants_another_answer_is_named_with_its_similarity(caller: Caller, editor: str) -> None:
    one, other = mistakes(caller, LONG, NEARLY)[:2]
    former = caller.edit(LONG, one, editor=editor)
    far = caller.edit("w80 w81", next(label for label in LABELS if label != said(caller, "w80 w81")))
    tried = report(caller, NEARLY, other, dry_run=True, editor=editor)
    verdict = tried.json()["verdict"] if tried.status_code == 200 else record_of(caller, tried)["verdict"]
    (near,) = verdict["conflicts"]
    assert (near["edit_id"], near["input"], near["wanted"]) == (former["id"], LONG, one)
    assert 0.9 <= near["similarity"] < 1
    rejected = report(caller, NEARLY, other, keep=[NEARLY], editor=editor)
    assert (rejected.status_code, rejected.json()["conflicts"]) == (422, [former["id"]])
    assert far["id"] not in rejected.json()["detail"]
    assert repr(LONG) in rejected.json()["detail"]


@pytest.mark.parametrize("folder", ["Bert"], indirect=True)
def test_a_near_duplicate_that_wants_the_same_answer_or_is_not_live_is_not_named(caller: Caller) -> None:
    one, other = mistakes(caller, LONG, NEARLY)[:2]
    former = caller.edit(LONG, one)
    same = report(caller, NEARLY, one, dry_run=True).json()
    assert same["status"] == "not_needed" or same["verdict"]["conflicts"] == []
    caller.client.delete(f"/edits/{former['id']}")
    assert report(caller, NEARLY, other, dry_run=True).json()["verdict"]["conflicts"] == []


def record_of(caller: Caller, rejection: httpx.Response) -> dict[str, Any]:
    return dict(caller.client.get(f"/edits/{rejection.json()['edit_id']}").json())
