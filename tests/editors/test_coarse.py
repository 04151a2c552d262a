"""The first search in bfloat16 lets through every pair that there is, and few others."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from editors.coarse import coarse_keys, coarse_queries, padded, reaching


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pairs(queries: Tensor, keys: Tensor, biases: Tensor) -> list[tuple[int, int]]:
    rows, places = reaching(coarse_queries(queries), coarse_keys(keys, biases, keys.norm(dim=-1)), len(keys))
    return list(zip(rows.tolist(), places.tolist(), strict=True))


@given(
    width=st.integers(1, 200),
    scale=st.floats(-6, 6),
    key_scale=st.floats(-6, 6),
    off=st.floats(0, 0.02),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_no_pair_is_hidden_by_rounding(width: int, scale: float, key_scale: float, off: float, seed: int) -> None:
    """The biases are such that every pair lies about at zero, where signs are easily lost."""
    queries = random(7, width, seed=seed) * 10**scale
    keys = random(7, width, seed=seed + 1) * 10**key_scale
    products = (queries.double() * keys.double()).sum(-1)
    biases = (-products * (1 + off * torch.sign(random(7, seed=seed + 2)))).float()
    exact = queries.double() @ keys.double().T + biases.double()
    expected = set(map(tuple, (exact >= 0).nonzero().tolist()))
    assert expected <= set(pairs(queries, keys, biases))


def test_pairs_come_sorted_and_clear_ones_are_left_out() -> None:
    queries, keys = torch.eye(4), torch.eye(4)
    assert pairs(queries, keys, torch.full((4,), -0.5)) == [(number, number) for number in range(4)]
    assert pairs(queries, keys, torch.full((4,), -2.0)) == []


def test_pairs_that_are_far_below_zero_are_left_out_among_many() -> None:
    queries, keys = random(50, 64, seed=1), random(2000, 64, seed=2)
    products = queries @ keys.T
    bound = 0.1 * queries.norm(dim=-1, keepdim=True) * keys.norm(dim=-1)
    found = torch.zeros_like(products, dtype=torch.bool)
    coarse = coarse_keys(keys, torch.full((2000,), -20.0), keys.norm(dim=-1))
    rows, places = reaching(coarse_queries(queries), coarse, len(keys))
    found[rows, places] = True
    assert bool(found[products >= 20].all())
    assert not bool(found[products + bound < 20].any())


def test_what_stands_behind_the_keys_that_are_asked_does_not_matter() -> None:
    queries, keys = random(20, 16, seed=1), random(700, 16, seed=2)
    coarse = coarse_keys(keys, torch.zeros(700), keys.norm(dim=-1))
    behind = torch.full((1000, coarse.shape[1]), torch.nan, dtype=torch.bfloat16)
    column = torch.cat([coarse, behind])
    assert len(padded(column, 700)) == 1024
    assert len(padded(column, 1025)) == 1700
    asked = coarse_queries(queries)
    for found, expected in zip(reaching(asked, padded(column, 700), 700), reaching(asked, coarse, 700), strict=True):
        assert torch.equal(found, expected)
