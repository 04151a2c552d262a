"""Loading a deployed model from a folder or the Hugging Face hub, weights from safetensors only."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from app.model.classifier import Classifier
from app.model.conventions import DecoderOnly, EncoderDecoder
from app.model.deployed import Model
from app.model.generator import Generator
from editors.errors import UnsupportedModel


@dataclass(frozen=True, slots=True)
class _Task:
    """How models of one task are recognised, loaded and opened."""

    architectures: Collection[str]
    example: str
    auto: Any
    open: Callable[..., Model]


TASKS: Mapping[str, _Task] = {
    "classification": _Task(
        frozenset(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()),
        "BertForSequenceClassification",
        AutoModelForSequenceClassification,
        Classifier,
    ),
    "seq2seq": _Task(
        frozenset(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()),
        "BartForConditionalGeneration",
        AutoModelForSeq2SeqLM,
        partial(Generator, kind=EncoderDecoder),
    ),
    "causal": _Task(
        frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()),
        "LlamaForCausalLM",
        AutoModelForCausalLM,
        partial(Generator, kind=DecoderOnly),
    ),
}
"""By name; a model's architecture, as transformers registers it, says which is its own."""


def load(
    source: str | Path,
    *,
    name: str | None = None,
    revision: str | None = None,
    task: str = "auto",
    device: str = "auto",
    dtype: str = "float32",
) -> Model:
    """The model at `source`, a folder or a hub id, frozen, on its device and ready to run; `name` is how it is shown.

    Raises UnsupportedModel with a sentence that says what is missing.
    """
    where = str(source)
    quieten()
    try:
        config = AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=False)
        chosen = _task(where, config.architectures or [], task)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            where, revision=revision, trust_remote_code=False, padding_side="right"
        )
        model: PreTrainedModel = chosen.auto.from_pretrained(
            where,
            config=config,
            revision=revision,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedModel(f"The model {where} cannot be loaded: {error}") from error
    return chosen.open(model.to(pick_device(device)), tokenizer, name=name or where)  # type: ignore[arg-type]


def quieten() -> None:
    """Keep transformers' own bars and reports off the terminal; what matters is raised."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA where there is a GPU, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UnsupportedModel("There is no CUDA device on this machine; use --device cpu or auto.")
    return torch.device(device)


def _task(where: str, architectures: Sequence[str], task: str) -> _Task:
    """The task of a model that declares these architectures. Raises UnsupportedModel."""
    if task != "auto" and task not in TASKS:
        raise UnsupportedModel(f"The task {task!r} is not supported; supported: {', '.join(TASKS)}.")
    wanted = TASKS if task == "auto" else {task: TASKS[task]}
    for found in wanted.values():
        if any(name in found.architectures for name in architectures):
            return found
    named = ", ".join(architectures) or "no architecture at all"
    raise UnsupportedModel(
        f"{where} declares {named} in its config.json; an architecture for {' or '.join(wanted)} is needed, such as "
        f"{' or '.join(each.example for each in wanted.values())}."
    )
