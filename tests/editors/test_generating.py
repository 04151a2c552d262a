"""What free generation does under an overlay, on every family: transformers' own, and what feeding the answer tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from editors.composition import Composition
from editors.join import Pass
from editors.types import Patch
from tests.editors.editing import (
    PATCHER,
    History,
    acting,
    answers,
    apply,
    assert_close,
    empty,
    header,
    history,
    read,
    tiny,
)
from tests.editors.generating import MOST_TOKENS, TinyGenerator, generate
from tests.editors.tiny import CAUSAL, END, GENERATORS, WORDS, Answers, batch, build, texts

PROBES = texts(12, seed=3)
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14, 15, 16]]


@pytest.fixture(params=GENERATORS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def edited(family: str) -> History:
    return history("closed-form", family)


def unopened(family: str) -> nn.Module:
    """The family's model as it is served, but without its site opened.

    With parameters that want gradients, other kernels may run, and the last bits differ.
    """
    return build(family).eval().requires_grad_(False)


def same_bits(one: Answers, other: Answers) -> bool:
    return one.tokens == other.tokens and torch.equal(one.logits, other.logits)


def neuron(family: str, *, bias: float) -> Composition:
    """One neuron that has the same strength, the bias if that is positive, wherever it is asked."""
    width = tiny(family).join.site.hidden
    tensors = {
        "keys": torch.zeros(1, width),
        "biases": torch.tensor([bias]),
        "values": torch.randn(1, width, generator=torch.Generator().manual_seed(0)) * 10,
        "activations": torch.zeros(1, dtype=torch.uint8),
    }
    return empty(tiny(family)).extend([Patch(header(PATCHER.editor), tensors)])


def test_without_patches_generation_is_that_of_the_model_before_it_was_opened(family: str) -> None:
    bare = generate(unopened(family), PROBES)
    opened = answers(tiny(family), empty(tiny(family)), PROBES)
    assert same_bits(opened, bare)


def test_with_a_neuron_that_does_not_fire_generation_is_bit_identical_to_the_bare_model(family: str) -> None:
    bare = generate(unopened(family), PROBES)
    assert same_bits(answers(tiny(family), neuron(family, bias=-1), PROBES), bare)
    assert not same_bits(answers(tiny(family), neuron(family, bias=1), PROBES), bare)


def test_a_text_on_which_nothing_fires_is_answered_bit_for_bit_beside_one_on_which_something_does(
    edited: History,
) -> None:
    inputs = edited.inputs + PROBES
    bare = edited.model.answer(inputs)
    reading = read(edited.model, inputs, bare.tokens)
    fired = set(reading.owners()[apply(edited.overlay, reading.rows)[1].rows].tolist())
    silent = [number for number in range(len(inputs)) if number not in fired]
    assert fired
    assert silent
    served = answers(edited.model, edited.overlay, inputs)
    for number in silent:
        assert torch.equal(logits_of(served, number), logits_of(bare, number))


def logits_of(given: Answers, number: int) -> Tensor:
    """The logits of one of the texts."""
    start = sum(map(len, given.tokens[:number]))
    return given.logits[start : start + len(given.tokens[number])]


def test_the_tokens_generated_are_the_best_of_the_logits(edited: History) -> None:
    given = answers(edited.model, edited.overlay, edited.inputs + PROBES)
    assert given.logits.argmax(-1).tolist() == [token for tokens in given.tokens for token in tokens]


def test_cached_decoding_equals_uncached_under_a_patch(edited: History) -> None:
    inputs = edited.inputs + PROBES
    cached = edited.model.answer(inputs, acting(edited.overlay))
    uncached = edited.model.answer(inputs, acting(edited.overlay), cached=False)
    assert cached.tokens == uncached.tokens
    assert [tokens[-1] for tokens in cached.tokens[: len(edited.inputs)]] == [END] * len(edited.inputs)
    assert_close(cached.logits, uncached.logits)


def right_when_fed(edited: History, inputs: Sequence[list[int]], targets: Sequence[list[int]]) -> list[bool]:
    """Whether the arg-max at every position of each target is the target's token, by the short computation."""
    reading = read(edited.model, inputs, targets)
    patched, _ = apply(edited.overlay, reading.rows)
    right = edited.model.join.readout(patched.residuals).argmax(-1) == patched.labels
    return [bool(part.all()) for part in right.split(list(reading.lengths))]


def test_what_is_generated_is_the_best_at_every_position_when_it_is_fed(edited: History) -> None:
    inputs = edited.inputs + PROBES
    given = answers(edited.model, edited.overlay, inputs).tokens
    assert right_when_fed(edited, inputs, given) == [True] * len(inputs)


def spoilt(target: list[int], position: int) -> list[int]:
    """The target with another token in one place."""
    return [*target[:position], (target[position] + 1) % WORDS.stop, *target[position + 1 :]]


def test_greedy_generation_is_the_target_exactly_where_every_position_is_right_when_it_is_fed(edited: History) -> None:
    """Of each edit its own target, those of the other edits, and its own with one token spoilt, at each place."""
    pairs = [(text, target) for text in edited.inputs for target in edited.targets]
    for text, target in zip(edited.inputs, edited.targets, strict=True):
        pairs += [(text, spoilt(target, position)) for position in range(len(target) - 1)]
    inputs, targets = [text for text, _ in pairs], [target for _, target in pairs]
    given = answers(edited.model, edited.overlay, inputs).tokens
    exact = [tokens == target for tokens, target in zip(given, targets, strict=True)]
    assert right_when_fed(edited, inputs, targets) == exact
    assert len(edited.inputs) <= sum(exact) < len(exact)


def test_targets_that_were_learned_have_more_than_one_length_and_some_were_partly_right(edited: History) -> None:
    """What the tests above rest on."""
    bare = edited.model.answer(edited.inputs).tokens
    assert len({len(target) for target in edited.targets}) > 1
    assert all(len(target) <= MOST_TOKENS for target in edited.targets)
    assert any(tokens[0] == target[0] for tokens, target in zip(bare, edited.targets, strict=True))


@pytest.mark.parametrize("family", CAUSAL)
def test_when_fed_left_padding_equals_right_padding(edited: History) -> None:
    inputs = edited.inputs + PROBES
    fed = answers(edited.model, edited.overlay, inputs).tokens
    bare = [edited.model.forward(inputs, fed, side=side) for side in ("left", "right")]
    patched = [edited.model.forward(inputs, fed, acting(edited.overlay), side) for side in ("left", "right")]
    assert_close(bare[0].logits, bare[1].logits)
    assert_close(bare[0].queries, bare[1].queries)
    assert_close(patched[0].logits, patched[1].logits)


def test_when_fed_texts_and_answers_of_mixed_lengths_equal_each_alone(edited: History) -> None:
    inputs = edited.inputs + PROBES
    fed = answers(edited.model, edited.overlay, inputs).tokens
    for transform in (None, acting(edited.overlay)):
        together = edited.model.forward(inputs, fed, transform)
        alone = [edited.model.forward([text], [tokens], transform) for text, tokens in zip(inputs, fed, strict=True)]
        assert_close(torch.cat([seen.logits for seen in alone]), together.logits)


def test_texts_of_one_batch_may_be_answered_under_different_revisions(edited: History) -> None:
    numbers = len(edited.patches)
    alive = torch.ones(numbers, numbers, dtype=torch.bool).tril()  # text i is answered after edit i
    view = torch.arange(numbers)

    def transform(queries: Tensor, residuals: Tensor) -> Tensor:
        return edited.overlay.apply(queries, residuals, alive, view)[0]

    together = edited.model.answer(edited.inputs, transform)
    assert together.tokens == edited.targets
    for number in range(numbers):
        whole = answers(edited.model, edited.overlay, edited.inputs, alive[number : number + 1])
        assert torch.equal(logits_of(together, number), logits_of(whole, number))


class Watched:
    """What the last norm gives, pass by pass: (batch, tokens, hidden)."""

    def __init__(self, model: TinyGenerator) -> None:
        self.passes: list[Tensor] = []
        norm = model.model.get_submodule(model.join.site.joins)
        self._handle = norm.register_forward_hook(self._watch)

    def _watch(self, module: object, args: object, output: Tensor) -> None:
        self.passes.append(output)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()


def watched_pass(model: Any, inputs: dict[str, Tensor], call: Pass) -> Tensor:
    """What the last norm gives in one pass over the prompts, (batch, tokens, hidden)."""
    with Watched(model) as watched, torch.no_grad(), model.join.during(call):
        model.model(**inputs)
    return watched.passes[0]


@pytest.mark.parametrize("family", CAUSAL)
def test_of_a_prompt_only_the_last_position_is_inside_the_overlay(family: str) -> None:
    """Of prompts padded as `generate` pads them, under a neuron that fires wherever it is asked."""
    model = tiny(family)
    inputs = batch(PROMPTS, "left")
    last = torch.full((len(PROMPTS),), -1)
    bare = watched_pass(model, inputs, Pass.at(last))
    patched = watched_pass(model, inputs, Pass.at(last, acting(neuron(family, bias=1))))
    assert torch.equal(patched[:, :-1], bare[:, :-1])
    assert bool((patched[:, -1] != bare[:, -1]).any(-1).all())


@pytest.mark.parametrize("family", CAUSAL)
def test_generation_leaves_a_prompt_as_the_bare_model_reads_it_and_patches_every_token_it_writes(family: str) -> None:
    model: Any = tiny(family)
    with Watched(model) as bare:
        model.answer(PROMPTS)
    with Watched(model) as patched:
        model.answer(PROMPTS, acting(neuron(family, bias=1)))
    assert torch.equal(patched.passes[0][:, :-1], bare.passes[0][:, :-1])
    assert bool((patched.passes[0][:, -1] != bare.passes[0][:, -1]).any(-1).all())
    assert len(patched.passes) > 1
    assert all(after.shape[1] == 1 for after in patched.passes[1:])


def test_one_position_of_each_text_is_inside_the_overlay_at_each_step(family: str) -> None:
    asked: list[tuple[int, ...]] = []

    def transform(queries: Tensor, residuals: Tensor) -> Tensor:
        asked.append(tuple(queries.shape))
        return residuals

    steps = max(map(len, tiny(family).answer(PROMPTS, transform).tokens))
    assert asked == [(len(PROMPTS), tiny(family).join.site.hidden)] * steps


def test_feeding_an_answer_changes_the_positions_of_the_answer_alone(family: str) -> None:
    """Under a neuron that fires wherever it is asked, every position of the answer gets other logits."""
    model = tiny(family)
    fed = model.answer(PROMPTS).tokens
    bare, patched = model.forward(PROMPTS, fed), model.forward(PROMPTS, fed, acting(neuron(family, bias=1)))
    assert len(bare.logits) == sum(map(len, fed))
    assert bool((bare.logits != patched.logits).any(-1).all())
