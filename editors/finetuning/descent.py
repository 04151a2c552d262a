"""The fit: Adam on a change of the weights, from nothing, until every row of the edit is right.

Queries and residuals do not depend on the change, and what it adds is its product with the features of each row. So a
step takes no transformer layer, and is all the same a step of fine-tuning that projection in the whole model.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from editors.errors import FitFailed, NotFinite
from editors.finetuning.change import Change
from editors.finetuning.options import Options
from editors.finetuning.spared import Spared
from editors.leads import leads
from editors.types import Fit, Fitted, Problem, Step


def fit(problem: Problem, options: Options, spared: Spared | None = None, divergence_weight: float = 0.0) -> Fit:
    """The change that makes every row of the edit right. Raises FitFailed, UnsupportedModel and NotFinite.

    spared: rows on which the answers shall stay, and how much that weighs.
    """
    edit = problem.edit
    if not bool(torch.isfinite(edit.queries).all() and torch.isfinite(edit.residuals).all()):
        raise NotFinite("The activations of the edit hold NaN or infinity.")
    assert problem.features is not None, "fine-tuning needs the features of the model"
    with torch.no_grad():
        features = problem.features(edit.queries).float()
    change = _unchanged(features, edit.residuals.shape[-1], biased=problem.features.biased)
    adam = torch.optim.Adam(change.tensors.values(), lr=options.learning_rate)
    for number in range(options.steps + 1):
        with torch.enable_grad():
            logits = problem.readout(edit.residuals + change.on(features).to(edit.residuals.dtype)).float()
            losses = {"edit": cross_entropy(logits, edit.labels)}
            if spared is not None:
                losses["divergence"] = divergence_weight * spared.divergence(change)
            loss = torch.stack(list(losses.values())).sum()
        reached = float(loss.detach())
        lead = leads(logits.detach(), edit.labels)
        if bool((lead > 0).all()) and (number == options.steps or float(lead.min()) >= options.margin):
            return Fitted({name: tensor.detach() for name, tensor in change.tensors.items()}, number, reached)
        if number == options.steps:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        yield Step(number + 1, reached, {name: float(each.detach()) for name, each in losses.items()})
    wrong = int((lead <= 0).sum())
    raise FitFailed(
        f"{wrong} of the edit's {len(edit)} rows are still wrong after {number} steps; the last loss was {reached:.3g}."
    )


def _unchanged(features: Tensor, hidden: int, *, biased: bool) -> Change:
    """A change of nothing, to descend on."""
    weight = features.new_zeros(hidden, features.shape[-1], requires_grad=True)
    return Change(weight, features.new_zeros(hidden, requires_grad=True) if biased else None)
