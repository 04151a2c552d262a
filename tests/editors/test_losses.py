"""The four losses against the paper's formulas, written out literally."""

from __future__ import annotations

import math

import pytest
import torch

from editors.neuron.losses import activation_loss, all_losses, edit_loss, largest_exp, memory_losses, total


def literal_s(values: list[float], count: int) -> float:
    """S(x; K) = mean(top-K(exp x))."""
    largest = sorted((math.exp(value) for value in values), reverse=True)[:count]
    return sum(largest) / len(largest)


@pytest.fixture
def memory() -> torch.Tensor:
    return torch.randn(1500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_s_is_the_mean_of_the_largest_exponentials(memory: torch.Tensor) -> None:
    assert float(largest_exp(memory, 1000)) == pytest.approx(literal_s(memory.tolist(), 1000))


def test_s_of_fewer_than_k_takes_them_all(memory: torch.Tensor) -> None:
    assert float(largest_exp(memory[:7], 1000)) == pytest.approx(literal_s(memory[:7].tolist(), 1000))


def test_s_of_nothing_is_zero() -> None:
    assert float(largest_exp(torch.zeros(0), 5)) == 0


def test_the_edit_loss_is_the_negative_log_likelihood_of_the_wanted_label() -> None:
    logits = torch.tensor([[1.0, 2.0, -1.0]])
    expected = -(2.0 - math.log(math.exp(1) + math.exp(2) + math.exp(-1)))
    assert float(edit_loss(logits, torch.tensor([1]))) == pytest.approx(expected)


def test_the_activation_loss_is_s_of_the_negated_pre_activation() -> None:
    assert float(activation_loss(torch.tensor([0.7]))) == pytest.approx(math.exp(-0.7))


def test_the_memory_losses_keep_a_margin_below_the_edit_and_below_zero(memory: torch.Tensor) -> None:
    below_edit, below_zero = memory_losses(memory, torch.tensor([1.2], dtype=torch.float64), 3.0)
    assert float(below_edit) == pytest.approx(literal_s([m - 1.2 + 3 for m in memory.tolist()], 1000))
    assert float(below_zero) == pytest.approx(literal_s([m + 3 for m in memory.tolist()], 1000))


def test_of_several_rows_the_lowest_pre_activation_counts(memory: torch.Tensor) -> None:
    below_edit, _ = memory_losses(memory, torch.tensor([1.2, 0.4], dtype=torch.float64), 3.0)
    assert float(below_edit) == pytest.approx(literal_s([m - 0.4 + 3 for m in memory.tolist()], 1000))


def test_the_total_weighs_the_losses_as_the_paper_does() -> None:
    edit, memory = torch.tensor([1.0]), torch.tensor([0.0, -2.0])
    losses = all_losses(torch.tensor([[0.0, 1.0]]), torch.tensor([0]), edit, memory, 3.0)
    e, a, m1, m2 = (float(losses[name]) for name in ("edit", "activation", "memory_1", "memory_2"))
    assert float(total(losses, activation_weight=1, memory_weight=5)) == pytest.approx(e + a + 5 * (m1 + m2))
