"""The patches of one model in ledger order, each in the overlay of its editor and its site.

A patch keeps one number whatever it is compiled into, so one mask says which patches apply to an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from editors.errors import UnknownEditor
from editors.features import Features
from editors.layers import TOKENS, LayerSite, Sites
from editors.types import Adding, Editor, Firing, Patch, Replacing
from editors.visit import Found, Look

NOTHING = -1
"""What a text finds that finds no entry."""


@dataclass(frozen=True, slots=True)
class _Added:
    """An overlay behind the last layer. numbers: (its patches,) int64, ascending: which of all patches they are."""

    overlay: Adding
    numbers: Tensor

    def extend(self, patches: Sequence[Patch], numbers: Tensor) -> _Added:
        return _Added(self.overlay.extend(patches), torch.cat([self.numbers, numbers]))

    def pick(self, places: Sequence[int], numbers: Tensor) -> _Added:
        return _Added(self.overlay.pick(places), numbers)


@dataclass(frozen=True, slots=True)
class _Book:
    """An overlay at an inner layer."""

    overlay: Replacing
    numbers: Tensor
    site: LayerSite

    def extend(self, patches: Sequence[Patch], numbers: Tensor) -> _Book:
        return replace(self, overlay=self.overlay.extend(patches), numbers=torch.cat([self.numbers, numbers]))

    def pick(self, places: Sequence[int], numbers: Tensor) -> _Book:
        return replace(self, overlay=self.overlay.pick(places), numbers=numbers)

    def find(self, keys: Tensor, alive: Tensor, view: Tensor) -> Found | None:
        """As `Replacing.find`, with the numbers of all patches."""
        found = self.overlay.find(keys, _columns(alive, self.numbers), view)
        return None if found is None else replace(found, patches=self.numbers[found.patches])


@dataclass(frozen=True, slots=True, eq=False)
class Composition:
    """Overlays of every kind as one. Immutable for its readers, as each of them is."""

    editors: Mapping[str, Editor]
    sites: Sites
    device: torch.device
    features: Features | None = None
    """Of the model; None where no patch tunes its last down-projection."""
    _patches: int = 0
    _parts: Mapping[tuple[str, str], _Added | _Book] = field(default_factory=dict)  # by editor and site

    def __len__(self) -> int:
        """The number of patches."""
        return self._patches

    def extend(self, patches: Sequence[Patch]) -> Composition:
        """A composition with `patches` after the present ones. Raises UnknownEditor."""
        groups: dict[tuple[str, str], list[int]] = {}
        for place, patch in enumerate(patches):
            groups.setdefault((patch.header.editor, patch.header.site), []).append(place)
        parts = dict(self._parts)
        for name, places in groups.items():
            part = parts[name] if name in parts else self._begin(*name)
            numbers = torch.tensor(places, dtype=torch.int64, device=self.device) + self._patches
            parts[name] = part.extend([patches[place] for place in places], numbers)
        return replace(self, _patches=self._patches + len(patches), _parts=parts)

    def pick(self, numbers: Sequence[int]) -> Composition:
        """A composition of these patches alone, ascending, numbered anew from 0."""
        chosen = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        parts = {}
        for name, part in self._parts.items():
            here, places = _places(chosen, part.numbers)
            if len(places):
                parts[name] = part.pick(places.tolist(), here)
        return replace(self, _patches=len(numbers), _parts=parts)

    def apply(self, queries: Tensor, residuals: Tensor, alive: Tensor, view: Tensor) -> tuple[Tensor, Firing]:
        """What the overlays behind the last layer do, one editor's after the other's; see `types.Adding`."""
        firings = []
        for part in self._added():
            residuals, firing = part.overlay.apply(queries, residuals, _columns(alive, part.numbers), view)
            if len(firing.rows):
                firings.append(replace(firing, patches=part.numbers[firing.patches]))
        return residuals, _joined(firings, self.device)

    def looks(self, alive: Tensor, view: Tensor) -> list[Look]:
        """Where the rows of a batch look for entries, in the order of asking: (views, patches) bool, (n,) int64."""
        return [
            Look(book.site, partial(book.find, alive=alive, view=view))
            for book in self._books()
            if bool(_columns(alive, book.numbers).any())
        ]

    def visited(self, alive: Tensor) -> list[LayerSite]:
        """The layer sites where patches are alive: (patches,) bool."""
        alive = alive.to(self.device)
        return [book.site for book in self._books() if bool(alive[book.numbers].any())]

    def layer_sites(self) -> list[LayerSite]:
        """The layer sites of all patches, alive or not."""
        return [book.site for book in self._books()]

    def found(self, keys: Mapping[str, Tensor], alive: Tensor, texts: Tensor) -> Tensor:
        """The patch that each text finds, or NOTHING: (k,) int64.

        keys: by site the keys of all texts, (n, hidden). alive: (patches,) bool. texts: (k,) int64, which are asked.
        """
        entered = torch.full_like(texts, NOTHING)
        for look in self.looks(alive.to(self.device).unsqueeze(0), torch.zeros_like(texts)):
            found = look.find(keys[look.site.name][texts])
            if found is not None:
                first = entered[found.rows] == NOTHING
                entered[found.rows[first]] = found.patches[first]
        return entered

    def reached_by(self, keys: Mapping[str, Tensor], before: Tensor, after: Tensor) -> Tensor:
        """The texts that may find another entry when other patches are alive: (k,) int64, ascending.

        keys: by site, (n, hidden). before, after: (patches,) bool.
        """
        before, after = before.to(self.device), after.to(self.device)
        reached = [torch.zeros(0, dtype=torch.int64, device=self.device)]
        for book in self._books():
            masks = before[book.numbers], after[book.numbers]
            if not torch.equal(*masks):
                reached.append(book.overlay.reached_by(keys[book.site.name], *masks))
        texts: Tensor = torch.cat(reached).unique()
        return texts

    def adding(self, numbers: Sequence[int]) -> list[int]:
        """Those of these patches that act behind the last layer."""
        if not numbers:
            return []
        chosen = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        found = [_places(chosen, part.numbers)[0] for part in self._added()]
        kept: list[int] = chosen[torch.cat([chosen[:0], *found]).sort().values].tolist()
        return kept

    def _begin(self, editor: str, site: str) -> _Added | _Book:
        if editor not in self.editors:
            raise UnknownEditor(f"There is no editor {editor!r}; there are: {', '.join(sorted(self.editors))}.")
        overlay = self.editors[editor].overlay(self.sites.last.hidden, self.device, self.features)
        none = torch.zeros(0, dtype=torch.int64, device=self.device)
        layer = self.sites.layer_named(site)
        if layer is None:
            assert isinstance(overlay, Adding)
            return _Added(overlay, none)
        assert isinstance(overlay, Replacing)
        return _Book(overlay, none, layer)

    def _added(self) -> list[_Added]:
        """In an order that does not depend on which patches there are: a sum in another order may have other bits."""
        return [part for _, part in sorted(self._parts.items()) if isinstance(part, _Added)]

    def _books(self) -> list[_Book]:
        """The first layers first: a text that finds an entry looks no further."""
        books = [part for part in self._parts.values() if isinstance(part, _Book)]
        return sorted(books, key=lambda book: (book.site.reads.number, TOKENS.index(book.site.token), book.site.name))


def _columns(alive: Tensor, numbers: Tensor) -> Tensor:
    """The columns of some patches; they are ascending, so as many as all are all."""
    return alive if len(numbers) == alive.shape[1] else alive[:, numbers]


def _places(chosen: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the chosen patches are among some numbers, both ascending, and where these are: (k,) int64 each."""
    places = torch.searchsorted(numbers, chosen).clamp(max=len(numbers) - 1)
    here = (numbers[places] == chosen).nonzero().squeeze(-1)
    return here, places[here]


def _joined(firings: Sequence[Firing], device: torch.device) -> Firing:
    if len(firings) == 1:
        return firings[0]
    none = torch.zeros(0, dtype=torch.int64, device=device)
    rows = torch.cat([none, *(firing.rows for firing in firings)])
    patches = torch.cat([none, *(firing.patches for firing in firings)])
    strengths = torch.cat([none.float(), *(firing.strengths for firing in firings)])
    order = patches.argsort(stable=True)
    order = order[rows[order].argsort(stable=True)]
    return Firing(rows[order], patches[order], strengths[order])
