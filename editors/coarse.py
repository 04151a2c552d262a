"""A first search among many vectors by one product in few bits, which lets more pairs through than there are.

What is found is looked at exactly afterwards. Vectors are kept as whole numbers, in 8 bits, of a step of their own. Few
queries are multiplied with these as they are, for what that costs is reading them; for many queries they are brought
to bfloat16, a block at a time. Neither roundings nor orders of summation can hide a pair: see `Compact`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from editors.columns import Columns

FEW = 8
"""Queries up to which the product in 8 bits is faster than one in bfloat16."""
ALIGNED = 16
"""Of what the width must be a multiple: torch's product in 8 bits reads so many numbers at once, unchecked."""
STEP = 1024
BLOCK = 2 * STEP
"""Vectors that are brought to bfloat16 together: more do not stay in the caches."""
LARGEST = 127
ALWAYS = 2.0**120
"""An offset that no product comes near to."""


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster on that device than in float32, not slower."""
    return device.type == "cuda" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def multiplies_int8(device: torch.device, width: int) -> bool:
    """Whether vectors of 8 bits can be multiplied as they are. A GPU has no need of it: it reads them in no time."""
    return device.type == "cpu" and width % ALIGNED == 0 and _int8_is_right()


@cache
def _int8_is_right() -> bool:
    """A small product of whole numbers, which is exact: torch does not promise that there are such products."""
    queries, keys = torch.arange(-40, 40).view(-1, ALIGNED), torch.arange(-128, 128).view(-1, ALIGNED)
    ones = torch.ones(len(keys), dtype=torch.bfloat16)
    try:
        products = _multiplied_in_int8(queries.bfloat16(), keys.to(torch.int8), ones)
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(products, (queries @ keys.T).bfloat16())


def padded(column: Tensor, count: int) -> Tensor:
    """The first `count` rows of a growing column and some of the room behind them, whatever stands there.

    oneDNN compiles a product in bfloat16 anew for every size, which takes 2 ms and 0.7 MB that it keeps; a number of
    keys that grows by one would cost that with every edit.
    """
    return column[: -(-count // STEP) * STEP]


@dataclass(frozen=True, slots=True)
class Compact:
    """Vectors k with biases b, such that every pair is found for which <q, k> + b is zero or more.

    A vector is step * (c + d): c whole numbers, d what they miss. With b = step * o, and q' the query in bfloat16,

        <q, k> + b >= 0  means  <q', c> >= -o - <q, d> - <q - q', c>,

    where |<q, d>| <= |q||d| and |<q - q', c>| <= 2^-8 |q||c|. A sum of n products in float32 is off by less than
    n * 2^-22 |q||c|, in any order. Rounding it to bfloat16 keeps order and moves no number by more than 2^-8 of
    itself, the bound on the right among them. So with p for what comes out, all those pairs have

        p + (o + 2^-7 |o| + 2^-40) + |q| * 1.01 (|d| + (2^-8 + n * 2^-22) |c|) >= 0,

    which leaves room for the roundings of this sum and of the lengths, and for those of the exact look that follows.
    Elsewhere than on the CPU 3 * 2^-8 |c| stands there: parts of a product may be rounded to bfloat16 as well.
    What float32 loses because it, or its square, is too small is less than the 2^-40. A product that overflows hides
    nothing either: long before, squares of lengths do, and are infinite; and what is not a number is found.
    """

    whole: Tensor
    """c: (count and more, hidden) int8; behind the first `count` whatever stands in the column."""
    offsets: Tensor
    """The first bracket: (count,) float32."""
    slacks: Tensor
    """What |q| is multiplied with: (count,) float32."""
    scales: Tensor
    """Ones, which torch's product in 8 bits asks for: (count,) bfloat16."""

    @classmethod
    def of(cls, columns: Columns, count: int) -> Compact:
        """The first `count` rows of columns that hold those of `compact`."""
        offsets, slacks, scales = (columns[name][:count] for name in ("offsets", "slacks", "scales"))
        return cls(padded(columns["whole"], count), offsets, slacks, scales)

    def reached(self, queries: Tensor, most: int) -> tuple[Tensor, Tensor] | None:
        """Pairs (query, vector) that may reach zero, sorted: (n, hidden) float32 -> (pairs,) int64 each.

        None where they are more than `most`, or where this device has no product that is faster than in float32.
        """
        in_int8 = len(queries) <= FEW and multiplies_int8(queries.device, queries.shape[-1])
        if not in_int8 and not multiplies_bfloat16(queries.device):
            return None
        lengths = torch.linalg.vector_norm(queries, dim=-1, keepdim=True)
        pairs = []
        for block, products in self._products(queries.bfloat16(), in_int8=in_int8):
            sums = torch.addcmul(self.offsets[block], lengths, self.slacks[block]).add_(products)
            if sums.amax().item() < 0:
                continue
            rows, places = _not_negative(sums)
            most -= len(rows)
            if most < 0:
                return None
            pairs.append((rows, places + block.start))
        return _sorted(pairs, queries.device)

    def _products(self, queries: Tensor, *, in_int8: bool) -> Iterator[tuple[slice, Tensor]]:
        """<q', c> of some vectors after the other: which, and (n, vectors) bfloat16."""
        count = len(self.offsets)
        if in_int8:
            yield slice(0, count), _multiplied_in_int8(queries, self.whole[:count], self.scales)
            return
        size = BLOCK if queries.device.type == "cpu" else len(self.whole)  # elsewhere launches are what takes time
        for start, whole in zip(range(0, count, size), self.whole.split(size), strict=True):
            products = queries @ whole.bfloat16().T
            yield slice(start, min(start + size, count)), products[:, : count - start]


def compact(keys: Tensor, biases: Tensor, device: torch.device) -> dict[str, Tensor]:
    """Vectors and biases as columns of `Compact`, for searches on that device: (n, hidden), (n,) float32."""
    vectors, hidden = keys.double(), keys.shape[-1]
    largest = vectors.abs().amax(dim=-1)
    steps = torch.where(largest > 0, largest / LARGEST, 1)
    vectors /= steps.unsqueeze(-1)
    whole = vectors.round()
    roundings = 2**-8 if device.type == "cpu" else 3 * 2**-8
    slacks = (vectors - whole).norm(dim=-1) + (roundings + hidden * 2**-22) * whole.norm(dim=-1)
    offsets = biases.double() / steps
    offsets += 2**-7 * offsets.abs() + 2**-40
    return {
        "whole": whole.to(torch.int8),
        "offsets": offsets.clamp(-ALWAYS, ALWAYS).float(),
        "slacks": (1.01 * slacks).float(),
        "scales": torch.ones_like(biases, dtype=torch.bfloat16),
    }


def _multiplied_in_int8(queries: Tensor, keys: Tensor, scales: Tensor) -> Tensor:
    """(n, hidden) bfloat16, (m, hidden) int8, a scale for each of these, (m,) bfloat16 -> (n, m) bfloat16."""
    products: Tensor = torch.ops.aten._weight_int8pack_mm(queries.contiguous(), keys, scales)
    return products


def _not_negative(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Where they are zero or more, or not a number: (n, m) -> rows and columns, (pairs,) int64 each.

    The largest of each row first: most rows have none, and comparing all takes longer than that.
    """
    if len(sums) == 1:
        rows, columns = (sums < 0).logical_not_().nonzero(as_tuple=True)
        return rows, columns
    (some,) = (sums.amax(dim=-1) < 0).logical_not_().nonzero(as_tuple=True)
    rows, columns = (sums[some] < 0).logical_not_().nonzero(as_tuple=True)
    return some[rows], columns


def _sorted(pairs: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> tuple[Tensor, Tensor]:
    """All pairs by row, of those of one block of columns after the other's."""
    if not pairs:
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return none, none
    if len(pairs) == 1:
        return pairs[0]
    rows, columns = (torch.cat(column) for column in zip(*pairs, strict=True))
    order = rows.argsort(stable=True)
    return rows[order], columns[order]
