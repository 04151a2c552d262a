"""Every edit is a regression test for all later ones: gates, measured before anything goes live.

The guard and all live edits are judged on stored activations: their queries do not depend on any patch of the last
feed-forward layer, so a new patch is one product with them, and only rows on which it fires are read out again.
A text that is written is unchanged exactly when at every one of its positions the same token leads.
Runs on the device thread; keeps, between calls, how those rows stand under the live revision, and computes anew only
the rows on which a patch fires that came or went.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from app.engine import Live
from app.memory import Memory
from app.model import Model
from editors.types import Firing, Overlay, Rows

LISTED = 100
"""Failures listed of one gate."""
CHUNK = 512
"""Rows in one readout: of a vocabulary of 150,000 that is 300 MB of logits."""


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


class Judge:
    """Measures what a change of the live patches does to the guard and to every live edit."""

    def __init__(self, memory: Memory, model: Model, required: Required) -> None:
        self.required = required
        self._memory = memory
        self._model = model
        known = memory.guard.reading
        self._guard_owners = known.owners().to(known.rows.labels.device)
        self._guard = _Standing(known.rows, known.rows.labels)  # under revision 0
        nothing = memory.edits.shown.rows[:0]
        self._edits = _Standing(nothing, nothing.labels)  # grows with the edits that are learned
        self._alive = torch.zeros(0, dtype=torch.bool)
        self._fired: dict[int, Tensor] = {}  # of each patch by number, the guard's rows that it fires on: few
        self._judged_last: tuple[str, list[Tensor]] | None = None  # an edit, and the rows that its patch fires on

    def of_patch(self, live: Live, edit_id: str, fresh: Overlay, *, replaced: str | None, exempt: Exemption) -> Judged:
        """What one more patch does. fresh: an overlay of the patch of that edit alone. replaced: what it supersedes."""
        self._stand(live)
        alive = live.alive if replaced is None else _without(live, replaced)
        fired = [_rows_fired_on(fresh, [0], part.rows) for part in (self._guard, self._edits)]
        self._judged_last = edit_id, fired
        guard, edits = (
            self._would(part, live, alive, fresh, rows)
            for part, rows in zip((self._guard, self._edits), fired, strict=True)
        )
        touched = self._guard_owners[fired[0]].unique().tolist()
        counted = [text for text in touched if self._memory.guard_keys[text] not in exempt.input_keys]
        fires = len(counted) / len(self._memory.guard) if len(self._memory.guard) else 0.0
        gates, offended = self._judged(live, guard, edits, exempt)
        return Judged(Verdict((*gates, Gate("guard_fires", fires, self.required.guard_fires, at_most=True))), offended)

    def of_alive(self, live: Live, alive: Tensor, *, exempt: Exemption) -> Judged:
        """What it does to serve the patches `alive` (a mask over the overlay) instead of the live ones."""
        self._stand(live)
        guard, edits = (self._would(part, live, alive) for part in (self._guard, self._edits))
        gates, offended = self._judged(live, guard, edits, exempt)
        return Judged(Verdict(gates), offended)

    def leaning_on(self, live: Live, alive: Tensor, *, exempt: Exemption) -> Rows:
        """The rows that are right now and would be wrong if just `alive` were served: labels as wanted, unpatched."""
        self._stand(live)
        judged = self._memory.edits.shown.flags(live.live_edits())
        judged &= ~self._memory.edits.shown.flags(exempt.edit_ids)
        rows = []
        for part, counts in ((self._guard, None), (self._edits, judged[self._memory.edits.shown.owners])):
            lost = (part.answers == part.rows.labels) & (self._would(part, live, alive) != part.rows.labels)
            rows.append(part.rows[lost if counts is None else lost & counts])
        return Rows.join(rows)

    def _judged(self, live: Live, guard: Tensor, edits: Tensor, exempt: Exemption) -> tuple[tuple[Gate, Gate], Rows]:
        """The gates of what would be answered, (rows,) each, and the rows that would be wrong."""
        others, broken = self._others_hold(live, edits, exempt)
        unchanged, changed = self._guard_unchanged(guard, exempt)
        return (others, unchanged), Rows.join([self._guard.rows[changed], self._edits.rows[broken]])

    def _others_hold(self, live: Live, answers: Tensor, exempt: Exemption) -> tuple[Gate, Tensor]:
        """Every other live edit that held still holds. Also which rows of the other live edits are wrong now."""
        shelved = self._memory.edits.shown
        judged = shelved.flags(live.live_edits()) & ~shelved.flags(exempt.edit_ids)
        wrong = (answers != shelved.rows.labels) & judged[shelved.owners]
        failed_before, fail_now = (
            _flags(shelved.owners[(said != shelved.rows.labels) & shelved.own], shelved.edits)
            for said in (self._edits.answers, answers)
        )
        judged &= ~failed_before
        failures = [
            {
                "edit_id": shelved.edit_ids[number],
                **self._said(shelved.rows.labels, answers, (shelved.owners == number) & shelved.own, wanted="wanted"),
            }
            for number in (judged & fail_now).nonzero().flatten().tolist()
        ]
        return Gate.share("other_edits_hold", int(judged.sum()), required=1.0, failures=failures), wrong

    def _guard_unchanged(self, answers: Tensor, exempt: Exemption) -> tuple[Gate, Tensor]:
        """The guard answers as the unedited model does. Also which rows of it do not."""
        guard, wanted = self._memory.guard, self._guard.rows.labels
        wrong = answers != wanted
        changed = _flags(self._guard_owners[wrong], len(guard))
        for text in changed.nonzero().flatten().tolist():
            changed[text] = self._memory.guard_keys[text] not in exempt.input_keys
        failures = [
            {"input": guard.texts[text], **self._said(wanted, answers, self._guard_owners == text, wanted="was")}
            for text in changed.nonzero().flatten().tolist()
        ]
        gate = Gate.share("guard_unchanged", len(guard), required=self.required.guard, failures=failures)
        return gate, wrong & changed[self._guard_owners]

    def _said(self, right: Tensor, now: Tensor, rows: Tensor, *, wanted: str) -> dict[str, str]:
        """The answer that the rows of one text should give, and the one they give, as far as the first mistake."""
        right, now = right[rows], now[rows]
        first = int((now != right).int().argmax())
        return {wanted: self._model.show(right, len(right) - 1), "now": self._model.show(now, first)}

    def _stand(self, live: Live) -> None:
        """Make the standings those of `live`, computing only what the last change of revision could have changed."""
        alive = live.alive
        before = torch.zeros_like(alive)
        before[: len(self._alive)] = self._alive
        differing = _differing(before, alive)
        edits = self._fired_by_last(live, differing)
        for part, known in ((self._guard, None), (self._edits, edits)):
            rows = self._fired_on(part, live, differing) if known is None else known
            learned = part.grow(self._memory.edits.shown.rows) if part is self._edits else 0
            fresh = torch.arange(len(part.answers) - learned, len(part.answers), device=rows.device)
            part.answers = self._answers(part, torch.cat([rows, fresh]).unique(), live, alive)
        self._alive = alive

    def _fired_by_last(self, live: Live, differing: list[int]) -> Tensor | None:
        """If the patch that was judged last has just come, what it fires on is known: of the guard that is noted, of
        the edits it is returned, if nothing else came or went. It counts once: rows of later edits are not in it.
        """
        if self._judged_last is None or not differing or differing[-1] < len(self._alive):
            return None
        edit_id, (guard, edits) = self._judged_last
        if live.edit_ids[differing[-1]] != edit_id:
            return None
        self._judged_last = None
        self._fired[differing[-1]] = guard
        return edits if len(differing) == 1 else None

    def _fired_on(self, part: _Standing, live: Live, patches: list[int]) -> Tensor:
        """The rows of `part` on which any of these patches fires. The guard's never change, so they are kept."""
        if part is self._edits:
            return _rows_fired_on(live.overlay, patches, part.rows)
        unknown = [number for number in patches if number not in self._fired]
        if unknown:
            firing = _firing(live.overlay, unknown, part.rows)
            order = firing.patches.argsort(stable=True)
            counts = firing.patches.bincount(minlength=len(unknown)).tolist()
            self._fired.update(zip(unknown, firing.rows[order].split(counts), strict=True))
        return torch.cat([part.rows.labels[:0], *(self._fired[number] for number in patches)]).unique()  # type: ignore[no-any-return]

    def _would(
        self,
        part: _Standing,
        live: Live,
        alive: Tensor,
        fresh: Overlay | None = None,
        fired: Tensor | None = None,
    ) -> Tensor:
        """What the rows of `part` would answer under `alive`, and the one patch of `fresh` after it: (rows,).

        fired: the rows on which `fresh` fires.
        """
        rows = self._fired_on(part, live, _differing(live.alive, alive))
        if fired is not None:
            rows = torch.cat([rows, fired]).unique()
        return self._answers(part, rows, live, alive, fresh)

    @torch.no_grad()
    def _answers(
        self, part: _Standing, rows: Tensor, live: Live, alive: Tensor, fresh: Overlay | None = None
    ) -> Tensor:
        """The answers of `part` with those of `rows` computed anew, from their unpatched residuals."""
        answers = part.answers.clone()
        for some in rows.split(CHUNK):
            queries, residuals = part.rows.queries[some], part.rows.residuals[some]
            residuals = _applied(live.overlay, queries, residuals, alive)
            if fresh is not None:
                residuals = _applied(fresh, queries, residuals, torch.ones(1, dtype=torch.bool))
            answers[some] = self._model.readout(residuals).argmax(-1)
        return answers


@dataclass(slots=True)
class _Standing:
    """Rows, unpatched, with the label or token that each should give, and what each answers under a revision."""

    rows: Rows
    answers: Tensor  # (rows,) int64

    def grow(self, rows: Rows) -> int:
        """Take in rows that came after those there are; their answers are not computed yet. Returns how many came."""
        learned = len(rows) - len(self.rows)
        self.answers = torch.cat([self.answers, rows.labels[len(self.rows) :]])
        self.rows = rows
        return learned


def _rows_fired_on(overlay: Overlay, patches: list[int], rows: Rows) -> Tensor:
    """The rows on which any of these patches fires: (k,) int64, ascending."""
    if not patches or not len(rows):
        return torch.zeros(0, dtype=torch.int64, device=rows.labels.device)
    fired: Tensor = _firing(overlay, patches, rows).rows.unique()
    return fired


def _firing(overlay: Overlay, patches: list[int], rows: Rows) -> Firing:
    """Which of these patches, by their places in the list, fire on which rows."""
    alive = torch.ones(1, len(patches), dtype=torch.bool, device=rows.labels.device)
    return overlay.pick(patches).apply(rows.queries, rows.residuals, alive, torch.zeros_like(rows.labels))[1]


def _applied(overlay: Overlay, queries: Tensor, residuals: Tensor, alive: Tensor) -> Tensor:
    """Residuals under the patches `alive`, one view for all rows."""
    view = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    patched, _ = overlay.apply(queries, residuals, alive.unsqueeze(0).to(queries.device), view)
    return patched


def _differing(one: Tensor, other: Tensor) -> list[int]:
    """The patches that are alive in just one of two masks."""
    return [int(number) for number in (one != other).nonzero().flatten()]


def _flags(numbers: Tensor, count: int) -> Tensor:
    """Which of `count` things are named: (count,) bool."""
    flags = torch.zeros(count, dtype=torch.bool, device=numbers.device)
    flags[numbers] = True
    return flags


def _without(live: Live, edit_id: str) -> Tensor:
    alive = live.alive.clone()
    alive[list(live.patches_of(edit_id))] = False
    return alive
