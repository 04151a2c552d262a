"""What the worker does when things around it fail."""

from __future__ import annotations

from typing import Any

import pytest

from app.errors import Unavailable
from app.follower import Follower
from app.settings import Settings
from app.store import Ledger
from tests.app.conftest import Caller, sentence, started


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
