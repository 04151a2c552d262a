"""Tiny random classifiers of the real classes, with their sites opened. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from editors.site import Join, Pass, Transform
from editors.types import Rows

LABELS = 5
VOCABULARY = 100
PAD = 1
SIZES = {"vocab_size": VOCABULARY, "num_labels": LABELS, "pad_token_id": PAD, "initializer_range": 0.3}
ENCODER = {
    **SIZES,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
DECODER = {**ENCODER, "num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3}
DISTILBERT = {**SIZES, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 40}
GPT2 = {**SIZES, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "bos_token_id": 2, "eos_token_id": 3}
SPECIAL = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
MODERNBERT = {**ENCODER, **SPECIAL, "classifier_pooling": "cls", "global_attn_every_n_layers": 2}
DEBERTA = {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 32}

FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "bert": ("Bert", ENCODER),
    "roberta": ("Roberta", ENCODER),
    "distilbert": ("DistilBert", DISTILBERT),
    "electra": ("Electra", {**ENCODER, "embedding_size": 16}),
    "deberta-v2": ("DebertaV2", DEBERTA),
    "mpnet": ("MPNet", ENCODER),
    "modernbert": ("ModernBert", MODERNBERT),
    "xlm-roberta": ("XLMRoberta", ENCODER),
    "gpt2": ("GPT2", GPT2),
    "llama": ("Llama", DECODER),
    "qwen2": ("Qwen2", DECODER),
}
"""Class prefix in transformers, and the sizes of the tiny model."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one forward pass computed, one row an input."""

    logits: Tensor
    queries: Tensor
    residuals: Tensor


class TinyClassifier:
    """A random classifier that takes texts as lists of token ids."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)
        self.join = Join.open(self.model, batch([[5, 6, 7], [8, 9, 10, 11, 12]]))

    @property
    def hidden(self) -> int:
        return self.join.site.hidden

    @torch.no_grad()
    def forward(self, texts: Sequence[Sequence[int]], transform: Transform | None = None, side: str = "right") -> Seen:
        inputs = batch(texts, side)
        with self.join.during(Pass(self.join.positions(inputs["attention_mask"]), transform)) as call:
            logits = self.model(**inputs).logits
        assert call.queries is not None
        assert call.residuals is not None
        return Seen(logits, call.queries, call.residuals)

    def rows(self, texts: Sequence[Sequence[int]], labels: Tensor | None = None) -> Rows:
        """The texts' activations; labels are what the model says unless given."""
        seen = self.forward(texts)
        return Rows(seen.queries, seen.residuals, seen.logits.argmax(-1) if labels is None else labels)

    def readout(self, residuals: Tensor) -> Tensor:
        return self.join.readout(residuals)


def batch(texts: Sequence[Sequence[int]], side: str = "right") -> dict[str, Tensor]:
    """Texts padded on one side."""
    width = max(map(len, texts))
    ids, mask = torch.full((len(texts), width), PAD), torch.zeros(len(texts), width, dtype=torch.int64)
    for row, text in enumerate(texts):
        here = slice(0, len(text)) if side == "right" else slice(width - len(text), width)
        ids[row, here], mask[row, here] = torch.tensor(text), 1
    return {"input_ids": ids, "attention_mask": mask}


def build(family: str, seed: int = 0, **changed: Any) -> nn.Module:
    """A random model of the family's real class."""
    prefix, sizes = FAMILIES[family]
    config = getattr(transformers, f"{prefix}Config")(**{**sizes, **changed})
    torch.manual_seed(seed)
    model: nn.Module = getattr(transformers, f"{prefix}ForSequenceClassification")(config)
    return model


@cache
def tiny(family: str) -> TinyClassifier:
    """The family's tiny classifier, shared by tests: nothing may change it."""
    return TinyClassifier(build(family))


def texts(count: int, seed: int = 0) -> list[list[int]]:
    """Random texts of 3 to 20 tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 21, (count,), generator=generator).tolist()
    return [torch.randint(5, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
