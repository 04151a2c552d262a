"""Which of the inputs that wait share a forward pass.

Inputs of one pass are padded to the longest of them, and every pass costs something by itself. How much is a constant
and not measured on the way: how a request is cut moves the last bits of its answer, and the same has the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TypeVar

from app.engine.device import Waiting

Row = TypeVar("Row", bound=Waiting)

OVERHEAD = {"cpu": 24.0, "cuda": 1024.0}
"""Tokens that a pass costs by itself, by kind of device."""


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
