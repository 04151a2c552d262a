"""The two activations that a patch neuron may have, and their codes in a patch's tensors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import gelu

Activation = Literal["relu", "gelu"]

RELU = 0
GELU = 1


def code_of(activation: Activation) -> int:
    """The code that patches store."""
    return GELU if activation == "gelu" else RELU


def activate(pre_activations: Tensor, is_gelu: Tensor | bool) -> Tensor:
    """Elementwise, each by its own kind: (n,), (n,) bool or one for all -> (n,)."""
    if isinstance(is_gelu, bool):
        return gelu(pre_activations) if is_gelu else torch.relu(pre_activations)
    return torch.where(is_gelu, gelu(pre_activations), torch.relu(pre_activations))
