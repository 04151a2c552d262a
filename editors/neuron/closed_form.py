"""The closed-form fit: key and bias from the memory's covariance, only the value by descent.

With mu and C the mean and covariance of remembered queries and A = (C + ridge * mean eigenvalue * I)^-1, the key
A(q - mu) / ((q - mu)^T A (q - mu)) has pre-activation exactly 1 on the edit (before the threshold), and of all such
keys the least variance on the memory. The threshold t then lies between the nearest row that wants another
label and the edit.

In generation, queries of other texts come so near that no threshold lies between. There the key is also to be HELD_AT
on the nearest of them, well below the edit: the same least-variance problem with a constraint for each such row.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from editors.errors import NotFinite
from editors.moments import Moments
from editors.neuron.activations import activate
from editors.neuron.neurons import Neuron
from editors.neuron.options import Options
from editors.neuron.rounds import Trained, fit_in_rounds, generates
from editors.neuron.value import fit_value
from editors.types import Fit, Problem, Rows, Step

LOWEST_THRESHOLD = 0.3
HIGHEST_THRESHOLD = 0.97
NEAR = 0.85
"""A row that must not be fired on is held down if its pre-activation, before the threshold, is larger than this."""
HELD_AT = 0.65
"""What the pre-activation of a row that is held down is to be, before the threshold."""
AROUND = 0.5
"""A row above this, before the threshold, may come near once others are held down."""
TOGETHER = 8
"""How many more rows are held down at a time."""
AT_THE_MEAN = 1e-6
"""How near to the mean a query counts as the mean itself, in units of its length."""


@dataclass(frozen=True, slots=True)
class _Gate:
    """Where a neuron fires: key, the largest pre-activation of a row it must not fire on, and threshold."""

    key: Tensor  # (hidden,) float64
    nearest: float
    threshold: float


def fit(problem: Problem, options: Options) -> Fit:
    """Neurons until every row of the edit is right. Raises FitFailed."""
    moments = problem.moments or _moments(problem)
    holdable = 1 + len(problem.memory)
    if generates(problem):
        moments, options, holdable = _wary(moments, options, holdable)
    moments = _apart_from(problem.edit.queries, moments)

    def fit_neuron(rows: Rows, others: Rows, steps: int) -> Generator[Step, None, Trained]:
        spared = rows.labels[0] if options.spare_same_label else None
        outside = _Outside((others, *problem.memory), spared, moments.mean, holdable=holdable)
        rows, gate = _gated(rows, outside, moments, options)
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


def _wary(moments: Moments, options: Options, parts: int) -> tuple[Moments, Options, int]:
    """What a few remembered rows of texts are good for, and of how many parts rows may be held down.

    Positions of texts lie near one another. Of fewer rows than dimensions nothing says what else a key fires on that
    trusts their covariance, or that tells near twins among them apart: they only raise the threshold. The edit's own
    positions must be told apart all the same.
    """
    if moments.telling:
        return moments, replace(options, ridge=max(options.ridge, moments.least_ridge)), parts
    return moments.nothing(), options, 1


def _moments(problem: Problem) -> Moments:
    return Moments.of(torch.cat([problem.edit.queries[:0], *(part.queries for part in problem.memory)]))


def _apart_from(queries: Tensor, moments: Moments) -> Moments:
    """The moments; about the origin if a row of the edit is their mean, from which no key could tell it then."""
    distances = (queries.double() - moments.mean).norm(dim=-1)
    return moments if (distances > AT_THE_MEAN * queries.double().norm(dim=-1)).all() else moments.about_origin()


@dataclass(frozen=True, slots=True)
class _Outside:
    """Rows on which a neuron should not fire: the memory and the rest of the edit, without those that want `spared`."""

    parts: tuple[Rows, ...]
    spared: Tensor | None  # () int64
    mean: Tensor  # (hidden,) float64
    holdable: int
    """Of how many parts, from the first, rows may be held down."""

    def nearest(self, key: Tensor) -> tuple[float, Tensor]:
        """The largest <key, q - mean>, -inf if there is no row; and of parts where it is above NEAR, and whose rows may
        be held down, q - mean of all above AROUND.

        -> (), (k, hidden). Raises NotFinite.
        """
        nearest, around = -math.inf, [key.new_zeros(0, len(key))]
        level = key @ self.mean
        for number, part in enumerate(self.parts):
            projected = self._projected(part, key)
            if len(projected) == 0:
                continue
            x = float(projected.max() - level)
            if math.isnan(x):
                raise NotFinite("The memory's queries hold NaN or infinity.")
            nearest = max(nearest, x)
            if x > NEAR and number < self.holdable:
                around.append(part.queries[projected - level > AROUND].double() - self.mean)
        return nearest, torch.cat(around)

    def _projected(self, part: Rows, key: Tensor) -> Tensor:
        """(n,); copying the rows that count would cost more."""
        projected = part.queries @ key.to(part.queries.dtype)
        return projected if self.spared is None else projected.masked_fill_(part.labels == self.spared, -torch.inf)


def _gated(rows: Rows, outside: _Outside, moments: Moments, options: Options) -> tuple[Rows, _Gate]:
    """A gate for all of these rows if one key keeps out what is outside, else for the first of them alone."""
    gate = _gate(rows, outside, moments, options)
    if len(rows) == 1 or gate.nearest < HIGHEST_THRESHOLD:
        return rows, gate
    return rows[:1], _gate(rows[:1], outside, moments, options)


def _gate(rows: Rows, outside: _Outside, moments: Moments, options: Options) -> _Gate:
    deviations = rows.queries.double() - moments.mean
    held = deviations[:0]
    key = _key(deviations, held, moments, options)
    nearest, around = outside.nearest(key)
    best = key, nearest
    while len(around) and len(held) < options.held:
        key, more = _held_down(around, deviations, held, moments, options)
        if len(more) == len(held):  # near by rounding alone
            break
        held = more
        nearest, around = outside.nearest(key)
        if nearest < best[1]:  # holding some down may let others up
            best = key, nearest
    return _Gate(*best, _threshold(best[1], options))


def _threshold(nearest: float, options: Options) -> float:
    if nearest == -math.inf:  # nothing says how far the neuron may reach, so no further than it must
        return HIGHEST_THRESHOLD
    between = nearest + options.threshold * (1 - nearest)
    return min(max(between, LOWEST_THRESHOLD), HIGHEST_THRESHOLD)


def _held_down(
    around: Tensor, deviations: Tensor, held: Tensor, moments: Moments, options: Options
) -> tuple[Tensor, Tensor]:
    """A key under which none of the rows `around` is above NEAR, if it may hold down enough of them; and the held."""
    while True:
        key = _key(deviations, held, moments, options)
        x = around @ key
        near = around[x.argsort(descending=True, stable=True)[:TOGETHER]][: int((x > NEAR).sum())]
        if len(near) == 0 or len(held) == options.held:
            return key, held
        held = torch.cat([held, near])[: options.held]


def _key(deviations: Tensor, held: Tensor, moments: Moments, options: Options) -> Tensor:
    """The key of least variance on the memory that is 1 on the row that it fits least: (n, hidden) -> (hidden,).

    held: (m, hidden), from the mean too; the key is about HELD_AT on these.
    """
    rows = torch.cat([deviations, held])
    solved = moments.solve(rows, ridge=options.ridge)
    products = rows @ solved.T  # (n + m, n + m)
    # Rows that are nearly the same would otherwise be told apart by what they happen to differ in.
    products.diagonal().mul_(1.01)
    wanted = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
    wanted[len(deviations) :] = HELD_AT
    key: Tensor = torch.linalg.solve(products, wanted) @ solved
    return key / (deviations @ key).min()
