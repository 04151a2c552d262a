"""What both fits share: one neuron after the other, until every row of the edit is right.

A classifier's edit has one position; a generating model's has one for each token of the target. Each neuron turns
the wrong rows of one position. It may act on others of the same text, so all rows are looked at again after each,
and a position that a later neuron disturbed gets a further one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.errors import FitFailed
from editors.leads import leads
from editors.neuron.neurons import Neuron, tensors_of, with_neurons
from editors.types import Fit, Fitted, Problem, Rows, Step


@dataclass(frozen=True, slots=True)
class Trained:
    """One fitted neuron, the number of the last step, and the loss it ended with."""

    neuron: Neuron
    steps: int
    loss: float


FitNeuron = Callable[[Rows, Rows, int], Generator[Step, None, Trained]]
"""To one neuron that turns some of the rows: from rows of one position that are still wrong, the edit's rows that want
another label, on which it should not fire, and the number of steps so far."""


def fit_in_rounds(problem: Problem, max_neurons: int, fit_neuron: FitNeuron) -> Fit:
    """Neurons until no row of the edit is wrong. Raises FitFailed when `max_neurons` do not suffice."""
    positions = problem.positions.to(problem.edit.labels.device)
    neurons: list[Neuron] = []
    steps, loss = 0, 0.0
    while True:
        rows = with_neurons(problem.edit, neurons)
        lead = _leads(rows, problem)
        wrong = int((lead <= 0).sum())
        if wrong == 0 and neurons:
            return Fitted(tensors_of(neurons), steps, loss)
        if len(neurons) == max_neurons:
            raise FitFailed(
                f"{wrong} of the edit's {len(rows)} {_noun(problem)} are still wrong with {len(neurons)} neurons "
                f"after {steps} steps; the last loss was {loss:.3g}."
            )
        turn = _next(lead, positions)
        others = rows.labels != rows.labels[turn[0]]
        trained = yield from fit_neuron(rows[turn], rows[others], steps)
        neurons, steps, loss = [*neurons, trained.neuron], trained.steps, trained.loss


@torch.no_grad()
def _leads(rows: Rows, problem: Problem) -> Tensor:
    return leads(problem.readout(rows.residuals).float(), rows.labels)


def _next(lead: Tensor, positions: Tensor) -> Tensor:
    """Indices of the wrong rows of the first position that has any; if none has, of the rows of the weakest one."""
    wrong = lead <= 0
    if not wrong.any():
        return (positions == positions[lead.argmin()]).nonzero().squeeze(-1)
    return (wrong & (positions == positions[wrong].min())).nonzero().squeeze(-1)


def _noun(problem: Problem) -> str:
    return "positions" if generates(problem) else "inputs"


def generates(problem: Problem) -> bool:
    """Whether the answer is a text. Even the shortest has two positions: a token and its end."""
    return bool((problem.positions > 0).any())
