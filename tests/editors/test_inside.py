"""The network from one layer on equals the whole of it, bit for bit; and so does its gradient."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from editors.inside import Fed, Inside
from editors.join import Pass, Transform
from editors.layers import TOKENS, LayerSite
from editors.neuron import TransformerPatcher
from editors.types import Patch
from editors.visit import Places, Visit
from tests.editors.editing import acting, empty, header, keys_of, placed, tiny
from tests.editors.tiny import END, FAMILIES, GENERATORS, Tiny

TEXTS = [[5, 6, 7], [8, 9, 10, 11, 12]]
ANSWERS = {True: [[13, 14, END], [15, END]], False: [[1], [2]]}
"""Of a model that writes, and of a classifier."""
ONE_OF_EACH = ["bert", "llama", "t5-seq2seq", "bart-seq2seq", "opt-causal", "gemma2-causal"]


@cache
def fed(family: str) -> Fed:
    return tiny(family).fed(TEXTS, ANSWERS[family in GENERATORS])


def sites(model: Tiny) -> Iterator[LayerSite]:
    """Every layer and token; of an encoder-decoder also every layer of the decoder for the values."""
    every = model.join.sites
    for token in TOKENS:
        yield from (every.at(layer, token, layer) for layer in every.layers)
        yield from (every.at(every.layers[-1], token, layer) for layer in every.answering)


def reaches(model: Tiny, site: LayerSite) -> list[Places]:
    """Those that have a meaning at the site."""
    if site.apart:
        return [Places.LAST, Places.ALL, Places.EACH]
    if model.join.sites.family == "encoder-decoder":
        return [Places.LAST, Places.PROMPT]
    return [reach for reach in Places if reach is not Places.EACH or model.join.sites.family == "decoder"]


def unread(model: Tiny, site: LayerSite, reach: Places) -> bool:
    """Whether a value stands behind all mixing of tokens, at one that the head does not read."""
    every = model.join.sites
    if site.apart or every.family == "encoder-decoder" or site.writes != every.layers[-1]:
        return False
    if every.family == "encoder":
        return site.own == "last" and reach in (Places.LAST, Places.ALL)
    return site.own == "first" and reach is Places.LAST


def drawn(values: int, hidden: int) -> Tensor:
    return torch.randn(values, hidden, generator=torch.Generator().manual_seed(0))


def whole(model: Tiny, batch: Fed, site: LayerSite, values: Tensor, reach: Places, transform: Transform) -> Tensor:
    """What the full model says with the values in every text."""
    visit = Visit(batch.given, placed={site: placed(values.expand(len(TEXTS), -1, -1), reach)})
    with model.join.during(Pass(batch.rows, batch.columns, transform), visit):
        logits: Tensor = model.model(**batch.inputs).logits
    return logits[batch.rows, batch.columns] if model.join.site.position == "every" else logits


def firing_everywhere(model: Tiny) -> Transform:
    """A neuron behind the last layer that fires on every row, and more on some than on others."""
    hidden = model.join.site.hidden
    tensors = {
        "keys": drawn(2, hidden)[:1] * 0.01,
        "biases": torch.ones(1),
        "values": drawn(2, hidden)[1:],
        "activations": torch.zeros(1, dtype=torch.uint8),
    }
    return acting(empty(model).extend([Patch(header(TransformerPatcher()), tensors)]))


def nothing(queries: Tensor, residuals: Tensor) -> Tensor:
    return residuals


@pytest.mark.parametrize("family", FAMILIES)
def test_from_every_layer_on_the_network_gives_the_bits_of_the_full_model(family: str) -> None:
    model, batch = tiny(family), fed(family)
    bare = model.forward(TEXTS, ANSWERS[family in GENERATORS]).logits
    for site, transform in itertools.product(sites(model), (nothing, firing_everywhere(model))):
        inside = Inside(model.join, batch, site, transform)
        for reach in reaches(model, site):
            values = drawn(3 if reach is Places.EACH else 1, model.join.site.hidden)
            with torch.no_grad():
                short = inside.logits(values, reach)
                full = whole(model, batch, site, values, reach, transform)
            assert torch.equal(short, full), (site.name, reach)
            if transform is nothing:
                assert torch.equal(short, bare) == unread(model, site, reach), (site.name, reach)


@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_the_gradient_in_the_values_is_that_of_the_full_model(family: str) -> None:
    model, batch = tiny(family), fed(family)
    for site, transform in itertools.product(sites(model), (nothing, firing_everywhere(model))):
        inside = Inside(model.join, batch, site, transform)
        for reach in reaches(model, site):
            gradients = []
            values = drawn(3 if reach is Places.EACH else 1, model.join.site.hidden)
            for compute in (
                inside.logits,
                lambda tried, at, place=site, act=transform: whole(model, batch, place, tried, at, act),
            ):
                tried = values.clone().requires_grad_()
                compute(tried, reach).square().sum().backward()
                assert tried.grad is not None, (site.name, reach)
                gradients.append(tried.grad)
            assert torch.equal(*gradients), (site.name, reach)


@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_the_gradient_passes_through_neurons_that_fire(family: str) -> None:
    """Against differences: the neuron's strength depends on the value, too, which a cut gradient would not show."""
    model, batch = tiny(family).model, fed(family)
    layer = tiny(family).join.sites.layers[0]
    site = tiny(family).join.sites.at(layer, "last", layer)
    inside = Inside(tiny(family).join, batch, site, firing_everywhere(tiny(family)))
    assert isinstance(model, nn.Module)
    values = drawn(1, tiny(family).join.site.hidden).requires_grad_()
    towards = torch.randn(values.shape, generator=torch.Generator().manual_seed(1)) * 1e-2
    inside.logits(values, Places.LAST)[:, 0].sum().backward()
    assert values.grad is not None
    with torch.no_grad():
        ahead, behind = (inside.logits(values + sign * towards, Places.LAST)[:, 0].sum() for sign in (1, -1))
    assert float((ahead - behind) / 2) == pytest.approx(float((values.grad * towards).sum()), rel=0.05, abs=2e-3)


@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_the_layers_before_are_not_run_again(family: str) -> None:
    model, batch = tiny(family), fed(family)
    every = model.join.sites
    layers = [every.at(layer, "last", layer) for layer in every.layers]
    layers += [every.at(every.layers[-1], "last", layer) for layer in every.answering]
    ups = [model.model.get_submodule(layer.up) for layer in (*every.layers, *every.answering)]
    ran: list[nn.Module] = []
    for site in layers:
        inside = Inside(model.join, batch, site)
        hooks = [up.register_forward_pre_hook(lambda module, args: ran.append(module)) for up in ups]
        inside.logits(drawn(1, model.join.site.hidden), Places.LAST)
        for hook in hooks:
            hook.remove()
        assert ran == ups[[*every.layers, *every.answering].index(site.writes) :]
        ran.clear()


@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_trying_values_leaves_the_model_and_what_is_inside_as_they_were(family: str) -> None:
    model, batch = tiny(family), fed(family)
    answers = ANSWERS[family in GENERATORS]
    bare = model.forward(TEXTS, answers).logits
    site = next(sites(model))
    inside = Inside(model.join, batch, site)
    keys, first = inside.keys.clone(), inside.logits(drawn(1, model.join.site.hidden), Places.ALL)
    inside.logits(drawn(1, model.join.site.hidden) * 9, Places.ALL)
    assert torch.equal(inside.logits(drawn(1, model.join.site.hidden), Places.ALL), first)
    assert torch.equal(inside.keys, keys)
    assert torch.equal(model.forward(TEXTS, answers).logits, bare)


@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_the_keys_are_those_of_the_unedited_model_whatever_acts_behind_the_last_layer(family: str) -> None:
    model = tiny(family)
    for site in sites(model):
        inside = Inside(model.join, fed(family), site, firing_everywhere(model))
        torch.testing.assert_close(inside.keys, keys_of(model, site, TEXTS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_where_the_layers_own_output_is_put_nothing_changes(family: str) -> None:
    model, answers = tiny(family), ANSWERS[family in GENERATORS]
    bare = model.forward(TEXTS[:1], answers[:1]).logits
    batch = model.fed(TEXTS[:1], answers[:1])
    for site in sites(model):
        inside = Inside(model.join, batch, site)
        for reach in {Places.LAST, Places.EACH} & set(reaches(model, site)):
            torch.testing.assert_close(inside.logits(inside.own(reach), reach), bare, rtol=1e-5, atol=1e-5)
