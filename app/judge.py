"""Every edit is a regression test for all later ones: gates, measured before anything goes live.

The guard and all live edits are judged on stored activations (`app.standing`). A text that is written is unchanged
exactly when at every one of its positions the same token leads. Runs on the device thread, in slices.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from app.engine import Live, View
from app.memory import Memory, Shelved
from app.model import Model
from app.standing import Outcome, Standing
from editors.types import Rows

LISTED = 100
"""Failures listed of one gate."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One thing that was measured, what was required, and what failed."""

    name: str
    measured: float
    required: float
    failures: Sequence[Mapping[str, Any]] = ()
    at_most: bool = False

    @classmethod
    def share(cls, name: str, of: int, *, required: float, failures: Sequence[Mapping[str, Any]]) -> Gate:
        """The share of `of` things that did not fail; 1 where there are none."""
        return cls(name, (of - len(failures)) / of if of else 1.0, required, failures)

    @property
    def passed(self) -> bool:
        return self.measured <= self.required if self.at_most else self.measured >= self.required

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "measured": self.measured,
            "required": self.required,
            "passed": self.passed,
            "failures": list(self.failures[:LISTED]),
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judged evidence of an edit, or of a removal."""

    gates: tuple[Gate, ...]

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)

    def failed_gates(self) -> list[Gate]:
        return [gate for gate in self.gates if not gate.passed]

    def with_gates(self, gates: Sequence[Gate]) -> Verdict:
        """The same evidence after further gates."""
        return Verdict((*gates, *self.gates))

    def as_json(self) -> dict[str, Any]:
        return {"passed": self.passed, "gates": [gate.as_json() for gate in self.gates]}


@dataclass(frozen=True, slots=True)
class Required:
    """The shares that gates require."""

    rephrases: float
    guard: float
    guard_fires: float


@dataclass(frozen=True, slots=True)
class Exemption:
    """Rows that a change is meant to change: the edit's own, and guard inputs equal to an edited one."""

    edit_ids: frozenset[str] = frozenset()
    input_keys: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict, and the rows that a next round of the fit should remember."""

    verdict: Verdict
    offended: Rows


class Outdated(Exception):
    """A revision shall be judged that another one has followed, which was judged already."""


class Judge:
    """Measures what a change of the live patches does to the guard and to every live edit.

    Every method is a generator that runs on the device thread; one at a time may be under way. Each raises Outdated for
    a `live` that is older than one that was judged before.
    """

    def __init__(self, memory: Memory, model: Model, required: Required) -> None:
        self.required = required
        self._memory = memory
        self._model = model
        self._guard = Standing(memory.guard.texts, model, fixed=True)
        self._edits = Standing(memory.edits.texts, model, fixed=False)
        self._revision = 0
        self._judged_last: tuple[str, Outcome, Outcome] | None = None  # an edit that may go live, and what it would do

    def of_patch(self, live: Live, view: View, *, exempt: Exemption) -> Generator[None, None, Judged]:
        """What one more patch does, the last of the view that would be served."""
        shelved = yield from self._stand(live)
        number = len(live.alive)
        guard = yield from self._guard.under(view)
        edits = yield from self._edits.under(view)
        self._judged_last = view.edit_ids[number], guard, edits
        touched = guard.texts_touched_by(number).tolist()
        counted = [text for text in touched if self._memory.guard_keys[text] not in exempt.input_keys]
        fires = len(counted) / len(self._memory.guard) if len(self._memory.guard) else 0.0
        gates, offended = self._judged(live, shelved, guard, edits, exempt)
        return Judged(Verdict((*gates, Gate("guard_fires", fires, self.required.guard_fires, at_most=True))), offended)

    def of_alive(self, live: Live, alive: Tensor, *, exempt: Exemption) -> Generator[None, None, Judged]:
        """What it does to serve the patches `alive` (a mask over the overlay) instead of the live ones."""
        shelved = yield from self._stand(live)
        view = View(live.revision, live.overlay, alive, live.edit_ids)
        guard = yield from self._guard.under(view)
        edits = yield from self._edits.under(view)
        gates, offended = self._judged(live, shelved, guard, edits, exempt)
        return Judged(Verdict(gates), offended)

    def leaning_on(self, live: Live, alive: Tensor, *, exempt: Exemption) -> Generator[None, None, Rows]:
        """The rows that are right now and would be wrong if just `alive` were served: labels as wanted, with the
        entries of `alive` at inner layers, without what is added behind the last.
        """
        shelved = yield from self._stand(live)
        view = View(live.revision, live.overlay, alive, live.edit_ids)
        judged = shelved.flags(live.live_edits()) & ~shelved.flags(exempt.edit_ids)
        rows = []
        for part, counts in ((self._guard, None), (self._edits, judged[shelved.owners])):
            would = yield from part.under(view)
            labels = would.shown.rows.labels
            lost = (part.now.answers == labels) & (would.answers != labels)
            rows.append(part.rows(would, lost if counts is None else lost & counts))
        return Rows.join(rows)

    def rows_of(self, live: Live, edit_ids: Iterable[str]) -> Generator[None, None, Rows]:
        """The rows of these edits as they are served, without what is added behind the last layer."""
        shelved = yield from self._stand(live)
        flags = shelved.flags(edit_ids)
        rows = self._edits.all_rows()
        return rows if bool(flags.all()) else rows[flags[shelved.owners]]

    def _judged(
        self, live: Live, shelved: Shelved, guard: Outcome, edits: Outcome, exempt: Exemption
    ) -> tuple[tuple[Gate, Gate], Rows]:
        """The gates of what would be answered, and the rows that would be wrong."""
        others, broken = self._others_hold(live, shelved, edits.answers, exempt)
        unchanged, changed = self._guard_unchanged(guard.answers, exempt)
        return (others, unchanged), Rows.join([self._guard.rows(guard, changed), self._edits.rows(edits, broken)])

    def _others_hold(self, live: Live, shelved: Shelved, answers: Tensor, exempt: Exemption) -> tuple[Gate, Tensor]:
        """Every other live edit that held still holds. Also which rows of the other live edits are wrong now."""
        judged = shelved.flags(live.live_edits()) & ~shelved.flags(exempt.edit_ids)
        wrong = (answers != shelved.rows.labels) & judged[shelved.owners]
        own = shelved.own[shelved.shown.owners]
        failed_before, fail_now = (
            _flags(shelved.owners[(said != shelved.rows.labels) & own], shelved.edits)
            for said in (self._edits.now.answers, answers)
        )
        judged &= ~failed_before
        failures = [
            {
                "edit_id": shelved.edit_ids[number],
                **self._said(shelved.rows.labels, answers, (shelved.owners == number) & own, wanted="wanted"),
            }
            for number in (judged & fail_now).nonzero().flatten().tolist()
        ]
        return Gate.share("other_edits_hold", int(judged.sum()), required=1.0, failures=failures), wrong

    def _guard_unchanged(self, answers: Tensor, exempt: Exemption) -> tuple[Gate, Tensor]:
        """The guard answers as the unedited model does. Also which rows of it do not."""
        guard, shown = self._memory.guard, self._memory.guard.texts.shown
        wanted = shown.rows.labels
        wrong = answers != wanted
        changed = _flags(shown.owners[wrong], len(guard))
        for text in changed.nonzero().flatten().tolist():
            changed[text] = self._memory.guard_keys[text] not in exempt.input_keys
        failures = [
            {"input": guard.texts[text], **self._said(wanted, answers, shown.owners == text, wanted="was")}
            for text in changed.nonzero().flatten().tolist()
        ]
        gate = Gate.share("guard_unchanged", len(guard), required=self.required.guard, failures=failures)
        return gate, wrong & changed[shown.owners]

    def _said(self, right: Tensor, now: Tensor, rows: Tensor, *, wanted: str) -> dict[str, str]:
        """The answer that the rows of one text should give, and the one they give, as far as the first mistake."""
        right, now = right[rows], now[rows]
        first = int((now != right).int().argmax())
        return {wanted: self._model.show(right, len(right) - 1), "now": self._model.show(now, first)}

    def _stand(self, live: Live) -> Generator[None, None, Shelved]:
        """Make the standings those of `live`, computing only what the last change of revision could have changed.

        Returns the edits that are judged: edits that are put on the shelf meanwhile wait for the next time.
        """
        if live.revision < self._revision:
            raise Outdated
        self._revision = live.revision
        shelved = self._memory.edits.shown
        if not torch.equal(self._guard.now.alive, live.alive):
            self._adopt_judged_last(live)
        yield from self._guard.stand(live.view(), self._memory.guard.texts.shown)
        yield from self._edits.stand(live.view(), shelved.shown)
        return shelved

    def _adopt_judged_last(self, live: Live) -> None:
        """Spare what was computed for the verdict on an edit, if nothing but this edit has gone live since."""
        judged, self._judged_last = self._judged_last, None
        if judged is None:
            return
        edit_id, guard, edits = judged
        unmoved = edits.shown.count == self._edits.now.shown.count
        if unmoved and live.edit_ids[-1] == edit_id and torch.equal(guard.alive, live.alive):
            self._guard.adopt(guard)
            self._edits.adopt(edits)


def _flags(numbers: Tensor, count: int) -> Tensor:
    """Which of `count` things are named: (count,) bool."""
    flags = torch.zeros(count, dtype=torch.bool, device=numbers.device)
    flags[numbers] = True
    return flags
