"""The layers of every family, found by watching what the model executes; and options that name them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from editors.codebook import Grace
from editors.errors import BadOptions
from editors.join import Join
from editors.layers import TOKENS, Family
from editors.registry import options_of
from tests.editors.editing import tiny
from tests.editors.tiny import FAMILIES, SEQ2SEQ, batch, build

GRACE = Grace()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_of_every_family_is_found_in_order(family: str) -> None:
    model = tiny(family)
    sites = model.join.sites
    layers = sites.layers
    stack = model.model.get_submodule(layers[0].stack)
    assert isinstance(stack, nn.ModuleList)
    assert [layer.number for layer in layers] == list(range(len(stack)))
    for layer in (*layers, *sites.answering):
        up, down = model.model.get_submodule(layer.up), model.model.get_submodule(layer.down)
        assert layer.up.startswith(f"{layer.stack}.{layer.number}.")
        assert layer.down.startswith(f"{layer.stack}.{layer.number}.")
        assert up is not down
        assert sites.last.hidden in down.get_parameter("weight").shape


@pytest.mark.parametrize("family", FAMILIES)
def test_of_an_encoder_decoder_keys_are_taken_in_the_encoder_and_answers_written_in_the_decoder(family: str) -> None:
    sites = tiny(family).join.sites
    stacks = {layer.stack for layer in sites.layers}, {layer.stack for layer in sites.answering}
    if family in SEQ2SEQ:
        assert stacks[1] == {sites.last.stack} != stacks[0]
        assert len(sites.answering) == 2
    else:
        assert stacks == ({sites.last.stack}, set())


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("bert", "encoder"),
        ("modernbert", "encoder"),
        ("gpt2", "decoder-classifier"),
        ("llama", "decoder-classifier"),
        ("t5-seq2seq", "encoder-decoder"),
        ("opt-causal", "decoder"),
    ],
)
def test_the_family_is_told_from_what_the_head_reads(family: str, kind: Family) -> None:
    assert tiny(family).join.sites.family == kind


@pytest.mark.parametrize(
    ("family", "up", "down"),
    [
        ("bert", "bert.encoder.layer.0.intermediate.dense", "bert.encoder.layer.0.output.dense"),
        ("modernbert", "model.layers.0.mlp.Wi", "model.layers.0.mlp.Wo"),
        ("gpt2-causal", "transformer.h.0.mlp.c_fc", "transformer.h.0.mlp.c_proj"),
        ("llama-causal", "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"),
        ("opt-causal", "model.decoder.layers.0.fc1", "model.decoder.layers.0.fc2"),
        ("phi3-causal", "model.layers.0.mlp.gate_up_proj", "model.layers.0.mlp.down_proj"),
        ("bart-seq2seq", "model.encoder.layers.0.fc1", "model.encoder.layers.0.fc2"),
        ("t5-seq2seq", "encoder.block.0.layer.1.DenseReluDense.wi", "encoder.block.0.layer.1.DenseReluDense.wo"),
    ],
)
def test_a_layer_is_its_up_and_its_down_projection(family: str, up: str, down: str) -> None:
    layer = tiny(family).join.sites.layers[0]
    assert (layer.up, layer.down) == (up, down)


@pytest.mark.parametrize("family", ["bert", "llama", "t5-seq2seq", "llama-causal"])
def test_every_site_has_a_name_of_its_own_by_which_it_is_found(family: str) -> None:
    sites = tiny(family).join.sites
    every = [
        sites.at(reads, token, writes)
        for reads in sites.layers
        for token in TOKENS
        for writes in (reads, *sites.answering)
    ]
    assert len({site.name for site in every}) == len(every)
    for site in every:
        assert sites.layer_named(site.name) == site
        assert site.name in sites
    assert sites.last.name in sites
    assert sites.layer_named(sites.last.name) is None
    assert "elsewhere" not in sites


@pytest.mark.parametrize(
    ("family", "given", "reads", "writes"),
    [
        ("bert", {}, "bert.encoder.layer.1.intermediate.dense", "bert.encoder.layer.1.output.dense"),
        ("bert", {"layer": -2}, "bert.encoder.layer.0.intermediate.dense", "bert.encoder.layer.0.output.dense"),
        ("bart-seq2seq", {"layer": 0}, "model.encoder.layers.0.fc1", "model.decoder.layers.0.fc2"),
        (
            "bart-seq2seq",
            {"layer": 0, "replace": "prompt", "values": "one"},
            "model.encoder.layers.0.fc1",
            "model.encoder.layers.0.fc2",
        ),
        ("llama-causal", {"layer": 1}, "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"),
    ],
)
def test_options_name_a_layer_from_either_end(family: str, given: dict[str, object], reads: str, writes: str) -> None:
    sites = tiny(family).join.sites
    site = GRACE.site(sites, options_of(GRACE, given, sites.family))
    assert (site.reads.up, site.writes.down) == (reads, writes)


@pytest.mark.parametrize("layer", [2, -3, 1000])
def test_a_layer_that_the_model_does_not_have_is_refused(layer: int) -> None:
    sites = tiny("bert").join.sites
    with pytest.raises(BadOptions, match=rf"'layer' is {layer}; this model has 2: -2 to 1"):
        GRACE.site(sites, options_of(GRACE, {"layer": layer}, sites.family))


def test_a_value_for_each_position_is_refused_where_an_answer_has_but_one() -> None:
    sites = tiny("bert").join.sites
    options = options_of(GRACE, {"values": "each", "replace": "all"}, sites.family)
    with pytest.raises(BadOptions, match="'each'"):
        GRACE.site(sites, options)


def test_a_value_for_each_position_is_refused_where_positions_are_not_replaced() -> None:
    with pytest.raises(BadOptions, match="'replace' must be 'all', not 'prompt'"):
        options_of(GRACE, {"replace": "prompt"}, "decoder")


def test_a_model_with_a_layer_of_an_unknown_kind_has_no_layer_sites() -> None:
    """One without a feed-forward part; nothing else about the model changes."""

    class Silent(nn.Module):
        """Adds nothing."""

        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(hidden_states)

    model = build("llama").eval()
    model.get_submodule("model.layers.0").add_module("mlp", Silent())
    join = Join.open(model, batch([[5, 6, 7], [8, 9, 10, 11, 12]]))
    assert join.sites.layers == ()
    with pytest.raises(BadOptions, match="GRACE cannot edit it"):
        GRACE.site(join.sites, options_of(GRACE, {}, join.sites.family))
