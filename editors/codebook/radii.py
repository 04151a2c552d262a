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
"""How near two keys are one and the same, in units of their length: another batch moves the last bits of a key."""
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

    def __len__(self) -> int:
        return len(self.answers)

    def squares(self, of: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
        """About the squared distances of some entries to some, and by how much these may be off.

        (m,), (k,) int64 -> (m, k), (m, 1) float32.
        """
        one, other = self.keys[of], self.keys[among]
        squares, others = one.square().sum(-1, keepdim=True), other.square().sum(-1)
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
        old, new = every[:start], every[start:]
        twins = _twins(entries, new)
        nearest = torch.cat([self.nearest, self.nearest.new_full((end - start, NEAREST), -1)])
        distances = torch.cat([self.distances, self.distances.new_full((end - start, NEAREST), torch.inf)])
        fresh = [_nearest(entries, old, new, distances[:start, -1]), _nearest(entries, new, every)]
        numbers, ways = (torch.cat(column) for column in zip(*fresh, strict=True))
        ways, order = torch.cat([distances, ways], -1).sort(dim=-1, stable=True)
        numbers = torch.cat([nearest, numbers], -1).gather(-1, order)
        return Neighbours(numbers[:, :NEAREST], ways[:, :NEAREST], torch.cat([self.twins, twins], -1))

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


def _nearest(entries: Entries, of: Tensor, among: Tensor, within: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The nearest entries `among` that limit each one `of`: (m,), (k,) -> (m, NEAREST) int64 and float64.

    within: (m,), the distances beyond which they do not matter.
    """
    size = max(1, _PAIRS // max(len(among), 1))
    pieces = zip(of.split(size), (2 * entries.reaches[of] if within is None else within).split(size), strict=True)
    numbers, ways = zip(*(_nearest_of(entries, some, among, far) for some, far in pieces), strict=True)
    return torch.cat(numbers), torch.cat(ways)


def _nearest_of(entries: Entries, of: Tensor, among: Tensor, within: Tensor) -> tuple[Tensor, Tensor]:
    far = torch.minimum(within, 2 * entries.reaches[of])
    squares, off = entries.squares(of, among)
    possible = entries.limiting(of, among) & (of.unsqueeze(-1) != among) & (squares <= far.square().unsqueeze(-1) + off)
    squares = squares.masked_fill(~possible, torch.inf)
    near, places = squares.topk(min(len(among), NEAREST + SPARE), largest=False)
    ways = _ways(entries, of, among[places], ~near.isinf())
    ways, order = ways.sort(dim=-1, stable=True)
    numbers = among[places].gather(-1, order)
    missing = NEAREST - ways.shape[-1]
    if missing > 0:
        ways = torch.nn.functional.pad(ways, (0, missing), value=torch.inf)
        numbers = torch.nn.functional.pad(numbers, (0, missing), value=-1)
    ways, numbers = ways[:, :NEAREST], numbers[:, :NEAREST]
    # whatever was not looked at is farther away than the last that was, but for rounding
    unsure = ~near[:, -1].isinf() & (near[:, -1] - off.squeeze(-1) <= ways[:, -1].square())
    for row in unsure.nonzero().squeeze(-1) if near.shape[-1] < len(among) else ():
        every = among[possible[row]]
        counted = torch.ones(1, len(every), dtype=torch.bool, device=every.device)
        exact, order = _ways(entries, of[row].unsqueeze(0), every.unsqueeze(0), counted)[0].sort(stable=True)
        ways[row], numbers[row] = exact[:NEAREST], every[order[:NEAREST]]
    return numbers.masked_fill(ways.isinf(), -1), ways


def _ways(entries: Entries, of: Tensor, to: Tensor, counted: Tensor) -> Tensor:
    """The exact distances of entries to others, inf where they do not count, are twins, or too far to limit.

    (m,), (m, k) int64, (m, k) bool -> (m, k) float64.
    """
    rows, columns = counted.nonzero(as_tuple=True)
    one, other = of[rows], to[rows, columns]
    exact = entries.distances(one, other)
    twins = exact <= SAME * entries.norms[torch.maximum(one, other)]
    limiting = ~twins & (exact < 2 * entries.reaches[one])
    ways = torch.full(to.shape, torch.inf, dtype=torch.float64, device=to.device)
    ways[rows[limiting], columns[limiting]] = exact[limiting]
    return ways


def _way(entries: Entries, entry: int, alive: Tensor) -> Tensor:
    """The exact distance of an entry to the nearest that is alive and limits it, inf if none does: (entries,) bool."""
    of, among = torch.tensor([entry], device=alive.device), alive.nonzero().squeeze(-1)
    counted = entries.limiting(of, among) & (among != entry)
    return _ways(entries, of, among.unsqueeze(0), counted).amin()


def _twins(entries: Entries, new: Tensor) -> Tensor:
    """Pairs of an older entry and one of the new ones with the same key: (2, pairs)."""
    pairs = [new.new_zeros(2, 0)]
    every = torch.arange(len(entries), device=new.device)
    for some in new.split(max(1, _PAIRS // len(entries))):
        squares, off = entries.squares(some, every)
        same = SAME * entries.norms[some]
        near = (squares <= same.square().unsqueeze(-1) + off) & (every < some.unsqueeze(-1))
        newer, older = near.nonzero(as_tuple=True)
        exact = entries.distances(some[newer], older) <= same[newer]
        pairs.append(torch.stack([older[exact], some[newer[exact]]]))
    return torch.cat(pairs, -1)


def distances_between(one: Tensor, other: Tensor) -> Tensor:
    """How far each row of one is from that row of the other: (n, hidden) each -> (n,) float64."""
    return tree_sum((one.double() - other.double()).square()).sqrt()
