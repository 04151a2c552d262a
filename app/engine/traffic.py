"""A reservoir of the activations of answered requests: memory for fits where no memory file covers the traffic.

Activations and what was answered, label or token, never texts. Only confident answers are kept: an answer that will be
reported as a mistake is more often an unsure one, and a remembered mistake would stand against its own correction.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from editors.types import Rows

CONFIDENT = 0.9


class Reservoir:
    """A uniform sample of all rows offered (Vitter 1985, algorithm R)."""

    def __init__(self, capacity: int, *, seed: int = 0) -> None:
        self._capacity = capacity
        self._kept: list[tuple[Tensor, Tensor, int]] = []
        self._offered = 0
        self._random = torch.Generator().manual_seed(seed)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def offer(self, seen: Rows, confidence: float) -> None:
        """Consider the rows of one answer, on the CPU; `confidence` is the least probability that it was given."""
        if confidence < CONFIDENT:
            return
        with self._lock:
            for index in range(len(seen)):
                row = seen[index : index + 1]
                self._offer_one((row.queries[0].clone(), row.residuals[0].clone(), int(row.labels[0])))

    def rows(self) -> Rows | None:
        """What is remembered now; None while that is nothing."""
        with self._lock:
            kept = list(self._kept)
        if not kept:
            return None
        queries, residuals, labels = zip(*kept, strict=True)
        return Rows(torch.stack(queries), torch.stack(residuals), torch.tensor(labels))

    def _offer_one(self, row: tuple[Tensor, Tensor, int]) -> None:
        self._offered += 1
        if len(self._kept) < self._capacity:
            self._kept.append(row)
            return
        place = int(torch.randint(self._offered, (1,), generator=self._random))
        if place < self._capacity:
            self._kept[place] = row
