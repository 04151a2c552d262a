"""Every edit is a regression test for all later ones: gates, measured before anything goes live.

The guard and all live edits are judged on stored activations: their queries do not depend on any patch of the last
feed-forward layer, so a new patch is one product with them, and only rows on which it fires are read out again.
Runs on the device thread; keeps, between calls, how those rows stand under the live revision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from app.engine import Live
from app.memory import Memory
from editors.types import Overlay, Readout, Rows

LISTED = 100
"""Failures listed of one gate."""
CHUNK = 4096
"""Rows in one readout."""


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


@dataclass(slots=True)
class _Standing:
    """How the judged rows stand under one revision: the guard's rows first, then one row a live edit."""

    revision: int
    edit_ids: list[str]
    queries: Tensor  # (rows, hidden)
    residuals: Tensor  # (rows, hidden), with the revision's patches
    labels: Tensor  # (rows,), what is answered
    wanted: Tensor  # (rows,), what should be


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict, and the rows that a next round of the fit should remember."""

    verdict: Verdict
    offended: Rows


class Judge:
    """Measures what a change of the live patches does to the guard and to every live edit."""

    def __init__(self, memory: Memory, readout: Readout, labels: Sequence[str], required: Required) -> None:
        self.required = required
        self._memory = memory
        self._readout = readout
        self._labels = labels
        self._standing: _Standing | None = None

    def of_patch(self, live: Live, fresh: Overlay, *, replaced: str | None, exempt: Exemption) -> Judged:
        """What one more patch does. fresh: an overlay of that patch alone. replaced: the edit it supersedes."""
        now = self._stand(live)
        before = now if replaced is None else self._under(live, _without(live, replaced), now)
        view = torch.zeros(len(before.queries), dtype=torch.int64, device=before.queries.device)
        alive = torch.ones(1, 1, dtype=torch.bool, device=before.queries.device)
        residuals, firing = fresh.apply(before.queries, before.residuals, alive, view)
        touched = firing.rows.unique()
        labels = before.labels.clone()
        labels[touched] = self._answers(residuals[touched])
        guard = len(self._memory.guard)
        fires = int((touched < guard).sum()) / guard if guard else 0.0
        gates = [
            *self._gates(now, labels, exempt),
            Gate("guard_fires", fires, self.required.guard_fires, at_most=True),
        ]
        return Judged(Verdict(tuple(gates)), self._offended(now, labels, exempt))

    def of_alive(self, live: Live, alive: Tensor, *, exempt: Exemption) -> Judged:
        """What it does to serve the patches `alive` (a mask over the overlay) instead of the live ones."""
        now = self._stand(live)
        labels = self._under(live, alive, now).labels
        return Judged(Verdict(tuple(self._gates(now, labels, exempt))), self._offended(now, labels, exempt))

    def _gates(self, now: _Standing, labels: Tensor, exempt: Exemption) -> list[Gate]:
        return [self._others(now, labels, exempt), self._guard(now, labels, exempt)]

    def _others(self, now: _Standing, labels: Tensor, exempt: Exemption) -> Gate:
        """Every other live edit that held still holds."""
        guard = len(self._memory.guard)
        judged = now.labels[guard:] == now.wanted[guard:]
        judged[[index for index, edit_id in enumerate(now.edit_ids) if edit_id in exempt.edit_ids]] = False
        broken = judged & (labels[guard:] != now.wanted[guard:])
        failures = [
            {
                "edit_id": now.edit_ids[index],
                "wanted": self._label(now.wanted[guard + index]),
                "now": self._label(labels[guard + index]),
            }
            for index in broken.nonzero().flatten().tolist()
        ]
        return Gate.share("other_edits_hold", int(judged.sum()), required=1.0, failures=failures)

    def _guard(self, now: _Standing, labels: Tensor, exempt: Exemption) -> Gate:
        """The guard answers as the unedited model does."""
        changed = self._changed_guard(now, labels, exempt)
        guard = self._memory.guard
        failures = [
            {"input": guard.texts[row], "was": self._label(now.wanted[row]), "now": self._label(labels[row])}
            for row in changed
        ]
        return Gate.share("guard_unchanged", len(guard), required=self.required.guard, failures=failures)

    def _changed_guard(self, now: _Standing, labels: Tensor, exempt: Exemption) -> list[int]:
        guard = len(self._memory.guard)
        changed = (labels[:guard] != now.wanted[:guard]).nonzero().flatten().tolist()
        return [row for row in changed if self._memory.guard_keys[row] not in exempt.input_keys]

    def _offended(self, now: _Standing, labels: Tensor, exempt: Exemption) -> Rows:
        """Rows that the change turns wrong, for the next round's memory."""
        wrong = labels != now.wanted
        guard = len(self._memory.guard)
        wrong[:guard] = False
        wrong[self._changed_guard(now, labels, exempt)] = True
        for index, edit_id in enumerate(now.edit_ids):
            if edit_id in exempt.edit_ids:
                wrong[guard + index] = False
        return Rows(now.queries[wrong], now.residuals[wrong], now.wanted[wrong])

    def _stand(self, live: Live) -> _Standing:
        """How the judged rows stand under `live`; computed again only for what a revision changed."""
        standing = self._standing
        if standing is not None and standing.revision == live.revision:
            return standing
        edit_ids = live.live_edits()
        guard = self._memory.guard.rows
        rows = Rows.join([guard, *(self._memory.edit(edit_id)[:1] for edit_id in edit_ids)])
        self._standing = self._under(
            live,
            live.alive,
            _Standing(live.revision, edit_ids, rows.queries, rows.residuals, rows.labels, rows.labels),
        )
        return self._standing

    def _under(self, live: Live, alive: Tensor, rows: _Standing) -> _Standing:
        """The same rows under the patches `alive`, from the unpatched residuals."""
        unpatched = Rows.join(
            [self._memory.guard.rows, *(self._memory.edit(edit_id)[:1] for edit_id in rows.edit_ids)]
        ).residuals
        view = torch.zeros(len(rows.queries), dtype=torch.int64, device=rows.queries.device)
        residuals, _ = live.overlay.apply(rows.queries, unpatched, alive.unsqueeze(0).to(view.device), view)
        return _Standing(rows.revision, rows.edit_ids, rows.queries, residuals, self._answers(residuals), rows.wanted)

    @torch.no_grad()
    def _answers(self, residuals: Tensor) -> Tensor:
        parts = [self._readout(part).argmax(-1) for part in residuals.split(CHUNK)]
        return torch.cat(parts) if len(residuals) else torch.zeros(0, dtype=torch.int64, device=residuals.device)

    def _label(self, index: Tensor) -> str:
        return self._labels[int(index)]


def _without(live: Live, edit_id: str) -> Tensor:
    alive = live.alive.clone()
    alive[list(live.patches_of(edit_id))] = False
    return alive
