"""The fit of an entry: how far it reaches, when it stops, which values it keeps, and how it fails."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from editors.codebook import Codebook
from editors.codebook.options import Options
from editors.codebook.radii import SAME
from editors.codebook.value import ALONE, reach_of
from editors.errors import FitFailed
from editors.inside import Inside
from editors.leads import leads
from editors.types import Fitted, Patch, Problem, Remembered, Step
from editors.visit import Places
from tests.editors.editing import CPU, GRACE, answers, empty, header, keys_of, known, learn, mistake, problem, tiny
from tests.editors.tiny import texts

KEY = (10.0, 0.0)


def keys(*points: tuple[float, float]) -> Tensor:
    return torch.tensor(points).reshape(-1, 2)


def remembered(*, differ: list[tuple[float, float]], agree: list[tuple[float, float]]) -> list[Remembered]:
    """In two parts, as guard and edits are."""
    return [
        Remembered(keys(*differ), torch.ones(len(differ), dtype=torch.bool)),
        Remembered(keys(*agree), torch.zeros(len(agree), dtype=torch.bool)),
    ]


def test_the_reach_is_a_share_of_the_way_to_the_nearest_key_whatever_it_wants() -> None:
    parts = remembered(differ=[(10.0, 8.0), (10.0, 4.0)], agree=[(10.0, 6.0)])
    assert reach_of(keys(KEY), parts, 0.5) == pytest.approx(2.0)
    assert reach_of(keys(KEY), parts, 0.75) == pytest.approx(3.0)
    assert reach_of(keys(KEY), remembered(differ=[(10.0, 4.0)], agree=[(10.0, 1.0)]), 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("parts", [[], remembered(differ=[KEY], agree=[])], ids=["nothing", "nothing else"])
def test_where_no_other_input_is_remembered_the_reach_is_a_part_of_the_keys_length(parts: list[Remembered]) -> None:
    assert reach_of(keys(KEY), parts, 0.5) == pytest.approx(ALONE * 10.0)


@pytest.mark.parametrize("seed", range(8))
def test_among_many_long_keys_the_inputs_own_is_told_from_the_nearest_other(seed: int) -> None:
    """Keys of hidden states have most of their length in common; a distance by a matrix product loses what is left."""
    generator = torch.Generator().manual_seed(seed)
    many = 0.1 * torch.randn(1000, 384, generator=generator) + 3 * torch.randn(384, generator=generator)
    nearest = float((many[1:].double() - many[0].double()).norm(dim=-1).min())
    parts = [Remembered(many, torch.ones(1000, dtype=torch.bool))]
    assert reach_of(many[:1], parts, 0.75) == pytest.approx(0.75 * nearest, rel=1e-5)


@pytest.mark.parametrize("share", [0.01, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_inputs_own_key_is_covered_whatever_batch_has_moved_it(dtype: torch.dtype, share: float) -> None:
    """It is rounded otherwise there; and the memory may hold it, rounded so."""
    key = torch.randn(384, generator=torch.Generator().manual_seed(0)).to(dtype)
    moved = (key.double() * (1 + torch.finfo(dtype).eps * (torch.arange(384) % 3 - 1))).to(dtype)
    assert not torch.equal(moved, key)
    parts = [Remembered(torch.stack([moved, key + 3]), torch.ones(2, dtype=torch.bool))]
    reach = reach_of(key.unsqueeze(0), parts, share)
    assert float((moved.double() - key.double()).norm()) < reach
    book = Codebook.empty(384, CPU).extend([entry(key, reach)])
    assert book.find(moved.unsqueeze(0), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1).long()) is not None
    again = book.extend([entry(moved, reach)])  # the same input, corrected again
    found = again.find(key.unsqueeze(0), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1).long())
    assert found is not None
    assert found.patches.tolist() == [1]


def entry(key: Tensor, reach: float) -> Patch:
    tensors = {
        "key": key,
        "values": torch.zeros(1, len(key)),
        "reach": torch.tensor(reach, dtype=torch.float64),
        "answer": torch.tensor([1]),
        "places": torch.tensor(int(Places.LAST)),
    }
    return Patch(header(GRACE.editor, "site"), tensors)


def test_no_share_covers_the_nearest_remembered_key() -> None:
    assert reach_of(keys(KEY), remembered(differ=[(10.0, 4.0)], agree=[]), 1.0) < 4.0


def test_the_input_itself_may_be_remembered_with_its_mistake() -> None:
    parts = remembered(differ=[KEY, (10.0, 0.5 * SAME), (10.0, 4.0)], agree=[KEY])
    assert reach_of(keys(KEY), parts, 0.5) == pytest.approx(2.0)


def test_rephrases_widen_the_reach_as_far_as_they_are() -> None:
    parts = remembered(differ=[(10.0, 8.0)], agree=[])
    assert reach_of(keys(KEY, (10.0, 3.0), (10.0, -1.0)), parts, 0.25) == pytest.approx(3.0, rel=2 * SAME)
    assert reach_of(keys(KEY, (10.0, 3.0)), parts, 0.25) >= 3.0
    assert reach_of(keys(KEY, (10.0, 1.0)), parts, 0.25) == pytest.approx(2.0)


def test_rephrases_widen_the_reach_half_way_at_most() -> None:
    parts = remembered(differ=[(10.0, 8.0)], agree=[])
    assert reach_of(keys(KEY, (10.0, 7.0)), parts, 0.25) == pytest.approx(4.0)


def test_rephrases_widen_the_reach_over_no_remembered_key_even_of_the_same_answer() -> None:
    parts = remembered(differ=[(10.0, 8.0)], agree=[(10.0, 2.5)])
    assert 2.4 < reach_of(keys(KEY, (10.0, 3.0)), parts, 0.25) < 2.5


def test_without_memory_rephrases_widen_the_reach_as_far_as_they_are() -> None:
    assert reach_of(keys(KEY, (10.0, 30.0)), [], 0.5) == pytest.approx(30.0, rel=2 * SAME)


points = st.tuples(st.floats(9, 11), st.floats(-2, 2))


@given(
    rephrases=st.lists(points, max_size=4),
    differ=st.lists(points, max_size=5),
    agree=st.lists(points, max_size=5),
    share=st.floats(0.01, 1),
)
@settings(max_examples=200, deadline=None)
def test_whatever_is_remembered_rephrases_only_widen_and_never_beyond_half_way_or_over_a_key(
    rephrases: list[tuple[float, float]],
    differ: list[tuple[float, float]],
    agree: list[tuple[float, float]],
    share: float,
) -> None:
    parts = remembered(differ=differ, agree=agree)
    plain, wide = reach_of(keys(KEY), parts, share), reach_of(keys(KEY, *rephrases), parts, share)
    assert wide >= plain
    if wide > plain:
        others = torch.cat([part.keys for part in parts])
        far = (others.double() - keys(KEY).double()).norm(dim=-1)
        far_differing = far[: len(differ)][far[: len(differ)] > 2 * SAME * 10]
        assert not len(far_differing) or wide <= float(far_differing.min()) / 2 * (1 + 1e-5)
        beyond = far[far > 2 * SAME * 10]
        assert not len(beyond) or wide < float(beyond.min())


MODEL = tiny("bert")
TEXT = texts(1, seed=2)[0]
TARGET = mistake(GRACE, MODEL, empty(MODEL), TEXT)


def one(rephrases: int = 0) -> Problem:
    """The edit of a text, and of rephrases: the same tokens but for the last."""
    plain = problem(GRACE, MODEL, empty(MODEL), TEXT, TARGET, [known(MODEL, texts(80, seed=1))])
    group = [TEXT, *([*TEXT[:-1], 5 + number] for number in range(rephrases))]
    site = GRACE.site(MODEL)
    return replace(plain, inside=Inside(MODEL.join, MODEL.fed(group, [TARGET] * len(group)), site))  # type: ignore[arg-type]


def options(**given: Any) -> Options:
    return replace(GRACE.options(MODEL), **given)


def fit(a_problem: Problem, **given: Any) -> tuple[Fitted, list[Step]]:
    """What was fitted, and the steps."""
    steps, running = [], GRACE.editor.fit(a_problem, options(**given))
    while True:
        try:
            steps.append(next(running))
        except StopIteration as end:
            return end.value, steps


def least_lead(a_problem: Problem, values: Tensor) -> float:
    assert a_problem.inside is not None
    return float(leads(a_problem.inside.logits(values, Places.LAST), a_problem.inside.labels).min())


@pytest.mark.parametrize("start", ["cold", "warm"])
def test_the_fit_stops_as_soon_as_the_wanted_answer_leads_by_the_margin(start: str) -> None:
    little, much = (fit(one(), margin=margin, start=start) for margin in (0.1, 3.0))
    assert len(little[1]) < len(much[1]) < 100
    assert least_lead(one(), little[0].tensors["values"]) >= 0.1
    assert least_lead(one(), much[0].tensors["values"]) >= 3.0
    assert little[0].steps == len(little[1])


def test_a_start_that_is_good_enough_takes_no_step() -> None:
    good = one()
    assert good.inside is not None
    said = MODEL.answer([TEXT]).tokens[0]
    right = replace(good, inside=Inside(MODEL.join, MODEL.fed([TEXT], [said]), GRACE.site(MODEL)))  # type: ignore[arg-type]
    fitted, steps = fit(right, start="warm", margin=0.0)
    assert steps == []
    torch.testing.assert_close(fitted.tensors["values"], right.inside.own(Places.LAST).float())  # type: ignore[union-attr]


class Wandering(Inside):
    """Texts whose answer leads by what a list says, try after try, whatever the values are."""

    def lead_by(self, leads_: list[float]) -> Wandering:
        self.turns, self.tried = iter(leads_), []  # type: ignore[attr-defined]
        return self

    def logits(self, values: Tensor, reach: Places) -> Tensor:
        self.tried.append(values.detach().clone())  # type: ignore[attr-defined]
        flat = torch.zeros(1, 5).index_fill(1, self.labels, next(self.turns))  # type: ignore[attr-defined]
        return flat + 1e-3 * values.sum()


def in_pieces(whole: Problem, count: int) -> Problem:
    """The same edit, its input and each rephrase in a piece of its own."""
    site = GRACE.site(MODEL)
    group = [TEXT, *([*TEXT[:-1], 5 + number] for number in range(count))]
    enter = [partial(Inside, MODEL.join, MODEL.fed([text], [TARGET]), site) for text in group]  # type: ignore[arg-type]
    return replace(whole, inside=enter[0](), further=enter[1:])


def test_an_edit_of_many_texts_is_fitted_the_same_in_pieces_with_a_slice_for_each() -> None:
    whole, pieces = one(rephrases=3), in_pieces(one(rephrases=3), 3)
    (together, steps), (apart, slices) = (fit(each, margin=3.0) for each in (whole, pieces))
    assert apart.steps == together.steps > 1
    assert len(slices) > 3 * len(steps)
    for name, tensor in together.tensors.items():
        torch.testing.assert_close(apart.tensors[name], tensor, rtol=1e-4, atol=1e-5)


def test_texts_that_the_entry_does_not_cover_take_no_part_in_the_fit() -> None:
    far = texts(4, seed=11)
    site = GRACE.site(MODEL)
    enter = [partial(Inside, MODEL.join, MODEL.fed([text], [TARGET]), site) for text in far]  # type: ignore[arg-type]
    plain, wide = one(), replace(one(), further=enter)
    assert float((enter[0]().keys - plain.inside.keys).norm()) > reach_of(plain.inside.keys, plain.remembered, 0.1)  # type: ignore[union-attr]
    remembers_them = [*plain.remembered, *(Remembered(each().keys, torch.ones(1, dtype=torch.bool)) for each in enter)]
    (alone, _), (beside, slices) = (
        fit(replace(each, remembered=remembers_them), radius=0.1, margin=2.0) for each in (plain, wide)
    )
    assert torch.equal(alone.tensors["values"], beside.tensors["values"])
    assert [step.number for step in slices[:4]] == [0] * 4


def wandering(*leads_: float) -> tuple[Wandering, Problem]:
    inside = Wandering(MODEL.join, MODEL.fed([TEXT], [TARGET]), GRACE.site(MODEL))  # type: ignore[arg-type]
    return inside.lead_by(list(leads_)), replace(one(), inside=inside)


def test_the_best_values_are_kept_not_the_last() -> None:
    inside, uphill = wandering(-1.0, 0.4, 0.8, 0.2, -0.5)
    fitted, _ = fit(uphill, steps=4, margin=1.0)
    assert torch.equal(fitted.tensors["values"], inside.tried[2])  # type: ignore[attr-defined]


def test_values_that_never_make_the_answer_lead_fail_with_their_number_and_the_last_loss() -> None:
    _, hopeless = wandering(-1.0, -2.0, -3.0, -1.5)
    with pytest.raises(FitFailed, match=r"does not lead with any of the 3 values that were tried; .* loss was 2\.7"):
        fit(hopeless, steps=3)


def test_an_equal_logit_does_not_lead() -> None:
    _, level = wandering(0.0, 0.0)
    with pytest.raises(FitFailed):
        fit(level, steps=1)


def test_a_warm_start_begins_with_what_the_layer_gives_and_a_cold_one_with_nothing() -> None:
    first: dict[str, Tensor] = {}
    for start in ("warm", "cold"):
        inside, a_problem = wandering(2.0)
        fit(a_problem, start=start, steps=1)
        first[start] = inside.tried[0]  # type: ignore[attr-defined]
    assert torch.equal(first["warm"], one().inside.own(Places.LAST).float())  # type: ignore[union-attr]
    assert not first["cold"].any()


@pytest.mark.parametrize("start", ["cold", "warm"])
def test_the_same_seed_gives_the_same_values_whatever_the_global_generator_does(start: str) -> None:
    fitted = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        fitted.append(fit(one(), start=start)[0].tensors)
    assert all(torch.equal(fitted[0][name], fitted[1][name]) for name in fitted[0])


def test_rephrases_inside_the_ball_are_made_right_too() -> None:
    group = one(rephrases=3)
    fitted, _ = fit(group, margin=0.5)
    assert group.inside is not None
    far = (group.inside.keys - group.inside.keys[0]).double().norm(dim=-1)
    covered = far <= fitted.tensors["reach"]
    lead = leads(group.inside.logits(fitted.tensors["values"], Places.LAST), group.inside.labels)
    assert int(covered.sum()) > 1
    assert bool((lead[covered] >= 0.5).all())


def test_a_patch_says_its_key_its_reach_its_answer_and_its_places() -> None:
    a_problem = one()
    patch = learn(GRACE, MODEL, a_problem)
    assert a_problem.inside is not None
    assert torch.equal(patch.tensors["key"], a_problem.inside.keys[0])
    assert patch.tensors["answer"].tolist() == TARGET
    assert float(patch.tensors["reach"]) == reach_of(a_problem.inside.keys, a_problem.remembered, options().radius)
    assert Places(int(patch.tensors["places"])) is Places.LAST
    assert patch.tensors["values"].shape == (1, MODEL.join.site.hidden)
    assert {name: tensor.dtype for name, tensor in patch.tensors.items()} == {
        "key": torch.float32,
        "values": torch.float32,
        "reach": torch.float64,
        "answer": torch.int64,
        "places": torch.int64,
    }


@pytest.mark.parametrize("family", ["t5-seq2seq", "llama-causal"])
def test_a_written_answer_gets_a_value_for_each_of_its_tokens_the_end_included(family: str) -> None:
    model = tiny(family)
    target = mistake(GRACE, model, empty(model), TEXT)
    patch = learn(GRACE, model, problem(GRACE, model, empty(model), TEXT, target, []))
    assert len(target) > 1
    assert len(patch.tensors["values"]) == len(target)
    assert Places(int(patch.tensors["places"])) is Places.EACH


def test_an_entry_acts_on_no_remembered_text_that_wants_another_answer() -> None:
    memory = known(MODEL, texts(80, seed=1))
    patch = learn(GRACE, MODEL, one(rephrases=3))
    overlay = empty(MODEL).extend([patch])
    site = GRACE.site(MODEL)
    far = (keys_of(MODEL, site, memory.texts) - patch.tensors["key"]).double().norm(dim=-1)  # type: ignore[arg-type]
    differ = torch.tensor([answer != TARGET for answer in memory.answers])
    assert bool((far[differ] > patch.tensors["reach"]).all())
    kept = [text for text, answer in zip(memory.texts, memory.answers, strict=True) if answer != TARGET]
    assert torch.equal(answers(MODEL, overlay, kept).logits, MODEL.answer(kept).logits)
