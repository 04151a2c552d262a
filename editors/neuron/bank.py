"""Neurons of all patches in one overlay: what serves the patches that this editor fits.

Removing a patch must leave, to the last bit, what the others alone would serve. So the matrix product over all
keys only finds candidates; what a neuron adds to a row is computed from that neuron and that row alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from editors.coarse import EXTRA, coarse_keys, coarse_queries, multiplies_bfloat16, padded, reaching
from editors.columns import Columns, Lease
from editors.neuron.activations import GELU, activate
from editors.summing import tree_sum
from editors.types import Firing, Patch

_ROWS_BY_NEURONS = 2**24
"""How large a product over all keys may get at once: 64 MiB in float32."""
_PAIRS_BY_HIDDEN = 2**21
COARSE_FROM = 256
"""Neurons from which on a first search in bfloat16 pays."""
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

    @classmethod
    def empty(cls, hidden: int, device: torch.device) -> NeuronBank:
        """A bank without patches."""
        wide, single = torch.zeros(0, hidden, device=device), torch.zeros(0, device=device)
        like = {"keys": wide, "values": wide, "biases": single, "norms": single}
        like |= {"gelu": single.bool(), "patches": single.long()}
        if multiplies_bfloat16(device):
            like |= {"coarse": torch.zeros(0, hidden + EXTRA, device=device, dtype=torch.bfloat16)}
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
        if "coarse" in columns:
            columns.write(self._neurons, end, coarse=_coarse_of(neurons))
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
        queries = queries.float()
        rows, neurons = self._candidates(queries.detach(), alive, view)
        strengths = self._strengths(queries, rows, neurons)
        firing = strengths.abs() > 0  # not where they are NaN, as everything about such a row is
        rows, neurons, strengths = rows[firing], neurons[firing], strengths[firing]
        if len(rows) == 0:
            return residuals, Firing(rows, neurons, strengths)
        patched = _add_in_order(residuals, rows, strengths, self._columns["values"], neurons)
        return patched, _by_patch(rows, self._columns["patches"][neurons], strengths.detach())

    def _candidates(self, queries: Tensor, alive: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs (row, neuron) that may fire, sorted: every pair that does is among them."""
        if len(queries) == 0 or self._neurons == 0:
            nothing = torch.zeros(0, dtype=torch.int64, device=queries.device)
            return nothing, nothing
        size = max(1, _ROWS_BY_NEURONS // self._neurons)
        found = [
            self._candidates_among(queries[start : start + size], alive, view[start : start + size], start)
            for start in range(0, len(queries), size)
        ]
        rows, neurons = (torch.cat(column) for column in zip(*found, strict=True))
        return rows, neurons

    def _candidates_among(self, queries: Tensor, alive: Tensor, view: Tensor, start: int) -> tuple[Tensor, Tensor]:
        rows, neurons = self._reached(queries)
        seen = alive[view[rows], self._columns["patches"][neurons]]
        return rows[seen] + start, neurons[seen]

    def _reached(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs (row, neuron) that may fire if the patch is alive, sorted."""
        here = slice(self._neurons)
        if "coarse" in self._columns and self._neurons >= COARSE_FROM:
            coarse = padded(self._columns["coarse"], self._neurons)
            rows, neurons = reaching(coarse_queries(queries), coarse, self._neurons)
            if len(rows) <= COARSE_CANDIDATES * len(queries):
                return rows, neurons
        keys, biases, norms, gelu = (self._columns[name][here] for name in ("keys", "biases", "norms", "gelu"))
        # A float32 dot product of n terms is off by at most n*eps*|q||k|; eps is twice the unit roundoff.
        eps = torch.finfo(torch.float32).eps
        slack = eps * ((queries.shape[-1] + 2) * queries.norm(dim=-1, keepdim=True) * norms + biases.abs())
        rows, neurons = ((queries @ keys.T + biases + slack >= 0) | gelu).nonzero(as_tuple=True)
        return rows, neurons

    def _strengths(self, queries: Tensor, rows: Tensor, neurons: Tensor) -> Tensor:
        """The activation of each pair, computed from its row and its neuron alone: (pairs,) float32."""
        size = max(1, _PAIRS_BY_HIDDEN // queries.shape[-1])
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
    norms = keys.double().norm(dim=-1)
    return {"keys": keys, "values": values, "biases": biases, "norms": norms, "gelu": activations == GELU}


def _coarse_of(neurons: dict[str, Tensor]) -> Tensor:
    """A GELU neuron, which fires on nearly every row, is found on every one: (n, hidden + EXTRA)."""
    keys, biases, norms, gelu = (neurons[name].float() for name in ("keys", "biases", "norms", "gelu"))
    silent = 1 - gelu
    return coarse_keys(keys * silent.unsqueeze(-1), biases * silent + gelu, norms * silent)


def _add_in_order(residuals: Tensor, rows: Tensor, strengths: Tensor, values: Tensor, neurons: Tensor) -> Tensor:
    """A copy of `residuals` with strength * value of each pair added, one pair of a row after the other."""
    patched = residuals.clone()
    for turn in _turns(rows):
        row = rows[turn]
        added = strengths[turn].unsqueeze(-1) * values[neurons[turn]]
        patched[row] = (patched[row].float() + added).to(residuals.dtype)
    return patched


def _turns(rows: Tensor) -> Iterator[Tensor]:
    """Masks over sorted `rows`: the first pair of each row, then the second of each, and so on."""
    rank = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
    for turn in range(int(rank.max()) + 1):
        yield rank == turn


def _by_patch(rows: Tensor, patches: Tensor, strengths: Tensor) -> Firing:
    """One entry a (row, patch), with the largest strength of the patch's neurons."""
    pairs, which = torch.unique_consecutive(torch.stack([rows, patches]), dim=1, return_inverse=True)
    largest = torch.full((pairs.shape[1],), -torch.inf, dtype=strengths.dtype, device=strengths.device)
    return Firing(pairs[0], pairs[1], largest.scatter_reduce(0, which, strengths, "amax"))
