"""Neurons of all patches in one overlay: what serves the patches that this editor fits.

Removing a patch must leave, to the last bit, what the others alone would serve. So the matrix product over all
keys only finds candidates; what a neuron adds to a row is computed from that neuron and that row alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from editors.coarse import ALWAYS, Compact, compact, multiplies_bfloat16, multiplies_int8
from editors.columns import Columns, Lease
from editors.neuron.activations import GELU, activate
from editors.summing import tree_sum
from editors.types import Firing, Patch

_ROWS_BY_NEURONS = 2**24
"""How large a product over all keys may get at once: 64 MiB in float32."""
_PAIRS_BY_HIDDEN = 2**21
_LONGEST = 2.0**60
_TOO_SMALL = 2.0**-125
"""More than float32 can lose of a number that is too small for it."""
_SEARCHED = ("keys", "biases", "norms", "gelu")
COARSE_FROM = 256
"""Neurons from which on a first search in few bits pays."""
COARSE_CANDIDATES = 64
"""Candidates a row, in the mean, above which that search has told too little: the finer one follows."""


class NeuronBank:
    """Extra key-value neurons beside a frozen feed-forward layer (Huang et al. 2023, eq. 4).

    Immutable for its readers; banks that grew out of one another share their storage.
    """

    def __init__(self, columns: Columns, neurons: int, patches: int, lease: Lease | None = None) -> None:
        """lease: of the rows that this bank has reserved."""
        self._columns = columns
        self._neurons = neurons
        self._patches = patches
        self._lease = lease
        self._compact = Compact.of(columns, neurons) if "whole" in columns and neurons >= COARSE_FROM else None

    @classmethod
    def empty(cls, hidden: int, device: torch.device) -> NeuronBank:
        """A bank without patches."""
        wide, single = torch.zeros(0, hidden, device=device), torch.zeros(0, device=device)
        like = {"keys": wide, "values": wide, "biases": single, "norms": single}
        like |= {"gelu": single.bool(), "patches": single.long()}
        if multiplies_bfloat16(device) or multiplies_int8(device, hidden):
            like |= compact(wide, single, device)
        return cls(Columns(like), neurons=0, patches=0)

    def __len__(self) -> int:
        return self._patches

    def extend(self, patches: Sequence[Patch]) -> NeuronBank:
        """A bank with `patches` after the present ones."""
        if not patches:
            return self
        counts = torch.tensor([len(patch.tensors["biases"]) for patch in patches])
        end = self._neurons + int(counts.sum())
        columns = self._columns.reserve(self._neurons, end)
        lease = Lease(columns, self._neurons, end)
        neurons = _neurons_of(patches)
        numbers = torch.arange(len(patches)).repeat_interleave(counts) + self._patches
        columns.write(self._neurons, end, **neurons, patches=numbers)
        if "whole" in columns:
            columns.write(self._neurons, end, **_compact_of(neurons, columns["keys"].device))
        return NeuronBank(columns, end, self._patches + len(patches), lease)

    def pick(self, numbers: Sequence[int]) -> NeuronBank:
        """A bank of these patches alone, ascending, numbered anew from 0."""
        patches = self._columns["patches"][: self._neurons]
        picked = torch.tensor(numbers, dtype=torch.int64, device=patches.device)
        neurons = torch.isin(patches, picked).nonzero().squeeze(-1)
        columns = self._columns.pick(neurons)
        columns.write(0, len(neurons), patches=torch.searchsorted(picked, patches[neurons]))
        return NeuronBank(columns, len(neurons), len(numbers))

    def apply(self, queries: Tensor, residuals: Tensor, alive: Tensor, view: Tensor) -> tuple[Tensor, Firing]:
        """Residuals with the values of the neurons that fire added in ledger order; see `types.Overlay`.

        A neuron fires where its activation is not exactly zero: with ReLU above its threshold, with GELU on
        nearly every row (its negative side fades to zero only below a pre-activation of about -8).
        Differentiable in queries and residuals: a value at an inner layer is fitted with the neurons acting.
        """
        rows, neurons, strengths = self._firing(queries.float(), alive, view)
        if len(rows) == 0:
            return residuals, Firing(rows, neurons, strengths)
        patched = _add_in_order(residuals, rows, strengths, self._columns["values"], neurons)
        return patched, _by_patch(rows, self._columns["patches"][neurons], strengths.detach())

    def _firing(self, queries: Tensor, alive: Tensor, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs (row, neuron) that fire, sorted, and how strongly: (pairs,) each."""
        rows, neurons = self._candidates(queries.detach(), alive, view)
        if len(rows) == 0:
            return rows, neurons, queries.new_zeros(0)
        strengths = self._strengths(queries, rows, neurons)
        firing = strengths.abs() > 0  # not where they are NaN, as everything about such a row is
        rows, neurons, strengths = _chosen(firing, rows, neurons, strengths)
        return rows, neurons, strengths

    def _candidates(self, queries: Tensor, alive: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs (row, neuron) that may fire, sorted: every pair that does is among them."""
        if len(queries) == 0 or self._neurons == 0:
            nothing = torch.zeros(0, dtype=torch.int64, device=queries.device)
            return nothing, nothing
        size = max(1, _ROWS_BY_NEURONS // self._neurons)
        rows, neurons = self._reached(queries) if len(queries) <= size else self._reached_in_parts(queries, size)
        if len(rows) == 0:
            return rows, neurons
        rows, neurons = _chosen(alive[view[rows], self._columns["patches"][neurons]], rows, neurons)
        return rows, neurons

    def _reached_in_parts(self, queries: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """What `_reached` finds, asked so many rows at once."""
        found = [self._reached(part) for part in queries.split(size)]
        rows = torch.cat([rows + number * size for number, (rows, _) in enumerate(found)])
        return rows, torch.cat([neurons for _, neurons in found])

    def _reached(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs (row, neuron) that may fire if the patch is alive, sorted."""
        found = self._compact.reached(queries, COARSE_CANDIDATES * len(queries)) if self._compact is not None else None
        return self._finely_reached(queries) if found is None else found

    def _finely_reached(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The same by one product in float32.

        Such a product of n terms is off by at most n*eps*|q||k|, where eps is twice the unit roundoff, and by what is
        too small for it. Where it may overflow the slack is infinite, and what is not a number is found.
        """
        keys, biases, norms, gelu = (self._columns[name][: self._neurons] for name in _SEARCHED)
        # In float32, which is off by less than what is added: rows may be many, and as float64 they are twice as large.
        lengths = queries.norm(dim=-1, keepdim=True) * (1 + 2**-12) + 2**-60
        lengths = lengths.masked_fill_(lengths > _LONGEST, torch.inf)
        width, eps = queries.shape[-1], torch.finfo(torch.float32).eps
        slack = eps * ((width + 2) * lengths * norms + biases.abs()) + width * _TOO_SMALL
        # Of one neuron as of two: a product of matrices takes half the time of one with a vector.
        products = queries @ keys.T if len(keys) > 1 else (queries @ keys.repeat(2, 1).T)[:, :1]
        reached = (products + biases + slack < 0).logical_not_() | gelu
        rows, neurons = reached.masked_fill_(lengths.isnan(), False).nonzero(as_tuple=True)
        return rows, neurons

    def _strengths(self, queries: Tensor, rows: Tensor, neurons: Tensor) -> Tensor:
        """The activation of each pair, computed from its row and its neuron alone: (pairs,) float32."""
        size = max(1, _PAIRS_BY_HIDDEN // queries.shape[-1])
        if len(rows) <= size:
            return self._strengths_of(queries, rows, neurons)
        chunks = zip(torch.split(rows, size), torch.split(neurons, size), strict=True)
        return torch.cat([self._strengths_of(queries, *chunk) for chunk in chunks])

    def _strengths_of(self, queries: Tensor, rows: Tensor, neurons: Tensor) -> Tensor:
        keys, biases, gelu = (self._columns[name][neurons] for name in ("keys", "biases", "gelu"))
        products = queries[rows].double() * keys.double()  # exact: 24 + 24 bits fit into 53
        pre_activations = tree_sum(products) + biases.double()
        return activate(pre_activations, gelu).float()


def _neurons_of(patches: Sequence[Patch]) -> dict[str, Tensor]:
    keys, values, biases, activations = (
        torch.cat([patch.tensors[name] for patch in patches]) for name in ("keys", "values", "biases", "activations")
    )
    norms = _bounded(keys.double().norm(dim=-1))
    return {"keys": keys, "values": values, "biases": biases, "norms": norms, "gelu": activations == GELU}


def _bounded(lengths: Tensor) -> Tensor:
    """Infinite where the product of two could overflow: float64 -> float32."""
    return lengths.masked_fill(lengths > _LONGEST, torch.inf).float()


def _chosen(mask: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
    """The columns where the mask holds, themselves where it always does: it mostly does, and a copy takes time."""
    (places,) = mask.nonzero(as_tuple=True)
    return columns if len(places) == len(mask) else tuple(column[places] for column in columns)


def _all_differ(*columns: Tensor) -> bool:
    """Whether no two rows of sorted columns are alike."""
    if len(columns[0]) == 1:
        return True
    same = torch.stack([column[1:] == column[:-1] for column in columns]).all(dim=0)
    return not bool(same.any())


def _compact_of(neurons: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A GELU neuron, which fires on nearly every row, is found on every one."""
    columns = compact(neurons["keys"].float(), neurons["biases"].float(), device)
    return columns | {"offsets": columns["offsets"].masked_fill(neurons["gelu"], ALWAYS)}


def _add_in_order(residuals: Tensor, rows: Tensor, strengths: Tensor, values: Tensor, neurons: Tensor) -> Tensor:
    """A copy of `residuals` with strength * value of each pair added, one pair of a row after the other."""
    patched = residuals.clone()
    for turn in _turns(rows):
        row = rows[turn]
        added = strengths[turn].unsqueeze(-1) * values[neurons[turn]]
        patched[row] = (patched[row].float() + added).to(residuals.dtype)
    return patched


def _turns(rows: Tensor) -> Iterator[Tensor | slice]:
    """Places in sorted `rows`: the first pair of each row, then the second of each, and so on."""
    if _all_differ(rows):
        yield slice(None)
        return
    rank = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
    for turn in range(int(rank.max()) + 1):
        yield (rank == turn).nonzero().squeeze(-1)


def _by_patch(rows: Tensor, patches: Tensor, strengths: Tensor) -> Firing:
    """One entry a (row, patch), with the largest strength of the patch's neurons."""
    if _all_differ(rows, patches):
        return Firing(rows, patches, strengths)
    pairs, which = torch.unique_consecutive(torch.stack([rows, patches]), dim=1, return_inverse=True)
    largest = torch.full((pairs.shape[1],), -torch.inf, dtype=strengths.dtype, device=strengths.device)
    return Firing(pairs[0], pairs[1], largest.scatter_reduce(0, which, strengths, "amax"))
