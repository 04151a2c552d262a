"""A reservoir of the activations of answered requests: memory for fits where no memory file covers the traffic.

Activations and what was answered, label or token, never texts. Only confident answers are kept: an answer that will be
reported as a mistake is more often an unsure one, and a remembered mistake would stand against its own correction.
"""

from __future__ import annotations

import random
import threading

from torch import Tensor

from editors.types import Rows

CONFIDENT = 0.9


class Reservoir:
    """A uniform sample of all rows offered (Vitter 1985, algorithm R)."""

    def __init__(self, capacity: int, *, seed: int = 0) -> None:
        self._capacity = capacity
        self._columns: Rows | None = None  # as many rows as may be kept, once it is known how wide they are
        self._kept = 0
        self._offered = 0
        self._rows: Rows | None = None  # what was given last, if nothing has changed since
        self._random = random.Random(seed)  # noqa: S311 - a sample, no secret
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._kept

    def offer(self, seen: Rows, confidence: float) -> None:
        """Consider the rows of one answer, on the CPU; `confidence` is the least probability that it was given."""
        if confidence < CONFIDENT or not self._capacity:
            return
        with self._lock:
            if self._columns is None:
                self._columns = Rows(*(_room(column, self._capacity) for column in _columns(seen)))
            for index in range(len(seen)):
                self._offer_one(seen, index)

    def rows(self) -> Rows | None:
        """What is remembered now; None while that is nothing."""
        with self._lock:
            if self._columns is None or not self._kept:
                return None
            if self._rows is None:
                self._rows = Rows(*(column[: self._kept].clone() for column in _columns(self._columns)))
            return self._rows

    def _offer_one(self, seen: Rows, index: int) -> None:
        assert self._columns is not None
        self._offered += 1
        place = self._kept
        if place == self._capacity:
            place = self._random.randrange(self._offered)
            if place >= self._capacity:
                return
        else:
            self._kept += 1
        for column, offered in zip(_columns(self._columns), _columns(seen), strict=True):
            column[place] = offered[index]
        self._rows = None


def _columns(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    return rows.queries, rows.residuals, rows.labels


def _room(like: Tensor, count: int) -> Tensor:
    return like.new_zeros(count, *like.shape[1:])
