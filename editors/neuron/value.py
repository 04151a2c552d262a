"""The value of a neuron whose key and bias stand: the smallest addition found that makes the wanted logit lead.

There is no learning rate. Each step goes as far along the slope as would repair the missing lead if the head were
linear (Polyak's step, for one row Newton's), but no farther than the residual is long, since norms and heads
saturate. How far the wanted logit can lead at all is the head's affair: when the steps gain nothing any more, the
best value so far is kept.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.leads import leads
from editors.types import Readout, Rows, Step

STEPS_WITHOUT_GAIN = 10
GAIN = 0.01
"""What counts as a gain, and as close enough to the margin, in units of the margin."""


@dataclass(frozen=True, slots=True)
class Values:
    """Fitted values; of each the number of its last step, and the lead that is still missing, summed over its rows."""

    values: Tensor  # (neurons, hidden) float32
    steps: Tensor  # (neurons,) int64
    missing: Tensor  # (neurons,) float64


def fit_values(
    rows: Rows, owners: Tensor, strengths: Tensor, readout: Readout, *, margin: float, most_steps: int, steps: int
) -> Generator[Step, None, Values]:
    """Fit each v so that readout(residual + strength * v) gives its rows their labels with `margin` to spare.

    Each takes its own steps, and no more of them than it would take alone.
    owners: (n,) int64, the neuron of each row; each of 0, 1, ... has rows. strengths: (n,) float32. steps: how many the
    fit has taken so far.
    """
    counts = owners.bincount()
    values = rows.residuals.new_zeros(len(counts), rows.residuals.shape[-1], dtype=torch.float32)
    longest = _sums(rows.residuals.float().norm(dim=-1), owners, len(counts)) / counts / counts.sqrt()
    best, least = values, torch.full_like(longest, math.inf, dtype=torch.float64)
    last = best_at = torch.zeros_like(counts)
    going = counts > 0
    for number in range(most_steps + 1):
        taking = going[owners].nonzero().squeeze(-1)
        trial, short = _short(values, owners[taking], strengths[taking], rows[taking], readout, margin)
        missing = _sums(short.detach(), owners[taking], len(counts))
        better = going & (missing < least - GAIN * margin)
        best, least = torch.where(better.unsqueeze(-1), values, best), torch.where(better, missing.double(), least)
        best_at, last = torch.where(better, number, best_at), torch.where(going, number, last)
        going = going & ~(missing <= GAIN * margin) & (number - best_at < STEPS_WITHOUT_GAIN)
        if number == most_steps or not going.any():
            break
        (slopes,) = torch.autograd.grad(short, trial, torch.ones_like(short))
        lengths = torch.minimum(missing / slopes.square().sum(-1), longest / slopes.norm(dim=-1))
        values = torch.where(going.unsqueeze(-1), values - slopes * lengths.unsqueeze(-1), values)
        yield Step(steps + number + 1, float(missing.sum()))
    return Values(best, steps + last, least)


def _short(
    values: Tensor, owners: Tensor, strengths: Tensor, rows: Rows, readout: Readout, margin: float
) -> tuple[Tensor, Tensor]:
    """The values as what is to be differentiated by, and how much of the margin each row lacks: (n,)."""
    with torch.enable_grad():
        trial = values.detach().requires_grad_()
        residuals = rows.residuals + (strengths.unsqueeze(-1) * trial[owners]).to(rows.residuals.dtype)
        return trial, torch.relu(margin - leads(readout(residuals).float(), rows.labels))


def _sums(numbers: Tensor, owners: Tensor, count: int) -> Tensor:
    """The sum of each owner's numbers, in the same order every time: (n,) -> (count,)."""
    return numbers.new_zeros(count).index_put_((owners,), numbers, accumulate=True)
