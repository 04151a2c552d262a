"""How examples are cut into parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.inputs import input_key
from benchmarks.reporting import Entry
from benchmarks.splits import split

TEXTS = st.lists(st.text(alphabet="ab \u00e9e\u0301", min_size=1, max_size=4), min_size=10, max_size=60)
HUNDRED = [Entry(f"text {number}", "a") for number in range(100)]


@given(TEXTS, st.integers(0, 5))
def test_no_input_is_in_two_parts_nor_twice_in_one(texts: list[str], seed: int) -> None:
    parts = split([Entry(text, "a") for text in texts], (0.4, 0.3, 0.2), seed)
    keys = [input_key(entry.input) for part in (parts.train, parts.edit, parts.test) for entry in part]
    assert len(keys) == len(set(keys))


def test_of_inputs_that_count_as_the_same_the_first_stays() -> None:
    parts = split([*HUNDRED, Entry("text  7", "b")], (0.5, 0.3, 0.2), seed=0)
    assert {entry.target for part in (parts.train, parts.edit, parts.test) for entry in part} == {"a"}


def test_the_seed_alone_settles_who_is_where() -> None:
    assert split(HUNDRED, (0.5, 0.3, 0.2), seed=1) == split(list(HUNDRED), (0.5, 0.3, 0.2), seed=1)
    assert split(HUNDRED, (0.5, 0.3, 0.2), seed=1).test != split(HUNDRED, (0.5, 0.3, 0.2), seed=2).test


@pytest.mark.parametrize("sizes", [(0.5, 0.3, 0.1), (50, 30, 10), (50, 0.3, 10)])
def test_parts_have_the_sizes_that_are_asked_for_as_shares_or_as_numbers(sizes: tuple[float, float, float]) -> None:
    parts = split(HUNDRED, sizes, seed=0)
    assert [len(part) for part in (parts.train, parts.edit, parts.test)] == [50, 30, 10]


@pytest.mark.parametrize("sizes", [(0.5, 0.5, 0.5), (90, 20, 1), (0, 0.5, 0.5), (-1, 0.5, 0.5)])
def test_sizes_that_do_not_fit_are_refused(sizes: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="100 inputs"):
        split(HUNDRED, sizes, seed=0)
