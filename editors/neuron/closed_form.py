"""The closed-form fit: key and bias from the memory's covariance, only the value by descent.

With mu and C the mean and covariance of remembered queries and A = (C + ridge * mean eigenvalue * I)^-1, the key
A(q - mu) / ((q - mu)^T A (q - mu)) has pre-activation exactly 1 on the edit (before the threshold), and of all such
keys the least variance on the memory. The threshold t then lies between the nearest row that wants another
label and the edit.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.errors import NotFinite
from editors.moments import Moments
from editors.neuron.activations import activate
from editors.neuron.neurons import Neuron
from editors.neuron.options import Options
from editors.neuron.rounds import Trained, fit_in_rounds
from editors.neuron.value import fit_value
from editors.types import Fit, Problem, Rows, Step

LOWEST_THRESHOLD = 0.3
HIGHEST_THRESHOLD = 0.97
AT_THE_MEAN = 1e-6
"""How near to the mean a query counts as the mean itself, in units of its length."""


@dataclass(frozen=True, slots=True)
class _Gate:
    """Where a neuron fires: key and threshold, and the largest pre-activation of a row it must not fire on."""

    key: Tensor  # (hidden,) float64
    threshold: float
    nearest: float


def fit(problem: Problem, options: Options) -> Fit:
    """Neurons until every row of the edit is right. Raises FitFailed."""
    moments = _apart_from(problem.edit.queries, problem.moments or Moments.of(problem.memory.queries))

    def fit_neuron(rows: Rows, steps: int) -> Generator[Step, None, Trained]:
        rows, gate = _gated(rows, problem, moments, options)
        pre_activations = (rows.queries.double() - moments.mean) @ gate.key - gate.threshold
        activations = activate(pre_activations, is_gelu=options.activation == "gelu").float()
        weakest = activations.min()  # the value is fitted for strength 1, and divided by what the strength will be
        fitted = yield from fit_value(
            rows,
            activations / weakest,
            problem.readout,
            margin=options.margin,
            most_steps=options.value_steps,
            steps=steps,
        )
        bias = -(gate.key @ moments.mean) - gate.threshold
        neuron = Neuron(gate.key.float(), bias.float(), fitted.value / weakest, options.activation)
        return Trained(neuron, fitted.steps, fitted.missing)

    return fit_in_rounds(problem, options.max_neurons, fit_neuron)


def _apart_from(queries: Tensor, moments: Moments) -> Moments:
    """The moments; about the origin if a row of the edit is their mean, from which no key could tell it then."""
    distances = (queries.double() - moments.mean).norm(dim=-1)
    return moments if (distances > AT_THE_MEAN * queries.double().norm(dim=-1)).all() else moments.about_origin()


def _gated(rows: Rows, problem: Problem, moments: Moments, options: Options) -> tuple[Rows, _Gate]:
    """A gate for all of these rows if one key keeps the memory out, else for the first of them alone."""
    gate = _gate(rows, problem, moments, options)
    if len(rows) == 1 or gate.nearest < HIGHEST_THRESHOLD:
        return rows, gate
    return rows[:1], _gate(rows[:1], problem, moments, options)


def _gate(rows: Rows, problem: Problem, moments: Moments, options: Options) -> _Gate:
    key = _key(rows.queries.double() - moments.mean, moments, options)
    memory = problem.memory
    projected = memory.queries @ key.to(memory.queries.dtype)  # (memory,); copying the rows that count costs more
    if options.spare_same_label:
        projected = projected[memory.labels != rows.labels[0]]
    if len(projected) == 0:  # nothing says how far the neuron may reach, so no further than it must
        return _Gate(key, HIGHEST_THRESHOLD, nearest=-math.inf)
    nearest = float(projected.max() - key @ moments.mean)
    if math.isnan(nearest):
        raise NotFinite("The memory's queries hold NaN or infinity.")
    between = nearest + options.threshold * (1 - nearest)
    return _Gate(key, min(max(between, LOWEST_THRESHOLD), HIGHEST_THRESHOLD), nearest)


def _key(deviations: Tensor, moments: Moments, options: Options) -> Tensor:
    """The key of least variance on the memory that is 1 on the row that it fits least: (n, hidden) -> (hidden,)."""
    solved = moments.solve(deviations, ridge=options.ridge)
    products = deviations @ solved.T  # (n, n)
    # Rows that are nearly the same would otherwise be told apart by what they happen to differ in.
    products.diagonal().mul_(1.01)
    weights = torch.linalg.solve(products, torch.ones(len(products), dtype=torch.float64, device=products.device))
    key: Tensor = weights @ solved
    return key / (deviations @ key).min()
