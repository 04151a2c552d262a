"""Texts of different lengths in one pass without padding: the same answers as padded, whoever shares the pass."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.errors import Unprocessable
from app.model import Ask, Classifier, Encoding, load
from app.model.unpadded import Unpadded
from editors.layers import LayerSite
from editors.visit import Found, Look, Places, Visit
from tests.app.running import run
from tests.deployed import WORDS, deploy

UNPADDED = ("Bert", "Roberta", "DistilBert", "SmolLM3", "OPT")
PADDED = ("Deberta", "ModernBert")
"""Their attention is their own, or does not look at all of a text."""


def opened(folder: Path, family: str) -> Classifier:
    model = load(deploy(folder, family=family), device="cpu")
    assert isinstance(model, Classifier)
    return model


def texts(count: int, seed: int = 0) -> list[str]:
    """Of two to twelve words, in no order: with the tokens around them, as many as `ENOUGH_ROWS` at least."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(2, 12))) for _ in range(count)]


def padding(model: Classifier) -> Classifier:
    """The same model, run as it would be if it could not be run otherwise."""
    other = copy.copy(model)
    other._unpadded = None
    return other


def logits(model: Classifier, asked: Sequence[str]) -> Tensor:
    return torch.stack([output.raw for output in run(model, [Ask(each) for each in model.encode(asked)])])


@pytest.mark.parametrize("family", UNPADDED)
def test_answers_are_those_of_padded_texts(tmp_path: Path, family: str) -> None:
    model = opened(tmp_path, family)
    assert not model.pads
    asked = texts(9)
    torch.testing.assert_close(logits(model, asked), logits(padding(model), asked), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", UNPADDED[:3])
def test_an_answer_has_the_same_bits_in_any_company(tmp_path: Path, family: str) -> None:
    model = opened(tmp_path, family)
    asked = texts(24)
    together = logits(model, asked)
    draw = random.Random(1)
    for size in (1, 1, 2, 3, 4, 7, 15, 24):
        chosen = draw.sample(range(len(asked)), k=size)
        assert torch.equal(logits(model, [asked[index] for index in chosen]), together[chosen]), size


@pytest.mark.parametrize("family", PADDED)
def test_a_model_that_cannot_be_run_so_is_padded_and_keeps_its_attention(tmp_path: Path, family: str) -> None:
    model = opened(tmp_path, family)
    assert model.pads
    assert "errata" not in str(model._model.config._attn_implementation)


def test_positions_that_are_counted_otherwise_are_found_out(tmp_path: Path) -> None:
    model = opened(tmp_path, "Roberta")
    asked = model.encode(texts(3))
    model._model.set_attn_implementation("sdpa")
    padded, _ = padding(model)._forward(asked, None)
    ids = [each.input_ids for each in asked]
    assert Unpadded.open(model._join, ids, lambda: padded, [0, 1]).run(ids)[0].allclose(padded, atol=1e-5)
    model._model.set_attn_implementation("sdpa")
    with pytest.raises(Exception, match="other logits"):
        Unpadded.open(model._join, ids, lambda: padded, [0])
    assert model._model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", ["Bert", "SmolLM3"])
def test_keys_of_inner_layers_are_those_of_padded_texts(tmp_path: Path, family: str) -> None:
    model = opened(tmp_path, family)
    asked = model.encode(texts(7))
    sites = [model.sites.at(layer, token, layer) for layer in model.sites.layers for token in ("first", "mean", "last")]
    wanted = [torch.tensor([0])] * len(asked)
    found, expected = (each.read(asked, wanted, keys_at=sites).reading.keys for each in (model, padding(model)))
    assert set(found) == {site.name for site in sites}
    for name, keys in expected.items():
        torch.testing.assert_close(found[name], keys, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", UNPADDED[:2])
def test_norm_and_head_are_run_without_the_model_around_them(tmp_path: Path, family: str) -> None:
    assert opened(tmp_path, family)._join._head is not None


class Overwriting:
    """Puts a value over what a layer gives to some of the texts, at one of the reaches that values have."""

    def __init__(self, site: LayerSite, rows: Sequence[int], places: Places) -> None:
        self.site, self.rows, self.places = site, rows, places

    def visit(self, given: Tensor) -> Visit | None:
        return Visit(given, [Look(self.site, partial(self._find))])

    def _find(self, keys: Tensor) -> Found:
        rows = torch.tensor(self.rows)
        value = torch.linspace(-3, 3, keys.shape[-1]).expand(len(rows), 1, -1)
        ones = torch.ones_like(rows)
        return Found(rows, ones * 0, ones.float(), value, ones, ones * int(self.places))

    def __call__(self, queries: Tensor, residuals: Tensor) -> Tensor:
        return residuals


@pytest.mark.parametrize("layer", [0, -1], ids=["first layer", "last layer"])
@pytest.mark.parametrize("places", [Places.LAST, Places.PROMPT, Places.ALL])
def test_values_of_inner_layers_reach_the_texts_that_found_them(tmp_path: Path, layer: int, places: Places) -> None:
    model = opened(tmp_path, "Bert")
    at = model.sites.layers[layer]
    acting = Overwriting(model.sites.at(at, "first", at), [1, 4], places)
    asked = model.encode(texts(6))
    unpadded, padded, plain = (
        each._forward(asked, acts)[0] for each, acts in ((model, acting), (padding(model), acting), (model, None))
    )
    torch.testing.assert_close(unpadded, padded, rtol=1e-4, atol=1e-5)
    others = [0, 2, 3, 5]
    assert torch.equal(unpadded[others], plain[others])
    assert not torch.isclose(unpadded[[1, 4]], plain[[1, 4]]).all(-1).any()


def test_a_text_without_tokens_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(tmp_path, "Bert")
    encodings = [Encoding(torch.tensor(ids, dtype=torch.int64)) for ids in ([2, 5, 3], [])]
    monkeypatch.setattr("app.model.classifier.token_ids", lambda *given, **how: encodings)
    with pytest.raises(Unprocessable, match="Input 1 has no tokens"):
        model.encode(["w1", "\u200b"])
