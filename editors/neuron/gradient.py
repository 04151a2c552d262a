"""The paper's fit: key, bias and value together by gradient descent on four losses.

Huang et al. 2023, section 4 and appendix: start k = q_e/|q_e|^2, b = 0; Adam with weight decay, gradients clipped,
the learning rate lowered on plateaus. A part of the memory takes no part in the losses and decides when to stop.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from editors.errors import NotFinite
from editors.leads import leads
from editors.neuron.activations import Activation, activate
from editors.neuron.losses import all_losses, memory_losses, total
from editors.neuron.neurons import Neuron
from editors.neuron.options import Options
from editors.neuron.rounds import Trained, fit_in_rounds
from editors.types import Fit, Problem, Readout, Rows, Step

CHECK_FROM = 100
CHECK_EVERY = 25
CHECKS_WITHOUT_GAIN = 4
PLATEAU_STEPS = 25


@dataclass(frozen=True, slots=True)
class _Best:
    """The weights to keep: right on the edit first, then the least loss on the held-out rows."""

    neuron: Neuron
    rank: tuple[int, float]
    loss: float
    since: int  # checks without gain


def fit(problem: Problem, options: Options) -> Fit:
    """Neurons until every row of the edit is right. Raises FitFailed."""

    def fit_neuron(rows: Rows, others: Rows, steps: int) -> Generator[Step, None, Trained]:
        training, held_out = _split(problem, rows.labels[0], options)
        training = torch.cat([training, others.queries.float()])
        candidate = _Candidate(rows.queries[0], options.activation)
        descent = _Descent(candidate, rows, training, problem.readout, options)
        best: _Best | None = None
        for number in range(1, options.steps + 1):
            step = descent.step(steps + number)
            yield step
            if number == options.steps or (number >= CHECK_FROM and number % CHECK_EVERY == 0):
                best = _better(best, candidate, rows, held_out, problem.readout, step.loss, options)
                if best.since == CHECKS_WITHOUT_GAIN:
                    break
        assert best is not None
        return Trained(best.neuron, steps + number, best.loss)

    return fit_in_rounds(problem, options.max_neurons, fit_neuron)


def _split(problem: Problem, label: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Queries of the memory to train on, and those held out, drawn by the problem's seed."""
    parts = [problem.edit.queries[:0], *(_unlike(part, label, options) for part in problem.memory)]
    queries = torch.cat(parts)
    if not torch.isfinite(queries).all():
        raise NotFinite("The memory's queries hold NaN or infinity.")
    drawn = torch.randperm(len(queries), generator=torch.Generator().manual_seed(problem.seed))
    drawn = drawn[: options.memory_sample].to(queries.device)
    apart = int(len(drawn) * options.held_out)
    return queries[drawn[apart:]].float(), queries[drawn[:apart]].float()


def _unlike(part: Rows, label: Tensor, options: Options) -> Tensor:
    """The queries of the rows that the neuron must spare."""
    return part.queries[part.labels != label] if options.spare_same_label else part.queries


class _Candidate(nn.Module):
    """A neuron whose key, bias and value are being learned."""

    def __init__(self, query: Tensor, activation: Activation) -> None:
        super().__init__()
        query = query.detach().float()
        self.key = nn.Parameter(query / query.square().sum())
        self.bias = nn.Parameter(query.new_zeros(()))
        self.value = nn.Parameter(torch.zeros_like(query))
        self.activation = activation

    def pre_activations(self, queries: Tensor) -> Tensor:
        """(n, hidden) -> (n,)."""
        return queries.to(self.key.dtype) @ self.key + self.bias

    def added(self, pre_activations: Tensor) -> Tensor:
        """What it adds to residuals: (n,) -> (n, hidden)."""
        return activate(pre_activations, self.activation == "gelu").unsqueeze(-1) * self.value

    def neuron(self) -> Neuron:
        """A copy of what is learned so far."""
        key, bias, value = (parameter.detach().clone() for parameter in (self.key, self.bias, self.value))
        return Neuron(key, bias, value, self.activation)


class _Descent:
    """Adam on the four losses of one neuron."""

    def __init__(self, candidate: _Candidate, rows: Rows, training: Tensor, readout: Readout, options: Options) -> None:
        self._candidate, self._rows, self._training, self._readout = candidate, rows, training, readout
        self._options = options
        self._optimizer = torch.optim.Adam(
            candidate.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        self._schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(self._optimizer, factor=0.5, patience=PLATEAU_STEPS)

    @torch.enable_grad()
    def step(self, number: int) -> Step:
        """One optimisation step."""
        candidate, rows, options = self._candidate, self._rows, self._options
        edit = candidate.pre_activations(rows.queries)
        residuals = rows.residuals + candidate.added(edit).to(rows.residuals.dtype)
        memory = candidate.pre_activations(self._training)
        losses = all_losses(self._readout(residuals), rows.labels, edit, memory, options.memory_margin)
        loss = total(losses, activation_weight=options.activation_weight, memory_weight=options.memory_weight)
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(candidate.parameters(), options.clip)
        self._optimizer.step()
        value = float(loss.detach())
        self._schedule.step(value)
        return Step(number, value, {name: float(part.detach()) for name, part in losses.items()})


@torch.no_grad()
def _better(
    best: _Best | None,
    candidate: _Candidate,
    rows: Rows,
    held_out: Tensor,
    readout: Readout,
    loss: float,
    options: Options,
) -> _Best:
    """The best so far, after a look at the candidate as it stands."""
    edit = candidate.pre_activations(rows.queries)
    logits = readout(rows.residuals + candidate.added(edit).to(rows.residuals.dtype))
    wrong = int((leads(logits.float(), rows.labels) <= 0).sum())
    disturbed = sum(memory_losses(candidate.pre_activations(held_out), edit, options.memory_margin))
    rank = (wrong, float(disturbed))
    if best is None or rank < best.rank:
        return _Best(candidate.neuron(), rank, loss, since=0)
    # As long as the edit is wrong, there is nothing to stop for.
    return _Best(best.neuron, best.rank, best.loss, since=best.since + 1 if best.rank[0] == 0 else 0)
