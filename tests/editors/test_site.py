"""The last-layer property, on every family: what follows the site is the norm and the head, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from editors.errors import UnsupportedModel
from editors.join import Join, Pass
from tests.editors.editing import PATCHER, acting, anew, apply, empty, known, learn, mistake, problem, read, tiny
from tests.editors.generating import feeding
from tests.editors.tiny import ENCODER, FAMILIES, GENERATORS, batch, build, texts

PROBES = texts(30, seed=4)
TWO = [[5, 6, 7], [8, 9, 10, 11, 12]]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_readout_of_captured_residuals_equals_the_full_model_bit_for_bit(family: str) -> None:
    model = tiny(family)
    seen = model.forward(PROBES, model.answer(PROBES).tokens)
    assert torch.equal(model.join.readout(seen.residuals), seen.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_readout_of_one_row_equals_the_full_model_but_for_the_last_bits(family: str) -> None:
    model = tiny(family)
    seen = model.forward(PROBES[:5], model.answer(PROBES[:5]).tokens)
    alone = torch.cat([model.join.readout(row) for row in seen.residuals.split(1)])
    torch.testing.assert_close(alone, seen.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_readout_of_patched_residuals_equals_the_patched_full_model_bit_for_bit(family: str) -> None:
    model = tiny(family)
    fed = model.answer(PROBES).tokens
    fed[0] = mistake(PATCHER, model, empty(model), PROBES[0])
    one = problem(PATCHER, model, empty(model), PROBES[0], fed[0], [known(model, texts(60, seed=1))])
    overlay = empty(model).extend([learn(PATCHER, model, one)])
    reading = read(model, PROBES, fed)
    patched, firing = apply(overlay, reading.rows)
    assert 0 in reading.owners()[firing.rows]
    assert torch.equal(model.join.readout(patched.residuals), model.forward(PROBES, fed, acting(overlay)).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_and_residuals_do_not_depend_on_a_patch(family: str) -> None:
    model = tiny(family)
    fed = model.answer(PROBES).tokens
    bare = model.forward(PROBES, fed)
    patched = model.forward(PROBES, fed, lambda queries, residuals: residuals.flip(-1))
    assert torch.equal(bare.queries, patched.queries)
    assert torch.equal(bare.residuals, patched.residuals)
    assert bool((bare.logits != patched.logits).any(-1).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_and_residuals_are_rows_of_the_site_s_width(family: str) -> None:
    model = tiny(family)
    seen = model.forward(TWO, [[13, 14], [15, 16, 17]])
    assert seen.queries.shape == seen.residuals.shape == (sum(seen.lengths), model.join.site.hidden)


@pytest.mark.parametrize("family", FAMILIES)
def test_opening_the_site_changes_no_output(family: str) -> None:
    model: Any = build(family).eval()
    fed = [[13, 14, 15]] * len(PROBES)
    inputs = feeding(model, PROBES, fed)[0] if family in GENERATORS else batch(PROBES)
    opening = feeding(model, TWO, fed[:2])[0] if family in GENERATORS else batch(TWO)
    with torch.no_grad():
        before = model(**inputs).logits
        Join.open(model, opening)
        assert torch.equal(model(**inputs).logits, before)


@pytest.mark.parametrize(
    ("family", "position"),
    [
        ("bert", "first"),
        ("modernbert", "first"),
        ("gpt2", "last"),
        ("llama", "last"),
        *((family, "every") for family in GENERATORS),
    ],
)
def test_the_site_names_the_position_that_the_head_reads(family: str, position: str) -> None:
    assert tiny(family).join.site.position == position


@pytest.mark.parametrize(
    ("family", "reads", "joins"),
    [
        ("bart-seq2seq", "model.decoder.layers.1.fc1", "model.decoder.layers.1.final_layer_norm"),
        ("mbart-seq2seq", "model.decoder.layers.1.fc1", "model.decoder.layer_norm"),
        ("t5-seq2seq", "decoder.block.1.layer.2.DenseReluDense.wi", "decoder.final_layer_norm"),
        ("gpt2-causal", "transformer.h.1.mlp.c_fc", "transformer.ln_f"),
        ("llama-causal", "model.layers.1.mlp.up_proj", "model.norm"),
        ("gemma2-causal", "model.layers.1.mlp.up_proj", "model.norm"),
        ("phi3-causal", "model.layers.1.mlp.gate_up_proj", "model.norm"),
    ],
)
def test_the_site_is_the_last_feed_forward_layer_of_the_decoder_and_the_norm_behind_it(
    family: str, reads: str, joins: str
) -> None:
    site = tiny(family).join.site
    assert (site.reads, site.joins) == (reads, joins)


class Wrapped(nn.Module):
    """A model of a class that nobody has heard of: another one, and something done to its logits."""

    def __init__(self, inner: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.unheard_of = inner.eval()
        self.change = change

    def forward(self, **inputs: Tensor) -> object:
        output = self.unheard_of(**inputs)
        output.logits = self.change(output.logits)
        return output


@pytest.mark.parametrize("family", FAMILIES)
def test_the_site_is_found_by_structure_whatever_the_class_is_called(family: str) -> None:
    known, inner = tiny(family), build(family)
    fed = [[13, 14], [15, 16]]
    inputs = feeding(inner, TWO, fed)[0] if family in GENERATORS else batch(TWO)
    join = Join.open(Wrapped(inner, lambda logits: logits), inputs)
    assert join.site.joins == f"unheard_of.{known.join.site.joins}"
    residuals = known.forward(TWO, fed).residuals
    assert torch.equal(join.readout(residuals), known.join.readout(residuals))


@pytest.mark.parametrize("family", ["bart-seq2seq", "llama-causal"])
def test_a_language_model_whose_logits_depend_on_other_positions_is_refused(family: str) -> None:
    inner = build(family)
    inputs, _ = feeding(inner, TWO, [[13, 14], [15, 16]])
    with pytest.raises(UnsupportedModel, match="reads 2 positions for one answer"):
        Join.open(Wrapped(inner, lambda logits: logits.cumsum(1)), inputs)


@pytest.mark.parametrize("family", ["bart-seq2seq", "llama-causal"])
def test_a_language_model_that_adds_something_by_position_is_refused(family: str) -> None:
    inner = build(family)
    inputs, _ = feeding(inner, TWO, [[13, 14], [15, 16]])
    with pytest.raises(UnsupportedModel, match="could not be judged exactly"):
        Join.open(Wrapped(inner, lambda logits: logits + torch.arange(logits.shape[1]).unsqueeze(-1)), inputs)


def test_a_model_with_shared_layers_is_refused() -> None:
    config = transformers.AlbertConfig(**{**ENCODER, "embedding_size": 16})
    with pytest.raises(UnsupportedModel, match="its layers are shared"):
        Join.open(transformers.AlbertForSequenceClassification(config).eval(), batch([[5, 6, 7], [8, 9]]))


def test_a_head_that_averages_over_the_text_is_refused() -> None:
    model = build("modernbert", classifier_pooling="mean").eval()
    with pytest.raises(UnsupportedModel, match="needs a head that reads one"):
        Join.open(model, batch([[5, 6, 7], [8, 9, 10, 11]]))


@pytest.mark.parametrize("family", ["bert", "modernbert"])  # the second has a norm in its head, too
def test_a_head_that_adds_something_from_elsewhere_is_refused(family: str) -> None:
    class Peeking(nn.Module):
        """A classifier whose logits also count the tokens."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = build(family)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> object:
            output = self.inner(input_ids=input_ids, attention_mask=attention_mask)
            output.logits = output.logits + attention_mask.sum(-1, keepdim=True)
            return output

    with pytest.raises(UnsupportedModel, match="could not be judged exactly"):
        Join.open(Peeking().eval(), batch([[5, 6, 7], [8, 9, 10, 11]]))


def test_a_model_without_layers_is_refused() -> None:
    class Flat(nn.Module):
        """Logits from the mean embedding."""

        def __init__(self) -> None:
            super().__init__()
            self.embeddings, self.head = nn.Embedding(100, 32), nn.Linear(32, 5)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> object:
            return transformers.modeling_outputs.SequenceClassifierOutput(
                logits=self.head(self.embeddings(input_ids).mean(1))
            )

    with pytest.raises(UnsupportedModel, match="no list of layers"):
        Join.open(Flat().eval(), batch([[5, 6, 7], [8, 9]]))


def test_a_pass_of_another_call_is_not_seen() -> None:
    model = tiny("bert")
    with model.join.during(Pass.at(torch.zeros(2, dtype=torch.int64))) as outer:
        model.forward(PROBES[:3], [])
    assert outer.queries is None


@pytest.mark.parametrize("family", ["bert", "bart-seq2seq", "llama-causal"])
def test_a_closed_site_sees_and_changes_nothing(family: str) -> None:
    model = anew(family)
    fed = [[13, 14], [15, 16]]
    inputs = feeding(model.model, TWO, fed)[0] if family in GENERATORS else batch(TWO)
    call = Pass.at(torch.zeros(2, dtype=torch.int64), lambda queries, residuals: residuals.flip(-1))
    with torch.no_grad():
        bare = model.model(**inputs).logits
        model.join.close()
        with model.join.during(call):
            assert torch.equal(model.model(**inputs).logits, bare)
    assert call.queries is None
