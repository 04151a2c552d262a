"""The fit of an edit with several positions: the rows of a teacher-forced pass over a target, some of them wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from editors.errors import FitFailed
from editors.layers import Family
from editors.moments import Moments
from editors.neuron import NeuronBank, Options, TransformerPatcher
from editors.neuron.closed_form import NEAR
from editors.neuron.options import GENERATION
from editors.registry import options_of
from editors.types import Fitted, Patch, Problem, Rows
from tests.editors.editing import CPU, all_alive, finish, header

HIDDEN, TOKENS = 16, 6
EDITOR = TransformerPatcher()
GRADIENT = {"fit": "gradient", "steps": 400}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


HEAD = random(TOKENS, HIDDEN, seed=8)


def readout(residuals: Tensor) -> Tensor:
    """A norm and a linear head."""
    return torch.nn.functional.layer_norm(residuals, (HIDDEN,)) @ HEAD.T


def rows(count: int, seed: int) -> Rows:
    """Rows that are right."""
    residuals = random(count, HIDDEN, seed=seed + 100)
    return Rows(random(count, HIDDEN, seed=seed) + 2, residuals, readout(residuals).argmax(-1))


def target(length: int, wrong: list[int], seed: int = 1) -> Rows:
    """The rows of a target of that many tokens, wrong at these positions."""
    right = rows(length, seed)
    labels = right.labels.clone()
    labels[wrong] = (labels[wrong] + 1) % TOKENS
    return replace(right, labels=labels)


def problem(edit: Rows, memory: list[Rows] | None = None, inputs: int = 1) -> Problem:
    positions = torch.arange(len(edit) // inputs).repeat(inputs)
    return Problem(edit, positions, [rows(300, seed=2)] if memory is None else memory, readout)


def solve(one: Problem, **options: object) -> Fitted:
    return finish(EDITOR.fit(one, Options(**{**GENERATION, **options})))  # type: ignore[arg-type]


def neurons(fitted: Fitted) -> int:
    return len(fitted.tensors["biases"])


def answers(fitted: Fitted, served: Rows) -> Tensor:
    bank = NeuronBank.empty(HIDDEN, CPU).extend([Patch(header(EDITOR), fitted.tensors)])
    return readout(bank.apply(served.queries, served.residuals, *all_alive(bank, len(served)))[0]).argmax(-1)


def strengths(fitted: Fitted, queries: Tensor) -> Tensor:
    """Pre-activations: (n, hidden) -> (n, neurons)."""
    return queries.double() @ fitted.tensors["keys"].double().T + fitted.tensors["biases"].double()


@pytest.mark.parametrize("options", [{}, GRADIENT], ids=["closed-form", "gradient"])
@pytest.mark.parametrize("wrong", [[0], [2, 5], [0, 1, 4, 7]])
def test_every_position_is_right_after_the_fit_the_ones_that_were_right_included(
    wrong: list[int], options: dict[str, object]
) -> None:
    edit = target(8, wrong)
    assert answers(solve(problem(edit), **options), edit).tolist() == edit.labels.tolist()


@pytest.mark.parametrize("wrong", [[3], [2, 5], [0, 4, 7]])
def test_there_is_one_neuron_for_each_wrong_position(wrong: list[int]) -> None:
    assert neurons(solve(problem(target(8, wrong)))) == len(wrong)


def test_the_neuron_of_a_position_does_not_fire_on_positions_that_want_another_token() -> None:
    edit = target(8, [2, 5])
    others = edit.labels[None, :] != edit.labels[[2, 5]][:, None]
    assert float(strengths(solve(problem(edit)), edit.queries).T[others].max()) <= 0


def test_no_memory_row_that_wants_another_token_is_fired_on() -> None:
    edit, memory = target(8, [2]), rows(300, seed=2)
    fitted = solve(problem(edit, [memory]))
    others = memory.queries[memory.labels != edit.labels[2]]
    assert float(strengths(fitted, others).max()) <= 0


def test_a_position_next_to_the_wrong_one_raises_the_threshold_as_a_memory_row_does() -> None:
    edit, moments = target(2, [0]), Moments.of(rows(300, seed=2).queries)
    near = edit.queries[:1] + 0.5 * random(1, HIDDEN, seed=4)
    beside = replace(edit, queries=torch.cat([edit.queries[:1], near]))
    inside = solve(replace(problem(beside), moments=moments))
    neighbour = Rows(near, edit.residuals[1:], edit.labels[1:])
    remembered = problem(edit, [rows(300, seed=2), neighbour])
    assert torch.equal(inside.tensors["biases"], solve(replace(remembered, moments=moments)).tensors["biases"])
    assert not torch.equal(inside.tensors["biases"], solve(problem(edit)).tensors["biases"])


@pytest.mark.parametrize("seed", [5, 7, 9])
@pytest.mark.parametrize("held", [0, 8])
def test_a_row_too_near_for_a_threshold_is_fired_on_unless_it_is_held_down(held: int, seed: int) -> None:
    edit, memory = target(4, [1]), rows(300, seed=2)
    offender = edit.queries[1:2] + 0.3 * random(1, HIDDEN, seed=seed)
    near = Rows(offender, random(1, HIDDEN, seed=5), (edit.labels[1:2] + 1) % TOKENS)
    fitted = solve(replace(problem(edit, [memory, near]), moments=Moments.of(memory.queries)), held=held)
    assert bool(strengths(fitted, offender).max() > 0) == (held == 0)
    assert answers(fitted, edit).tolist() == edit.labels.tolist()


def test_a_row_that_nothing_tells_from_the_edit_does_not_stop_the_fit() -> None:
    edit = target(4, [1])
    twin = Rows(edit.queries[1:2], edit.residuals[1:2], (edit.labels[1:2] + 1) % TOKENS)
    fitted = solve(problem(edit, [rows(300, seed=2), twin]))
    assert answers(fitted, edit).tolist() == edit.labels.tolist()


def test_rephrases_of_one_position_share_a_neuron() -> None:
    edit = target(5, [3])
    near = Rows(edit.queries + 0.02, edit.residuals + 0.02, edit.labels)
    both = Rows.join([edit, near])
    fitted = solve(problem(both, inputs=2))
    assert answers(fitted, both).tolist() == both.labels.tolist()
    assert neurons(fitted) == 1


def crowded(seed: int) -> Rows:
    """A target wrong at two positions whose queries are nearly the same but want different tokens."""
    edit = target(4, [0, 2], seed)
    twin = edit.queries[:1] + 0.1 * random(1, HIDDEN, seed=4)
    return replace(edit, queries=torch.cat([edit.queries[:2], twin, edit.queries[3:]]))


def test_a_position_that_a_later_neuron_disturbs_gets_a_further_one() -> None:
    edit = crowded(seed=7)
    fitted = solve(problem(edit), held=0)
    first_two = replace(fitted, tensors={name: tensor[:2] for name, tensor in fitted.tensors.items()})
    assert answers(first_two, edit)[2] == edit.labels[2]
    assert answers(first_two, edit)[0] != edit.labels[0]
    assert neurons(fitted) == 3
    assert answers(fitted, edit).tolist() == edit.labels.tolist()


def test_more_wrong_positions_than_max_neurons_fail_with_their_number() -> None:
    with pytest.raises(FitFailed, match=r"2 of the edit's 8 positions are still wrong with 2 neurons after \d+ steps"):
        solve(problem(target(8, [0, 1, 4, 7])), max_neurons=2)


def test_positions_that_disturb_each_other_beyond_max_neurons_fail() -> None:
    with pytest.raises(FitFailed, match="positions are still wrong with 4 neurons"):
        solve(problem(crowded(seed=8)), held=0, max_neurons=4)


@pytest.mark.parametrize("options", [{}, GRADIENT], ids=["closed-form", "gradient"])
def test_the_same_problem_and_seed_give_the_same_bytes(options: dict[str, object]) -> None:
    one, other = (solve(problem(target(6, [1, 4])), **options) for _ in range(2))
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


@pytest.mark.parametrize(("cut", "options"), [(0, {}), (1, {}), (120, {}), (300, {}), (120, GRADIENT)])
def test_a_memory_in_parts_gives_the_patch_of_the_memory_joined(cut: int, options: dict[str, object]) -> None:
    edit, memory = target(6, [1, 4]), rows(300, seed=2)
    joined = solve(problem(edit, [memory]), **options)
    parted = solve(problem(edit, [memory[:cut], memory[cut:]]), **options)
    for name, tensor in joined.tensors.items():
        torch.testing.assert_close(parted.tensors[name], tensor)


@pytest.mark.parametrize("memory", [[], [rows(0, seed=2)], [rows(1, seed=2)]], ids=["no parts", "no rows", "one row"])
def test_without_a_memory_a_target_is_still_learned(memory: list[Rows]) -> None:
    edit = target(6, [1, 4])
    assert answers(solve(problem(edit, memory)), edit).tolist() == edit.labels.tolist()


def test_a_target_that_is_right_already_gets_a_neuron_at_its_weakest_position() -> None:
    edit = target(6, [])
    logits = readout(edit.residuals)
    best, second = logits.topk(2).values.unbind(-1)
    fitted = solve(problem(edit))
    assert neurons(fitted) == 1
    assert int(strengths(fitted, edit.queries).squeeze(-1).argmax()) == int((best - second).argmin())


@pytest.mark.parametrize(
    ("family", "weight"),
    [("encoder", 5.0), ("decoder-classifier", 5.0), ("encoder-decoder", 10.0), ("decoder", 10.0)],
)
def test_the_weight_of_the_memory_is_the_papers_for_the_task(family: Family, weight: float) -> None:
    options = options_of(EDITOR, {"fit": "gradient"}, family)
    first = next(iter(EDITOR.fit(problem(target(2, [0])), options)))
    losses = first.losses
    spared = losses["memory_1"] + losses["memory_2"]
    assert first.loss == pytest.approx(losses["edit"] + losses["activation"] + weight * spared, rel=1e-5)


def test_rows_of_other_edits_are_mended_each_by_a_neuron_of_its_own() -> None:
    edit, leaning = target(3, [1]), target(4, [0, 2], seed=6)[torch.tensor([0, 2])]
    whole = Rows.join([edit, leaning])
    positions = torch.cat([torch.arange(3), torch.tensor([-1, -2])])
    fitted = solve(replace(problem(whole), positions=positions))
    assert answers(fitted, whole).tolist() == whole.labels.tolist()
    assert neurons(fitted) == 3


@pytest.mark.timeout(60)
def test_a_row_that_is_near_by_rounding_alone_does_not_keep_the_fit_from_its_end() -> None:
    edit, memory = target(4, [1]), rows(300, seed=2)
    moments = Moments.of(memory.queries)
    away = edit.queries[1:2].double() - moments.mean  # a row at mean + x * away has pre-activation x
    for offset in range(-20, 20):
        query = (moments.mean + (NEAR + 2e-8 * offset) * away).float()
        near = Rows(query, edit.residuals[1:2], (edit.labels[1:2] + 1) % TOKENS)
        fitted = solve(replace(problem(edit, [memory, near]), moments=moments))
        assert answers(fitted, edit).tolist() == edit.labels.tolist()


def test_few_remembered_rows_change_thresholds_and_no_direction() -> None:
    edit = target(4, [2])
    few, none = (solve(problem(edit, [rows(count, seed=2)])) for count in (HIDDEN - 1, 0))
    assert torch.equal(few.tensors["keys"], none.tensors["keys"])


def test_the_more_rows_are_remembered_the_more_their_covariance_is_trusted() -> None:
    ridges = [Moments.of(random(count, HIDDEN, seed=3)).least_ridge for count in (HIDDEN, 10 * HIDDEN, 1000 * HIDDEN)]
    assert ridges == pytest.approx([0.5, 0.005, 0.5e-6])


def test_a_near_twin_among_few_remembered_rows_makes_a_neuron_fire_on_no_more_strangers() -> None:
    edit, strangers = target(2, [0]), random(2_000, HIDDEN, seed=12) + 2
    twin = Rows(edit.queries + 0.05 * random(2, HIDDEN, seed=4), edit.residuals, (edit.labels + 1) % TOKENS)
    remembered = Rows.join([twin, rows(HIDDEN // 2, seed=2)])
    few, none = (
        (strengths(solve(problem(edit, [memory])), strangers) > 0).float().mean()
        for memory in (remembered, remembered[:0])
    )
    assert float(few) <= float(none)
