"""The traps that released implementations fell into, each with the tests that fail where the fault is.

labels compared by their mean or sum, so (3, 7) equals (4, 6)
    test_codebook: test_answers_are_compared_token_by_token
the same input corrected again: radii -1e-5 and 0, the new edit never fires
    test_a_second_correction_of_an_input_is_found_at_once_and_covers_something
    test_battery: test_of_two_corrections_of_one_input_the_newest_wins_and_its_removal_brings_the_former_back
the key's position counts the padding of the whole batch
    test_padding_moves_no_key
    test_visit: test_a_key_does_not_depend_on_what_else_is_in_the_batch
the codebook is missing from the saved state
    test_what_is_stored_is_all_that_serves
    test_battery: test_stored_and_loaded_patches_serve_identical_outputs
one forward in train() mode adds an entry
    test_a_forward_in_train_mode_adds_no_entry
rolling back edit 4 of 4 deletes edit 2
    test_taking_back_edit_four_of_four_takes_back_exactly_that_one
after the only edit is deleted the next prediction inserts a random value
    test_after_the_only_edit_is_removed_predictions_are_bare_and_stay_so
a neighbour's radius is not restored; a split deletes stored points
    test_a_neighbours_radius_is_restored
    test_codebook: test_a_removed_neighbour_leaves_the_radius_that_was_before_it
the key's position stays at the first prompt's length
    test_a_second_prompt_of_another_length_finds_its_own_entry
the key's position moves during cached generation
    test_visit: test_what_was_found_stays_found_while_an_answer_is_generated
    test_visit: test_keys_are_taken_in_the_first_pass_alone
a failed fit is merged silently
    test_value_of_entry: test_values_that_never_make_the_answer_lead_fail_with_their_number_and_the_last_loss
    test_battery: test_a_failed_edit_changes_nothing
neurons are fused into the layer, so no single edit can be undone
    test_battery: test_removing_any_edits_leaves_exactly_what_the_others_alone_would_serve
    test_battery: test_base_weights_are_bit_identical_after_edits
last weights kept, not the best
    test_value_of_entry: test_the_best_values_are_kept_not_the_last
one routing decision for a whole batch
    test_each_row_of_a_batch_finds_its_own_entry_or_none
    test_visit: test_texts_of_one_batch_may_be_answered_under_different_revisions
retention is scored right after each edit, never after the last one
    test_battery: test_every_edit_gets_its_target_right_after_itself_and_after_the_last; the benchmarks report ER so
teacher-forced accuracy counts padding
    test_generating: test_greedy_generation_is_the_target_exactly_where_every_position_is_right_when_it_is_fed
"""

from __future__ import annotations

import pytest
import torch

from editors import codec
from editors.composition import Composition
from editors.registry import editors
from editors.types import Patch
from tests.editors.editing import (
    CPU,
    GRACE,
    History,
    alive_but,
    anew,
    answers,
    empty,
    history,
    keys_of,
    learn,
    mistake,
    problem,
    serve,
    tiny,
)
from tests.editors.tiny import texts

PROBES = texts(12, seed=3)


@pytest.fixture(params=["bert", "llama", "t5-seq2seq", "llama-causal"])
def edited(request: pytest.FixtureRequest) -> History:
    return history("grace", request.param)


def test_a_second_correction_of_an_input_is_found_at_once_and_covers_something(edited: History) -> None:
    text, model = edited.inputs[0], edited.model
    target = mistake(GRACE, model, edited.overlay, text)
    memory = [part for part in edited.memory if part.texts != [text]]
    twice = edited.overlay.extend([learn(GRACE, model, problem(GRACE, model, edited.overlay, text, target, memory))])
    assert answers(model, twice, [text]).tokens == [target]
    (book,) = twice._books()
    radii = book.overlay.radii(torch.ones(1, 5, dtype=torch.bool))[0]  # type: ignore[attr-defined]
    assert float(radii[4]) > 0 > float(radii[0])


def test_padding_moves_no_key(edited: History) -> None:
    """Each edit's text beside one that is much longer."""
    long = [list(range(5, 35))]
    for text, target in zip(edited.inputs, edited.targets, strict=True):
        assert answers(edited.model, edited.overlay, [text, *long]).tokens[0] == target


def test_what_is_stored_is_all_that_serves(edited: History) -> None:
    """On a model built anew, from bytes alone."""
    family = next(name for name in ("bert", "llama", "t5-seq2seq", "llama-causal") if tiny(name) is edited.model)
    model = anew(family)
    stored = [codec.encode(patch) for patch in edited.patches]
    overlay = Composition(editors(), model.join.sites, CPU).extend([codec.decode(data) for data in stored])
    inputs = edited.inputs + PROBES
    assert torch.equal(serve(model, overlay, inputs), serve(edited.model, edited.overlay, inputs))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_forward_in_train_mode_adds_no_entry(family: str) -> None:
    """And changes none: what is served afterwards is what was served before."""
    edited, model = history("grace", family), anew(family)
    overlay = Composition(editors(), model.join.sites, CPU).extend(edited.patches)
    before = serve(model, overlay, PROBES)
    model.model.train()
    serve(model, overlay, texts(20, seed=9))
    model.model.eval()
    assert len(overlay) == len(edited.patches)
    assert torch.equal(serve(model, overlay, PROBES), before)


def test_taking_back_edit_four_of_four_takes_back_exactly_that_one(edited: History) -> None:
    left = alive_but(edited.overlay, [3])
    said = answers(edited.model, edited.overlay, edited.inputs, left).tokens
    assert said[:3] == edited.targets[:3]
    assert said[3] == edited.model.answer(edited.inputs).tokens[3] != edited.targets[3]


def test_after_the_only_edit_is_removed_predictions_are_bare_and_stay_so(edited: History) -> None:
    overlay, inputs = empty(edited.model).extend(edited.patches[:1]), edited.inputs + PROBES
    bare = edited.model.answer(inputs).logits
    for without in (alive_but(overlay, [0]), alive_but(overlay, [0])):
        assert torch.equal(serve(edited.model, overlay, inputs, without), bare)
    picked = overlay.pick([])
    assert torch.equal(serve(edited.model, picked, inputs), bare)
    assert torch.equal(serve(edited.model, picked, inputs), bare)


def beside(edited: History, far: float) -> Patch:
    """An entry with another answer, a part of the first one's reach away from it."""
    one = edited.patches[0]
    away = torch.zeros_like(one.tensors["key"])
    away[0] = far * float(one.tensors["reach"])
    return Patch(one.header, {**one.tensors, "key": one.tensors["key"] + away, "answer": one.tensors["answer"] + 1})


def test_a_neighbours_radius_is_restored(edited: History) -> None:
    """A key three quarters of the way out is lost to a neighbour, and found again when that one goes."""
    one = edited.patches[0]
    overlay = empty(edited.model).extend([one, beside(edited, 1.0)])
    (book,) = overlay._books()
    site = edited.model.join.sites.layer_named(one.header.site)
    assert site is not None
    key = one.tensors["key"].clone()
    key[1] += 0.75 * float(one.tensors["reach"])
    keys, text = {site.name: key.unsqueeze(0)}, torch.tensor([0])
    found = [
        overlay.found(keys, alive, text).item()
        for alive in (torch.tensor([True, False]), torch.tensor([True, True]), torch.tensor([True, False]))
    ]
    assert found == [0, -1, 0]
    assert len(book.overlay) == 2


@pytest.mark.parametrize("family", ["t5-seq2seq", "llama-causal"])
def test_a_second_prompt_of_another_length_finds_its_own_entry(family: str) -> None:
    edited = history("grace", family)
    assert len(set(map(len, edited.inputs))) > 1
    for text, target in [*zip(edited.inputs, edited.targets, strict=True)] * 2:
        assert answers(edited.model, edited.overlay, [text]).tokens == [target]


def test_each_row_of_a_batch_finds_its_own_entry_or_none(edited: History) -> None:
    inputs = [edited.inputs[2], PROBES[0], edited.inputs[0], PROBES[1]]
    said, bare = answers(edited.model, edited.overlay, inputs).tokens, edited.model.answer(inputs).tokens
    assert said == [edited.targets[2], bare[1], edited.targets[0], bare[3]]


def test_edits_lie_where_their_texts_keys_are(edited: History) -> None:
    """What the tests above rest on: every text is nearest to its own entry."""
    site = edited.model.join.sites.layer_named(edited.patches[0].header.site)
    assert site is not None
    entries = torch.stack([patch.tensors["key"] for patch in edited.patches])
    far = (keys_of(edited.model, site, edited.inputs).unsqueeze(1) - entries).norm(dim=-1)
    assert far.argmin(-1).tolist() == list(range(len(edited.inputs)))
