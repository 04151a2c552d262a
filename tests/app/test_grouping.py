"""Inputs share forward passes so that padding and passes together cost least."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.grouping import equal, similar


def cost(groups: list[list[str]], overhead: float) -> float:
    return sum(overhead + len(group) * max(map(len, group)) for group in groups)


def every_cut(rows: list[str]) -> list[list[list[str]]]:
    """All ways to cut sorted rows into groups."""
    ways = []
    for mask in range(2 ** (len(rows) - 1)):
        cuts = [0, *(place for place in range(1, len(rows)) if mask >> (place - 1) & 1), len(rows)]
        ways.append([rows[start:end] for start, end in pairwise(cuts)])
    return ways


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=9), overhead=st.floats(0, 60))
@settings(max_examples=60, deadline=None)
def test_no_other_grouping_costs_less(lengths: list[int], overhead: float) -> None:
    rows = ["x" * length for length in lengths]
    groups = similar(rows, overhead=overhead)
    assert sorted(row for group in groups for row in group) == sorted(rows)
    least = min(cost(way, overhead) for way in every_cut(sorted(rows, key=len)))
    assert cost(groups, overhead) == pytest.approx(least)


def test_rows_of_one_length_are_never_parted() -> None:
    assert [len(group) for group in similar(["xx", "x", "xx", "x"], overhead=0)] == [2, 2]
    assert [len(group) for group in equal(["xx", "x", "xx", "x"])] == [2, 2]


def test_nothing_makes_no_pass() -> None:
    assert similar([], overhead=1) == equal([]) == []


def test_where_passes_are_dear_there_is_one() -> None:
    assert len(similar(["x" * length for length in range(1, 33)], overhead=10_000)) == 1
