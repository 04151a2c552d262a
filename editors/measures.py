"""How well a model was edited (Huang et al. 2023; Zhang et al. 2021). Pure functions; shares lie between 0 and 1.

A share of nothing is 1: nothing in it failed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def accuracy(predicted: Tensor, wanted: Tensor) -> float:
    """The share of predictions that are as wanted: (n,), (n,) -> 0..1."""
    return _share(predicted == wanted)


def success_rate(after_own_edit: Tensor, targets: Tensor) -> float:
    """SR: the share of edits whose own input is right directly after their own edit. Both (edits,)."""
    return accuracy(after_own_edit, targets)


def generalisation_rate(rephrases_after: Tensor, targets: Tensor) -> float:
    """GR: the share of rephrases that are right after the edits. Both (rephrases,)."""
    return accuracy(rephrases_after, targets)


def edit_retain_rate(after_last_edit: Tensor, targets: Tensor) -> float:
    """ER: the share of all edits made so far that are right now, after the last one. Both (edits,)."""
    return accuracy(after_last_edit, targets)


def retain_rate(before: Tensor, after: Tensor, wanted: Tensor) -> float:
    """TrainR, TestR: accuracy now over accuracy before any edit; above 1 if edits repaired more than they broke.

    All (n,). Raises ValueError if nothing was right before.
    """
    right_before = accuracy(before, wanted)
    if right_before == 0:
        raise ValueError("No prediction was right before the edits, so there is nothing to retain.")
    return accuracy(after, wanted) / right_before


def kept(before: Tensor, after: Tensor, wanted: Tensor) -> float:
    """The share of predictions right before the edits that are right now. All (n,)."""
    return _share((after == wanted)[before == wanted])


def unchanged(before: Tensor, after: Tensor) -> float:
    """The share of inputs whose output is identical to the unedited model's, to the last bit.

    before, after: (n,) labels, or (n, labels) logits.
    """
    return _share((before == after).reshape(len(before), -1).all(-1))


@dataclass(frozen=True, slots=True)
class Consistency:
    """How alike two models are, instance by instance."""

    pearson: float
    right_to_wrong: int
    wrong_to_right: int
    wrong_to_other_wrong: int


def consistency(scores: tuple[Tensor, Tensor], predicted: tuple[Tensor, Tensor], wanted: Tensor) -> Consistency:
    """Compare (before, after): per-instance scores, (n,) each, and predicted labels, (n,) each."""
    before, after = predicted
    was_right, is_right = before == wanted, after == wanted
    return Consistency(
        pearson=pearson(*scores),
        right_to_wrong=int((was_right & ~is_right).sum()),
        wrong_to_right=int((~was_right & is_right).sum()),
        wrong_to_other_wrong=int((~was_right & ~is_right & (before != after)).sum()),
    )


def pearson(one: Tensor, other: Tensor) -> float:
    """Pearson's correlation of two series, (n,) each; 1 if they are equal, 0 if just one of them is constant."""
    if torch.equal(one, other):
        return 1.0
    a, b = (series.double() - series.double().mean() for series in (one, other))
    scale = a.norm() * b.norm()
    return float((a @ b / scale).clamp(-1, 1)) if scale > 0 else 0.0


def _share(flags: Tensor) -> float:
    return float(flags.double().mean()) if len(flags) else 1.0
