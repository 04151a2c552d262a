"""The judge's short computation on stored rows equals running the whole model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings
from tests.app.conftest import Caller, sentence, settings_in, started

REMEMBERED = [sentence(number) for number in range(60, 66)]
KNOWN = [sentence(number) for number in range(20, 60)]


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path) -> Settings:
    """A service that remembers six texts, guards forty others, and lets patches through that change some of them."""
    lenient = {"guard_required": 0.0, "guard_fires_allowed": 1.0, "memory_from_traffic": False}
    memory, guard = (tmp_path / name for name in ("memory.jsonl", "guard.jsonl"))
    for file, texts in ((memory, REMEMBERED), (guard, KNOWN)):
        file.write_text("".join(json.dumps({"input": text}) + "\n" for text in texts))
    return settings_in(tmp_path, tiny_model, memory_file=memory, guard_file=guard, **lenient)


@pytest.fixture
def caller(settings: Settings) -> Iterator[Caller]:
    with started(settings) as client:
        yield Caller(client)


def gates(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {gate["name"]: gate for gate in record["verdict"]["gates"]}


def changed(caller: Caller) -> list[str]:
    """The guard's texts that the service answers otherwise than the unedited model: by full passes of both."""
    now, bare = caller.predict(*KNOWN), caller.predict(*KNOWN, edits="off")
    return [text for text, one, other in zip(KNOWN, now, bare, strict=True) if one["label"] != other["label"]]


def test_the_guard_gate_lists_exactly_what_the_whole_model_answers_otherwise(caller: Caller) -> None:
    seen: set[str] = set()
    for number in range(8):
        if caller.label(sentence(number)) != "blue":
            edit = caller.edit(sentence(number), "blue")
            gate = gates(edit)["guard_unchanged"]
            assert sorted(failure["input"] for failure in gate["failures"]) == sorted(changed(caller))
            assert gate["measured"] == pytest.approx(1 - len(changed(caller)) / len(KNOWN))
            seen.update(changed(caller))
    assert seen, "no edit changed the guard: this test would show nothing"


def test_the_share_of_the_guard_that_a_patch_fires_on_is_what_predict_shows(caller: Caller) -> None:
    shares = []
    for number in range(6):
        if caller.label(sentence(number)) != "red":
            edit = caller.edit(sentence(number), "red")
            fired = [any(each["edit_id"] == edit["id"] for each in row["fired"]) for row in caller.predict(*KNOWN)]
            assert gates(edit)["guard_fires"]["measured"] == pytest.approx(sum(fired) / len(KNOWN))
            shares.append(sum(fired))
    assert any(shares), "no patch fired on the guard: this test would show nothing"


def test_what_a_removal_breaks_is_what_the_whole_model_then_gets_wrong(caller: Caller) -> None:
    """Edits of both kinds, in whatever order they leave; in test_refits something certainly breaks."""
    edits: list[dict[str, Any]] = []
    for number in range(20):
        wanted, editor = ("green", "blue", "red")[number % 3], ("transformer-patcher", "grace")[number % 2]
        body = {"input": sentence(number), "target": wanted, "editor": editor}
        answer = caller.client.post("/edits", json=body, headers={"Prefer": "wait=60"})
        edits += [answer.json()] if answer.status_code == 201 else []
    while edits:
        victim = edits.pop(0)
        answer = caller.client.delete(f"/edits/{victim['id']}").json()
        broken = {failure["edit_id"] for failure in gates(answer)["other_edits_hold"]["failures"]}
        assert broken == {edit["id"] for edit in edits if caller.label(edit["input"]) != edit["target"]}
        edits = [edit for edit in edits if edit["id"] not in broken]


def test_an_edit_that_changes_too_much_of_the_guard_is_rejected_and_lists_it(
    tmp_path: Path, settings: Settings
) -> None:
    strict = settings.model_copy(update={"guard_required": 1.0, "judge_rounds": 1})
    with started(strict) as client:
        caller = Caller(client)
        answers = [
            client.post("/edits", json={"input": sentence(n), "target": "blue"}, headers={"Prefer": "wait=60"})
            for n in range(8)
        ]
        rejected = [answer.json() for answer in answers if answer.status_code == 422]
        assert rejected, "no edit was rejected: this test would show nothing"
        assert {gate["name"] for problem in rejected for gate in problem["gates"]} == {"guard_unchanged"}
        assert rejected[0]["gates"][0]["failures"][0]["input"] in KNOWN
        assert changed(caller) == []


def test_further_rounds_that_remember_what_was_disturbed_let_more_edits_pass(
    tmp_path: Path, settings: Settings
) -> None:
    accepted = {}
    for rounds in (1, 3):
        strict = {"guard_required": 1.0, "judge_rounds": rounds, "database_url": f"sqlite:///{tmp_path}/{rounds}.db"}
        with started(settings.model_copy(update=strict)) as client:
            caller = Caller(client)
            texts = [text for text in map(sentence, range(8)) if caller.label(text) != "blue"]
            answers = [
                client.post("/edits", json={"input": text, "target": "blue"}, headers={"Prefer": "wait=60"})
                for text in texts
            ]
            accepted[rounds] = [answer.status_code for answer in answers].count(201)
            assert changed(caller) == []
    assert accepted[3] > accepted[1]
