"""A first search among many vectors by one product in bfloat16, which lets more pairs through than there are.

What is found is looked at exactly afterwards. The product takes half the memory and time of one in float32; neither
orders of summation nor roundings can hide a pair, because what they can be off by is part of the sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDINGS = 4.0
"""Both factors are rounded, by up to 2^-8 of themselves each, and some devices round partial sums, too: a product of
two vectors is off by less than so many times 2^-8 of the product of their lengths."""
STEP = 1024
EXTRA = 3
"""Columns beside those of the vectors: two of the bias, whose rounding would matter, and the length."""


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster on that device than in float32, not slower."""
    return device.type == "cuda" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def coarse_keys(keys: Tensor, biases: Tensor, norms: Tensor) -> Tensor:
    """Vectors as one factor of the product: (n, hidden), (n,), (n,) -> (n, hidden + EXTRA) bfloat16."""
    raised = biases + 2**-7 * biases.abs()
    high = raised.bfloat16()
    low = (raised - high.float()).bfloat16()
    slack = _rounded_up(ROUNDINGS * 2**-8 * norms)
    return torch.cat([keys.bfloat16(), torch.stack([high, low, slack], dim=-1)], dim=-1)


def coarse_queries(queries: Tensor) -> Tensor:
    """The other factor: (n, hidden) -> (n, hidden + EXTRA) bfloat16."""
    lengths = _rounded_up(torch.linalg.vector_norm(queries, dim=-1, keepdim=True))
    ones = torch.ones_like(lengths)
    return torch.cat([queries.bfloat16(), ones, ones, lengths], dim=-1)


def padded(column: Tensor, count: int) -> Tensor:
    """The first `count` rows of a growing column and some of the room behind them, whatever stands there.

    oneDNN compiles a product in bfloat16 anew for every size, which takes 2 ms and 0.7 MB that it keeps; a number of
    keys that grows by one would cost that with every edit.
    """
    return column[: -(-count // STEP) * STEP]


def reaching(queries: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Pairs (query, key) for which <q, k> + bias may be zero or more: (pairs,) int64 each, sorted by query.

    queries, keys: as the functions above give them; of the keys the first `count` are asked.
    """
    # A bfloat16 that is not negative is an int16 that is not: compared, and reduced, many times faster.
    signs = (queries @ keys.T).view(torch.int16)[:, :count]
    (some,) = (signs.amax(dim=-1) >= 0).nonzero(as_tuple=True)
    if not len(some):
        return some, some
    rows, places = (signs[some] >= 0).nonzero(as_tuple=True)
    return some[rows], places


def _rounded_up(values: Tensor) -> Tensor:
    """Not less than the values, which are not negative: bfloat16."""
    return (values * (1 + 2**-7)).bfloat16()
