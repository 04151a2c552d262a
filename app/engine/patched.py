"""What the overlays of one batch do to it, each row under its own view, and which patches took part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.engine.live import View
from editors.composition import Composition
from editors.visit import Found, Look, Visit


@dataclass(frozen=True, slots=True)
class Fired:
    """An edit whose patch took part in an answer: how strongly at most, and in how many of its positions."""

    edit_id: str
    strength: float
    positions: int


class Patched:
    """The overlays of one batch at every pass that the batch takes; see `editors.types.Acting`."""

    def __init__(self, views: Sequence[View], device: torch.device, *, fed: Sequence[int] | None = None) -> None:
        """views: one a row. fed: where answers are fed, how many positions each row has in the pass; else it is one."""
        view_of_row, distinct = _distinct(views)
        self._owners = None if fed is None else _owners(fed).to(device)
        overlays = dict.fromkeys(view.overlay for view in distinct if not view.bare)
        self._seen = [_Seen.through(overlay, distinct, view_of_row, device) for overlay in overlays]
        self._entered: dict[int, Fired] = {}  # of each row the entry that it found, if any
        self._fired: list[list[_Fired]] = [[] for _ in views]
        self._passes = 0

    def visit(self, given: Tensor) -> Visit | None:
        looks = [
            Look(look.site, self._noting(look, seen))
            for seen in self._seen
            for look in seen.overlay.looks(seen.alive, seen.view)
        ]
        return Visit(given, looks) if looks else None

    def __call__(self, queries: Tensor, residuals: Tensor) -> Tensor:
        for seen in self._seen:
            view = seen.view if self._owners is None else seen.view[self._owners]
            residuals, firing = seen.overlay.apply(queries, residuals, seen.alive, view)
            if not len(firing.rows):
                continue
            rows = firing.rows if self._owners is None else self._owners[firing.rows]
            triples = zip(rows.tolist(), firing.patches.tolist(), firing.strengths.tolist(), strict=True)
            for row, patch, strength in triples:
                self._fired[row].append(_Fired(self._passes, seen.edit_ids[patch], strength))
        self._passes += 1
        return residuals

    def fired(self, row: int, passes: int) -> tuple[Fired, ...]:
        """What took part in the first so many passes of a row, strongest first."""
        strengths: dict[str, list[float]] = {}
        for each in self._fired[row]:
            if each.number < passes:
                strengths.setdefault(each.edit_id, []).append(each.strength)
        fired = [Fired(edit_id, max(each), len(each)) for edit_id, each in strengths.items()]
        if row in self._entered:
            entered = self._entered[row]
            fired.append(replace(entered, positions=min(entered.positions, passes)))
        return tuple(sorted(fired, key=lambda each: -each.strength))

    def _noting(self, look: Look, seen: _Seen) -> _Noting:
        return _Noting(look, seen.edit_ids, self._entered)


@dataclass(frozen=True, slots=True)
class _Noting:
    """A look that notes what each row finds first: a row that has found an entry looks no further."""

    look: Look
    edit_ids: Sequence[str]
    entered: dict[int, Fired]

    def __call__(self, keys: Tensor) -> Found | None:
        found = self.look.find(keys)
        if found is not None:
            columns = found.rows, found.patches, found.strengths, found.positions()
            for row, patch, strength, positions in zip(*(column.tolist() for column in columns), strict=True):
                self.entered.setdefault(row, Fired(self.edit_ids[patch], strength, positions))
        return found


@dataclass(frozen=True, slots=True)
class _Fired:
    """One patch in one pass of one row."""

    number: int
    edit_id: str
    strength: float


@dataclass(frozen=True, slots=True)
class _Seen:
    """One overlay, as the rows of a batch see it; rows of other overlays see nothing of it."""

    overlay: Composition
    alive: Tensor  # (views, patches) bool; the last one sees none, if there are rows of other overlays
    view: Tensor  # (rows,) int64
    edit_ids: Sequence[str]

    @classmethod
    def through(
        cls, overlay: Composition, views: Sequence[View], view_of_row: Sequence[int], device: torch.device
    ) -> _Seen:
        sharing = [index for index, view in enumerate(views) if view.overlay is overlay]
        place = {index: place for place, index in enumerate(sharing)}
        masks = [views[index].alive for index in sharing]
        if len(sharing) < len(views):
            masks.append(torch.zeros_like(masks[0]))
        view = torch.tensor([place.get(index, len(sharing)) for index in view_of_row])
        alive = torch.stack(masks) if len(masks) > 1 else masks[0].unsqueeze(0)  # of thousands of patches, not copied
        return cls(overlay, alive.to(device), view.to(device), views[sharing[0]].edit_ids)


def _owners(lengths: Sequence[int]) -> Tensor:
    """Which of so many rows each position is of: (positions,) int64."""
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths, dtype=torch.int64))


def _distinct(views: Sequence[View]) -> tuple[list[int], list[View]]:
    """Each view once, and for every row the index of its own."""
    index: dict[int, int] = {}
    distinct: list[View] = []
    for view in views:
        if id(view) not in index:
            index[id(view)] = len(distinct)
            distinct.append(view)
    return [index[id(view)] for view in views], distinct
