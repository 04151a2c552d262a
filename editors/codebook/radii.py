"""The radii of a codebook's entries, derived from the entries that are alive and from nothing else.

The paper keeps radii as state: a new key near one of another label halves the way between them (Hartvigsen et al. 2023,
algorithm 1), and nobody can say afterwards what a radius would have been without it. Here each entry comes with the
largest radius that it may have, its reach, and what is left of it follows from the others: half the way to the nearest
key with another answer, and nothing at all beside a newer entry with the same key. So the order of edits, reverts and
re-applies cannot matter, but for which of two equal keys is newer.

Of each entry the NEAREST few that limit it are kept, in order of distance. Only where none of these is alive, and there
may be others, the nearest is looked for among all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from editors.summing import tree_sum

NEAREST = 8
SPARE = 8
"""How many more candidates are looked at, so that rounding cannot hide one of the nearest."""
SAME = 1e-4
"""How near two keys are one and the same at least, in units of their length: another batch moves a key's last bits."""
ROUNDED = 4.0
"""The same in units of the precision of the model's dtype, where that is more."""
OFF = -1.0
"""The radius of an entry that cannot be found."""
_PAIRS = 2**24
"""How large a product of keys may get at once: 64 MiB in float32."""
_PAIRS_BY_HIDDEN = 2**22


@dataclass(frozen=True, slots=True)
class Entries:
    """What radii follow from: keys (entries, hidden) float32, answers (entries,) int64, reaches (entries,) float64."""

    keys: Tensor
    answers: Tensor
    reaches: Tensor
    norms: Tensor  # (entries,) float64, of the keys
    sames: Tensor  # (entries,) float64, how near another key is the same as this one

    def __len__(self) -> int:
        return len(self.answers)

    def squares(self, of: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
        """About the squared distances of some entries to some, and by how much these may be off.

        (m,), (k,) int64 -> (m, k), (m, 1) float32.
        """
        one, other = self.keys[of], self.keys[among]
        squares, others = self.norms[of].square().float().unsqueeze(-1), self.norms[among].square().float()
        # A float32 product of n terms is off by at most n*eps*|k||c|; eps is twice the unit roundoff.
        off = 2 * torch.finfo(torch.float32).eps * (one.shape[-1] + 4) * (squares + others.amax())
        return torch.addmm(others, one, other.T, alpha=-2) + squares, off

    def distances(self, of: Tensor, among: Tensor) -> Tensor:
        """How far entry of[i] is from entry among[i], exactly the same in any batch: (n,) each -> (n,) float64."""
        size = max(1, _PAIRS_BY_HIDDEN // self.keys.shape[-1])
        pairs = zip(of.split(size), among.split(size), strict=True)
        return torch.cat([distances_between(self.keys[one], self.keys[other]) for one, other in pairs])

    def limiting(self, of: Tensor, among: Tensor) -> Tensor:
        """Whether the answers are such that an entry `among` limits one `of`: (m,), (k,) -> (m, k) bool."""
        return self.answers[of].unsqueeze(-1) != self.answers[among]


@dataclass(frozen=True, slots=True)
class Neighbours:
    """How the entries of a codebook limit each other.

    nearest: (entries, NEAREST) int64, -1 where there is none: the nearest entries with another answer that are less
    than twice the reach away, without twins. distances: the same shape, float64, inf where there is none. twins:
    (2, pairs) int64, each an older entry and a newer one with the same key.
    """

    nearest: Tensor
    distances: Tensor
    twins: Tensor

    @classmethod
    def none(cls, device: torch.device) -> Neighbours:
        """Of a codebook without entries."""
        nearest = torch.zeros(0, NEAREST, dtype=torch.int64, device=device)
        return cls(nearest, nearest.double(), torch.zeros(2, 0, dtype=torch.int64, device=device))

    def grown(self, entries: Entries) -> Neighbours:
        """Of more entries, the first of which are those there were."""
        start, end = len(self.nearest), len(entries)
        if start == end:
            return self
        every = torch.arange(end, device=entries.keys.device)
        twins, numbers, ways = [self.twins], list[Tensor](), list[Tensor]()
        for some in every[:start].split(_PAIRS // end + 1):
            pairs = _pairs(entries, some, every[start:])
            fresh = pairs.nearest(self.distances[some, -1])
            numbers.append(torch.cat([self.nearest[some], fresh[0]], -1))
            ways.append(torch.cat([self.distances[some], fresh[1]], -1))
        for some in every[start:].split(_PAIRS // end + 1):
            pairs = _pairs(entries, some, every)
            twins.append(pairs.twins())
            fresh = pairs.nearest(2 * entries.reaches[some])
            numbers.append(torch.nn.functional.pad(fresh[0], (0, NEAREST), value=-1))
            ways.append(torch.nn.functional.pad(fresh[1], (0, NEAREST), value=torch.inf))
        sorted_ways, order = torch.cat(ways).sort(dim=-1, stable=True)
        nearest = torch.cat(numbers).gather(-1, order)[:, :NEAREST]
        return Neighbours(nearest, sorted_ways[:, :NEAREST], torch.cat(twins, -1))

    def radii(self, entries: Entries, alive: Tensor) -> Tensor:
        """The radii under each view, OFF where an entry cannot be found: (views, entries) bool -> the same, float64."""
        limits = torch.where((self.nearest >= 0) & alive[:, self.nearest.clamp(min=0)], self.distances, torch.inf)
        ways = limits.amin(-1)
        full = self.nearest[:, -1] >= 0  # there may be more
        for view, entry in (alive & full & ways.isinf()).nonzero().tolist():
            ways[view, entry] = _way(entries, entry, alive[view])
        radii = torch.minimum(entries.reaches, ways / 2)
        older, newer = self.twins
        hidden = torch.zeros_like(alive, dtype=torch.int64).index_add(1, older, alive[:, newer].long()) > 0
        return torch.where(alive & ~hidden, radii, OFF)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Some entries and others, and about how far they are apart.

    of, among: (m,), (k,) int64. squares: (m, k) float32, off by `off` at most, (m, 1).
    """

    entries: Entries
    of: Tensor
    among: Tensor
    squares: Tensor
    off: Tensor

    def twins(self) -> Tensor:
        """Pairs of an older entry, among these, and a newer one, of these, with the same key: (2, pairs)."""
        same = self.entries.sames[self.of]
        near = (self.squares <= same.square().unsqueeze(-1) + self.off) & (self.among < self.of.unsqueeze(-1))
        rows, columns = near.nonzero(as_tuple=True)
        newer, older = self.of[rows], self.among[columns]
        twins = self.entries.distances(newer, older) <= same[rows]
        return torch.stack([older[twins], newer[twins]])

    def nearest(self, within: Tensor) -> tuple[Tensor, Tensor]:
        """Of each entry the nearest that limit it, and how far they are: (m, NEAREST) int64 and float64.

        within: (m,), the distances beyond which they do not matter.
        """
        possible = self._possible(within)
        near, places = self.squares.masked_fill(~possible, torch.inf).topk(
            min(len(self.among), NEAREST + SPARE), largest=False
        )
        ways, order = _ways(self.entries, self.of, self.among[places], ~near.isinf()).sort(dim=-1, stable=True)
        numbers = self.among[places].gather(-1, order)
        missing = max(NEAREST - ways.shape[-1], 0)
        ways = torch.nn.functional.pad(ways, (0, missing), value=torch.inf)[:, :NEAREST]
        numbers = torch.nn.functional.pad(numbers, (0, missing), value=-1)[:, :NEAREST]
        if near.shape[-1] < len(self.among):
            # whatever was not looked at is farther away than the last that was, but for rounding
            unsure = ~near[:, -1].isinf() & (near[:, -1] - self.off.squeeze(-1) <= ways[:, -1].square())
            for row in unsure.nonzero().squeeze(-1):
                ways[row], numbers[row] = self._nearest_exactly(row, possible[row])
        return numbers.masked_fill(ways.isinf(), -1), ways

    def _possible(self, within: Tensor) -> Tensor:
        """Which pairs may be near enough for one to limit the other: (m, k) bool."""
        far = torch.minimum(within, 2 * self.entries.reaches[self.of]).square().unsqueeze(-1)
        others = self.of.unsqueeze(-1) != self.among
        return self.entries.limiting(self.of, self.among) & others & (self.squares <= far + self.off)

    def _nearest_exactly(self, row: Tensor, possible: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest of one row, by the distances of all: (), (k,) bool -> (NEAREST,) float64 and int64."""
        every = self.among[possible]
        counted = torch.ones(1, len(every), dtype=torch.bool, device=every.device)
        ways, order = _ways(self.entries, self.of[row].unsqueeze(0), every.unsqueeze(0), counted)[0].sort(stable=True)
        return ways[:NEAREST], every[order[:NEAREST]]


def _pairs(entries: Entries, of: Tensor, among: Tensor) -> _Pairs:
    return _Pairs(entries, of, among, *entries.squares(of, among))


def _ways(entries: Entries, of: Tensor, to: Tensor, counted: Tensor) -> Tensor:
    """The exact distances of entries to others, inf where they do not count, are twins, or too far to limit.

    (m,), (m, k) int64, (m, k) bool -> (m, k) float64.
    """
    rows, columns = counted.nonzero(as_tuple=True)
    one, other = of[rows], to[rows, columns]
    exact = entries.distances(one, other)
    twins = exact <= entries.sames[torch.maximum(one, other)]
    limiting = ~twins & (exact < 2 * entries.reaches[one])
    ways = torch.full(to.shape, torch.inf, dtype=torch.float64, device=to.device)
    ways[rows[limiting], columns[limiting]] = exact[limiting]
    return ways


def _way(entries: Entries, entry: int, alive: Tensor) -> Tensor:
    """The exact distance of an entry to the nearest that is alive and limits it, inf if none does: (entries,) bool."""
    of, among = torch.tensor([entry], device=alive.device), alive.nonzero().squeeze(-1)
    counted = entries.limiting(of, among) & (among != entry)
    return _ways(entries, of, among.unsqueeze(0), counted).amin()


def same_within(key: Tensor) -> float:
    """How near another key is the same as this one, which is of the model's own dtype: (hidden,)."""
    return max(SAME, ROUNDED * torch.finfo(key.dtype).eps) * float(key.double().norm())


def distances_between(one: Tensor, other: Tensor) -> Tensor:
    """How far each row of one is from that row of the other: (n, hidden) each -> (n,) float64."""
    return tree_sum((one.double() - other.double()).square()).sqrt()
