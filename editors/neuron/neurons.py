"""Neurons while they are being fitted, and as the tensors of a patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.errors import NotFinite
from editors.neuron.activations import Activation, activate, code_of
from editors.types import Rows


@dataclass(frozen=True, slots=True)
class Neuron:
    """Act(<q, key> + bias) * value (Huang et al. 2023, eq. 4)."""

    key: Tensor  # (hidden,) float32
    bias: Tensor  # () float32
    value: Tensor  # (hidden,) float32
    activation: Activation

    def strengths(self, queries: Tensor) -> Tensor:
        """How strongly it fires on each row: (n, hidden) -> (n,) float32."""
        pre_activations = queries.double() @ self.key.double() + self.bias.double()
        return activate(pre_activations, self.activation == "gelu").float()

    def add_to(self, residuals: Tensor, queries: Tensor) -> Tensor:
        """Residuals with what this neuron adds: (n, hidden), (n, hidden) -> (n, hidden)."""
        return residuals + (self.strengths(queries).unsqueeze(-1) * self.value).to(residuals.dtype)


def tensors_of(neurons: Sequence[Neuron]) -> dict[str, Tensor]:
    """The tensors of a patch. Raises NotFinite if one of the neurons holds NaN or infinity."""
    tensors = {
        "keys": torch.stack([neuron.key for neuron in neurons]),
        "biases": torch.stack([neuron.bias for neuron in neurons]),
        "values": torch.stack([neuron.value for neuron in neurons]),
        "activations": torch.tensor([code_of(neuron.activation) for neuron in neurons], dtype=torch.uint8),
    }
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise NotFinite(f"The fit ended with NaN or infinity among the patch's {name}.")
    return tensors


def with_neurons(rows: Rows, neurons: Sequence[Neuron]) -> Rows:
    """The rows with what the neurons add to their residuals, one after the other."""
    residuals = rows.residuals
    for neuron in neurons:
        residuals = neuron.add_to(residuals, rows.queries)
    return Rows(rows.queries, residuals, rows.labels)
