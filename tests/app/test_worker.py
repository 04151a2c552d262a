"""What the worker does when things around it fail."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from app.errors import Unavailable
from app.follower import Follower
from app.settings import Settings
from app.store import Ledger
from editors.codebook import Grace
from editors.errors import FitFailed
from editors.neuron import TransformerPatcher
from tests.app.conftest import Caller, sentence, settings_in, started
from tests.journeys.processes import eventually


@pytest.mark.parametrize("method", ["judging", "commit", "requeue_abandoned", "claim"])
def test_an_edit_outlives_a_database_that_is_away_for_a_while(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    real, calls = getattr(Ledger, method), [0]

    def away_at_first(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] <= 2:
            raise Unavailable("The database is away.")
        return real(*args, **kwargs)

    monkeypatch.setattr(Ledger, method, away_at_first)
    with started(settings) as client:
        edit = Caller(client).edit(sentence(1))
        assert [row["event"] for row in edit["history"]].count("live") == 1
    assert calls[0] > 2


def test_an_unforeseen_error_is_recorded_and_the_next_edit_is_taken(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Follower.catch_up, [0]

    async def broken_once(follower: Follower) -> Any:
        calls[0] += 1
        if calls[0] == 2:  # the first is the start's
            raise KeyError("surprise")
        return await real(follower)

    monkeypatch.setattr("app.main.FOLLOW_SECONDS", 1000.0)
    monkeypatch.setattr(Follower, "catch_up", broken_once)
    with started(settings) as client:
        caller = Caller(client)
        body = {"input": sentence(1), "target": caller.mistaken(sentence(1))}
        answer = client.post("/edits", json=body, headers={"Prefer": "wait=60"})
        assert (answer.status_code, answer.json()["code"]) == (422, "edit_failed")
        assert "KeyError: 'surprise'" in answer.json()["detail"]
        assert caller.edit(sentence(2))["status"] == "live"


EDITORS = {"transformer-patcher": TransformerPatcher, "grace": Grace}
TEXT, SAME = "w1 w2 unseen", "w1 w2 unheard"
"""The same to a tokenizer that does not know the last word."""


@pytest.fixture
def guarded(tmp_path: Path, tiny_model: Path) -> Settings:
    """A service with a guard that no edit of TEXT can leave unchanged."""
    (tmp_path / "guard").write_text(f'{{"input": "{SAME}"}}\n{{"input": "{sentence(60)}"}}\n')
    return settings_in(tmp_path, tiny_model, guard_file=tmp_path / "guard", memory_from_traffic=False)


def rejected(caller: Caller, editor: str) -> dict[str, Any]:
    """The record of an edit of TEXT, once it is rejected."""
    body = {"input": TEXT, "target": caller.mistaken(TEXT), "editor": editor}
    answer = caller.client.post("/edits", json=body, headers={"Prefer": "wait=60"})
    assert (answer.status_code, answer.json()["code"]) == (422, "edit_rejected"), answer.text
    return dict(caller.client.get(f"/edits/{answer.json()['edit_id']}").json())


def failed(record: dict[str, Any]) -> dict[str, list[str]]:
    """The inputs that each failed gate lists."""
    gates = record["verdict"]["gates"]
    return {gate["name"]: [each["input"] for each in gate["failures"]] for gate in gates if not gate["passed"]}


@pytest.mark.parametrize("editor", EDITORS)
@pytest.mark.parametrize("rounds", [1, 3])
def test_an_edit_is_fitted_again_with_what_it_disturbed_so_many_rounds_at_most(
    guarded: Settings, monkeypatch: pytest.MonkeyPatch, editor: str, rounds: int
) -> None:
    fit, remembered = EDITORS[editor].fit, []

    def counted(self: Any, problem: Any, options: Any) -> Any:
        keys, rows = (sum(map(len, parts)) for parts in ([each.keys for each in problem.remembered], problem.memory))
        remembered.append(keys if problem.inside is not None else rows)
        return fit(self, problem, options)

    monkeypatch.setattr(EDITORS[editor], "fit", counted)
    with started(guarded.model_copy(update={"judge_rounds": rounds})) as client:
        record = rejected(Caller(client), editor)
    assert failed(record) == {"guard_unchanged": [SAME], "guard_fires": []}
    assert len(remembered) == rounds
    assert [now - before for before, now in pairwise(remembered)] == [1] * (rounds - 1)


@pytest.mark.parametrize("editor", EDITORS)
def test_an_edit_that_cannot_be_learned_beside_what_it_disturbed_is_rejected_for_what_it_disturbed(
    guarded: Settings, monkeypatch: pytest.MonkeyPatch, editor: str
) -> None:
    fit, rounds = EDITORS[editor].fit, [0]

    def once(self: Any, problem: Any, options: Any) -> Any:
        rounds[0] += 1
        if rounds[0] > 1:
            raise FitFailed("The memory wants what the edit forbids.")
        return fit(self, problem, options)

    monkeypatch.setattr(EDITORS[editor], "fit", once)
    with started(guarded) as client:
        record = rejected(Caller(client), editor)
    assert failed(record) == {"guard_unchanged": [SAME], "guard_fires": []}
    assert rounds == [2]
    assert record["fit"] is not None


@pytest.mark.parametrize("editor", EDITORS)
def test_a_patch_that_makes_answers_of_no_finite_number_is_rejected_and_names_them(
    guarded: Settings, monkeypatch: pytest.MonkeyPatch, editor: str
) -> None:
    fit = EDITORS[editor].fit

    def overflowing(self: Any, problem: Any, options: Any) -> Generator[Any, None, Any]:
        fitted = yield from fit(self, problem, options)
        values = fitted.tensors["values"]
        return replace(fitted, tensors={**fitted.tensors, "values": values / values.abs().amax() * 3e38})

    monkeypatch.setattr(EDITORS[editor], "fit", overflowing)
    with started(guarded) as client:
        caller = Caller(client)
        before = caller.predict(TEXT, SAME, sentence(60))
        record = rejected(caller, editor)
        assert failed(record)["finite"] == [TEXT, SAME]
        assert (record["after"], record["before"]["prediction"]["label"]) == (None, before[0]["label"])
        assert caller.predict(TEXT, SAME, sentence(60)) == before


def test_the_judge_looks_at_an_edit_before_anybody_reports_the_next_one(settings: Settings) -> None:
    with started(settings) as client:
        parts = client.app.state.service.parts  # type: ignore[attr-defined]
        edits = parts.editing._shop.judge._edits
        for number in (1, 2):
            Caller(client).edit(sentence(number))
            eventually(lambda count=number: len(edits.now.answers) == count)
            assert torch.equal(edits.now.alive, parts.engine.live.alive)
