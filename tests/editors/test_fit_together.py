"""Edits that are fitted together, against the same edits fitted one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from editors.codebook import Grace
from editors.errors import NotFinite
from editors.leads import leads
from editors.moments import Moments
from editors.neuron import NeuronBank, Options, TransformerPatcher, together
from editors.neuron.gate import HIGHEST_THRESHOLD
from editors.neuron.value import GAIN, STEPS_WITHOUT_GAIN, Values, fit_values
from editors.types import Fitted, FittingTogether, Patch, Problem, Readout, Rows, Step
from tests.editors.editing import CPU, all_alive, finish, header

HIDDEN, LABELS = 24, 4
EDITOR = TransformerPatcher()


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


HEAD = random(LABELS, HIDDEN, seed=8)


def readout(residuals: Tensor) -> Tensor:
    """A norm and a linear head."""
    return torch.nn.functional.layer_norm(residuals, (HIDDEN,)) @ HEAD.T


def remembered(count: int, seed: int) -> Rows:
    """Rows that are right."""
    residuals = random(count, HIDDEN, seed=seed + 100)
    return Rows(random(count, HIDDEN, seed=seed) + 2, residuals, readout(residuals).argmax(-1))


MEMORY = [remembered(400, seed=2), remembered(60, seed=3)]
MOMENTS = Moments.of(MEMORY[0].queries)


def edit(seed: int, rows: int = 1, spread: float = 0.2) -> Rows:
    """An input that is answered with the label before the one it wants, and rephrases near it."""
    one = remembered(1, seed=seed)
    away = torch.cat([torch.zeros(1, HIDDEN), spread * random(rows - 1, HIDDEN, seed=seed + 200)])
    labels = ((one.labels + 1) % LABELS).repeat(rows)
    return Rows(one.queries + away, one.residuals + away.flip(-1), labels)


def problem(of: Rows, memory: Sequence[Rows] = MEMORY) -> Problem:
    return Problem(of, torch.zeros(len(of), dtype=torch.int64), memory, readout, moments=MOMENTS)


def problems(count: int, rows: int = 1) -> list[Problem]:
    return [problem(edit(1_000 + number, rows)) for number in range(count)]


def solve(many: Sequence[Problem], **options: object) -> list[Fitted | None]:
    return finish(EDITOR.fit_together(many, Options(**options)))  # type: ignore[arg-type, return-value]


def alone(many: Sequence[Problem], number: int, **options: object) -> Fitted:
    """One of them fitted by itself, with the rows of the others in its memory."""
    one = many[number]
    others = Rows.join([one.edit[:0], *(each.edit for other, each in enumerate(many) if other != number)])
    return finish(EDITOR.fit(replace(one, memory=[*one.memory, others]), Options(**options)))  # type: ignore[arg-type]


def assert_same(one: Fitted | None, other: Fitted | None) -> None:
    assert one is not None
    assert other is not None
    assert one.steps == other.steps
    assert one.loss == pytest.approx(other.loss, abs=1e-4)
    for name in other.tensors:
        largest = float(other.tensors[name].float().abs().max())
        torch.testing.assert_close(one.tensors[name], other.tensors[name], rtol=1e-4, atol=1e-5 * largest)


def pre_activation(fitted: Fitted | None, queries: Tensor) -> float:
    assert fitted is not None
    return float(queries.double() @ fitted.tensors["keys"][0].double() + fitted.tensors["biases"][0].double())


@pytest.mark.parametrize("spare_same_label", [True, False])
@pytest.mark.parametrize(("count", "rows"), [(1, 1), (2, 1), (2, 3), (12, 1), (12, 2), (12, 4)])
def test_each_edit_gets_what_it_gets_by_itself_with_the_others_in_its_memory(
    count: int, rows: int, spare_same_label: bool
) -> None:
    many = problems(count, rows)
    fitted = solve(many, spare_same_label=spare_same_label)
    assert fitted.count(None) <= count // 6
    for number, one in enumerate(fitted):
        by_itself = alone(many, number, spare_same_label=spare_same_label)
        if one is None:
            assert len(by_itself.tensors["biases"]) > 1
        else:
            assert_same(one, by_itself)


def test_edits_of_different_sizes_get_what_they_get_by_themselves() -> None:
    many = [problem(edit(1_000 + number, rows)) for number, rows in enumerate([3, 1, 6, 2, 1])]
    for number, one in enumerate(solve(many)):
        assert_same(one, alone(many, number))


@pytest.mark.parametrize(
    "options",
    [{"activation": "gelu"}, {"margin": 1.0}, {"threshold": 0.8}, {"ridge": 0.1}, {"value_steps": 2}, {"held": 8}],
    ids=lambda options: next(iter(options)),
)
def test_the_options_are_those_of_the_single_fit(options: dict[str, object]) -> None:
    many = problems(6, rows=2)
    for number, one in enumerate(solve(many, **options)):
        assert_same(one, alone(many, number, **options))


def test_a_row_of_the_edit_that_is_right_already_is_not_turned_and_stays_right() -> None:
    wrong = edit(1_000)
    right = MEMORY[0][MEMORY[0].labels == wrong.labels][:1]
    many = [problem(Rows.join([wrong, right])), *problems(3)[1:]]
    fitted = solve(many)[0]
    assert_same(fitted, alone(many, 0))
    assert pre_activation(fitted, right.queries) < 0


def test_an_edit_that_is_right_already_gets_a_neuron_all_the_same() -> None:
    many = [problem(remembered(1, seed=50)), *problems(2)]
    assert_same(solve(many)[0], alone(many, 0))


def test_every_edit_is_right_when_all_are_served() -> None:
    many = problems(12, rows=2)
    fitted = {number: one for number, one in enumerate(solve(many)) if one is not None}
    bank = NeuronBank.empty(HIDDEN, CPU).extend([Patch(header(EDITOR), one.tensors) for one in fitted.values()])
    rows = Rows.join([many[number].edit for number in fitted])
    served = readout(bank.apply(rows.queries, rows.residuals, *all_alive(bank, len(rows)))[0])
    assert len(fitted) >= 10
    assert served.argmax(-1).tolist() == rows.labels.tolist()


def beside(one: Rows, *, same_label: bool) -> Rows:
    """Another edit close by."""
    labels = one.labels if same_label else (one.labels + 1) % LABELS
    return Rows(one.queries + 0.2 * random(1, HIDDEN, seed=77), one.residuals, labels)


def test_the_threshold_rises_above_a_near_edit_that_wants_another_label() -> None:
    one = edit(1_000)
    near, far = (solve([problem(one), other])[0] for other in (problem(beside(one, same_label=False)), problems(2)[1]))
    assert pre_activation(near, one.queries) < pre_activation(far, one.queries)


@pytest.mark.parametrize("spare_same_label", [True, False])
def test_a_near_edit_that_wants_the_same_label_counts_only_where_such_rows_are_not_spared(
    spare_same_label: bool,
) -> None:
    one = edit(1_000)
    together_with = solve([problem(one), problem(beside(one, same_label=True))], spare_same_label=spare_same_label)[0]
    by_itself = solve([problem(one)], spare_same_label=spare_same_label)[0]
    apart = pre_activation(by_itself, one.queries) - pre_activation(together_with, one.queries)
    assert (apart == pytest.approx(0, abs=1e-5)) == spare_same_label


def test_rows_of_edits_that_cannot_be_fitted_together_keep_the_others_away_all_the_same() -> None:
    one = edit(1_000)
    near = problem(beside(one, same_label=False))
    left_out = replace(near, memory=[*MEMORY, MEMORY[1]])
    many = [problem(one), left_out, *problems(3)[1:]]
    fitted = solve(many)
    assert fitted[1] is None
    assert_same(fitted[0], alone(many, 0))


def _generation(one: Problem) -> Problem:
    return replace(one, positions=torch.arange(len(one.edit)))


def _mended(one: Problem) -> Problem:
    """With a row of another edit that had leaned on the one this edit replaces."""
    return replace(one, positions=torch.tensor([0, -1]))


def _two_labels(one: Problem) -> Problem:
    labels = one.edit.labels.clone()
    labels[1] = (labels[1] + 1) % LABELS
    return replace(one, edit=replace(one.edit, labels=labels))


def _no_rows(one: Problem) -> Problem:
    return replace(one, edit=one.edit[:0], positions=one.positions[:0])


def _mean_of_the_memory(one: Problem) -> Problem:
    return replace(one, edit=replace(one.edit, queries=MOMENTS.mean.float().repeat(2, 1)))


def _too_far_apart(one: Problem) -> Problem:
    """A rephrase on the other side of the memory: one key cannot reach both and keep the memory out."""
    queries = torch.cat([one.edit.queries[:1], 2 * MOMENTS.mean.float() - one.edit.queries[:1]])
    return replace(one, edit=replace(one.edit, queries=queries))


NOT_TOGETHER = ["generation", "mended", "two-labels", "no-rows", "at-the-mean", "too-far-apart"]
NOT_TOGETHER += ["no-moments", "other-moments", "other-memory", "other-readout"]


@pytest.mark.parametrize(
    "spoil",
    [
        _generation,
        _mended,
        _two_labels,
        _no_rows,
        _mean_of_the_memory,
        _too_far_apart,
        lambda one: replace(one, moments=None),
        lambda one: replace(one, moments=Moments.of(MEMORY[0].queries)),
        lambda one: replace(one, memory=[MEMORY[1], MEMORY[0]]),
        lambda one: replace(one, readout=lambda residuals: readout(residuals)),
    ],
    ids=NOT_TOGETHER,
)
def test_what_one_neuron_cannot_do_together_with_the_others_is_left_to_the_single_fit(
    spoil: Callable[[Problem], Problem],
) -> None:
    many = problems(4, rows=2)
    many[1] = spoil(many[1])
    fitted = solve(many)
    assert [one is None for one in fitted] == [False, True, False, False]
    assert_same(fitted[2], alone(many, 2))


def test_an_edit_that_one_value_does_not_set_right_is_left_to_the_single_fit() -> None:
    def twisted(residuals: Tensor) -> Tensor:
        """What leads to a label where the first number is above zero leads away from it below."""
        return (residuals * residuals[:, :1].sign())[:, 1:] @ HEAD[:, 1:].T

    one = edit(1_000, rows=2)
    residuals = torch.cat([1e6 * torch.tensor([[1.0], [-1.0]]), torch.zeros(2, HIDDEN - 1)], dim=-1)
    torn = problem(replace(one, residuals=residuals, labels=torch.zeros_like(one.labels)))
    many = [replace(each, readout=twisted) for each in (torn, *problems(3)[1:])]
    assert [each is None for each in solve(many)] == [True, False, False]


def test_a_row_to_be_held_down_is_left_to_the_single_fit() -> None:
    one = edit(1_000)
    many = [problem(one), problem(beside(one, same_label=False)), problems(2)[1]]
    assert [each is None for each in solve(many, held=0)] == [False, False, False]
    assert [each is None for each in solve(many, held=4)] == [True, True, False]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["queries", "residuals"])
def test_an_edit_that_is_not_finite_is_left_out_and_disturbs_no_other(where: str, bad: float) -> None:
    many = problems(3, rows=2)
    spoilt = getattr(many[1].edit, where).clone()
    spoilt[1, 5] = bad
    many[1] = replace(many[1], edit=replace(many[1].edit, **{where: spoilt}))
    first, none, last = solve(many)
    assert none is None
    for one, other in zip((first, last), solve([many[0], many[2]]), strict=True):
        assert_same(one, other)


def test_a_memory_that_is_not_finite_leaves_the_error_to_the_single_fit() -> None:
    broken = remembered(30, seed=9)
    broken.queries[7, 3] = torch.nan
    many = [replace(each, memory=[*MEMORY, broken]) for each in problems(2)]
    many = [replace(each, edit=replace(each.edit, labels=(broken.labels[7:8] + 1) % LABELS)) for each in many]
    many = [replace(each, memory=many[0].memory) for each in many]
    assert solve(many) == [None, None]
    with pytest.raises(NotFinite):
        alone(many, 0)


def plain_value(rows: Rows, strengths: Tensor, read: Readout, margin: float, most_steps: int) -> tuple[Tensor, int]:
    """One value by Polyak's steps, none longer than the residuals, and the number of the last."""
    value = kept = torch.zeros(HIDDEN)
    longest = float(rows.residuals.norm(dim=-1).mean()) / len(rows) ** 0.5
    least, since = math.inf, 0
    for number in range(most_steps + 1):
        trial = value.clone().requires_grad_()
        short = torch.relu(margin - leads(read(rows.residuals + strengths[:, None] * trial), rows.labels)).sum()
        missing = float(short.detach())
        if missing < least - GAIN * margin:
            kept, least, since = value, missing, number
        if missing <= GAIN * margin or number - since == STEPS_WITHOUT_GAIN:
            break
        (slope,) = torch.autograd.grad(short, trial)
        value = value - slope * min(missing / float(slope.square().sum()), longest / float(slope.norm()))
    return kept, number


def saturating(residuals: Tensor) -> Tensor:
    """No logit can lead by more than 4."""
    return 2 * torch.tanh(readout(residuals) / 4)


@pytest.mark.parametrize(("read", "margin"), [(readout, 3.0), (saturating, 3.0), (saturating, 3.9), (saturating, 6.0)])
def test_each_of_many_values_takes_the_steps_of_the_formula(read: Readout, margin: float) -> None:
    sizes, most_steps = [1, 4, 2, 9, 1, 6], 14
    edits = [edit(1_000 + number, rows, spread=1.0) for number, rows in enumerate(sizes)]
    edits = [replace(each, residuals=each.residuals * 4.0 ** (number % 3 - 1)) for number, each in enumerate(edits)]
    strengths = [1 + random(rows, seed=rows).abs() for rows in sizes]
    owners = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    many = fit_values(
        Rows.join(edits), owners, torch.cat(strengths), read, margin=margin, most_steps=most_steps, steps=0
    )
    fitted = finish(many)  # type: ignore[arg-type]
    assert isinstance(fitted, Values)
    expected = [plain_value(*own, read, margin, most_steps) for own in zip(edits, strengths, strict=True)]
    assert fitted.steps.tolist() == [steps for _, steps in expected]
    torch.testing.assert_close(fitted.values, torch.stack([value for value, _ in expected]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fit", ["closed-form", "gradient"])
def test_no_edits_are_fitted_to_nothing(fit: str) -> None:
    assert solve([], fit=fit) == []


def test_the_descent_of_the_paper_takes_every_edit_by_itself() -> None:
    assert solve(problems(3), fit="gradient") == [None, None, None]


def test_an_edit_that_nothing_lies_outside_of_reaches_no_further_than_it_must() -> None:
    one = replace(problem(edit(1_000)), memory=[])
    fitted = solve([one])[0]
    assert pre_activation(fitted, one.edit.queries) == pytest.approx(1 - HIGHEST_THRESHOLD, abs=1e-5)
    assert_same(fitted, alone([one], 0))


def test_the_same_edits_give_the_same_bytes_and_nothing_handed_in_is_written_to() -> None:
    many = problems(8, rows=3)
    handed = [tensor for each in many for rows in (each.edit, *each.memory) for tensor in _tensors(rows)]
    handed += [MOMENTS.mean, MOMENTS.covariance, HEAD]
    before = [tensor.clone() for tensor in handed]
    once, again = solve(many), solve(many)
    for one, other in zip(once, again, strict=True):
        assert one is not None
        assert other is not None
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    assert all(torch.equal(tensor, former) for tensor, former in zip(handed, before, strict=True))


def _tensors(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    return rows.queries, rows.residuals, rows.labels


def test_the_order_of_the_edits_does_not_matter() -> None:
    many = problems(8, rows=2)
    for one, other in zip(solve(many), reversed(solve(many[::-1])), strict=True):
        assert_same(one, other)


def test_a_memory_read_in_pieces_counts_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    many = problems(5, rows=2)
    whole = solve(many)
    monkeypatch.setattr(together, "PRODUCTS", 5 * 7)  # seven rows at a time, which divides no part
    for one, other in zip(solve(many), whole, strict=True):
        assert_same(one, other)


def test_others_may_use_the_device_between_the_steps_and_the_last_has_gained() -> None:
    steps: list[Step] = list(EDITOR.fit_together(problems(6), Options()))
    assert len(steps) > len(MEMORY) + 3
    assert [step.number for step in steps] == sorted(step.number for step in steps)
    assert steps[-1].loss < 0.1 * steps[0].loss


def test_editors_say_whether_they_can_fit_together() -> None:
    assert isinstance(EDITOR, FittingTogether)
    assert not isinstance(Grace(), FittingTogether)
