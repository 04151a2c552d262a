"""The battery that every editor passes (the twelve points of the methods' description), on real classes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from editors import codec
from editors.errors import FitFailed, NotFinite
from editors.join import Pass
from editors.types import Overlay, Patch, Problem, Rows
from tests.editors.editing import (
    CASES,
    History,
    acting,
    alive_but,
    anew,
    answers,
    apply,
    assert_close,
    empty,
    history,
    learn,
    mistake,
    problem,
    read,
    serve,
    tiny,
)
from tests.editors.tiny import LABELS, Tiny, batch, build, texts

GENERATORS = ["bart-seq2seq", "llama-causal"]
FAMILIES = ["bert", "roberta", "distilbert", *GENERATORS]
ONE_OF_EACH = ["bert", *GENERATORS]
PROBES = texts(12, seed=3)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=FAMILIES)
def edited(case: str, request: pytest.FixtureRequest) -> History:
    return history(case, request.param)


def composed(case: str, model: Tiny, patches: list[Patch]) -> Overlay:
    return empty(CASES[case], model).extend(patches)


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()


def options(case: str, one: Problem) -> Any:
    """The options of a case for a problem of a classifier, or of a model that writes."""
    return CASES[case].options(generation=len(one.positions.unique()) > 1)


def test_every_edit_gets_its_target_right_after_itself_and_after_the_last(case: str, edited: History) -> None:
    for number, (text, target) in enumerate(zip(edited.inputs, edited.targets, strict=True), start=1):
        overlay = composed(case, edited.model, edited.patches[:number])
        assert answers(edited.model, overlay, [text]).tokens == [target]
    assert answers(edited.model, edited.overlay, edited.inputs).tokens == edited.targets


def test_no_target_is_what_the_bare_model_says(edited: History) -> None:
    said = edited.model.answer(edited.inputs).tokens
    assert all(tokens != target for tokens, target in zip(said, edited.targets, strict=True))


def test_a_removed_edit_leaves_the_output_bit_identical_to_before(case: str, edited: History) -> None:
    inputs = edited.inputs + PROBES
    overlay = composed(case, edited.model, edited.patches[:1])
    bare = edited.model.answer(inputs).logits
    assert bits(serve(edited.model, overlay, inputs, alive_but(overlay, [0]))) == bits(bare)


def test_removing_any_edits_leaves_exactly_what_the_others_alone_would_serve(case: str, edited: History) -> None:
    inputs = edited.inputs + PROBES
    numbers = range(len(edited.patches))
    for removed in itertools.chain.from_iterable(itertools.combinations(numbers, size) for size in numbers):
        left = [number for number in numbers if number not in removed]
        others = composed(case, edited.model, [edited.patches[number] for number in left])
        alone = serve(edited.model, others, inputs)
        masked = serve(edited.model, edited.overlay, inputs, alive_but(edited.overlay, removed))
        assert bits(masked) == bits(alone), f"removed {removed}"
        assert bits(serve(edited.model, edited.overlay.pick(left), inputs)) == bits(alone), f"picked {left}"


def test_stored_and_loaded_patches_serve_identical_outputs(case: str, edited: History) -> None:
    loaded = [codec.decode(codec.encode(patch)) for patch in edited.patches]
    overlay = composed(case, edited.model, loaded)
    inputs = edited.inputs + PROBES
    assert bits(serve(edited.model, overlay, inputs)) == bits(serve(edited.model, edited.overlay, inputs))


def test_a_batch_of_mixed_lengths_equals_one_by_one(edited: History) -> None:
    """A classifier's texts and an encoder's are padded on the right, the prompts of a decoder on the left."""
    inputs = edited.inputs + PROBES
    together = answers(edited.model, edited.overlay, inputs)
    alone = [answers(edited.model, edited.overlay, [text]) for text in inputs]
    assert [tokens for given in alone for tokens in given.tokens] == together.tokens
    assert_close(torch.cat([given.logits for given in alone]), together.logits)


@pytest.mark.parametrize("family", ["llama", "llama-causal"])
def test_left_padding_equals_right_padding(case: str, family: str) -> None:
    edited = history(case, family)
    inputs = edited.inputs + PROBES
    fed = answers(edited.model, edited.overlay, inputs).tokens
    left, right = (edited.model.forward(inputs, fed, acting(edited.overlay), side) for side in ("left", "right"))
    assert_close(left.logits, right.logits)


def test_a_classifier_that_reads_its_last_token_after_a_cache_equals_uncached(case: str) -> None:
    edited = history(case, "llama")
    model, text = edited.model.model, edited.inputs[0]
    inputs = batch([text])
    with torch.no_grad():
        past = model(input_ids=inputs["input_ids"][:, :-1], use_cache=True).past_key_values
        with edited.model.join.during(Pass.at(torch.zeros(1, dtype=torch.int64), acting(edited.overlay))):
            cached = model(
                input_ids=inputs["input_ids"][:, -1:], attention_mask=inputs["attention_mask"], past_key_values=past
            ).logits
    assert_close(cached, serve(edited.model, edited.overlay, [text]))


@pytest.mark.parametrize("family", GENERATORS)
def test_cached_decoding_equals_uncached(case: str, family: str) -> None:
    edited = history(case, family)
    inputs = edited.inputs + PROBES
    cached, uncached = (edited.model.answer(inputs, acting(edited.overlay), cached=cached) for cached in (True, False))
    assert cached.tokens == uncached.tokens
    assert_close(cached.logits, uncached.logits)


def test_of_two_corrections_of_one_input_the_newest_wins_and_its_removal_brings_the_former_back(
    case: str, edited: History
) -> None:
    text, model = edited.inputs[0], edited.model
    former = serve(model, edited.overlay, [text])
    target = mistake(model, edited.overlay, text)
    memory = [edited.memory[0], *edited.memory[2:]]  # the service leaves superseded edits out
    twice = edited.overlay.extend([learn(CASES[case], problem(model, edited.overlay, text, target, memory))])
    assert answers(model, twice, [text]).tokens == [target] != [edited.targets[0]]
    assert bits(serve(model, twice, [text], alive_but(twice, [len(edited.patches)]))) == bits(former)


def test_prediction_changes_no_state(edited: History) -> None:
    inputs = edited.inputs + PROBES
    first = serve(edited.model, edited.overlay, inputs)
    serve(edited.model, edited.overlay, texts(20, seed=9))
    assert bits(serve(edited.model, edited.overlay, inputs)) == bits(first)


def test_a_growing_overlay_leaves_its_readers_unchanged(case: str, edited: History) -> None:
    inputs = edited.inputs + PROBES
    overlay = composed(case, edited.model, edited.patches[:1])
    before = serve(edited.model, overlay, inputs)
    for patch in edited.patches[1:]:
        overlay.extend([patch])
    assert bits(serve(edited.model, overlay, inputs)) == bits(before)


def first_problem(case: str, edited: History) -> Problem:
    """The problem that the first patch of the history was learned from."""
    overlay = empty(CASES[case], edited.model)
    return problem(edited.model, overlay, edited.inputs[0], edited.targets[0], edited.memory[:1])


def test_a_failed_edit_changes_nothing(case: str, edited: History) -> None:
    possible = first_problem(case, edited)
    before = bits(possible.edit.residuals)

    def deaf(residuals: Tensor) -> Tensor:
        return edited.model.join.readout(residuals * 0 + possible.edit.residuals[:1])

    short = replace(options(case, possible), max_neurons=1, steps=1)
    with pytest.raises(FitFailed):
        list(CASES[case].editor.fit(replace(possible, readout=deaf), short))
    assert bits(possible.edit.residuals) == before
    assert bits(read(edited.model, edited.inputs[:1], edited.targets[:1]).rows.residuals) == before
    assert codec.encode(learn(CASES[case], possible)) == codec.encode(edited.patches[0])


@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_two_models_in_one_process_share_nothing(case: str, family: str) -> None:
    edited = history(case, family)
    other = anew(family, seed=1)
    before = other.answer(PROBES).logits
    inputs = edited.inputs + PROBES
    here = serve(edited.model, edited.overlay, inputs)
    transform = acting(edited.overlay)

    def meanwhile(queries: Tensor, residuals: Tensor) -> Tensor:
        assert bits(other.answer(PROBES).logits) == bits(before)  # while a pass of the first model is under way
        return transform(queries, residuals)

    assert bits(edited.model.answer(inputs, meanwhile).logits) == bits(here)
    assert bits(other.answer(PROBES).logits) == bits(before)


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["queries", "residuals"])
@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_a_problem_that_is_not_finite_is_refused(case: str, family: str, where: str, spoilt: float) -> None:
    one = first_problem(case, history(case, family))
    getattr(one.edit, where)[-1, 3] = spoilt
    with pytest.raises(NotFinite):
        list(CASES[case].editor.fit(one, options(case, one)))


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_a_memory_that_is_not_finite_is_refused_wherever_it_is(case: str, family: str, part: int) -> None:
    edited = history(case, family)
    text = texts(1, seed=6)[0]
    target = mistake(edited.model, edited.overlay, text)
    other = next(label for label in range(LABELS) if label not in target)  # rows of the edit's own label may be spared
    for row in range(0, len(edited.memory[part]), 5):
        one = problem(edited.model, edited.overlay, text, target, spoilt_at(row, part, edited.memory, other))
        with pytest.raises(NotFinite):
            list(CASES[case].editor.fit(one, options(case, one)))


def spoilt_at(row: int, part: int, memory: list[Rows], label: int) -> list[Rows]:
    """The memory with NaN in one row, which wants `label`."""
    rows = memory[part]
    spoilt = Rows(rows.queries.clone(), rows.residuals, rows.labels.clone())
    spoilt.queries[row, 3], spoilt.labels[row] = float("nan"), label
    return [*memory[:part], spoilt, *memory[part + 1 :]]


@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_the_same_seed_gives_the_same_bytes(case: str, family: str) -> None:
    edited = history(case, family)
    first = first_problem(case, edited)
    torch.manual_seed(12345)  # the global generator decides nothing
    assert codec.encode(learn(CASES[case], first)) == codec.encode(edited.patches[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_base_weights_are_bit_identical_after_edits(case: str, family: str) -> None:
    edited = history(case, family)
    fresh = build(family).state_dict()
    serve(edited.model, edited.overlay, edited.inputs)
    served = edited.model.model.state_dict()
    assert served.keys() == fresh.keys()
    for name, tensor in served.items():
        assert bits(tensor) == bits(fresh[name]), name


def test_an_edit_fires_on_its_own_input(edited: History) -> None:
    reading = read(edited.model, edited.inputs, edited.targets)
    _, firing = apply(edited.overlay, reading.rows)
    fired = set(zip(reading.owners()[firing.rows].tolist(), firing.patches.tolist(), strict=True))
    assert {(number, number) for number in range(len(edited.inputs))} <= fired


@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_a_fit_yields_between_its_steps(case: str, family: str) -> None:
    edited = history(case, family)
    text = texts(1, seed=6)[0]
    target = mistake(edited.model, edited.overlay, text)
    one = problem(tiny(family), edited.overlay, text, target, edited.memory)
    steps = list(CASES[case].editor.fit(one, options(case, one)))
    assert len(steps) > 1
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
