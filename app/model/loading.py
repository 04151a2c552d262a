"""Loading a deployed model from a folder or the Hugging Face hub, weights from safetensors only."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from app.model.classifier import Classifier
from editors.errors import UnsupportedModel


def load(
    source: str | Path,
    *,
    name: str | None = None,
    revision: str | None = None,
    task: str = "auto",
    device: str = "auto",
    dtype: str = "float32",
) -> Classifier:
    """The model at `source`, a folder or a hub id, frozen, on its device and ready to run; `name` is how it is shown.

    Raises UnsupportedModel with a sentence that says what is missing.
    """
    where = str(source)
    quieten()
    try:
        config = AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=False)
        _check_task(where, config.architectures or [], task)
        tokenizer = AutoTokenizer.from_pretrained(
            where, revision=revision, trust_remote_code=False, padding_side="right"
        )
        model = AutoModelForSequenceClassification.from_pretrained(
            where,
            config=config,
            revision=revision,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedModel(f"The model {where} cannot be loaded: {error}") from error
    return Classifier(model.to(pick_device(device)), tokenizer, name=name or where)


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


def _check_task(where: str, architectures: list[str], task: str) -> None:
    if task not in ("auto", "classification"):
        raise UnsupportedModel(f"The task {task!r} is not supported; supported: classification.")
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        named = ", ".join(architectures) or "no architecture at all"
        raise UnsupportedModel(
            f"{where} declares {named} in its config.json; a sequence classifier "
            "(...ForSequenceClassification) is needed."
        )
