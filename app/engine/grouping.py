"""Which of the inputs that wait share a forward pass.

Inputs of one pass are padded to the longest of them; every pass costs something by itself. How much that is, in tokens,
is learned from the passes that were run: on a processor some tens, on an accelerator thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TypeVar

from app.engine.device import Waiting

Row = TypeVar("Row", bound=Waiting)

OVERHEAD = 24.0
"""Tokens that a pass costs by itself, as long as nothing is known."""
MOST = 100_000.0
FORGETTING = 0.99
"""The weight of an observation after one more."""
FEWEST = 4.0


class Costs:
    """What passes cost: seconds = fixed + tokens * each, by least squares over the last hundred or so."""

    def __init__(self) -> None:
        self._count = self._tokens = self._seconds = self._squares = self._products = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        """One pass over so many tokens, padding included."""
        self._count = FORGETTING * self._count + 1
        self._tokens = FORGETTING * self._tokens + tokens
        self._seconds = FORGETTING * self._seconds + seconds
        self._squares = FORGETTING * self._squares + tokens * tokens
        self._products = FORGETTING * self._products + tokens * seconds

    @property
    def overhead(self) -> float:
        """How many tokens a pass costs by itself."""
        spread = self._count * self._squares - self._tokens**2
        if self._count < FEWEST or spread <= 1e-3 * self._tokens**2:
            return OVERHEAD
        each = (self._count * self._products - self._tokens * self._seconds) / spread
        fixed = (self._seconds - each * self._tokens) / self._count
        return MOST if each <= 0 else min(max(fixed / each, 0.0), MOST)


def similar(rows: Sequence[Row], *, overhead: float) -> list[list[Row]]:
    """The rows in the groups that cost least in all: for each its overhead, and its longest row times their number."""
    lengths = [list(group) for _, group in groupby(sorted(rows, key=len), key=len)]
    best: list[tuple[float, int]] = [(0.0, 0)]  # up to each length the least cost, and where its last group begins
    for end in range(1, len(lengths) + 1):
        longest, count, found = len(lengths[end - 1][0]), 0, list[tuple[float, int]]()
        for start in reversed(range(end)):
            count += len(lengths[start])
            found.append((best[start][0] + overhead + count * longest, start))
        best.append(min(found))
    groups: list[list[Row]] = []
    end = len(lengths)
    while end:
        start = best[end][1]
        groups.insert(0, [row for each in lengths[start:end] for row in each])
        end = start
    return groups


def equal(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows in groups of the same length, for models whose inputs cannot be padded."""
    return [list(group) for _, group in groupby(sorted(rows, key=len), key=len)]
