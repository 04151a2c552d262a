"""By how much a wanted label or token leads."""

from __future__ import annotations

import torch
from torch import Tensor


def leads(logits: Tensor, labels: Tensor) -> Tensor:
    """By how much the wanted logit exceeds the largest other: (n, labels), (n,) -> (n,). Differentiable."""
    wanted = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    others = logits.scatter(-1, labels.unsqueeze(-1), -torch.inf)
    return wanted - others.amax(-1)
