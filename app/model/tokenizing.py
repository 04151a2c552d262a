"""What all tasks do with a tokenizer: ids of texts, batches, the most tokens that model and tokenizer take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from app.errors import InputTooLong
from app.model.answers import Encoding

UNLIMITED = 2**20
"""Tokenizers say 10^30 where they know no limit."""


def token_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, limit: int, model: str, special: bool = True
) -> list[Encoding]:
    """Token ids of each text, with the tokenizer's special tokens or without. Raises InputTooLong."""
    encodings = [
        Encoding(torch.tensor(ids, dtype=torch.int64)) for ids in _ids(tokenizer, list(texts), special=special)
    ]
    for index, encoding in enumerate(encodings):
        if len(encoding) > limit:
            raise InputTooLong(f"Input {index} has {len(encoding)} tokens; {model} reads at most {limit}.")
    return encodings


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool) -> list[list[int]]:
    """What the tokenizer's own call gives; past it where it does no more than ask its backend: that is faster."""
    if _only_asks_its_backend(tokenizer):
        backend: Any = tokenizer.backend_tokenizer
        return [encoded.ids for encoded in backend.encode_batch_fast(texts, add_special_tokens=special)]
    ids: list[list[int]] = tokenizer(texts, truncation=False, verbose=False, add_special_tokens=special)["input_ids"]
    return ids


def _only_asks_its_backend(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Not before its first call either, which takes truncation and padding from the backend if they are set there."""
    if type(tokenizer)._encode_plus is not PreTrainedTokenizerFast._encode_plus:
        return False
    if type(tokenizer).__call__ is not PreTrainedTokenizerFast.__call__:
        return False
    backend: Any = tokenizer.backend_tokenizer
    plain = backend.truncation is None and backend.padding is None
    return plain and backend.encode_special_tokens == tokenizer.split_special_tokens


def padded(
    ids: Sequence[Tensor], pad: int, *, device: torch.device, side: Literal["left", "right"] = "right"
) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, (batch, tokens) each."""
    ones = [torch.ones_like(row) for row in ids]
    batch = {
        "input_ids": pad_sequence(list(ids), batch_first=True, padding_value=pad, padding_side=side),
        "attention_mask": pad_sequence(ones, batch_first=True, padding_side=side),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def max_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """What both tokenizer and position embeddings can take; RoBERTa counts positions from padding_idx + 1."""
    config = model.config
    limit = next(
        (found for name in ("max_position_embeddings", "n_positions") if (found := getattr(config, name, None))),
        UNLIMITED,
    )
    for module in _offset_positions(model):
        limit = int(module.num_embeddings) - int(module.padding_idx) - 1
    return int(min(limit, tokenizer.model_max_length, UNLIMITED))


def first_positions(model: PreTrainedModel) -> list[int]:
    """The numbers that a text's first position may have, the likeliest first."""
    return [*(int(module.padding_idx) + 1 for module in _offset_positions(model)), 0]


def _offset_positions(model: PreTrainedModel) -> list[Any]:
    """Position embeddings that begin behind the one for padding, as RoBERTa's do."""
    named = model.named_modules()
    embeddings = [module for name, module in named if name.endswith("position_embeddings")]
    return [module for module in embeddings if getattr(module, "padding_idx", None) is not None]


def describe(tokenizer: PreTrainedTokenizerBase) -> str:
    """All that decides how texts become tokens, for the fingerprint."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
