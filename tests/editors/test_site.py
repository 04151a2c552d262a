"""The last-layer property, on every family: what follows the site is the norm and the head, to the last bit."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from editors.errors import UnsupportedModel
from editors.site import Join, Pass
from tests.editors.editing import CASES, CPU, all_alive, learn, other_label, problem, serve
from tests.editors.tiny import ENCODER, FAMILIES, batch, build, texts, tiny

PROBES = texts(30, seed=4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_readout_of_captured_residuals_equals_the_full_model_bit_for_bit(family: str) -> None:
    seen = tiny(family).forward(PROBES)
    assert torch.equal(tiny(family).readout(seen.residuals), seen.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_readout_of_patched_residuals_equals_the_patched_full_model_bit_for_bit(family: str) -> None:
    classifier, case = tiny(family), CASES["closed-form"]
    empty = case.editor.overlay(classifier.hidden, CPU)
    memory = classifier.rows(texts(60, seed=1))
    target = other_label(classifier, empty, PROBES[0])
    overlay = empty.extend([learn(case, problem(classifier, empty, PROBES[0], target, memory))])
    seen = classifier.forward(PROBES)
    patched, firing = overlay.apply(seen.queries, seen.residuals, *all_alive(overlay, len(PROBES)))
    assert 0 in firing.rows
    assert torch.equal(classifier.readout(patched), serve(classifier, overlay, PROBES))


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_and_residuals_do_not_depend_on_a_patch(family: str) -> None:
    bare = tiny(family).forward(PROBES)
    patched = tiny(family).forward(PROBES, lambda queries, residuals: residuals + 1)
    assert torch.equal(bare.queries, patched.queries)
    assert torch.equal(bare.residuals, patched.residuals)
    assert not torch.equal(bare.logits, patched.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_opening_the_site_changes_no_output(family: str) -> None:
    model = build(family).eval()
    inputs = batch(PROBES)
    with torch.no_grad():
        before = model(**inputs).logits
        Join.open(model, batch([[5, 6, 7], [8, 9, 10, 11]]))
        assert torch.equal(model(**inputs).logits, before)


@pytest.mark.parametrize(
    ("family", "position"), [("bert", "first"), ("modernbert", "first"), ("gpt2", "last"), ("llama", "last")]
)
def test_the_site_names_the_position_that_the_head_reads(family: str, position: str) -> None:
    assert tiny(family).join.site.position == position


def test_a_model_with_shared_layers_is_refused() -> None:
    config = transformers.AlbertConfig(**{**ENCODER, "embedding_size": 16})
    with pytest.raises(UnsupportedModel, match="its layers are shared"):
        Join.open(transformers.AlbertForSequenceClassification(config).eval(), batch([[5, 6, 7], [8, 9]]))


def test_a_head_that_averages_over_the_text_is_refused() -> None:
    model = build("modernbert", classifier_pooling="mean").eval()
    with pytest.raises(UnsupportedModel, match="needs a head that reads one"):
        Join.open(model, batch([[5, 6, 7], [8, 9, 10, 11]]))


def test_a_head_that_adds_something_from_elsewhere_is_refused() -> None:
    class Peeking(nn.Module):
        """A classifier whose logits also count the tokens."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = build("bert")

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
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

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
            return transformers.modeling_outputs.SequenceClassifierOutput(
                logits=self.head(self.embeddings(input_ids).mean(1))
            )

    with pytest.raises(UnsupportedModel, match="no list of layers"):
        Join.open(Flat().eval(), batch([[5, 6, 7], [8, 9]]))


def test_a_pass_of_another_call_is_not_seen() -> None:
    classifier = tiny("bert")
    with classifier.join.during(Pass(torch.zeros(2, dtype=torch.int64))) as outer:
        classifier.forward(PROBES[:3])
    assert outer.queries is None
