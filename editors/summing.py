"""Sums whose bits do not depend on how many of them are made at once."""

from __future__ import annotations

import torch
from torch import Tensor


def tree_sum(terms: Tensor) -> Tensor:
    """The sum over the last dimension, always in the same order of additions: (..., n) -> (...).

    A library's sum may take another order for another number of rows, and so differ in the last bit.
    """
    while (count := terms.shape[-1]) > 1:
        half = count // 2
        summed = terms[..., :half] + terms[..., half : 2 * half]
        terms = torch.cat([summed, terms[..., 2 * half :]], dim=-1) if count % 2 else summed
    return terms.squeeze(-1)
