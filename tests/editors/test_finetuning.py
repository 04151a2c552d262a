"""The baselines: what is served is what a model with tuned weights would say; what is fitted is how one tunes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from editors.errors import BadOptions, FitFailed
from editors.features import last_layer
from editors.finetuning import FineTuning, FineTuningKL, KLOptions, Options
from editors.finetuning.change import Change
from editors.finetuning.spared import Spared
from editors.finetuning.tuned import SUMS, Sums
from editors.layers import Sites
from editors.registry import editors
from editors.types import Patch, Problem
from tests.editors.editing import (
    SPARING,
    TUNING,
    acting,
    anew,
    apply,
    assert_close,
    empty,
    finish,
    header,
    known,
    mistake,
    problem,
    read,
    serve,
    tiny,
)
from tests.editors.test_features import TUNABLE
from tests.editors.tiny import Served, Tiny, texts

PROBES = texts(10, seed=4)


def projection(model: Tiny) -> Any:
    """The module that is tuned."""
    layer = last_layer(model.join.sites)
    assert layer is not None
    return model.model.get_submodule(layer.down)


def drawn(model: Tiny, seed: int) -> Patch:
    """A change of the weights by a tenth of what they are."""
    generator = torch.Generator().manual_seed(seed)
    weight = as_linear(projection(model), projection(model).weight)
    tensors = {"weight": 0.1 * weight.std() * torch.randn(weight.shape, generator=generator)}
    if model.join.features.biased:
        tensors["bias"] = 0.1 * torch.randn(weight.shape[0], generator=generator)
    return Patch(header(FineTuning(), model.join.site.name), tensors)


def as_linear(module: nn.Module, weight: Tensor) -> Tensor:
    """(hidden, inner), whichever way round the module keeps it; and back again."""
    return weight if isinstance(module, nn.Linear) else weight.T


def retuned(family: str, patches: Sequence[Patch]) -> Tiny:
    """The family's tiny model as it would be, had its own weights been changed."""
    changed = anew(family)
    tuned = projection(changed)
    for patch in patches:
        tuned.weight += as_linear(tuned, patch.tensors["weight"])
        if "bias" in patch.tensors:
            tuned.bias += patch.tensors["bias"]
    return changed


@pytest.mark.parametrize("family", TUNABLE)
def test_patched_logits_equal_those_of_a_model_whose_weights_were_changed(family: str) -> None:
    model = tiny(family)
    patches = [drawn(model, seed) for seed in range(3)]
    fed = model.answer(PROBES).tokens
    patched = model.forward(PROBES, fed, acting(empty(model).extend(patches))).logits
    bare, changed = (each.forward(PROBES, fed).logits for each in (model, retuned(family, patches)))
    scale = float(changed.abs().max())
    torch.testing.assert_close(patched, changed, rtol=0, atol=1e-5 * scale)
    assert float((patched - bare).abs().amax(-1).min()) > 1e-3 * scale  # every row was changed


@pytest.mark.parametrize("family", ["bert", "llama-causal"])
def test_texts_of_one_batch_see_the_patches_of_their_own_view_and_no_others(family: str) -> None:
    model = tiny(family)
    patches = [drawn(model, seed) for seed in range(3)]
    alive = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    fed = model.answer(PROBES).tokens
    reading = read(model, PROBES, fed)
    owners = reading.owners()
    view = owners % 3
    overlay = empty(model).extend(patches)
    residuals, firing = overlay.apply(reading.rows.queries, reading.rows.residuals, alive, view)
    fired = set(zip(firing.rows.tolist(), firing.patches.tolist(), strict=True))
    assert fired == set(map(tuple, alive[view].nonzero().tolist()))
    untouched = view == 1
    assert torch.equal(residuals[untouched], reading.rows.residuals[untouched])
    for number, seen in enumerate([[0, 2], [], [1]]):
        alone = empty(model).extend([patches[patch] for patch in seen])
        here = view == number
        assert_close(residuals[here], apply(alone, reading.rows)[0].residuals[here])


def test_a_patch_fires_by_the_length_of_its_change() -> None:
    model = tiny("bert")
    patches = [drawn(model, seed) for seed in range(2)]
    _, firing = apply(empty(model).extend(patches), read(model, PROBES[:1], [[0]]).rows)
    lengths = [torch.cat([tensor.flatten() for tensor in patch.tensors.values()]).norm() for patch in patches]
    torch.testing.assert_close(firing.strengths, torch.stack(lengths))


def test_a_text_that_sees_no_patch_is_answered_by_the_bare_model_bit_for_bit() -> None:
    model = tiny("bert")
    overlay = empty(model).extend([drawn(model, 0)])
    none = torch.zeros(1, 1, dtype=torch.bool)
    assert torch.equal(serve(model, overlay, PROBES, none), model.answer(PROBES).logits)
    reading = read(model, PROBES)
    view = torch.zeros(len(PROBES), dtype=torch.int64)
    residuals, firing = overlay.apply(reading.rows.queries, reading.rows.residuals, none, view)
    assert residuals is reading.rows.residuals
    assert len(firing.rows) == 0


def changes(count: int, biased: bool) -> tuple[Change, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        Change(torch.randn(4, 7, generator=generator), torch.randn(4, generator=generator) if biased else None)
        for _ in range(count)
    )


@pytest.mark.parametrize("biased", [True, False])
def test_a_sum_has_the_same_bits_whatever_was_summed_before(biased: bool) -> None:
    every, sums = changes(8, biased), Sums()
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        chosen = tuple(change for change in every if torch.rand((), generator=generator) < 0.7) or every
        expected = {name: tensor.clone() for name, tensor in chosen[0].tensors.items()}
        for change in chosen[1:]:
            expected = {name: tensor + change.tensors[name] for name, tensor in expected.items()}
        summed = sums.of(chosen).tensors
        assert summed.keys() == expected.keys()
        assert all(torch.equal(summed[name], tensor) for name, tensor in expected.items())
        assert len(sums) <= SUMS


def test_a_longer_sum_goes_on_from_a_shorter_one_and_leaves_it_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    every, sums, added = changes(6, biased=True), Sums(), list[int]()
    plus = Change.plus

    def counting(self: Change, others: Sequence[Change]) -> Change:
        added.append(len(others))
        return plus(self, others)

    monkeypatch.setattr(Change, "plus", counting)
    short = sums.of(every[:4])
    before = short.weight.clone()
    sums.of(every)
    assert added == [3, 2]
    assert sums.of(every[:4]) is short
    assert torch.equal(short.weight, before)


def test_a_sum_that_an_answer_made_can_be_fitted_through() -> None:
    every, sums = changes(3, biased=True), Sums()
    with torch.inference_mode():
        sums.of(every)
    features = torch.ones(2, 7, requires_grad=True)
    sums.of(every).on(features).sum().backward()
    assert features.grad is not None


FAMILIES = ["bert", "gpt2", "llama-causal", "bart-seq2seq"]


def first_problem(method: Any, family: str) -> tuple[Tiny, Problem, list[list[int]], list[int]]:
    """A first mistake, with a memory: the model, the problem, the text and the target."""
    model = tiny(family)
    text = texts(1, seed=2)[0]
    target = mistake(method, model, empty(model), text)
    return model, problem(method, model, empty(model), text, target, [known(model, texts(40, seed=1))]), [text], target


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fit_takes_the_steps_that_adam_takes_on_the_model_s_own_weights(family: str) -> None:
    """Until the whole model answers the edit as it should, the position of every token included."""
    model, one, inputs, target = first_problem(TUNING, family)
    rate = 0.01
    fitted = finish(FineTuning().fit(one, Options(learning_rate=rate, steps=1_000)))
    assert 0 < fitted.steps < 1_000
    changed = anew(family)
    tuned = projection(changed)
    tuned.requires_grad_()
    adam, fed = torch.optim.Adam(tuned.parameters(), lr=rate), changed.fed(inputs, [target])
    for step in range(fitted.steps + 1):
        logits = changed.model(**fed.inputs).logits
        logits = logits[fed.rows, fed.columns] if logits.dim() == 3 else logits
        right = logits.argmax(-1) == fed.labels
        assert bool(right.all()) == (step == fitted.steps)
        if step < fitted.steps:
            adam.zero_grad()
            cross_entropy(logits, fed.labels).backward()
            adam.step()
    moved = as_linear(tuned, (tuned.weight - projection(model).weight).detach())
    torch.testing.assert_close(fitted.tensors["weight"], moved, rtol=0, atol=0.1 * rate)
    assert ("bias" in fitted.tensors) == model.join.features.biased


def test_fine_tuning_alone_reads_no_memory_and_the_divergence_does() -> None:
    _, one, _, _ = first_problem(SPARING, "bert")
    other = replace(one, memory=[part[: len(part) // 2] for part in one.memory])

    def weight(editor: FineTuning, given: Problem, options: Options) -> Tensor:
        return finish(editor.fit(given, options)).tensors["weight"]

    alone, sparing = Options(learning_rate=0.01), KLOptions(learning_rate=0.01)
    assert torch.equal(weight(FineTuning(), one, alone), weight(FineTuning(), other, alone))
    assert not torch.equal(weight(FineTuningKL(), one, sparing), weight(FineTuningKL(), other, sparing))
    for changed in (replace(one, memory=[]), one):
        unweighted = replace(sparing, divergence_weight=0.0)
        torch.testing.assert_close(weight(FineTuningKL(), changed, unweighted), weight(FineTuning(), one, alone))


@pytest.mark.parametrize(("family", "weight"), [("bert", 100.0), ("llama-causal", 5.0)])
def test_the_divergence_holds_what_was_said_to_the_memory_in_place(family: str, weight: float) -> None:
    model, one, _, _ = first_problem(SPARING, family)
    rows = one.memory[0]

    def moved(editor: FineTuning, options: Options) -> float:
        tensors = finish(editor.fit(one, options)).tensors
        overlay = empty(model).extend([Patch(header(editor, model.join.site.name), tensors)])
        before, after = (
            model.join.readout(each).log_softmax(-1) for each in (rows.residuals, apply(overlay, rows)[0].residuals)
        )
        return float(kl_div(after, before, reduction="batchmean", log_target=True))

    held = moved(FineTuningKL(), KLOptions(learning_rate=1e-3, divergence_weight=weight))
    assert held < 0.7 * moved(FineTuning(), Options(learning_rate=1e-3))


def test_what_is_held_in_place_is_what_the_other_live_patches_make_the_model_say() -> None:
    model, one, _, _ = first_problem(SPARING, "bert")
    overlay = empty(model).extend([drawn(model, 0)])
    spared = Spared.drawn(replace(one, add=acting(overlay)), 100)
    assert spared is not None
    rows = one.memory[0]
    residuals = apply(overlay, rows)[0].residuals
    torch.testing.assert_close(spared.before, model.join.readout(residuals).log_softmax(-1))
    nothing = Change(torch.zeros_like(drawn(model, 0).tensors["weight"]), None)
    assert float(spared.divergence(nothing)) == pytest.approx(0.0, abs=1e-6)
    assert float(spared.divergence(Change.of(drawn(model, 1), residuals.device))) > 1e-3


def test_the_memory_is_drawn_by_the_seed() -> None:
    _, one, _, _ = first_problem(SPARING, "bert")
    first, same, other = (Spared.drawn(replace(one, seed=seed), 10) for seed in (0, 0, 1))
    assert first is not None
    assert same is not None
    assert other is not None
    assert len(first.features) == 10
    assert torch.equal(first.residuals, same.residuals)
    assert not torch.equal(first.residuals, other.residuals)
    assert Spared.drawn(one, 0) is None


def test_an_edit_that_is_still_wrong_after_the_last_step_fails_with_the_loss() -> None:
    _, one, _, _ = first_problem(TUNING, "bert")
    with pytest.raises(FitFailed, match=r"1 of the edit's 1 rows are still wrong after 2 steps; the last loss was \d"):
        finish(FineTuning().fit(one, Options(steps=2, learning_rate=1e-6)))


def test_an_edit_that_leads_by_less_than_asked_for_after_the_last_step_is_right_all_the_same() -> None:
    model, one, inputs, target = first_problem(TUNING, "bert")
    fitted = finish(FineTuning().fit(one, Options(steps=100, learning_rate=0.01, margin=100.0)))
    assert fitted.steps == 100
    overlay = empty(model).extend([Patch(header(FineTuning(), model.join.site.name), fitted.tensors)])
    assert model.answer(inputs, Served(overlay, torch.ones(1, 1, dtype=torch.bool))).tokens == [target]


def test_a_model_whose_layers_are_of_an_unknown_kind_has_no_site_for_it() -> None:
    sites = tiny("bert").join.sites
    for editor in (FineTuning(), FineTuningKL()):
        with pytest.raises(BadOptions, match=f"no feed-forward part of a known kind; the editor '{editor.name}'"):
            editor.site(Sites(sites.last, (), (), sites.family), editor.options())


def test_the_baselines_are_marked_and_no_other_editor_is() -> None:
    assert {name for name, editor in editors().items() if editor.baseline} == {"ft", "ft-kl"}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"steps": 0}, "'steps' is 0; it must be at least 1"),
        ({"learning_rate": 0}, "'learning_rate' is 0; it must be more than 0"),
        ({"margin": -1.0}, "'margin' is -1.0; it must be at least 0"),
        ({"divergence_weight": float("inf")}, "'divergence_weight' is inf; it must be a finite number"),
        ({"memory_sample": 1.5}, "'memory_sample' is 1.5; it must be a whole number"),
    ],
)
def test_a_bad_value_is_refused_naming_option_and_value(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadOptions, match=sentence.replace(".", r"\.")):
        KLOptions(**given)
