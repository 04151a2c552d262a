"""Keys and values of all entries at one site: what serves the patches that GRACE fits.

Removing an entry must leave, to the last bit, what the others alone would serve. So one matrix product only finds
candidates; how far a key is from an entry is computed from these two alone, and radii are derived (`radii`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from editors.coarse import multiplies_bfloat16, padded
from editors.codebook.radii import Entries, Neighbours, distances_between, same_within
from editors.columns import Columns, Lease
from editors.types import Patch
from editors.visit import Found

_ROWS_BY_ENTRIES = 2**24
"""How large a product over all keys may get at once: 64 MiB in float32."""
_PAIRS_BY_HIDDEN = 2**22
COARSE_ROUNDINGS = 6.0
COARSE_CANDIDATES = 256
"""Candidates a key, in the mean, above which a coarse search is not worth it: each is then looked at exactly."""
VIEWS_KEPT = 16
"""Views whose radii are kept; computing those of ten thousand entries takes about a millisecond."""


class Codebook:
    """A codebook beside one feed-forward layer (Hartvigsen et al. 2023, section 3), one entry a patch.

    Among the entries whose ball holds a key the nearest is found; of two equally near ones the newer. The paper takes
    the nearest of all and then looks at its ball; so an entry could hide another one from keys that it does not cover.

    Immutable for its readers; codebooks that grew out of one another share their storage.
    """

    def __init__(
        self,
        columns: Columns,
        values: Columns,
        entries: int,
        neighbours: Neighbours | None,
        leases: Sequence[Lease] = (),
    ) -> None:
        """leases: of the rows that this codebook, or the one it was picked from, has reserved."""
        self._leases = leases
        self._columns = columns
        self._values = values
        """Those of all entries, one entry's after the other's."""
        self._entries = entries
        self._known_neighbours = neighbours
        self._radii: dict[bytes, Tensor] = {}
        """Of the views that were asked for last, by their masks."""

    @classmethod
    def empty(cls, hidden: int, device: torch.device) -> Codebook:
        """A codebook without entries."""
        wide, single = torch.zeros(0, hidden, device=device), torch.zeros(0, device=device)
        like = {
            "keys": wide,
            "reach": single.double(),
            "bias": single,
            "norm": single.double(),
            "same": single.double(),
        }
        like |= {name: single.long() for name in ("answer", "places", "first", "count")}
        like |= {"coarse": wide.bfloat16()} if multiplies_bfloat16(device) else {}
        return cls(Columns(like), Columns({"values": wide}), 0, Neighbours.none(device))

    def __len__(self) -> int:
        return self._entries

    def extend(self, patches: Sequence[Patch]) -> Codebook:
        """A codebook with `patches` after the present entries."""
        if not patches:
            return self
        end = self._entries + len(patches)
        columns = self._columns.reserve(self._entries, end)
        leases = [Lease(columns, self._entries, end)]
        start = first = int((self._here("first") + self._here("count")).amax()) if self._entries else 0
        last = start + sum(len(patch.tensors["values"]) for patch in patches)
        values = self._values.reserve(start, last)
        leases.append(Lease(values, start, last))
        for entry, patch in enumerate(patches, start=self._entries):
            count = len(patch.tensors["values"])
            columns.write(entry, entry + 1, **_columns_of(patch), first=first, count=count)
            if "coarse" in columns:
                columns.write(entry, entry + 1, coarse=patch.tensors["key"])
            values.write(first, first + count, values=patch.tensors["values"])
            first += count
        neighbours = self._neighbours.grown(_entries(columns, end))
        return Codebook(columns, values, end, neighbours, leases)

    def pick(self, numbers: Sequence[int]) -> Codebook:
        """A codebook of these entries alone, ascending, numbered anew from 0."""
        entries = torch.tensor(numbers, dtype=torch.int64, device=self._columns["keys"].device)
        return Codebook(self._columns.pick(entries), self._values, len(numbers), None, self._leases)

    def radii(self, alive: Tensor) -> Tensor:
        """The radius of each entry under each view, `OFF` where it cannot be found: (views, entries) float64."""
        views = [row.cpu().numpy().tobytes() for row in alive]
        known = {view: self._radii[view] for view in views if view in self._radii}
        unknown = {view: row for view, row in zip(views, alive, strict=True) if view not in known}
        if unknown:
            radii = self._neighbours.radii(_entries(self._columns, self._entries), torch.stack(list(unknown.values())))
            known.update(zip(unknown, radii, strict=True))
            self._radii = dict([*self._radii.items(), *known.items()][-VIEWS_KEPT:])
        return torch.stack([known[view] for view in views])

    @torch.no_grad()
    def find(self, keys: Tensor, alive: Tensor, view: Tensor) -> Found | None:
        """What each key finds: (n, hidden). alive: (views, entries) bool. view: (n,) int64. None: nobody finds any."""
        rows, entries, distances = self._within_reach(keys.float())
        if len(rows) == 0:
            return None
        radii = self.radii(alive)[view[rows], entries]
        inside = distances <= radii
        rows, entries, distances, radii = rows[inside], entries[inside], distances[inside], radii[inside]
        if len(rows) == 0:
            return None
        nearest = _first_of_each(rows, distances, -entries)
        rows, entries = rows[nearest], entries[nearest]
        depth = 1 - distances[nearest] / radii[nearest].clamp(min=torch.finfo(torch.float64).tiny)
        first, counts, places = (self._columns[name][entries] for name in ("first", "count", "places"))
        turns = torch.arange(int(counts.max()), device=keys.device).clamp(max=counts.unsqueeze(-1) - 1)
        values = self._values["values"][first.unsqueeze(-1) + turns]
        return Found(rows, entries, depth.float(), values, counts, places)

    def reached_by(self, keys: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """The keys that may find something else when other entries are alive: (n, hidden) -> (k,) int64, ascending.

        before, after: (entries,) bool. An entry acts on its ball alone, so only balls whose radius differs matter.
        """
        radii = self.radii(torch.stack([before, after]))
        differing = (radii[0] != radii[1]).nonzero().squeeze(-1)
        rows, places, distances = self.pick(differing.tolist())._within_reach(keys.float())
        reached: Tensor = rows[distances <= radii.amax(0)[differing[places]]].unique()
        return reached

    def _here(self, name: str) -> Tensor:
        return self._columns[name][: self._entries]

    @property
    def _neighbours(self) -> Neighbours:
        if self._known_neighbours is None:
            every = _entries(self._columns, self._entries)
            self._known_neighbours = Neighbours.none(every.keys.device).grown(every)
        return self._known_neighbours

    def _within_reach(self, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs (row, entry) within the entry's reach, and their distances, sorted by row: (pairs,) each."""
        if len(keys) == 0 or self._entries == 0:
            nothing = torch.zeros(0, dtype=torch.int64, device=keys.device)
            return nothing, nothing, nothing.double()
        size = max(1, _ROWS_BY_ENTRIES // self._entries)
        found = [self._within_reach_of(keys[start : start + size], start) for start in range(0, len(keys), size)]
        rows, entries, distances = (torch.cat(column) for column in zip(*found, strict=True))
        return rows, entries, distances

    def _within_reach_of(self, keys: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        rows, entries = self._near(keys).nonzero(as_tuple=True)
        size = max(1, _PAIRS_BY_HIDDEN // keys.shape[-1])
        pairs = zip(rows.split(size), entries.split(size), strict=True)
        distances = torch.cat([distances_between(keys[row], self._columns["keys"][entry]) for row, entry in pairs])
        inside = distances <= self._columns["reach"][entries]
        return rows[inside] + start, entries[inside], distances[inside]

    def _near(self, keys: Tensor) -> Tensor:
        """(n, entries) bool: every pair within reach is among them, found by one product.

        |k - c| <= r exactly when <k, c> >= |k|^2/2 + (|c|^2 - r^2)/2.
        """
        if "coarse" in self._columns:
            near = self._coarsely_near(keys)
            if int(near.sum()) <= COARSE_CANDIDATES * len(keys):
                return near
        squares = keys.square().sum(-1, keepdim=True)
        # A float32 product of n terms is off by at most n*eps*|k||c|; eps is twice the unit roundoff.
        largest = self._here("norm").max().float()
        slack = torch.finfo(torch.float32).eps * (keys.shape[-1] + 4) * (squares + largest**2)
        return torch.addmm(-self._here("bias"), keys, self._here("keys").T) >= squares / 2 - slack

    def _coarsely_near(self, keys: Tensor) -> Tensor:
        """The same by a product in bfloat16, which takes half the time and lets more pairs through."""
        squares = keys.square().sum(-1, keepdim=True)
        product = (keys.bfloat16() @ padded(self._columns["coarse"], self._entries).T)[:, : self._entries]
        # Both factors, partial sums and the product are rounded: off by at most a few times 2^-8 |k||c|.
        slack = COARSE_ROUNDINGS * 2**-8 * squares.sqrt() * self._here("norm").max().float()
        return product.float() - self._here("bias") >= squares / 2 - slack


def _entries(columns: Columns, count: int) -> Entries:
    return Entries(*(columns[name][:count] for name in ("keys", "answer", "reach", "norm", "same")))


def _columns_of(patch: Patch) -> dict[str, Tensor]:
    tensors = patch.tensors
    key, reach = tensors["key"], tensors["reach"].double()
    norm = key.double().norm()
    return {
        "keys": key,
        "places": tensors["places"],
        "reach": reach,
        "norm": norm,
        "same": torch.tensor(same_within(key), dtype=torch.float64),
        "bias": (norm**2 - reach**2) / 2,
        "answer": torch.tensor(_digest(tensors["answer"])),
    }


def _digest(answer: Tensor) -> int:
    """A number for an answer, label or tokens, by all of which the paper's labels are compared: (n,) int64."""
    tokens = ",".join(map(str, answer.tolist()))
    return int.from_bytes(hashlib.sha256(tokens.encode()).digest()[:8], "little", signed=True)


def _first_of_each(rows: Tensor, *by: Tensor) -> Tensor:
    """For each row the index of its first pair in the order of `by`, the first of these most important."""
    order = torch.arange(len(rows), device=rows.device)
    for column in reversed((rows, *by)):
        order = order[column[order].argsort(stable=True)]
    sorted_rows = rows[order]
    first = torch.ones_like(sorted_rows, dtype=torch.bool)
    first[1:] = sorted_rows[1:] != sorted_rows[:-1]
    return order[first]
