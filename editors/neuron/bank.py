"""Neurons of all patches in one overlay: what serves the patches that this editor fits.

Removing a patch must leave, to the last bit, what the others alone would serve. So the matrix product over all
keys only finds candidates; what a neuron adds to a row is computed from that neuron and that row alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from editors.neuron.activations import GELU, activate
from editors.types import Firing, Patch

_ROWS_BY_NEURONS = 2**24
"""How large a product over all keys may get at once: 64 MiB in float32."""
_PAIRS_BY_HIDDEN = 2**24


class NeuronBank:
    """Extra key-value neurons beside a frozen feed-forward layer (Huang et al. 2023, eq. 4).

    Immutable for its readers; banks that grew out of one another share their storage.
    """

    def __init__(self, storage: _Storage, neurons: int, patches: int) -> None:
        self._storage = storage
        self._neurons = neurons
        self._patches = patches

    @classmethod
    def empty(cls, hidden: int, device: torch.device) -> NeuronBank:
        """A bank without patches."""
        return cls(_Storage(capacity=0, hidden=hidden, device=device), neurons=0, patches=0)

    def __len__(self) -> int:
        return self._patches

    def extend(self, patches: Sequence[Patch]) -> NeuronBank:
        """A bank with `patches` after the present ones."""
        counts = [len(patch.tensors["biases"]) for patch in patches]
        end = self._neurons + sum(counts)
        storage = self._storage.reserve(self._neurons, end)
        start = self._neurons
        for number, (patch, count) in enumerate(zip(patches, counts, strict=True), start=self._patches):
            storage.write(start, patch, number)
            start += count
        return NeuronBank(storage, end, self._patches + len(patches))

    def pick(self, numbers: Sequence[int]) -> NeuronBank:
        """A bank of these patches alone, ascending, numbered anew from 0."""
        picked = torch.tensor(numbers, dtype=torch.int64, device=self._storage.patches.device)
        neurons = torch.isin(self._storage.patches[: self._neurons], picked).nonzero().squeeze(-1)
        return NeuronBank(self._storage.pick(neurons, picked), len(neurons), len(numbers))

    @torch.no_grad()
    def apply(self, queries: Tensor, residuals: Tensor, alive: Tensor, view: Tensor) -> tuple[Tensor, Firing]:
        """Residuals with the values of the neurons that fire added in ledger order; see `types.Overlay`.

        A neuron fires where its activation is not exactly zero: with ReLU above its threshold, with GELU on
        nearly every row (its negative side fades to zero only below a pre-activation of about -8).
        """
        queries = queries.float()
        rows, neurons = self._candidates(queries, alive, view)
        strengths = self._strengths(queries, rows, neurons)
        firing = strengths != 0
        rows, neurons, strengths = rows[firing], neurons[firing], strengths[firing]
        if len(rows) == 0:
            return residuals, Firing(rows, neurons, strengths)
        patched = _add_in_order(residuals, rows, strengths, self._storage.values, neurons)
        return patched, _by_patch(rows, self._storage.patches[neurons], strengths)

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
        store, here = self._storage, slice(self._neurons)
        keys, biases = store.keys[here], store.biases[here]
        # A float32 dot product of n terms is off by at most n*eps*|q||k|; eps is twice the unit roundoff.
        eps = torch.finfo(torch.float32).eps
        slack = eps * ((queries.shape[-1] + 2) * queries.norm(dim=-1, keepdim=True) * store.norms[here] + biases.abs())
        possible: Tensor = (queries @ keys.T + biases + slack >= 0) | store.gelu[here]
        return possible & alive[:, store.patches[here]][view]

    def _strengths(self, queries: Tensor, rows: Tensor, neurons: Tensor) -> Tensor:
        """The activation of each pair, computed from its row and its neuron alone: (pairs,) float32."""
        size = max(1, _PAIRS_BY_HIDDEN // queries.shape[-1])
        chunks = zip(torch.split(rows, size), torch.split(neurons, size), strict=True)
        return torch.cat([self._strengths_of(queries, *chunk) for chunk in chunks])

    def _strengths_of(self, queries: Tensor, rows: Tensor, neurons: Tensor) -> Tensor:
        store = self._storage
        products = queries[rows].double() * store.keys[neurons].double()  # exact: 24 + 24 bits fit into 53
        pre_activations = _tree_sum(products) + store.biases[neurons].double()
        return activate(pre_activations, store.gelu[neurons]).float()


def _tree_sum(terms: Tensor) -> Tensor:
    """The sum over the last dimension, always in the same order of additions: (..., n) -> (...).

    A library's sum may take another order for another number of rows, and so differ in the last bit.
    """
    while (count := terms.shape[-1]) > 1:
        half = count // 2
        summed = terms[..., :half] + terms[..., half : 2 * half]
        terms = torch.cat([summed, terms[..., 2 * half :]], dim=-1) if count % 2 else summed
    return terms.squeeze(-1)


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


class _Storage:
    """Buffers that banks grow into. Rows once written never change, so a shorter bank can go on reading."""

    def __init__(self, capacity: int, hidden: int, device: torch.device) -> None:
        self.keys = torch.zeros(capacity, hidden, device=device)
        self.values = torch.zeros(capacity, hidden, device=device)
        self.biases = torch.zeros(capacity, device=device)
        self.norms = torch.zeros(capacity, device=device)
        self.gelu = torch.zeros(capacity, dtype=torch.bool, device=device)
        self.patches = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._used = 0
        self._lock = threading.Lock()

    def reserve(self, start: int, end: int) -> _Storage:
        """A storage with what this holds up to `start`, where start..end belong to the caller alone."""
        with self._lock:
            if self._used == start and end <= len(self.biases):
                self._used = end
                return self
        grown = _Storage(max(end, 2 * start, 16), self.keys.shape[-1], self.keys.device)
        for new, old in zip(grown._columns(), self._columns(), strict=True):
            new[:start] = old[:start]
        grown._used = end
        return grown

    def pick(self, neurons: Tensor, patches: Tensor) -> _Storage:
        """A storage of these neurons alone, their patches numbered by their place in `patches`, ascending."""
        picked = _Storage(len(neurons), self.keys.shape[-1], self.keys.device)
        for new, old in zip(picked._columns(), self._columns(), strict=True):
            new[:] = old[neurons]
        picked.patches[:] = torch.searchsorted(patches, picked.patches)
        picked._used = len(neurons)
        return picked

    def _columns(self) -> tuple[Tensor, ...]:
        return self.keys, self.values, self.biases, self.norms, self.gelu, self.patches

    def write(self, start: int, patch: Patch, number: int) -> None:
        """Put the neurons of `patch`, the overlay's `number`, at `start`."""
        tensors = patch.tensors
        here = slice(start, start + len(tensors["biases"]))
        self.keys[here] = tensors["keys"].to(self.keys)
        self.values[here] = tensors["values"].to(self.values)
        self.biases[here] = tensors["biases"].to(self.biases)
        self.norms[here] = tensors["keys"].double().norm(dim=-1).to(self.norms)
        self.gelu[here] = (tensors["activations"] == GELU).to(self.gelu)
        self.patches[here] = number
