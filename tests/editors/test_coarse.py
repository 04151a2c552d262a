"""The first search in few bits lets through every pair that there is, and few others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from editors import coarse
from editors.coarse import ALIGNED, BLOCK, FEW, STEP, Compact, compact, multiplies_int8, padded
from editors.columns import Columns

CPU = torch.device("cpu")
EVERY = 10**9
LARGEST = torch.finfo(torch.float32).max
SMALLEST = 2.0**-149

in_int8 = pytest.mark.skipif(not multiplies_int8(CPU, ALIGNED), reason="this torch has no such product")


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kept(keys: Tensor, biases: Tensor) -> Compact:
    return Compact.of(Columns.of(compact(keys, biases, CPU)), len(keys))


def pairs(queries: Tensor, keys: Tensor, biases: Tensor, most: int = EVERY) -> list[tuple[int, int]]:
    found = kept(keys, biases).reached(queries, most)
    assert found is not None
    return list(zip(*(column.tolist() for column in found), strict=True))


def found_each_way(queries: Tensor, keys: Tensor, biases: Tensor) -> list[set[tuple[int, int]]]:
    """What is found of few queries, of many, and where there is no product in 8 bits."""
    many = queries.repeat(2 * FEW, 1)[: 2 * FEW]
    ways = [set(pairs(queries, keys, biases))]
    ways.append({pair for pair in pairs(many, keys, biases) if pair[0] < len(queries)})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(coarse, "multiplies_int8", lambda device, width: False)
        ways.append(set(pairs(queries, keys, biases)))
    return ways


def exactly(queries: Tensor, keys: Tensor, biases: Tensor) -> set[tuple[int, int]]:
    """Pairs that reach zero, in whole numbers of the least that a float32 can be."""
    rows, vectors = ([[_whole(each) for each in row] for row in tensor.tolist()] for tensor in (queries, keys))
    offsets = [_whole(bias) << 149 for bias in biases.tolist()]
    return {
        (row, place)
        for row, query in enumerate(rows)
        for place, (key, offset) in enumerate(zip(vectors, offsets, strict=True))
        if sum(left * right for left, right in zip(query, key, strict=True)) + offset >= 0
    }


def _whole(number: float) -> int:
    numerator, denominator = number.as_integer_ratio()
    return numerator * 2**149 // denominator


@pytest.fixture(scope="module", autouse=True)
def anywhere() -> Iterator[None]:
    """Also where products in bfloat16 are slow: they are as right there."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(coarse, "multiplies_bfloat16", lambda device: True)
        yield


@given(
    width=st.sampled_from([1, 5, 16, 48, 200, 384]),
    scale=st.floats(-30, 30),
    key_scale=st.floats(-44, 30),
    common=st.sampled_from([0.0, 3.0, 1000.0]),
    off=st.sampled_from([0.0, 1e-7, 1e-3, 0.01, 0.03]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_no_pair_is_hidden_by_rounding(
    width: int, scale: float, key_scale: float, common: float, off: float, seed: int
) -> None:
    """The biases are such that every query lies about at zero of one key, where signs are easily lost.

    common: how large what all queries share is beside what tells them apart.
    """
    queries = (random(6, width, seed=seed) + common * random(1, width, seed=seed + 3)) * 10**scale
    keys = random(6, width, seed=seed + 1) * 10**key_scale
    products = (queries.double() * keys.double()).sum(-1)
    biases = (-products * (1 + off * random(6, seed=seed + 2).sign())).float().clamp(-LARGEST, LARGEST)
    expected = exactly(queries, keys, biases)
    for found in found_each_way(queries, keys, biases):
        assert expected <= found


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
@pytest.mark.parametrize("width", [64, 384])
def test_no_pair_is_hidden_where_all_roundings_add_up(width: int, scale: float) -> None:
    """What the whole numbers miss of the key, and what the query loses in bfloat16, has one sign everywhere.

    Half of the terms cancel the others, so that the bias is small and its own slack does not help.
    """
    signs, half = random(width, seed=1).sign(), torch.arange(width) % 2 == 0
    key = signs * torch.where(half, 126.49, 125.51)  # both are kept as 126
    query = signs * torch.where(half, 1 + 0.99 * 2**-8, -1 - 1.01 * 2**-8)  # in bfloat16 1 and -(1 + 2^-7)
    key[0], query[0] = 127, 0
    queries, keys = query.unsqueeze(0) * scale, key.unsqueeze(0)
    biases = (-queries.double() * keys.double()).sum(-1).float().nextafter(torch.tensor(torch.inf))
    assert exactly(queries, keys, biases) == {(0, 0)}
    for found in found_each_way(queries, keys, biases):
        assert found == {(0, 0)}


NUMBERS = st.sampled_from([0.0, SMALLEST, 2.0**-126, 1e-20, 1.0, 1.00390625, 127.0, 3e4, 2.0**64, 1e30, LARGEST])
SIGNED = st.builds(lambda number, sign: number * sign, NUMBERS, st.sampled_from([1, -1]))
VECTOR = st.lists(SIGNED, min_size=ALIGNED, max_size=ALIGNED)


@given(queries=st.lists(VECTOR, min_size=1, max_size=4), keys=st.lists(VECTOR, min_size=1, max_size=4), data=st.data())
@settings(max_examples=150, deadline=None)
def test_no_pair_is_hidden_by_what_is_huge_tiny_or_zero(
    queries: list[list[float]], keys: list[list[float]], data: st.DataObject
) -> None:
    biases = data.draw(st.lists(SIGNED, min_size=len(keys), max_size=len(keys)))
    given_ = torch.tensor(queries), torch.tensor(keys), torch.tensor(biases)
    expected = exactly(*given_)
    for found in found_each_way(*given_):
        assert expected <= found


@pytest.mark.parametrize("wrong", [torch.inf, -torch.inf, torch.nan, 2.0**65, -LARGEST])
def test_every_pair_of_a_query_that_could_overflow_is_found(wrong: float) -> None:
    queries = random(3, 32, seed=1)
    queries[1, 5] = wrong
    keys = torch.cat([random(4, 32, seed=2), torch.zeros(1, 32)])
    for found in found_each_way(queries, keys, torch.full((5,), -1e9)):
        assert {(1, place) for place in range(5)} <= found


def test_queries_may_lie_in_memory_as_they_like() -> None:
    queries, keys = random(32, FEW, seed=1).T, random(9, 32, seed=2)
    for found in found_each_way(queries, keys, torch.zeros(9)):
        assert found == set(pairs(queries.contiguous(), keys, torch.zeros(9)))


def test_pairs_come_sorted_and_clear_ones_are_left_out() -> None:
    queries, keys = torch.eye(4), torch.eye(4)
    assert pairs(queries, keys, torch.full((4,), -0.5)) == [(number, number) for number in range(4)]
    assert pairs(queries, keys, torch.full((4,), -2.0)) == []


@pytest.mark.parametrize("count", [FEW, 50])
def test_pairs_that_are_far_below_zero_are_left_out_among_many(count: int) -> None:
    queries, keys = random(count, 64, seed=1), random(3 * BLOCK // 2 + 7, 64, seed=2)
    products = queries @ keys.T
    bound = 0.03 * queries.norm(dim=-1, keepdim=True) * keys.norm(dim=-1)
    listed = pairs(queries, keys, torch.full((len(keys),), -20.0))
    assert listed == sorted(listed)
    found = torch.zeros_like(products, dtype=torch.bool)
    found[tuple(torch.tensor(listed).T)] = True
    assert bool(found[products >= 20].all())
    assert not bool(found[products + bound < 20].any())


@pytest.mark.parametrize("count", [1, FEW, 20])
def test_more_pairs_than_are_wanted_are_not_listed(count: int) -> None:
    queries, keys = random(count, 32, seed=1), random(BLOCK + 5, 32, seed=2)
    every = kept(keys, torch.full((len(keys),), 1e9))
    assert every.reached(queries, count * len(keys) - 1) is None
    found = every.reached(queries, count * len(keys))
    assert found is not None
    assert len(found[0]) == count * len(keys)


@pytest.mark.parametrize("asked", [FEW, 20])
def test_what_stands_behind_the_keys_that_are_asked_does_not_matter(asked: int) -> None:
    queries, keys, biases = random(asked, 16, seed=1), random(1700, 16, seed=2), torch.zeros(1700)
    columns = Columns.of(compact(keys, biases, CPU))
    some = Compact.of(columns, 700).reached(queries, EVERY)
    assert some is not None
    assert list(zip(*(column.tolist() for column in some), strict=True)) == pairs(queries, keys[:700], biases[:700])


def test_columns_are_padded_to_whole_steps_where_there_is_room() -> None:
    column = torch.zeros(STEP + 700, 2)
    assert len(padded(column, 700)) == STEP
    assert len(padded(column, STEP + 1)) == STEP + 700


def test_without_any_product_that_is_faster_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coarse, "multiplies_int8", lambda device, width: False)
    monkeypatch.setattr(coarse, "multiplies_bfloat16", lambda device: False)
    assert kept(random(5, 16, seed=1), torch.zeros(5)).reached(random(2, 16, seed=2), EVERY) is None


@in_int8
def test_few_queries_are_multiplied_in_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coarse, "multiplies_bfloat16", lambda device: False)
    every = kept(random(5, 16, seed=1), torch.zeros(5))
    assert every.reached(random(FEW, 16, seed=2), EVERY) is not None
    assert every.reached(random(FEW + 1, 16, seed=2), EVERY) is None


@in_int8
def test_widths_that_the_product_in_8_bits_would_read_beyond_are_left_to_the_other() -> None:
    assert not multiplies_int8(CPU, ALIGNED + 1)
    assert not multiplies_int8(torch.device("cuda"), ALIGNED)


@pytest.mark.parametrize("refused", [AttributeError, RuntimeError, NotImplementedError])
def test_a_product_in_8_bits_that_is_missing_or_refused_is_not_used(
    monkeypatch: pytest.MonkeyPatch, refused: type[Exception]
) -> None:
    def refuse(queries: Tensor, keys: Tensor, scales: Tensor) -> Tensor:
        raise refused

    monkeypatch.setattr(coarse, "_multiplied_in_int8", refuse)
    assert not coarse._int8_is_right.__wrapped__()


def test_a_product_in_8_bits_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        coarse, "_multiplied_in_int8", lambda queries, keys, scales: (queries @ keys.bfloat16().T).nextafter(scales)
    )
    assert not coarse._int8_is_right.__wrapped__()
