"""What the head says at rows, and how sure it is of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from editors.types import Readout

CHUNK = 512
"""Rows in one readout: of a vocabulary of 150,000 that is 300 MB of logits."""


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """What the head says at some rows, (n,) each: the likeliest label or token, the log-probability of the one that it
    should say, and by how much the likeliest leads the second, in probability.
    """

    answers: Tensor
    scores: Tensor
    gaps: Tensor


@torch.no_grad()
def said(residuals: Tensor, labels: Tensor, readout: Readout) -> Said:
    """What the head says: (n, hidden), (n,) int64."""
    return said_by(readout(residuals), labels)


@torch.no_grad()
def said_by(logits: Tensor, labels: Tensor) -> Said:
    """What these logits say: (n, labels), (n,) int64."""
    likely = logits.float().log_softmax(-1)
    first, second = likely.topk(2).values.exp().unbind(-1)
    return Said(logits.argmax(-1), likely.gather(-1, labels.unsqueeze(-1)).squeeze(-1), first - second)
