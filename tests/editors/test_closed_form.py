"""The closed-form fit against a plain computation of its formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from editors.errors import FitFailed
from editors.moments import Moments
from editors.neuron import NeuronBank, Options, TransformerPatcher
from editors.neuron.value import GAIN
from editors.types import Fitted, Patch, Problem, Rows
from tests.editors.editing import CPU, all_alive, finish, header

HIDDEN, LABELS = 16, 4
EDITOR = TransformerPatcher()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


HEAD = random(LABELS, HIDDEN, seed=8)


def readout(residuals: Tensor) -> Tensor:
    """A norm and a linear head."""
    return torch.nn.functional.layer_norm(residuals, (HIDDEN,)) @ HEAD.T


def rows(count: int, seed: int) -> Rows:
    residuals = random(count, HIDDEN, seed=seed + 100)
    return Rows(random(count, HIDDEN, seed=seed) + 2, residuals, readout(residuals).argmax(-1))


def wrong(count: int, seed: int) -> Rows:
    """Rows that all want one label, which the first of them does not get."""
    right = rows(count, seed)
    return replace(right, labels=((right.labels[:1] + 1) % LABELS).repeat(count))


def of_classifier(edit: Rows, memory: Rows) -> Problem:
    return Problem(edit, torch.zeros(len(edit), dtype=torch.int64), [memory], readout)


def solve(problem: Problem, **options: object) -> Fitted:
    return finish(EDITOR.fit(problem, Options(**options)))  # type: ignore[arg-type]


@pytest.fixture
def problem() -> Problem:
    return of_classifier(wrong(1, seed=1), rows(300, seed=2))


def pre_activations(fitted: Fitted, queries: Tensor) -> Tensor:
    return queries.double() @ fitted.tensors["keys"][0].double() + fitted.tensors["biases"][0].double()


def reference_key(problem: Problem, ridge: float) -> tuple[Tensor, Tensor]:
    """k = A (q - mu) / ((q - mu)^T A (q - mu)) and mu, by explicit inverse."""
    memory = problem.memory[0].queries.double()
    mean = memory.mean(0)
    covariance = (memory - mean).T @ (memory - mean) / len(memory)
    ridged = covariance + ridge * torch.linalg.eigvalsh(covariance).mean() * torch.eye(HIDDEN)
    inverse = torch.linalg.inv(ridged)
    deviation = problem.edit.queries[0].double() - mean
    return inverse @ deviation / (deviation @ inverse @ deviation), mean


def test_the_key_is_the_one_of_the_formula(problem: Problem) -> None:
    key, _ = reference_key(problem, ridge=0.05)
    fitted = solve(problem, ridge=0.05)
    torch.testing.assert_close(fitted.tensors["keys"][0].double(), key, rtol=1e-4, atol=1e-5)


def test_the_edit_lies_exactly_one_above_the_mean_along_the_key(problem: Problem) -> None:
    fitted = solve(problem)
    mean = problem.memory[0].queries.double().mean(0)
    key = fitted.tensors["keys"][0].double()
    assert float((problem.edit.queries[0].double() - mean) @ key) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_the_threshold_lies_between_the_nearest_other_label_and_the_edit(problem: Problem, threshold: float) -> None:
    key, mean = reference_key(problem, ridge=0.05)
    other = problem.memory[0].queries[problem.memory[0].labels != problem.edit.labels[0]].double()
    nearest = float(((other - mean) @ key).max())
    expected = min(max(nearest + threshold * (1 - nearest), 0.3), 0.97)
    fitted = solve(problem, ridge=0.05, threshold=threshold)
    assert float(pre_activations(fitted, problem.edit.queries)) == pytest.approx(1 - expected, abs=1e-4)


def test_no_memory_row_that_wants_another_label_is_fired_on(problem: Problem) -> None:
    fitted = solve(problem)
    other = problem.memory[0].queries[problem.memory[0].labels != problem.edit.labels[0]]
    assert float(pre_activations(fitted, other).max()) <= 0


def test_a_near_row_that_wants_the_same_label_does_not_raise_the_threshold(problem: Problem) -> None:
    near = Rows(problem.edit.queries + 0.01, problem.edit.residuals, problem.edit.labels)
    crowded = replace(problem, memory=[*problem.memory, near], moments=_moments(problem))
    spared = solve(crowded, spare_same_label=True)
    pushed = solve(crowded, spare_same_label=False)
    assert torch.equal(spared.tensors["biases"], solve(replace(problem, moments=_moments(problem))).tensors["biases"])
    assert float(pre_activations(pushed, problem.edit.queries)) < float(pre_activations(spared, problem.edit.queries))


def _moments(problem: Problem) -> Moments:
    return Moments.of(problem.memory[0].queries)


def test_moments_handed_in_give_the_same_bytes_as_moments_computed(problem: Problem) -> None:
    computed, given = solve(problem), solve(replace(problem, moments=_moments(problem)))
    assert all(torch.equal(computed.tensors[name], given.tensors[name]) for name in computed.tensors)


def test_the_wanted_logit_leads_by_the_margin(problem: Problem) -> None:
    fitted = solve(problem, margin=2.5)
    logits = _served(fitted, problem.edit)[0]
    wanted = logits[problem.edit.labels[0]]
    others = logits[torch.arange(LABELS) != problem.edit.labels[0]]
    assert float(wanted - others.max()) == pytest.approx(2.5, rel=GAIN + 1e-3)


def _served(fitted: Fitted, edit: Rows) -> Tensor:
    bank = NeuronBank.empty(HIDDEN, CPU).extend([Patch(header(EDITOR), fitted.tensors)])
    return readout(bank.apply(edit.queries, edit.residuals, *all_alive(bank, len(edit)))[0])


@pytest.mark.parametrize("count", [2, 3, 6])
def test_rephrases_are_right_with_the_edit(count: int) -> None:
    edit = wrong(count, seed=5)
    fitted = solve(of_classifier(edit, rows(300, seed=2)))
    assert _served(fitted, edit).argmax(-1).tolist() == edit.labels.tolist()


def test_a_rephrase_near_the_edit_needs_no_second_neuron(problem: Problem) -> None:
    near = Rows(problem.edit.queries + 0.02, problem.edit.residuals + 0.02, problem.edit.labels)
    fitted = solve(of_classifier(Rows.join([problem.edit, near]), problem.memory[0]))
    assert len(fitted.tensors["biases"]) == 1


def test_twice_the_same_rephrase_is_no_trouble(problem: Problem) -> None:
    fitted = solve(of_classifier(Rows.join([problem.edit] * 3), problem.memory[0]))
    assert len(fitted.tensors["biases"]) == 1


def test_rows_out_of_reach_of_max_neurons_fail_with_their_number() -> None:
    edit = wrong(3 * HIDDEN, seed=5)  # more directions than one key can follow
    with pytest.raises(FitFailed, match=r"of the edit's 48 inputs are still wrong with 1 neurons"):
        solve(of_classifier(edit, rows(300, seed=2)), max_neurons=1)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_memory_of_few_rows_still_gives_a_patch(problem: Problem, count: int) -> None:
    fitted = solve(replace(problem, memory=[problem.memory[0][:count]]))
    assert _served(fitted, problem.edit).argmax(-1).tolist() == problem.edit.labels.tolist()


def test_a_margin_that_the_head_cannot_reach_still_gives_the_wanted_label(problem: Problem) -> None:
    def saturating(residuals: Tensor) -> Tensor:
        return torch.tanh(readout(residuals) / 4)  # no logit can lead by more than 2

    fitted = solve(replace(problem, readout=saturating), margin=3.0, max_neurons=1)
    assert _served(fitted, problem.edit).argmax(-1).tolist() == problem.edit.labels.tolist()
    assert fitted.loss >= 1


def test_a_gelu_neuron_leads_by_the_same_margin(problem: Problem) -> None:
    fitted = solve(problem, margin=2.5, activation="gelu")
    logits = _served(fitted, problem.edit)[0]
    others = logits[torch.arange(LABELS) != problem.edit.labels[0]]
    assert float(logits[problem.edit.labels[0]] - others.max()) == pytest.approx(2.5, rel=GAIN + 1e-3)
    assert len(fitted.tensors["biases"]) == 1


def test_an_edit_that_is_the_mean_of_the_memory_still_gets_a_patch() -> None:
    edit = wrong(1, seed=1)
    alone = replace(of_classifier(edit, rows(0, seed=2)), moments=Moments.of(edit.queries))
    assert _served(solve(alone), edit).argmax(-1).tolist() == edit.labels.tolist()
