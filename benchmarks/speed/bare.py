"""The unedited model as anyone would run it: transformers alone, nothing of ours between."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BatchEncoding

from app.model.loading import pick_device, quieten


class Bare:
    """`AutoModelForSequenceClassification` and its tokenizer."""

    def __init__(self, folder: Path, device: str) -> None:
        quieten()
        self.device = pick_device(device)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForSequenceClassification.from_pretrained(folder).eval().to(self.device)
        self.labels: list[str] = [self._model.config.id2label[index] for index in range(self._model.config.num_labels)]

    def batch(self, texts: Sequence[str]) -> BatchEncoding:
        """The texts as one padded batch on the device."""
        padded: BatchEncoding = self._tokenizer(list(texts), padding=True, return_tensors="pt").to(self.device)
        return padded

    def by_length(self, texts: Sequence[str], size: int) -> list[BatchEncoding]:
        """The texts in batches of so many, those of similar length together, so that the least is padded."""
        ordered = sorted(texts, key=lambda text: len(self._tokenizer(text)["input_ids"]))
        return [self.batch(ordered[start : start + size]) for start in range(0, len(ordered), size)]

    @torch.inference_mode()
    def predict(self, batch: BatchEncoding) -> list[int]:
        """The likeliest label of each text."""
        found: list[int] = self._model(**batch).logits.argmax(-1).tolist()
        return found

    @torch.inference_mode()
    def scores(self, batch: BatchEncoding) -> list[list[float]]:
        """The probability of each label, for each text."""
        found: list[list[float]] = self._model(**batch).logits.softmax(-1).tolist()
        return found

    def learn(self, batch: BatchEncoding, wanted: Tensor) -> None:
        """One forward and one backward pass through every parameter; no step is taken."""
        self._model.zero_grad(set_to_none=True)
        cross_entropy(self._model(**batch).logits, wanted).backward()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
