"""Where one neuron of the closed form fires: its key, and the threshold behind it.

With mu and C the mean and covariance of remembered queries and A = (C + ridge * mean eigenvalue * I)^-1, the key
A(q - mu) / ((q - mu)^T A (q - mu)) has pre-activation exactly 1 on the edit (before the threshold), and of all such
keys the least variance on the memory. The threshold t then lies between the nearest row that wants another
label and the edit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.moments import Moments
from editors.neuron.activations import Activation, activate
from editors.neuron.neurons import Neuron

LOWEST_THRESHOLD = 0.3
HIGHEST_THRESHOLD = 0.97
HELD_AT = 0.65
"""What the pre-activation of a row that is held down is to be, before the threshold."""
AT_THE_MEAN = 1e-6
"""How near to the mean a query counts as the mean itself, in units of its length."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Key, the mean that deviations are measured from, and threshold."""

    key: Tensor  # (hidden,) float64
    mean: Tensor  # (hidden,) float64
    threshold: float
    activation: Activation

    def activations(self, queries: Tensor) -> Tensor:
        """How strongly it fires: (n, hidden) -> (n,) float32."""
        pre_activations = (queries.double() - self.mean) @ self.key - self.threshold
        return activate(pre_activations, is_gelu=self.activation == "gelu").float()

    def neuron(self, value: Tensor) -> Neuron:
        """The neuron that fires here and adds `value`: (hidden,) float32."""
        bias = -(self.key @ self.mean) - self.threshold
        return Neuron(self.key.float(), bias.float(), value, self.activation)


def key_of(deviations: Tensor, solved: Tensor) -> Tensor:
    """The key of least variance on the memory that is 1 on the row that it fits least: (n, hidden) -> (hidden,).

    deviations: from the mean. solved: A applied to each of them.
    """
    return key_apart_from(deviations, deviations[:0], solved)


def key_apart_from(deviations: Tensor, held: Tensor, solved: Tensor) -> Tensor:
    """The same, that is about HELD_AT on the rows `held`: (n, hidden), (m, hidden) -> (hidden,).

    solved: A applied to the deviations, then to the held rows, which are taken from the mean too.
    """
    rows = torch.cat([deviations, held])
    products = rows @ solved.T  # (n + m, n + m)
    # Rows that are nearly the same would otherwise be told apart by what they happen to differ in.
    products.diagonal().mul_(1.01)
    wanted = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
    wanted[len(deviations) :] = HELD_AT
    key: Tensor = torch.linalg.solve(products, wanted) @ solved
    return key / (deviations @ key).min()


def threshold_behind(nearest: float, share: float) -> float:
    """The threshold, by the largest pre-activation of a row that must not be fired on; -inf if there is none.

    share: of the way from that row to the edit.
    """
    if nearest == -math.inf:  # nothing says how far the neuron may reach, so no further than it must
        return HIGHEST_THRESHOLD
    between = nearest + share * (1 - nearest)
    return min(max(between, LOWEST_THRESHOLD), HIGHEST_THRESHOLD)


def apart_from_mean(queries: Tensor, moments: Moments) -> Tensor:
    """Which queries are not the mean of the memory, from which no key could tell it: (n, hidden) -> (n,) bool."""
    apart: Tensor = (queries.double() - moments.mean).norm(dim=-1) > AT_THE_MEAN * queries.double().norm(dim=-1)
    return apart
