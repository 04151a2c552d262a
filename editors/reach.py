"""Whether a head can say a label at all: of some tokens no hidden state makes the logit lead."""

from __future__ import annotations

import torch
from torch import Tensor

from editors.neuron.value import fit_values
from editors.types import Readout, Rows

MARGIN = 1.0
MOST_STEPS = 50


def can_lead(label: int, residual: Tensor, readout: Readout) -> bool:
    """Whether something added to a residual, (hidden,), is found that makes `label` lead clearly.

    Tokens that were never trained lie near one another and inside all others: a model cannot be taught to say them.
    """
    rows = Rows(residual.unsqueeze(0), residual.unsqueeze(0), torch.tensor([label], device=residual.device))
    one = torch.ones(1, device=residual.device)
    fit = fit_values(rows, torch.zeros_like(rows.labels), one, readout, margin=MARGIN, most_steps=MOST_STEPS, steps=0)
    while True:
        try:
            next(fit)
        except StopIteration as end:
            return bool(end.value.missing[0] < MARGIN / 2)
