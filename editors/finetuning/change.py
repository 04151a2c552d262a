"""A change of one projection's weights: what a patch of fine-tuning holds, and sums of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.types import Patch


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """weight: (hidden, inner) float32. bias: (hidden,) float32, None where the projection has none."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, patch: Patch, device: torch.device) -> Change:
        """The change that a patch holds."""
        tensors = {name: tensor.to(device) for name, tensor in patch.tensors.items()}
        return cls(tensors["weight"], tensors.get("bias"))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """As a patch holds it."""
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})

    def norm(self) -> float:
        """The length of the change as one vector."""
        return float(torch.stack([tensor.norm() for tensor in self.tensors.values()]).norm())

    def on(self, features: Tensor) -> Tensor:
        """What it adds to what the projection gives: (n, inner) -> (n, hidden), float32."""
        return torch.nn.functional.linear(features.float(), self.weight, self.bias)

    def plus(self, others: Sequence[Change]) -> Change:
        """This change and others, added one after the other."""
        summed = {name: tensor.clone() for name, tensor in self.tensors.items()}
        for other in others:
            for name, tensor in other.tensors.items():
                summed[name] += tensor
        return Change(summed["weight"], summed.get("bias"))
