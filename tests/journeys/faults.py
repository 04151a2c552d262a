"""Stages of a change at which a process can be made to kill itself, without a trace of it in the service."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator
from typing import Any

from sqlalchemy import Engine as SqlEngine
from sqlalchemy import event

from app.editing.learning import Learning
from app.follower import Follower
from app.judge import Judge
from app.store import Ledger
from editors.codebook import value
from editors.neuron import TransformerPatcher, closed_form

BEFORE, WITHIN, AFTER = "before", "within", "after"

_CHANGES = ("accept", "claim", "judging", "commit", "revert", "refit")
EDIT_STAGES = (
    *(f"{change}.{moment}" for change in _CHANGES[:4] for moment in (BEFORE, WITHIN, AFTER)),
    "capture.after",
    "fit.before",
    "judge.before",
    "judge.after",
    "follow.before",
    "follow.after",
)
REVERT_STAGES = (
    "revert.before",
    "revert.within",
    "revert.after",
    "judge_removal.after",
    "follow.before",
    "follow.after",
)
_CHANGES_OF_SEVERAL = ("accept_each", "claim_these", "judging_these", "commit_each")
IMPORT_STAGES = (
    "accept_each.within",
    "claim_these.after",
    "fit_together.before",
    "judging_these.within",
    "judge.after",
    "commit_each.within",
    "commit_each.after",
)
REFIT_STAGES = tuple(f"refit.{moment}" for moment in (BEFORE, WITHIN, AFTER))


def arm(stage: str, nth: int) -> None:
    """Die at the nth time that this process comes by `stage`."""
    name, moment = stage.split(".")
    trap = _Trap(nth)
    if name == "claim":  # an idle worker looks for edits all the time; only a look that finds one counts
        trap = _Trap(1)
        _wrap(Ledger, "accept", AFTER, _Trap(nth, then=trap.enable))
        trap.enabled = False
    if name in _CHANGES + _CHANGES_OF_SEVERAL:
        _arm_change(name, moment, trap)
        return
    places: dict[str, list[tuple[Any, str]]] = {
        "capture": [(Learning, "capture")],
        "judge": [(Judge, "of_patch")],
        "judge_removal": [(Judge, "of_alive")],
        "follow": [(Follower, "_follow")],
        "fit": [(closed_form, "fit"), (value, "fit")],
        "fit_together": [(TransformerPatcher, "fit_together")],
    }
    for owner, method in places[name]:
        _wrap(owner, method, moment, trap)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _Trap:
    def __init__(self, nth: int, then: Callable[[], None] = _die) -> None:
        self.enabled = True
        self._left = nth
        self._then = then

    def enable(self) -> None:
        self.enabled = True

    def spring(self) -> None:
        if not self.enabled:
            return
        self._left -= 1
        if self._left == 0:
            self._then()


def _arm_change(name: str, moment: str, trap: _Trap) -> None:
    """Before a store's transaction, inside it as it is about to be committed, or after it."""
    if moment != WITHIN:
        _wrap(Ledger, name, moment, trap)
        return
    inside = threading.local()

    def mark(method: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*args: Any, **kwargs: Any) -> Any:
            inside.here = True
            try:
                return method(*args, **kwargs)
            finally:
                inside.here = False

        return marked

    setattr(Ledger, name, mark(getattr(Ledger, name)))

    @event.listens_for(SqlEngine, "commit")
    def before_commit(connection: object) -> None:
        if getattr(inside, "here", False):
            trap.spring()


def _wrap(owner: Any, name: str, moment: str, trap: _Trap) -> None:
    method = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if moment == BEFORE:
            trap.spring()
        result = method(*args, **kwargs)
        return _then(result, trap) if moment == AFTER else result

    setattr(owner, name, wrapped)


def _then(result: Any, trap: _Trap) -> Any:
    """Spring when the result is there; of a coroutine or a generator, when it has ended."""
    if isinstance(result, Generator):
        return _ended(result, trap)
    if not hasattr(result, "__await__"):
        trap.spring()
        return result

    async def awaited() -> Any:
        value = await result
        trap.spring()
        return value

    return awaited()


def _ended(slices: Generator[Any, None, Any], trap: _Trap) -> Generator[Any, None, Any]:
    value = yield from slices
    trap.spring()
    return value
