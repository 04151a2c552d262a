"""Rows of the memory whose answers are held in place while weights are tuned (Huang et al. 2023, FT+KL)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from editors.errors import NotFinite
from editors.finetuning.change import Change
from editors.types import Problem, Readout, Rows


@dataclass(frozen=True, slots=True)
class Spared:
    """features: (n, inner). residuals: (n, hidden), with what other live patches add. before: (n, labels), the
    log-probabilities of then.
    """

    features: Tensor
    residuals: Tensor
    before: Tensor
    readout: Readout

    @classmethod
    @torch.no_grad()
    def drawn(cls, problem: Problem, count: int) -> Spared | None:
        """So many rows, drawn by the problem's seed; None if there are none. Raises NotFinite, UnsupportedModel."""
        rows = _draw(problem.memory, count, problem.seed)
        if rows is None:
            return None
        assert problem.features is not None, "fine-tuning needs the features of the model"
        residuals = rows.residuals if problem.add is None else problem.add(rows.queries, rows.residuals)
        before = problem.readout(residuals).float().log_softmax(-1)
        return cls(problem.features(rows.queries), residuals, before, problem.readout)

    def divergence(self, change: Change) -> Tensor:
        """KL(p before || p after), the mean over the rows: (). Differentiable in the change."""
        residuals = self.residuals + change.on(self.features).to(self.residuals.dtype)
        after = self.readout(residuals).float().log_softmax(-1)
        return kl_div(after, self.before, reduction="batchmean", log_target=True)


def _draw(memory: Sequence[Rows], count: int, seed: int) -> Rows | None:
    """Some of all rows, in their order."""
    for part in memory:
        if not bool(torch.isfinite(part.queries).all() and torch.isfinite(part.residuals).all()):
            raise NotFinite("The memory's activations hold NaN or infinity.")
    total = sum(map(len, memory))
    if not min(total, count):
        return None
    drawn = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].sort().values
    picked, start = [], 0
    for part in memory:
        here = drawn[(drawn >= start) & (drawn < start + len(part))] - start
        picked.append(part[here.to(part.labels.device)])
        start += len(part)
    return Rows.join(picked)
