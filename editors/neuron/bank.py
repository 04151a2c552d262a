"""Neurons of all patches in one overlay: what serves the patches that this editor fits.

Removing a patch must leave, to the last bit, what the others alone would serve. So the matrix product over all
keys only finds candidates; what a neuron adds to a row is computed from that neuron and that row alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from editors.columns import Columns
from editors.neuron.activations import GELU, activate
from editors.summing import tree_sum
from editors.types import Firing, Patch

_ROWS_BY_NEURONS = 2**24
"""How large a product over all keys may get at once: 64 MiB in float32."""
_PAIRS_BY_HIDDEN = 2**24


class NeuronBank:
    """Extra key-value neurons beside a frozen feed-forward layer (Huang et al. 2023, eq. 4).

    Immutable for its readers; banks that grew out of one another share their storage.
    """

    def __init__(self, columns: Columns, neurons: int, patches: int) -> None:
        self._columns = columns
        self._neurons = neurons
        self._patches = patches

    @classmethod
    def empty(cls, hidden: int, device: torch.device) -> NeuronBank:
        """A bank without patches."""
        wide, single = torch.zeros(0, hidden, device=device), torch.zeros(0, device=device)
        like = {"keys": wide, "values": wide, "biases": single, "norms": single}
        like |= {"gelu": single.bool(), "patches": single.long()}
        return cls(Columns(like), neurons=0, patches=0)

    def __len__(self) -> int:
        return self._patches

    def extend(self, patches: Sequence[Patch]) -> NeuronBank:
        """A bank with `patches` after the present ones."""
        counts = [len(patch.tensors["biases"]) for patch in patches]
        end = self._neurons + sum(counts)
        columns = self._columns.reserve(self._neurons, end)
        start = self._neurons
        for number, (patch, count) in enumerate(zip(patches, counts, strict=True), start=self._patches):
            columns.write(start, start + count, **_neurons_of(patch), patches=number)
            start += count
        return NeuronBank(columns, end, self._patches + len(patches))

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
        firing = strengths != 0
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
            self._candidates_among(queries[start : start + size], alive, view[start : start + size]).nonzero()
            + torch.tensor([start, 0], device=queries.device)
            for start in range(0, len(queries), size)
        ]
        pairs = torch.cat(found)
        return pairs[:, 0], pairs[:, 1]

    def _candidates_among(self, queries: Tensor, alive: Tensor, view: Tensor) -> Tensor:
        """(rows, neurons) bool."""
        here = slice(self._neurons)
        keys, biases, norms, gelu, patches = (
            self._columns[name][here] for name in ("keys", "biases", "norms", "gelu", "patches")
        )
        # A float32 dot product of n terms is off by at most n*eps*|q||k|; eps is twice the unit roundoff.
        eps = torch.finfo(torch.float32).eps
        slack = eps * ((queries.shape[-1] + 2) * queries.norm(dim=-1, keepdim=True) * norms + biases.abs())
        possible: Tensor = (queries @ keys.T + biases + slack >= 0) | gelu
        return possible & alive[:, patches][view]

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


def _neurons_of(patch: Patch) -> dict[str, Tensor]:
    tensors = patch.tensors
    return {
        "keys": tensors["keys"],
        "values": tensors["values"],
        "biases": tensors["biases"],
        "norms": tensors["keys"].double().norm(dim=-1),
        "gelu": tensors["activations"] == GELU,
    }


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
