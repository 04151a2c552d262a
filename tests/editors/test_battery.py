"""The battery that every editor passes (the twelve points of the methods' description), on real classes."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from editors import codec
from editors.errors import FitFailed, NotFinite
from editors.site import Pass
from editors.types import Overlay, Patch, Problem, Rows
from tests.editors.editing import (
    CASES,
    CPU,
    History,
    alive_but,
    all_alive,
    apply,
    history,
    learn,
    other_label,
    problem,
    serve,
)
from tests.editors.tiny import TinyClassifier, batch, build, texts, tiny

FAMILIES = ["bert", "roberta", "distilbert"]
PROBES = texts(12, seed=3)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=FAMILIES)
def edited(case: str, request: pytest.FixtureRequest) -> History:
    return history(case, request.param)


def composed(case: str, classifier: TinyClassifier, patches: list[Patch]) -> Overlay:
    return CASES[case].editor.overlay(classifier.hidden, CPU).extend(patches)


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()


def test_every_edit_gets_its_target_right_after_itself_and_after_the_last(edited: History) -> None:
    answers = serve(edited.classifier, edited.overlay, edited.inputs).argmax(-1)
    assert answers.tolist() == edited.targets


def test_a_removed_edit_leaves_the_output_bit_identical_to_before(case: str, edited: History) -> None:
    inputs = edited.inputs + PROBES
    overlay = composed(case, edited.classifier, edited.patches[:1])
    bare = edited.classifier.forward(inputs).logits
    assert bits(serve(edited.classifier, overlay, inputs, alive_but(overlay, [0]))) == bits(bare)


def test_removing_any_edits_leaves_exactly_what_the_others_alone_would_serve(case: str, edited: History) -> None:
    inputs = edited.inputs + PROBES
    numbers = range(len(edited.patches))
    for removed in itertools.chain.from_iterable(itertools.combinations(numbers, size) for size in numbers):
        others = [patch for number, patch in enumerate(edited.patches) if number not in removed]
        alone = serve(edited.classifier, composed(case, edited.classifier, others), inputs)
        masked = serve(edited.classifier, edited.overlay, inputs, alive_but(edited.overlay, removed))
        assert bits(masked) == bits(alone), f"removed {removed}"


def test_stored_and_loaded_patches_serve_identical_outputs(case: str, edited: History) -> None:
    loaded = [codec.decode(codec.encode(patch)) for patch in edited.patches]
    overlay = composed(case, edited.classifier, loaded)
    inputs = edited.inputs + PROBES
    assert bits(serve(edited.classifier, overlay, inputs)) == bits(serve(edited.classifier, edited.overlay, inputs))


def test_a_batch_of_mixed_lengths_equals_one_by_one(edited: History) -> None:
    inputs = edited.inputs + PROBES
    together = serve(edited.classifier, edited.overlay, inputs)
    alone = torch.cat([serve(edited.classifier, edited.overlay, [text]) for text in inputs])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_left_padding_equals_one_by_one(case: str) -> None:
    edited = history(case, "llama")
    inputs = edited.inputs + PROBES
    alive, view = all_alive(edited.overlay, len(inputs))
    together = edited.classifier.forward(
        inputs, lambda queries, sums: edited.overlay.apply(queries, sums, alive, view)[0], side="left"
    )
    alone = torch.cat([serve(edited.classifier, edited.overlay, [text]) for text in inputs])
    torch.testing.assert_close(together.logits, alone, rtol=1e-4, atol=1e-4)


def test_cached_decoding_equals_uncached(case: str) -> None:
    edited = history(case, "llama")
    text = edited.inputs[0]
    alive, view = all_alive(edited.overlay, 1)
    inputs = batch([text])
    with torch.no_grad():
        past = edited.classifier.model(input_ids=inputs["input_ids"][:, :-1], use_cache=True).past_key_values
        last = Pass(
            torch.zeros(1, dtype=torch.int64),
            lambda queries, sums: edited.overlay.apply(queries, sums, alive, view)[0],
        )
        with edited.classifier.join.during(last):
            cached = edited.classifier.model(
                input_ids=inputs["input_ids"][:, -1:], attention_mask=inputs["attention_mask"], past_key_values=past
            ).logits
    torch.testing.assert_close(cached, serve(edited.classifier, edited.overlay, [text]), rtol=1e-4, atol=1e-4)


def test_of_two_corrections_of_one_input_the_newest_wins_and_its_removal_brings_the_former_back(
    case: str, edited: History
) -> None:
    text, classifier = edited.inputs[0], edited.classifier
    former = serve(classifier, edited.overlay, [text])
    target = other_label(classifier, edited.overlay, text)
    memory = edited.memory[edited.memory.labels != edited.targets[0]]  # the service leaves superseded edits out
    patch = learn(CASES[case], problem(classifier, edited.overlay, text, target, memory))
    twice = edited.overlay.extend([patch])
    assert int(serve(classifier, twice, [text]).argmax()) == target
    assert bits(serve(classifier, twice, [text], alive_but(twice, [len(edited.patches)]))) == bits(former)


def test_prediction_changes_no_state(edited: History) -> None:
    inputs = edited.inputs + PROBES
    first = serve(edited.classifier, edited.overlay, inputs)
    serve(edited.classifier, edited.overlay, texts(20, seed=9))
    assert bits(serve(edited.classifier, edited.overlay, inputs)) == bits(first)


def test_a_growing_overlay_leaves_its_readers_unchanged(case: str, edited: History) -> None:
    inputs = edited.inputs + PROBES
    overlay = composed(case, edited.classifier, edited.patches[:1])
    before = serve(edited.classifier, overlay, inputs)
    for patch in edited.patches[1:]:
        overlay.extend([patch])
    assert bits(serve(edited.classifier, overlay, inputs)) == bits(before)


def first_problem(case: str, edited: History) -> Problem:
    """The problem that the first patch of the history was learned from."""
    overlay = CASES[case].editor.overlay(edited.classifier.hidden, CPU)
    return problem(edited.classifier, overlay, edited.inputs[0], edited.targets[0], edited.memory[:80])


def test_a_failed_edit_changes_nothing(case: str, edited: History) -> None:
    possible = first_problem(case, edited)

    def deaf(residuals: Tensor) -> Tensor:
        return edited.classifier.readout(residuals * 0 + possible.edit.residuals[:1])

    impossible = replace(possible, readout=deaf)
    options = replace(CASES[case].options, max_neurons=1, steps=1)
    with pytest.raises(FitFailed):
        list(CASES[case].editor.fit(impossible, options))
    assert bits(impossible.edit.residuals) == bits(edited.classifier.rows(edited.inputs[:1]).residuals)
    assert codec.encode(learn(CASES[case], possible)) == codec.encode(edited.patches[0])


def test_two_models_in_one_process_share_nothing(case: str) -> None:
    edited = history(case, "bert")
    other = TinyClassifier(build("bert", seed=1))
    before = other.forward(PROBES).logits
    inputs = edited.inputs + PROBES
    here = serve(edited.classifier, edited.overlay, inputs)
    alive, view = all_alive(edited.overlay, len(inputs))

    def meanwhile(queries: Tensor, residuals: Tensor) -> Tensor:
        assert bits(other.forward(PROBES).logits) == bits(before)  # while a pass of the first model is under way
        return edited.overlay.apply(queries, residuals, alive, view)[0]

    assert bits(edited.classifier.forward(inputs, meanwhile).logits) == bits(here)
    assert bits(other.forward(PROBES).logits) == bits(before)


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["queries", "residuals"])
def test_a_problem_that_is_not_finite_is_refused(case: str, where: str, spoilt: float) -> None:
    edited = history(case, "bert")
    rows = edited.classifier.rows([edited.inputs[0]], torch.tensor([0]))
    getattr(rows, where)[0, 3] = spoilt
    with pytest.raises(NotFinite):
        list(CASES[case].editor.fit(Problem(rows, edited.memory, edited.classifier.readout), CASES[case].options))


def test_a_memory_that_is_not_finite_is_refused(case: str) -> None:
    edited = history(case, "bert")
    spoilt = Rows(edited.memory.queries.clone(), edited.memory.residuals, edited.memory.labels)
    spoilt.queries[5, 3] = float("nan")
    one = problem(edited.classifier, edited.overlay, edited.inputs[0], 0, spoilt)
    with pytest.raises(NotFinite):
        list(CASES[case].editor.fit(one, CASES[case].options))


def test_the_same_seed_gives_the_same_bytes(case: str) -> None:
    edited = history(case, "bert")
    first = first_problem(case, edited)
    torch.manual_seed(12345)  # the global generator decides nothing
    assert codec.encode(learn(CASES[case], first)) == codec.encode(edited.patches[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_base_weights_are_bit_identical_after_edits(case: str, family: str) -> None:
    edited = history(case, family)
    fresh = copy.deepcopy(build(family)).state_dict()
    serve(edited.classifier, edited.overlay, edited.inputs)
    for name, tensor in edited.classifier.model.state_dict().items():
        assert bits(tensor) == bits(fresh[name]), name


def test_an_edit_fires_on_its_own_input(edited: History) -> None:
    rows = edited.classifier.rows(edited.inputs)
    _, firing = apply(edited.overlay, rows)
    fired = set(zip(firing.rows.tolist(), firing.patches.tolist(), strict=True))
    assert {(number, number) for number in range(len(edited.inputs))} <= fired


def test_a_fit_yields_between_its_steps(case: str) -> None:
    edited = history(case, "bert")
    text = texts(1, seed=6)[0]
    target = other_label(tiny("bert"), edited.overlay, text)
    steps = list(
        CASES[case].editor.fit(problem(tiny("bert"), edited.overlay, text, target, edited.memory), CASES[case].options)
    )
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
