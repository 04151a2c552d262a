"""The value of one neuron whose key and bias stand: the smallest addition found that makes the wanted logit lead.

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
class Value:
    """A fitted value, the number of the last step, and the lead that is still missing, summed over the rows."""

    value: Tensor  # (hidden,) float32
    steps: int
    missing: float


def fit_value(
    rows: Rows, strengths: Tensor, readout: Readout, *, margin: float, most_steps: int, steps: int
) -> Generator[Step, None, Value]:
    """Fit v so that readout(residual + strength * v) gives each row its label with `margin` to spare.

    strengths: (n,) float32. steps: how many the fit has taken so far.
    """
    value = torch.zeros_like(rows.queries[0], dtype=torch.float32)
    longest = rows.residuals.float().norm(dim=-1).mean() / math.sqrt(len(rows))
    best, best_step = Value(value, steps, math.inf), 0
    for number in range(most_steps + 1):
        missing, slope = _missing(value, strengths, rows, readout, margin)
        if missing < best.missing - GAIN * margin:
            best, best_step = Value(value, steps + number, missing), number
        if missing <= GAIN * margin or number == most_steps or number - best_step == STEPS_WITHOUT_GAIN:
            break
        value = value - slope * torch.minimum(missing / slope.square().sum(), longest / slope.norm())
        yield Step(steps + number + 1, missing)
    return Value(best.value, steps + number, best.missing)


def _missing(value: Tensor, strengths: Tensor, rows: Rows, readout: Readout, margin: float) -> tuple[float, Tensor]:
    """The lead that is missing, summed over the rows, and its slope in the value."""
    with torch.enable_grad():
        trial = value.detach().requires_grad_()
        residuals = rows.residuals + (strengths.unsqueeze(-1) * trial).to(rows.residuals.dtype)
        short = torch.relu(margin - leads(readout(residuals).float(), rows.labels)).sum()
        (slope,) = torch.autograd.grad(short, trial)
    return float(short.detach()), slope
