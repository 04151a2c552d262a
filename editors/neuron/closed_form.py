"""The closed-form fit: key and threshold from the memory's covariance (`gate`), only the value by descent.

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
from editors.neuron.gate import HIGHEST_THRESHOLD, Gate, apart_from_mean, key_apart_from, threshold_behind
from editors.neuron.options import Options
from editors.neuron.rounds import Trained, fit_in_rounds, generates
from editors.neuron.value import fit_values
from editors.types import Fit, Problem, Rows, Step

NEAR = 0.85
"""A row that must not be fired on is held down if its pre-activation, before the threshold, is larger than this."""
AROUND = 0.5
"""A row above this, before the threshold, may come near once others are held down."""
TOGETHER = 8
"""How many more rows are held down at a time."""


def fit(problem: Problem, options: Options) -> Fit:
    """Neurons until every row of the edit is right. Raises FitFailed."""
    moments = problem.moments or _moments(problem)
    holdable = 1 + len(problem.memory)
    if generates(problem):
        moments, options, holdable = _wary(moments, options, holdable)
    if not apart_from_mean(problem.edit.queries, moments).all():
        moments = moments.about_origin()

    def fit_neuron(rows: Rows, others: Rows, steps: int) -> Generator[Step, None, Trained]:
        spared = rows.labels[0] if options.spare_same_label else None
        outside = _Outside((others, *problem.memory), spared, moments.mean, holdable=holdable)
        rows, gate = _gated(rows, outside, moments, options)
        activations = gate.activations(rows.queries)
        weakest = activations.min()  # the value is fitted for strength 1, and divided by what the strength will be
        fitted = yield from fit_values(
            rows,
            torch.zeros_like(rows.labels),
            activations / weakest,
            problem.readout,
            margin=options.margin,
            most_steps=options.value_steps,
            steps=steps,
        )
        return Trained(gate.neuron(fitted.values[0] / weakest), int(fitted.steps[0]), float(fitted.missing[0]))

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
        # As a product of matrices, which takes half the time of one with a vector.
        pair = torch.stack([key, key]).to(part.queries.dtype)
        projected = (part.queries @ pair.T)[:, 0]
        return projected if self.spared is None else projected.masked_fill_(part.labels == self.spared, -torch.inf)


def _gated(rows: Rows, outside: _Outside, moments: Moments, options: Options) -> tuple[Rows, Gate]:
    """A gate for all of these rows if one key keeps out what is outside, else for the first of them alone."""
    key, nearest = _key(rows, outside, moments, options)
    if len(rows) > 1 and nearest >= HIGHEST_THRESHOLD:
        rows = rows[:1]
        key, nearest = _key(rows, outside, moments, options)
    return rows, Gate(key, moments.mean, threshold_behind(nearest, options.threshold), options.activation)


def _key(rows: Rows, outside: _Outside, moments: Moments, options: Options) -> tuple[Tensor, float]:
    """The key, and the largest pre-activation of a row outside, before the threshold: (hidden,), ()."""
    deviations = rows.queries.double() - moments.mean
    held = deviations[:0]
    key = _solved(deviations, held, moments, options)
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
    return best


def _held_down(
    around: Tensor, deviations: Tensor, held: Tensor, moments: Moments, options: Options
) -> tuple[Tensor, Tensor]:
    """A key under which none of the rows `around` is above NEAR, if it may hold down enough of them; and the held."""
    while True:
        key = _solved(deviations, held, moments, options)
        x = around @ key
        near = around[x.argsort(descending=True, stable=True)[:TOGETHER]][: int((x > NEAR).sum())]
        if len(near) == 0 or len(held) == options.held:
            return key, held
        held = torch.cat([held, near])[: options.held]


def _solved(deviations: Tensor, held: Tensor, moments: Moments, options: Options) -> Tensor:
    return key_apart_from(deviations, held, moments.solve(torch.cat([deviations, held]), ridge=options.ridge))
