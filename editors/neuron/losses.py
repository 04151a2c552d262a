"""The four losses of Transformer-Patcher (Huang et al. 2023, eq. 7 to 10).

The paper weighs the two that spare the memory by 5 in classification and by 10 in generation.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import cross_entropy

TOP_EDIT = 5
TOP_MEMORY = 1000


def largest_exp(x: Tensor, count: int) -> Tensor:
    """S(x; K): the mean of the K largest exp(x), of all of them if there are fewer: (n,) -> (). Zero for no x."""
    if len(x) == 0:
        return x.new_zeros(())
    return x.topk(min(count, len(x))).values.exp().mean()


def edit_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """l_e: the negative log likelihood of the wanted labels: (n, labels), (n,) -> ()."""
    return cross_entropy(logits.float(), labels)


def activation_loss(edit: Tensor) -> Tensor:
    """l_a: the neuron should fire on the edit. edit: its pre-activations, (n,)."""
    return largest_exp(-edit, TOP_EDIT)


def memory_losses(memory: Tensor, edit: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """l_m1, l_m2: on the memory the neuron should stay `margin` below the edit, and `margin` below zero.

    memory, edit: pre-activations, (m,) and (n,). Of several rows of the edit the lowest counts.
    """
    return largest_exp(memory - edit.min() + margin, TOP_MEMORY), largest_exp(memory + margin, TOP_MEMORY)


def total(losses: Mapping[str, Tensor], *, activation_weight: float, memory_weight: float) -> Tensor:
    """l_e + a*l_a + m*(l_m1 + l_m2)."""
    memory = losses["memory_1"] + losses["memory_2"]
    return losses["edit"] + activation_weight * losses["activation"] + memory_weight * memory


def all_losses(logits: Tensor, labels: Tensor, edit: Tensor, memory: Tensor, margin: float) -> dict[str, Tensor]:
    """The four losses by their names."""
    below_edit, below_zero = memory_losses(memory, edit, margin)
    return {
        "edit": edit_loss(logits, labels),
        "activation": activation_loss(edit),
        "memory_1": below_edit,
        "memory_2": below_zero,
    }
