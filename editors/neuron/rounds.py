"""What both fits share: one neuron after the other, until every row of the edit is right."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

from editors.errors import FitFailed
from editors.neuron.neurons import Neuron, tensors_of, with_neurons, wrong_rows
from editors.types import Fit, Fitted, Problem, Rows, Step


@dataclass(frozen=True, slots=True)
class Trained:
    """One fitted neuron, the number of the last step, and the loss it ended with."""

    neuron: Neuron
    steps: int
    loss: float


FitNeuron = Callable[[Rows, int], Generator[Step, None, Trained]]
"""From the rows that are still wrong, and the number of steps so far, to one neuron that turns some of them."""


def fit_in_rounds(problem: Problem, max_neurons: int, fit_neuron: FitNeuron) -> Fit:
    """Neurons until no row of the edit is wrong. Raises FitFailed when `max_neurons` do not suffice."""
    neurons: list[Neuron] = []
    steps, loss = 0, 0.0
    while True:
        rows = with_neurons(problem.edit, neurons)
        wrong = wrong_rows(rows, problem.readout)
        if len(wrong) == 0 and neurons:
            return Fitted(tensors_of(neurons), steps, loss)
        if len(neurons) == max_neurons:
            raise FitFailed(
                f"{len(wrong)} of the edit's {len(rows)} inputs are still wrong with {len(neurons)} neurons "
                f"after {steps} steps; the last loss was {loss:.3g}."
            )
        trained = yield from fit_neuron(rows[wrong] if len(wrong) else rows, steps)
        neurons, steps, loss = [*neurons, trained.neuron], trained.steps, trained.loss
