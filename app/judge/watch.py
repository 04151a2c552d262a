"""What is seen of a guard: which of its answers changed, which may soon, and how alike the model still is to itself."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from app.judge.standing import Outcome
from app.judge.verdict import LISTED, Gate, Required
from app.memory import Guard, Shelved
from app.memory.texts import Shown
from app.model import Model
from editors import measures
from editors.measures import Consistency


def told(model: Model, right: Tensor, now: Tensor, *, wanted: str) -> dict[str, str]:
    """The answer that a text should give, and the one it gives, as far as the first mistake: (positions,) each."""
    first = int((now != right).int().argmax())
    return {wanted: model.show(right, len(right) - 1), "now": model.show(now, first)}


class Watch:
    """A guard, and what about it never changes."""

    def __init__(self, guard: Guard, model: Model) -> None:
        self.guard = guard
        known, shown = guard.known, guard.known.texts.shown
        self._model = model
        self._places: dict[str, list[int]] = {}
        for text, key in enumerate(guard.input_keys):
            self._places.setdefault(key, []).append(text)
        self._edited: list[tuple[int, int]] = []  # shelved edits, and inputs equal to theirs
        self._noted = 0  # shelved edits that were looked through for such
        self._near = guard.near_boundary
        self._seen: Watched | None = None
        self.rights = (~known.wrong)[shown.owners]
        """(rows,) bool: of the texts that the unedited model gets right."""

    def counted(self, exempt: Collection[str], shelved: Shelved, edited: Tensor) -> Tensor:
        """The inputs that are looked at: all but those with the keys `exempt`, or equal to that of an edit that is
        `edited`, (edits,) bool: (texts,) bool.
        """
        for number in range(self._noted, shelved.edits):
            self._edited += [(number, text) for text in self._places.get(shelved.input_keys[number], ())]
        self._noted = max(self._noted, shelved.edits)
        counted = torch.ones_like(self._near)
        counted[[text for key in exempt for text in self._places.get(key, ())]] = False
        edits, texts = torch.tensor(self._edited, dtype=torch.int64, device=edited.device).reshape(-1, 2).unbind(-1)
        known = edits < len(edited)
        counted[texts[known][edited[edits[known]]]] = False
        return counted

    def share_touched(self, outcome: Outcome, patch: int, counted: Tensor) -> float:
        """The share of what the unedited model gets right, of the inputs `counted`, in whose answers a patch that came
        takes part.
        """
        counted = counted & ~self.guard.known.wrong
        touched = counted[outcome.texts_touched_by(patch)]
        return int(touched.sum()) / max(int(counted.sum()), 1)

    def watched(self, outcome: Outcome, counted: Tensor) -> Watched:
        """What is seen under an outcome, of the inputs `counted`: what was seen last, if nothing of it is otherwise."""
        seen = Watched(self.guard, self._model, outcome, counted, self._near)
        if self._seen is None or not self._seen.same(seen):
            self._seen = seen
        return self._seen


@dataclass(frozen=True, eq=False)
class Watched:
    """A guard under one outcome. counted, near: (texts,) bool, those that are looked at, and those near a boundary."""

    guard: Guard
    model: Model
    outcome: Outcome
    counted: Tensor
    near: Tensor

    def same(self, other: Watched) -> bool:
        """Whether the same is seen of the same guard."""
        mine, others = ((each.outcome.answers, each.outcome.scores, each.counted) for each in (self, other))
        return all(map(torch.equal, mine, others))

    @cached_property
    def changed(self) -> Tensor:
        """(texts,) bool: those that were answered rightly and are not any more."""
        return self._shown.flags(self._off) & ~self.guard.known.wrong & self.counted

    @cached_property
    def wrong_rows(self) -> Tensor:
        """(rows,) bool: where these are wrong."""
        return self._off & self.changed[self._shown.owners]

    def gate(self, required: Required, now: Watched) -> Gate:
        """What the unedited model gets right is answered as by it.

        now: the guard as it stands. Where less of it is unchanged than is required, because it was put after edits that
        change it, the next edit need not mend that: it must not make it worse.
        """
        changed = self.changed.nonzero().flatten().tolist()
        failures = [self._failure(text) for text in changed[:LISTED]]
        least = min(required.guard_unchanged, now.unchanged)
        return Gate.share("guard_unchanged", self._rights, required=least, failures=failures, failed=len(changed))

    @cached_property
    def unchanged(self) -> float:
        """The share of what the unedited model gets right that is answered as by it; 1 where that is nothing."""
        return (self._rights - int(self.changed.sum())) / self._rights if self._rights else 1.0

    @cached_property
    def _rights(self) -> int:
        return int((~self.guard.known.wrong & self.counted).sum())

    def as_json(self) -> dict[str, Any]:
        """As a verdict keeps it."""
        near, moved = self.near & self.counted, self.near & self.changed
        return {
            "number": self.guard.number,
            "inputs": len(self.guard),
            "right": self._rights,
            "near_boundary": {
                "inputs": int(near.sum()),
                "changed": int(moved.sum()),
                "failures": [self._failure(text) for text in moved.nonzero().flatten().tolist()[:LISTED]],
            },
            "consistency": asdict(self.consistency),
        }

    @cached_property
    def consistency(self) -> Consistency:
        """How alike the model is to the unedited one, input by input (Zhang et al. 2021).

        The score of an input is the probability that the model gives to what it should answer; of a written answer the
        geometric mean over its positions.
        """
        known, counted = self.guard.known, self.counted
        before, after = (self._probabilities(scores) for scores in (known.base.scores, self.outcome.scores))
        was_wrong = known.wrong.long()  # 0 for right, 1 for as wrong as before any edit, 2 for wrong otherwise
        now = self._shown.flags(self._off).long() * (1 + self._otherwise().long())
        return measures.consistency(
            (before[counted], after[counted]),
            (was_wrong[counted], torch.where(known.wrong, now, now.clamp(max=1))[counted]),
            torch.zeros_like(was_wrong[counted]),
        )

    @property
    def _shown(self) -> Shown:
        return self.outcome.shown

    @cached_property
    def _off(self) -> Tensor:
        """(rows,) bool: where what is said is not what should be."""
        return self.outcome.answers != self._shown.rows.labels

    def _otherwise(self) -> Tensor:
        """Which texts that are wrong now and before any edit have another first mistake: (texts,) bool."""
        before, now = self.guard.known.base.answers, self.outcome.answers
        both = self._shown.flags(self._off) & self.guard.known.wrong
        there, here = (_first(wrong, self._shown)[both] for wrong in (before != self._shown.rows.labels, self._off))
        otherwise = torch.zeros_like(both)
        otherwise[both] = (here != there) | (now[here] != before[there])
        return otherwise

    def _probabilities(self, scores: Tensor) -> Tensor:
        shown = self._shown
        summed = torch.zeros(shown.count, dtype=torch.float64, device=scores.device)
        summed.index_add_(0, shown.owners, scores.double())
        return (summed / shown.lengths.clamp(min=1)).exp()

    def _failure(self, text: int) -> dict[str, Any]:
        texts, rows = self.guard.known.texts, self._shown.slice_of(text)
        said = told(self.model, self._shown.rows.labels[rows], self.outcome.answers[rows], wanted="was")
        near = {"near_boundary": True} if bool(self.near[text]) else {}
        return {"input": texts[text], **said, **near}


def _first(rows: Tensor, shown: Shown) -> Tensor:
    """Of each text the first of these rows, or as many as there are rows: (rows,) bool -> (texts,) int64."""
    numbers = torch.arange(len(rows), device=rows.device)
    first = torch.full_like(shown.starts, len(rows))
    return first.scatter_reduce(0, shown.owners[rows], numbers[rows], "amin")
