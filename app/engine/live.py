"""What a process serves: one revision, and every patch that ever was live, compiled once.

Which patches apply to an answer is a mask over them, a `View`; so the present revision, a former one, and
the present one without some edits are answered by the same overlay, in the same batch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from editors.composition import Composition

Span = tuple[int, int | None]
"""A pair (since, until): something is live in revisions since <= n < until; None: it still is."""

FEW = 64
"""Changes up to which a revision is made from the one before it, instead of anew."""
OPEN = torch.iinfo(torch.int64).max
VIEWS_KEPT = 64
"""Of how many revisions it is kept what was live."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One patch of the ledger: which edit it is of, which edit that one replaced, and when it was live.

    An edit that was fitted again has several, of which never more than one is live.

    spans: ascending.
    """

    edit_id: str
    supersedes: str | None
    input_key: str
    target: str
    spans: tuple[Span, ...] = ()

    def with_span(self, span: Span) -> Entry:
        """With this span, which is new, or takes the place of the one with the same beginning."""
        spans = (*(former for former in self.spans if former[0] != span[0]), span)
        return Entry(self.edit_id, self.supersedes, self.input_key, self.target, tuple(sorted(spans, key=_since)))

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
    bare: bool = field(init=False)
    """Whether it sees none: the unedited model."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "bare", not bool(self.alive.any()))

    def add(self, queries: Tensor, residuals: Tensor) -> Tensor:
        """Residuals with what these patches add behind the last layer, as one view for all rows: (n, hidden) each."""
        alive = self.alive.unsqueeze(0).to(queries.device)
        rows = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
        return self.overlay.apply(queries, residuals, alive, rows)[0]


class Spans:
    """The spans of all patches, so that it is one comparison which of them were live in a revision. Immutable."""

    def __init__(self, patches: Tensor, since: Tensor, until: Tensor) -> None:
        """(spans,) int64 each; `until` is OPEN for one that has not ended."""
        self._patches, self._since, self._until = patches, since, until

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Spans:
        """The spans of these patches, numbered from 0."""
        spans = [(number, *span) for number, entry in enumerate(entries) for span in entry.spans]
        columns = [[number, since, OPEN if until is None else until] for number, since, until in spans]
        return cls(*torch.tensor(columns, dtype=torch.int64).reshape(-1, 3).T.contiguous())

    def with_spans(self, spans: Sequence[tuple[int, Span]]) -> Spans:
        """With these of some patches, which are new, or take the place of those with the same beginning."""
        patches, since, until = self._patches, self._since, self._until.clone()
        for number, (begins, ends) in spans:
            end = OPEN if ends is None else ends
            known = (patches == number) & (since == begins)
            until[known] = end
            if not bool(known.any()):
                added = zip((patches, since, until), (number, begins, end), strict=True)
                patches, since, until = (torch.cat([column, column.new_tensor([value])]) for column, value in added)
        return Spans(patches, since, until)

    def alive_in(self, revision: int, count: int) -> Tensor:
        """Which of so many patches were live in a revision: (count,) bool."""
        alive = torch.zeros(count, dtype=torch.bool)
        alive[self._patches[(self._since <= revision) & (revision < self._until)]] = True
        return alive


class Index:
    """Numbers by names. What grew out of one another shares it, and takes of it what is its own: a number that was only
    supposed, for a revision that never came, may be another's in the end.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, tuple[int, ...]] = {}

    def add(self, name: str, number: int) -> None:
        known = self._numbers.setdefault(name, (number,))
        if number not in known:
            self._numbers[name] = tuple(sorted((*known, number)))

    def get(self, name: str, end: int) -> tuple[int, ...]:
        """The numbers below `end` that were ever noted under a name, ascending."""
        return tuple(number for number in self._numbers.get(name, ()) if number < end)


class Live:
    """One revision and all patches up to it. Immutable; patches are numbered in ledger order."""

    def __init__(self, revision: int, overlay: Composition, entries: Sequence[Entry]) -> None:
        assert len(overlay) == len(entries)
        self.revision, self.overlay = revision, overlay
        self.entries: Sequence[Entry] = list(entries)
        self.edit_ids = tuple(entry.edit_id for entry in self.entries)
        self._by_edit, self._by_input, self._by_replaced = Index(), Index(), Index()
        self._find(self.entries, 0)
        self._spans = Spans.of(self.entries)
        self._look()

    def followed(
        self, revision: int, overlay: Composition, fresh: Sequence[Entry], spans: Sequence[tuple[int, Span]]
    ) -> Live:
        """The revision that comes after this one, or some revisions later.

        overlay: with the patches of `fresh` entries at its end. spans: opened or closed since, with their patches.
        """
        entries = [*self.entries, *fresh]
        for number, span in spans:
            entries[number] = entries[number].with_span(span)
        if len(fresh) + len(spans) > FEW:
            return Live(revision, overlay, entries)
        made = copy(self)
        made.revision, made.overlay, made.entries = revision, overlay, entries
        if fresh:
            made.edit_ids = (*self.edit_ids, *(entry.edit_id for entry in fresh))
        made._find(fresh, len(self.entries))
        made._spans = self._spans.with_spans(spans)
        made._look()
        return made

    def _find(self, entries: Sequence[Entry], start: int) -> None:
        """Let these patches, numbered from `start`, be found by their edits and inputs."""
        for number, entry in enumerate(entries, start):
            self._by_edit.add(entry.edit_id, number)
            self._by_input.add(entry.input_key, number)
            if entry.supersedes is not None:
                self._by_replaced.add(entry.supersedes, number)

    def _look(self) -> None:
        self.alive = self._spans.alive_in(self.revision, len(self.entries))
        """(patches,) bool, on the CPU."""
        self._bare = View(self.revision, self.overlay, torch.zeros_like(self.alive), self.edit_ids)
        self._views: dict[int, View] = {self.revision: View(self.revision, self.overlay, self.alive, self.edit_ids)}

    def patches_of(self, edit_id: str) -> tuple[int, ...]:
        """The numbers of an edit's patches; none for an edit that never went live."""
        numbers = self._by_edit.get(edit_id, len(self.entries))
        return tuple(number for number in numbers if self.entries[number].edit_id == edit_id)

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
        others = self._against(input_key, target, self.alive)
        return [entry.edit_id for entry in others if entry.edit_id != besides]

    def live_entries(self) -> list[Entry]:
        """The patches that are live, in ledger order."""
        return [self.entries[number] for number in self.alive.nonzero().flatten().tolist()]

    def live_edits(self) -> list[str]:
        """The edits that are live, in ledger order."""
        return [entry.edit_id for entry in self.live_entries()]

    def view(self, *, as_of: int | None = None, exclude: Collection[str] = ()) -> View:
        """The patches of revision `as_of` (default: the newest) without those of the excluded edits.

        An edit that an excluded one had replaced comes back, exactly as a revert would bring it back.
        """
        revision = self.revision if as_of is None else as_of
        assert 0 <= revision <= self.revision
        view = self._views.get(revision)
        if view is None:
            view = View(revision, self.overlay, self._spans.alive_in(revision, len(self.entries)), self.edit_ids)
            self._views = dict([*self._views.items(), (revision, view)][-VIEWS_KEPT:])
        return replace(view, alive=self._without(view.alive, exclude, revision)) if exclude else view

    def bare(self) -> View:
        """No patch at all: the unedited model."""
        return self._bare

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
        hindered = self._against(returning.input_key, returning.target, alive) or self._is_replaced(replaced, alive)
        return None if hindered else back

    def _against(self, input_key: str, target: str, alive: Tensor) -> list[Entry]:
        """The patches that are alive and want another answer for an input."""
        numbers = self._by_input.get(input_key, len(self.entries))
        others = [self.entries[number] for number in numbers if alive[number]]
        return [entry for entry in others if entry.input_key == input_key and entry.target != target]

    def _is_replaced(self, edit_id: str, alive: Tensor) -> bool:
        """Whether a patch that is alive replaces an edit, directly or through others."""
        replaced = {edit_id}
        while replaced:
            noted = [number for name in replaced for number in self._by_replaced.get(name, len(self.entries))]
            above = [number for number in noted if self.entries[number].supersedes in replaced]
            if any(alive[number] for number in above):
                return True
            replaced = {self.entries[number].edit_id for number in above}
        return False


def _since(span: Span) -> int:
    return span[0]
