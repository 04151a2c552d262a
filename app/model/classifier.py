"""A deployed sequence classifier: texts to encodings, encodings to logits, logits to predictions.

Encoding and decoding may run in any thread; `forward` and `readout` belong to the thread that owns the device.
Knows nothing of edits: what happens at the site is decided by the `transform` of each call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.errors import InputTooLong, UnknownLabel
from app.model.fingerprint import fingerprint
from editors.errors import UnsupportedModel
from editors.site import Join, Pass, Site, Transform

ALL_SCORES_UP_TO = 20
BEST_SCORES = 5


@dataclass(frozen=True, slots=True)
class Encoding:
    """One text as token ids."""

    input_ids: Tensor  # (tokens,) int64, on the CPU

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class Outputs:
    """What one forward pass saw, one row an input, on the device."""

    logits: Tensor  # (batch, labels)
    queries: Tensor  # (batch, hidden), `q` at the position the head reads
    residuals: Tensor  # (batch, hidden), `s` there, before the transform


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one input. `scores` holds every label up to 20 labels, else the 5 best."""

    label: str
    score: float
    scores: Mapping[str, float]


class Classifier:
    """A frozen Hugging Face sequence classifier with its site opened."""

    task = "classification"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str) -> None:
        self.name = name
        self.labels = _labels(model)
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.device = model.device
        self.max_tokens = _max_tokens(model, tokenizer)
        self.fingerprint = fingerprint(
            model.state_dict(),
            {"labels": self.labels, "tokenizer": _describe(tokenizer), "model": type(model).__name__},
        )
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._pad = tokenizer.pad_token_id
        self._index = {label: index for index, label in enumerate(self.labels)}
        if self._pad is None:
            raise UnsupportedModel(f"The tokenizer of {name} has no padding token.")
        self._join = Join.open(model, self._batch(self.encode(["a", "a b c a b c"])))

    @property
    def site(self) -> Site:
        """Where overlays of the last feed-forward layer meet this model."""
        return self._join.site

    @property
    def hidden_size(self) -> int:
        """The width of queries and residuals."""
        return self._join.site.hidden

    def label_index(self, label: str) -> int:
        """The index of a label among the logits. Raises UnknownLabel, naming the labels there are."""
        try:
            return self._index[label]
        except KeyError:
            raise UnknownLabel(
                f"{label!r} is not a label of {self.name}. Its labels are: {', '.join(self.labels)}.",
                labels=list(self.labels),
            ) from None

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Token ids of each text. Raises InputTooLong for a text of more tokens than the model reads."""
        encodings = [
            Encoding(torch.tensor(ids, dtype=torch.int64))
            for ids in self._tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        ]
        for index, encoding in enumerate(encodings):
            if len(encoding) > self.max_tokens:
                raise InputTooLong(
                    f"Input {index} has {len(encoding)} tokens; {self.name} reads at most {self.max_tokens}."
                )
        return encodings

    @torch.no_grad()
    def forward(self, encodings: Sequence[Encoding], transform: Transform | None = None) -> Outputs:
        """Run the model on one batch; `transform` maps (queries, residuals) to patched residuals."""
        batch = self._batch(encodings)
        with self._join.during(Pass(self._join.positions(batch["attention_mask"]), transform)) as call:
            logits = self._model(**batch).logits
        assert call.queries is not None
        assert call.residuals is not None
        return Outputs(logits, call.queries, call.residuals)

    def readout(self, residuals: Tensor) -> Tensor:
        """Logits from residuals by norm and head alone: (n, hidden) -> (n, labels). Differentiable."""
        return self._join.readout(residuals)

    def decode(self, logits: Tensor) -> list[Prediction]:
        """Predictions from logits on the CPU, (n, labels)."""
        scores = logits.float().softmax(-1)
        shown = len(self.labels) if len(self.labels) <= ALL_SCORES_UP_TO else BEST_SCORES
        best = scores.topk(shown, dim=-1)
        return [
            self._prediction(values, indices)
            for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def _prediction(self, scores: list[float], indices: list[int]) -> Prediction:
        named = {self.labels[index]: score for index, score in zip(indices, scores, strict=True)}
        return Prediction(self.labels[indices[0]], scores[0], named)

    def _batch(self, encodings: Sequence[Encoding]) -> dict[str, Tensor]:
        ids = [encoding.input_ids for encoding in encodings]
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self._pad),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        }
        return {name: tensor.to(self.device) for name, tensor in batch.items()}


def _labels(model: PreTrainedModel) -> tuple[str, ...]:
    config: Any = model.config
    if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
        raise UnsupportedModel(
            f"{type(model).__name__} with {config.num_labels} label(s) and problem_type "
            f"{config.problem_type!r} does not choose one label of several."
        )
    labels = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    if len(set(labels)) < len(labels):
        raise UnsupportedModel(f"Two labels of {type(model).__name__} have the same name.")
    return labels


def _max_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """What both tokenizer and position embeddings can take; RoBERTa counts positions from padding_idx + 1."""
    limit = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limit = int(module.num_embeddings) - int(module.padding_idx) - 1
    return int(min(limit, tokenizer.model_max_length))


def _describe(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
