"""The battery that every editor passes (the twelve points of the methods' description), on real classes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from editors import codec
from editors.composition import Composition
from editors.errors import FitFailed, NotFinite
from editors.inside import Inside
from editors.join import Pass
from editors.types import Patch, Problem, Rows
from tests.editors.editing import (
    CASES,
    GRACE,
    PATCHER,
    SPARING,
    TUNING,
    History,
    Known,
    Method,
    acting,
    alive_but,
    anew,
    answers,
    assert_close,
    empty,
    fired,
    history,
    learn,
    mistake,
    problem,
    read,
    serve,
)
from tests.editors.tiny import LABELS, Served, Tiny, batch, build, texts

NEURONS = ["bert", "roberta", "distilbert", "bart-seq2seq", "llama-causal"]
FAMILIES = {
    "closed-form": NEURONS,
    "gradient": NEURONS,
    "grace": ["bert", "modernbert", "llama", "bart-seq2seq", "t5-seq2seq", "llama-causal", "opt-causal"],
    "grace-inner": ["bert", "llama", "t5-seq2seq", "opt-causal"],
    "both": ["bert", "llama", "bart-seq2seq", "llama-causal"],
    "ft": ["bert", "llama", "bart-seq2seq", "llama-causal", "opt-causal"],
    "ft-kl": ["bert", "llama-causal"],
    "all": ["bert", "llama-causal"],
}
"""Where each case is run: on one family of each kind, and on those that are built in another way."""
EVERY = [(case, family) for case, families in FAMILIES.items() for family in families]
ONE_OF_EACH = [(case, family) for case, family in EVERY if family in ("bert", "bart-seq2seq", "llama-causal")]
FITS = [(case, family) for case, family in ONE_OF_EACH if len(CASES[case]) == 1]
"""For what is about a single fit."""
PROBES = texts(12, seed=3)


@pytest.fixture(params=EVERY, ids="-".join)
def edited(request: pytest.FixtureRequest) -> History:
    return history(*request.param)


@pytest.fixture(params=FITS, ids="-".join)
def fitted(request: pytest.FixtureRequest) -> History:
    return history(*request.param)


def composed(model: Tiny, patches: list[Patch]) -> Composition:
    return empty(model).extend(patches)


def retains(edited: History) -> bool:
    """Whether the case claims that an edit outlasts the next ones. Baselines forget, and are there to show it."""
    return not any(method.editor.baseline for method in edited.methods)


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()


def test_every_edit_gets_its_target_right_after_itself_and_after_the_last(edited: History) -> None:
    for number, (text, target) in enumerate(zip(edited.inputs, edited.targets, strict=True), start=1):
        overlay = composed(edited.model, edited.patches[:number])
        assert answers(edited.model, overlay, [text]).tokens == [target]
    if retains(edited):
        assert answers(edited.model, edited.overlay, edited.inputs).tokens == edited.targets


def test_no_target_is_what_the_bare_model_says(edited: History) -> None:
    said = edited.model.answer(edited.inputs).tokens
    assert all(tokens != target for tokens, target in zip(said, edited.targets, strict=True))


def test_a_removed_edit_leaves_the_output_bit_identical_to_before(edited: History) -> None:
    inputs = edited.inputs + PROBES
    bare = edited.model.answer(inputs).logits
    for patch in edited.patches[: len(edited.methods)]:
        overlay = composed(edited.model, [patch])
        assert bits(serve(edited.model, overlay, inputs, alive_but(overlay, [0]))) == bits(bare)


def test_removing_any_edits_leaves_exactly_what_the_others_alone_would_serve(edited: History) -> None:
    inputs = edited.inputs + PROBES
    numbers = range(len(edited.patches))
    for removed in itertools.chain.from_iterable(itertools.combinations(numbers, size) for size in numbers):
        left = [number for number in numbers if number not in removed]
        others = composed(edited.model, [edited.patches[number] for number in left])
        alone = serve(edited.model, others, inputs)
        masked = serve(edited.model, edited.overlay, inputs, alive_but(edited.overlay, removed))
        assert bits(masked) == bits(alone), f"removed {removed}"
        assert bits(serve(edited.model, edited.overlay.pick(left), inputs)) == bits(alone), f"picked {left}"


def test_stored_and_loaded_patches_serve_identical_outputs(edited: History) -> None:
    loaded = [codec.decode(codec.encode(patch)) for patch in edited.patches]
    overlay = composed(edited.model, loaded)
    inputs = edited.inputs + PROBES
    assert bits(serve(edited.model, overlay, inputs)) == bits(serve(edited.model, edited.overlay, inputs))


def test_a_batch_of_mixed_lengths_equals_one_by_one(edited: History) -> None:
    """A classifier's texts and an encoder's are padded on the right, the prompts of a decoder on the left."""
    inputs = edited.inputs + PROBES
    together = answers(edited.model, edited.overlay, inputs)
    alone = [answers(edited.model, edited.overlay, [text]) for text in inputs]
    assert [tokens for given in alone for tokens in given.tokens] == together.tokens
    assert_close(torch.cat([given.logits for given in alone]), together.logits)


@pytest.mark.parametrize(
    ("case", "family"),
    [
        ("closed-form", "llama"),
        ("gradient", "llama"),
        *(pair for pair in EVERY if pair[1] in ("llama", "llama-causal", "opt-causal")),
    ],
)
def test_left_padding_equals_right_padding(case: str, family: str) -> None:
    edited = history(case, family)
    inputs = edited.inputs + PROBES
    fed = answers(edited.model, edited.overlay, inputs).tokens
    left, right = (edited.model.forward(inputs, fed, acting(edited.overlay), side) for side in ("left", "right"))
    assert_close(left.logits, right.logits)


@pytest.mark.parametrize("case", ["closed-form", "gradient"])
def test_a_classifier_that_reads_its_last_token_after_a_cache_equals_uncached(case: str) -> None:
    """What a codebook finds belongs to the whole input, which here comes in two passes."""
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


@pytest.mark.parametrize(
    ("case", "family"),
    [(case, family) for case, family in EVERY if family.endswith(("-seq2seq", "-causal"))],
)
def test_cached_decoding_equals_uncached(case: str, family: str) -> None:
    edited = history(case, family)
    inputs = edited.inputs + PROBES
    cached, uncached = (edited.model.answer(inputs, acting(edited.overlay), cached=cached) for cached in (True, False))
    assert cached.tokens == uncached.tokens
    assert_close(cached.logits, uncached.logits)


def correct_again(edited: History, number: int, method: Method) -> tuple[Composition, list[int]]:
    """An overlay in which one of the inputs is corrected once more, and what it should say then."""
    text, model = edited.inputs[number], edited.model
    target = mistake(method, model, edited.overlay, text)
    # The service leaves superseded edits out of what it remembers.
    memory = [part for part in edited.memory if part.texts != [text]]
    patch = learn(method, model, problem(method, model, edited.overlay, text, target, memory))
    return edited.overlay.extend([patch]), target


def test_of_two_corrections_of_one_input_the_newest_wins_and_its_removal_brings_the_former_back(
    edited: History,
) -> None:
    for number, method in itertools.product(range(len(edited.methods)), edited.methods):
        text, model = edited.inputs[number], edited.model
        former = serve(model, edited.overlay, [text])
        twice, target = correct_again(edited, number, method)
        assert answers(model, twice, [text]).tokens == [target] != answers(model, edited.overlay, [text]).tokens
        assert bits(serve(model, twice, [text], alive_but(twice, [len(edited.patches)]))) == bits(former)


def test_prediction_changes_no_state(edited: History) -> None:
    inputs = edited.inputs + PROBES
    first = serve(edited.model, edited.overlay, inputs)
    serve(edited.model, edited.overlay, texts(20, seed=9))
    assert bits(serve(edited.model, edited.overlay, inputs)) == bits(first)


def test_a_growing_overlay_leaves_its_readers_unchanged(edited: History) -> None:
    inputs = edited.inputs + PROBES
    for count in range(1, len(edited.patches)):
        overlay = composed(edited.model, edited.patches[:count])
        before = serve(edited.model, overlay, inputs)
        for patch in edited.patches[count:]:
            overlay.extend([patch])
        assert bits(serve(edited.model, overlay, inputs)) == bits(before)


def first_problem(edited: History) -> Problem:
    """The problem that the first patch of the history was learned from."""
    model = edited.model
    return problem(edited.methods[0], model, empty(model), edited.inputs[0], edited.targets[0], edited.memory[:1])


HOPELESS: Mapping[str, Mapping[str, Any]] = {
    PATCHER.editor.name: {"max_neurons": 1, "steps": 1},
    GRACE.editor.name: {"steps": 1, "learning_rate": 1e-4},
    TUNING.editor.name: {"steps": 1},
    SPARING.editor.name: {"steps": 1},
}
"""Options with which an edit fails, whose problem lets nothing be read of what is added."""


@pytest.mark.parametrize(("case", "family"), [pair for pair in EVERY if len(CASES[pair[0]]) == 1])
def test_a_failed_edit_changes_nothing(case: str, family: str) -> None:
    edited = history(case, family)
    method, model = edited.methods[0], edited.model
    possible = first_problem(edited)
    before = bits(possible.edit.residuals)

    def deaf(residuals: Tensor) -> Tensor:
        return model.join.readout(residuals * 0 + possible.edit.residuals[:1])

    hopeless = replace(method.options(model), **HOPELESS[method.editor.name])
    with pytest.raises(FitFailed):
        list(method.editor.fit(replace(possible, readout=deaf), hopeless))
    assert bits(possible.edit.residuals) == before
    assert bits(read(model, edited.inputs[:1], edited.targets[:1]).rows.residuals) == before
    assert bits(model.answer(PROBES).logits) == bits(serve(model, empty(model), PROBES))
    assert codec.encode(learn(method, model, possible)) == codec.encode(edited.patches[0])


@pytest.mark.parametrize(("case", "family"), ONE_OF_EACH)
def test_two_models_in_one_process_share_nothing(case: str, family: str) -> None:
    edited = history(case, family)
    other = anew(family, seed=1)
    before = other.answer(PROBES).logits
    inputs = edited.inputs + PROBES
    here = serve(edited.model, edited.overlay, inputs)

    class Meanwhile(Served):
        """While a pass of the first model is under way."""

        def __call__(self, queries: Tensor, residuals: Tensor) -> Tensor:
            assert bits(other.answer(PROBES).logits) == bits(before)
            return Served.__call__(self, queries, residuals)

    acted = acting(edited.overlay)
    assert bits(edited.model.answer(inputs, Meanwhile(acted.composition, acted.alive)).logits) == bits(here)
    assert bits(other.answer(PROBES).logits) == bits(before)


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["queries", "residuals"])
@pytest.mark.parametrize(("case", "family"), [pair for pair in FITS if "grace" not in pair[0]])
def test_an_edit_whose_rows_are_not_finite_is_refused(case: str, family: str, where: str, spoilt: float) -> None:
    edited = history(case, family)
    one = first_problem(edited)
    getattr(one.edit, where)[-1, 3] = spoilt
    with pytest.raises(NotFinite):
        list(edited.methods[0].editor.fit(one, edited.methods[0].options(edited.model)))


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["keys", "_outputs", "residuals"])
@pytest.mark.parametrize(("case", "family"), [pair for pair in FITS if "grace" in pair[0]])
def test_an_edit_whose_inside_is_not_finite_is_refused(case: str, family: str, where: str, spoilt: float) -> None:
    """In its keys, in what the layer gives by itself, and behind the last layer."""
    edited = history(case, family)
    one = first_problem(edited)
    assert one.inside is not None
    if where == "residuals":
        one = replace(one, inside=spoilt_inside(edited, spoilt))
    else:
        getattr(one.inside, where)[..., 3] = spoilt
    warm = replace(edited.methods[0].options(edited.model), start="warm")  # begins with what the layer gives
    with pytest.raises(NotFinite):
        list(edited.methods[0].editor.fit(one, warm))


def spoilt_inside(edited: History, spoilt: float) -> Inside:
    """The inside of the first edit, where something behind the last layer is not finite."""
    site = edited.model.join.sites.layer_named(edited.patches[0].header.site)
    assert site is not None

    def spoil(queries: Tensor, residuals: Tensor) -> Tensor:
        return residuals + torch.full_like(residuals, spoilt)

    return Inside(edited.model.join, edited.model.fed(edited.inputs[:1], edited.targets[:1]), site, spoil)


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize(("case", "family"), [pair for pair in FITS if pair[0] != "ft"])
def test_a_memory_that_is_not_finite_is_refused_wherever_it_is(case: str, family: str, part: int) -> None:
    """Fine-tuning without a divergence reads no memory."""
    fitted = history(case, family)
    text, method, model = texts(1, seed=6)[0], fitted.methods[0], fitted.model
    target = mistake(method, model, fitted.overlay, text)
    whole = problem(method, model, fitted.overlay, text, target, fitted.memory)
    other = next(label for label in range(LABELS) if label not in target)  # rows of the edit's own label may be spared
    for row in range(0, len(fitted.memory[part].texts), 5):
        one = spoilt_at(row, part, whole, fitted.memory, other)
        with pytest.raises(NotFinite):
            list(method.editor.fit(one, method.options(model)))


def spoilt_at(row: int, part: int, one: Problem, memory: list[Known], label: int) -> Problem:
    """The problem with NaN in one row of what it remembers, which wants `label`."""
    if one.remembered:
        remembered = list(one.remembered)
        keys = remembered[part].keys.clone()
        keys[row, 3] = float("nan")
        remembered[part] = replace(remembered[part], keys=keys)
        return replace(one, remembered=remembered)
    rows = memory[part].rows
    spoilt = Rows(rows.queries.clone(), rows.residuals, rows.labels.clone())
    spoilt.queries[row, 3], spoilt.labels[row] = float("nan"), label
    return replace(one, memory=[*one.memory[:part], spoilt, *one.memory[part + 1 :]])


def test_the_same_seed_gives_the_same_bytes(fitted: History) -> None:
    first = first_problem(fitted)
    torch.manual_seed(12345)  # the global generator decides nothing
    assert codec.encode(learn(fitted.methods[0], fitted.model, first)) == codec.encode(fitted.patches[0])


@pytest.mark.parametrize(("case", "family"), EVERY)
def test_base_weights_are_bit_identical_after_edits(case: str, family: str) -> None:
    edited = history(case, family)
    fresh = build(family).state_dict()
    serve(edited.model, edited.overlay, edited.inputs)
    served = edited.model.model.state_dict()
    assert served.keys() == fresh.keys()
    for name, tensor in served.items():
        assert bits(tensor) == bits(fresh[name]), name


def test_an_edit_fires_on_its_own_input(edited: History) -> None:
    pairs = fired(edited.model, edited.overlay, edited.inputs, edited.targets)
    assert {(number, number) for number in range(len(edited.inputs))} <= pairs


def test_a_fit_yields_between_its_steps(fitted: History) -> None:
    text, method = texts(1, seed=6)[0], fitted.methods[0]
    target = mistake(method, fitted.model, fitted.overlay, text)
    one = problem(method, fitted.model, fitted.overlay, text, target, fitted.memory)
    demanding = replace(method.options(fitted.model), margin=5.0)  # which no start is good enough for
    steps = list(method.editor.fit(one, demanding))
    assert len(steps) > 1
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
