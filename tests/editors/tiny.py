"""Tiny random models of the real classes, and what an editor's tests ask of them. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import transformers
from torch import Tensor, nn

from editors.composition import Composition
from editors.inside import Fed
from editors.join import Join, Pass, Transform
from editors.visit import Visit

LABELS = 5
VOCABULARY = 100
PAD, START, END = 1, 2, 3
WORDS = range(5, VOCABULARY)
SIZES = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "initializer_range": 0.3}
SPECIAL = {"bos_token_id": START, "eos_token_id": END}
LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ENCODER = {**SIZES, **LAYERS, "num_labels": LABELS, "intermediate_size": 64, "max_position_embeddings": 40}
DECODER = {**ENCODER, **SPECIAL, "num_key_value_heads": 2}
DISTILBERT = {
    **SIZES,
    "num_labels": LABELS,
    "dim": 32,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 64,
    "max_position_embeddings": 40,
}
GPT2 = {**SIZES, **SPECIAL, "num_labels": LABELS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
MODERNBERT = {
    **ENCODER,
    **SPECIAL,
    "cls_token_id": START,
    "sep_token_id": END,
    "classifier_pooling": "cls",
    "global_attn_every_n_layers": 2,
}
DEBERTA = {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 32}

CLASSIFIERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "bert": ("BertForSequenceClassification", ENCODER),
    "roberta": ("RobertaForSequenceClassification", ENCODER),
    "distilbert": ("DistilBertForSequenceClassification", DISTILBERT),
    "electra": ("ElectraForSequenceClassification", {**ENCODER, "embedding_size": 16}),
    "deberta-v2": ("DebertaV2ForSequenceClassification", DEBERTA),
    "mpnet": ("MPNetForSequenceClassification", ENCODER),
    "modernbert": ("ModernBertForSequenceClassification", MODERNBERT),
    "xlm-roberta": ("XLMRobertaForSequenceClassification", ENCODER),
    "gpt2": ("GPT2ForSequenceClassification", GPT2),
    "llama": ("LlamaForSequenceClassification", DECODER),
    "qwen2": ("Qwen2ForSequenceClassification", DECODER),
}
"""Class in transformers, and the sizes of the tiny model."""

BART = {
    **SIZES,
    **SPECIAL,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 40,
    "decoder_start_token_id": END,
    "forced_eos_token_id": None,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 16,
    "initializer_factor": 3.0,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "decoder_start_token_id": PAD,
}
OPT = {**DECODER, "ffn_dim": 64, "word_embed_proj_dim": 32}
SEQ2SEQ: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "bart-seq2seq": ("BartForConditionalGeneration", BART),
    "mbart-seq2seq": ("MBartForConditionalGeneration", BART),
    "marian-seq2seq": ("MarianMTModel", {**BART, "initializer_range": 0.6, "scale_embedding": True}),
    "t5-seq2seq": ("T5ForConditionalGeneration", T5),
    "t5-gated-seq2seq": (
        "T5ForConditionalGeneration",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "initializer_factor": 2.0},
    ),
}
CAUSAL: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "gpt2-causal": ("GPT2LMHeadModel", GPT2),
    "llama-causal": ("LlamaForCausalLM", DECODER),
    "qwen2-causal": ("Qwen2ForCausalLM", DECODER),
    "qwen3-causal": ("Qwen3ForCausalLM", {**DECODER, "head_dim": 8}),
    "mistral-causal": ("MistralForCausalLM", {**DECODER, "sliding_window": 8}),
    "gemma2-causal": ("Gemma2ForCausalLM", {**DECODER, "head_dim": 8, "sliding_window": 8}),
    "phi3-causal": ("Phi3ForCausalLM", DECODER),
    "opt-causal": ("OPTForCausalLM", OPT),
    "gpt-neox-causal": ("GPTNeoXForCausalLM", DECODER),
}
"""Sizes at which the answer depends on the text, which of a random model it need not."""
GENERATORS = {**SEQ2SEQ, **CAUSAL}
FAMILIES = {**CLASSIFIERS, **GENERATORS}


@dataclass(frozen=True, slots=True)
class Seen:
    """What one forward pass computed: one row for each position that the head reads, text by text."""

    logits: Tensor  # (n, labels or tokens)
    queries: Tensor  # (n, hidden)
    residuals: Tensor  # (n, hidden)
    lengths: tuple[int, ...]
    """How many rows each text has."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model answers when nothing is fed to it but the texts: of each a label, or tokens up to the end token."""

    logits: Tensor  # (n, labels or tokens), of each label or token the logits that it was chosen from
    tokens: list[list[int]]


@dataclass(frozen=True, slots=True)
class Served:
    """What a composition does to batches; see `editors.types.Acting`."""

    composition: Composition
    alive: Tensor  # (views, patches) bool
    view: Tensor | None = None
    """The view of each text of a batch, (batch,); None: the first one of all."""

    def visit(self, given: Tensor) -> Visit | None:
        """What happens to one batch at inner layers."""
        looks = self.composition.looks(self.alive, self._view(len(given)))
        return Visit(given, looks) if looks else None

    def __call__(self, queries: Tensor, residuals: Tensor) -> Tensor:
        """What happens behind the last layer."""
        return self.composition.apply(queries, residuals, self.alive, self._view(len(queries)))[0]

    def _view(self, rows: int) -> Tensor:
        return torch.zeros(rows, dtype=torch.int64) if self.view is None else self.view


@runtime_checkable
class Visiting(Protocol):
    """A transform that also does something at inner layers."""

    def visit(self, given: Tensor) -> Visit | None: ...


def visit_of(acting: Transform | None, given: Tensor) -> Visit | None:
    """The visit of one batch; a mere transform does nothing at inner layers."""
    return acting.visit(given) if isinstance(acting, Visiting) else None


class Tiny(Protocol):
    """A tiny model with its site opened, that takes texts as lists of token ids."""

    model: nn.Module
    join: Join

    def fed(self, texts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], side: str = "right") -> Fed:
        """A batch of texts, a generating model's with answers to read, padded on one side."""

    def forward(
        self,
        texts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        transform: Transform | None = None,
        side: str = "right",
    ) -> Seen:
        """One pass that feeds a generating model the answers, and sees it at every position of them."""

    def answer(
        self, texts: Sequence[Sequence[int]], transform: Transform | None = None, *, cached: bool = True
    ) -> Answers:
        """What the model says by itself: the best label, or greedily generated tokens."""

    def another(self, text: Sequence[int], answer: Sequence[int]) -> list[int]:
        """An answer to the text that is not this one."""


class TinyClassifier:
    """A random classifier; its answer is one label."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)
        self.join = Join.open(self.model, batch([[5, 6, 7], [8, 9, 10, 11, 12]]))

    def fed(self, texts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], side: str = "right") -> Fed:
        inputs = batch(texts, side)
        labels = torch.tensor([label for answer in answers for label in answer], dtype=torch.int64)
        positions = self.join.positions(inputs["attention_mask"])
        return Fed(inputs, inputs["attention_mask"].bool(), torch.arange(len(texts)), positions, labels)

    @torch.no_grad()
    def forward(
        self,
        texts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]] = (),
        transform: Transform | None = None,
        side: str = "right",
    ) -> Seen:
        fed = self.fed(texts, answers, side)
        with self.join.during(Pass(fed.rows, fed.columns, transform), visit_of(transform, fed.given)) as call:
            logits = self.model(**fed.inputs).logits
        assert call.queries is not None
        assert call.residuals is not None
        return Seen(logits, call.queries, call.residuals, (1,) * len(texts))

    def answer(
        self, texts: Sequence[Sequence[int]], transform: Transform | None = None, *, cached: bool = True
    ) -> Answers:
        logits = self.forward(texts, transform=transform).logits
        return Answers(logits, logits.argmax(-1, keepdim=True).tolist())

    def another(self, text: Sequence[int], answer: Sequence[int]) -> list[int]:
        return [(answer[0] + 1) % LABELS]


def batch(texts: Sequence[Sequence[int]], side: str = "right") -> dict[str, Tensor]:
    """Texts padded on one side."""
    width = max(map(len, texts))
    ids, mask = torch.full((len(texts), width), PAD), torch.zeros(len(texts), width, dtype=torch.int64)
    for row, text in enumerate(texts):
        here = slice(0, len(text)) if side == "right" else slice(width - len(text), width)
        ids[row, here], mask[row, here] = torch.tensor(text), 1
    return {"input_ids": ids, "attention_mask": mask}


def build(family: str, seed: int = 0, **changed: Any) -> nn.Module:
    """A random model of the family's real class, as it is before its site is opened."""
    name, sizes = FAMILIES[family]
    kind = getattr(transformers, name)
    torch.manual_seed(seed)
    model: nn.Module = kind(kind.config_class(**{**sizes, **changed}))
    return model


def texts(count: int, seed: int = 0) -> list[list[int]]:
    """Random texts of 3 to 20 tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 21, (count,), generator=generator).tolist()
    return [torch.randint(WORDS.start, WORDS.stop, (length,), generator=generator).tolist() for length in lengths]
