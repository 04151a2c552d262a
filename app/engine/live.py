"""What a process serves: one revision, and every patch that ever was live, compiled once.

Which patches apply to an answer is a mask over them, a `View`; so the present revision, a former one, and
the present one without some edits are answered by the same overlay, in the same batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from editors.composition import Composition


@dataclass(frozen=True, slots=True)
class Entry:
    """One patch of the ledger: which edit it is of, which edit that one replaced, and when it was live.

    An edit that was fitted again has several, of which never more than one is live.

    spans: pairs (since, until); the patch is live in revisions since <= n < until, None: it still is.
    """

    edit_id: str
    supersedes: str | None
    input_key: str
    target: str
    spans: tuple[tuple[int, int | None], ...] = ()

    def live_in(self, revision: int) -> bool:
        return any(since <= revision and (until is None or revision < until) for since, until in self.spans)

    def entered(self, revision: int) -> int:
        """The last revision up to this one in which the patch went live; -1 if it had not."""
        return max((since for since, _ in self.spans if since <= revision), default=-1)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """Which patches of an overlay one answer sees."""

    revision: int
    overlay: Composition
    alive: Tensor  # (patches,) bool, on the CPU
    edit_ids: Sequence[str]  # (patches,)

    def add(self, queries: Tensor, residuals: Tensor) -> Tensor:
        """Residuals with what these patches add behind the last layer, as one view for all rows: (n, hidden) each."""
        alive = self.alive.unsqueeze(0).to(queries.device)
        rows = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
        return self.overlay.apply(queries, residuals, alive, rows)[0]

    @property
    def bare(self) -> bool:
        """Whether it sees none: the unedited model."""
        return not bool(self.alive.any())


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """The newest revision this process knows. Immutable; a change makes another one."""

    revision: int
    overlay: Composition
    entries: tuple[Entry, ...]
    edit_ids: tuple[str, ...] = field(init=False)
    alive: Tensor = field(init=False)
    _patches: Mapping[str, tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        assert len(self.overlay) == len(self.entries)
        object.__setattr__(self, "edit_ids", tuple(entry.edit_id for entry in self.entries))
        object.__setattr__(self, "alive", self._alive_in(self.revision))
        patches: dict[str, tuple[int, ...]] = {}
        for number, entry in enumerate(self.entries):
            patches[entry.edit_id] = (*patches.get(entry.edit_id, ()), number)
        object.__setattr__(self, "_patches", patches)

    def patches_of(self, edit_id: str) -> tuple[int, ...]:
        """The numbers of an edit's patches; none for an edit that never went live."""
        return self._patches.get(edit_id, ())

    def patch_of(self, edit_id: str, *, as_of: int | None = None) -> int | None:
        """The number of the patch with which an edit is, or was last, live, as of a revision (default: the newest).

        None for an edit that had not gone live. It is this patch that a revert or a re-apply brings back.
        """
        revision = self.revision if as_of is None else as_of
        entered = {number: self.entries[number].entered(revision) for number in self.patches_of(edit_id)}
        last = max(entered, key=entered.__getitem__, default=None)
        return None if last is None or entered[last] < 0 else last

    def conflicting(self, input_key: str, target: str, *, besides: str | None) -> list[str]:
        """The live edits, other than `besides`, that want another answer for an input."""
        alive = (self.entries[number] for number in self.alive.nonzero().flatten().tolist())
        return [
            entry.edit_id
            for entry in alive
            if entry.input_key == input_key and entry.target != target and entry.edit_id != besides
        ]

    def live_edits(self) -> list[str]:
        """The edits that are live, in ledger order."""
        return [self.edit_ids[number] for number in self.alive.nonzero().flatten().tolist()]

    def view(self, *, as_of: int | None = None, exclude: Collection[str] = ()) -> View:
        """The patches of revision `as_of` (default: the newest) without those of the excluded edits.

        An edit that an excluded one had replaced comes back, exactly as a revert would bring it back.
        """
        revision = self.revision if as_of is None else as_of
        assert 0 <= revision <= self.revision
        alive = self.alive if as_of is None else self._alive_in(revision)
        if exclude:
            alive = self._without(alive, exclude, revision)
        return View(revision, self.overlay, alive, self.edit_ids)

    def bare(self) -> View:
        """No patch at all: the unedited model."""
        return View(self.revision, self.overlay, torch.zeros_like(self.alive), self.edit_ids)

    def _alive_in(self, revision: int) -> Tensor:
        return torch.tensor([entry.live_in(revision) for entry in self.entries], dtype=torch.bool)

    def _without(self, alive: Tensor, exclude: Collection[str], revision: int) -> Tensor:
        """As if the excluded edits were reverted one after the other in that revision."""
        alive = alive.clone()
        leaving = [number for edit_id in exclude for number in self.patches_of(edit_id) if alive[number]]
        while leaving:
            number = leaving.pop()
            alive[number] = False
            back = self._returning(number, alive, revision)
            if back is not None:
                alive[back] = True
                if self.edit_ids[back] in exclude:
                    leaving.append(back)
        return alive

    def _returning(self, number: int, alive: Tensor, revision: int) -> int | None:
        """The patch that comes back when patch `number` has gone: of the edit it had replaced, unless one stands in
        its way that replaces it too, or that wants another answer for its input.
        """
        replaced = self.entries[number].supersedes
        back = None if replaced is None else self.patch_of(replaced, as_of=revision)
        if replaced is None or back is None:
            return None
        returning = self.entries[back]
        for place in alive.nonzero().flatten().tolist():
            other = self.entries[place]
            conflicting = other.input_key == returning.input_key and other.target != returning.target
            if conflicting or replaced in self._replaced_by(other):
                return None
        return back

    def _replaced_by(self, entry: Entry) -> Iterator[str]:
        """The edits that an edit replaces, directly and through others."""
        replaced = entry.supersedes
        while replaced is not None:
            yield replaced
            replaced = self.entries[self.patches_of(replaced)[0]].supersedes  # every patch of an edit says the same
