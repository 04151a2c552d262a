"""Texts of different lengths in one forward pass that computes no padding.

The texts stand one behind the other as one row of tokens. Embeddings, projections, norms and feed-forward layers work
on each token by itself; attention alone mixes tokens, and it is computed text by text, so that a text is computed alike
however long its neighbours are.

Attention is reached by the door that transformers has for that, `AttentionInterface`. Whether a model can be run so is
proved on it when it is opened: what it gives must be what it gives for the same texts padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from editors.errors import UnsupportedModel
from editors.site import kind

ATTENTION = "errata_packed"
"""The name of this attention in a model's config. Outside of `packed` it is `sdpa`."""
NOT_TEXT_BY_TEXT = ("sliding_window", "position_bias", "softcap", "s_aux")
"""What models may hand to attention that it does not do here."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Texts one behind the other.

    inputs: what a model's forward takes, (1, tokens) each. lengths: of the texts. alike: runs of texts of the same
    length, each as that length and the tokens where the run starts and ends.
    """

    inputs: dict[str, Tensor]
    lengths: tuple[int, ...]
    alike: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, ids: Sequence[Tensor], *, first_position: int, device: torch.device) -> Packed:
        """ids: of each text, (its tokens,) int64. first_position: the number of a text's first position."""
        lengths = tuple(len(each) for each in ids)
        positions = [position for length in lengths for position in range(first_position, first_position + length)]
        inputs = {"input_ids": torch.cat(list(ids)).unsqueeze(0), "position_ids": torch.tensor([positions])}
        return cls({name: column.to(device) for name, column in inputs.items()}, lengths, _alike(lengths))

    def bounds(self) -> list[int]:
        """Where each text begins, and where the last one ends."""
        return [0, *accumulate(self.lengths)]

    def given(self) -> Tensor:
        """The mask of the same texts padded on the right: (texts, longest) bool."""
        return torch.arange(max(self.lengths)) < torch.tensor(self.lengths).unsqueeze(-1)


def _alike(lengths: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    runs, start = [], 0
    for length, run in groupby(lengths):
        end = start + length * len(list(run))
        runs.append((length, start, end))
        start = end
    return tuple(runs)


_packed: ContextVar[Packed | None] = ContextVar("packed", default=None)


@contextmanager
def packed(texts: Packed) -> Iterator[None]:
    """Let the attention of the forward passes inside the block be text by text."""
    token = _packed.set(texts)
    try:
        yield
    finally:
        _packed.reset(token)


@contextmanager
def packing(model: nn.Module) -> Iterator[PreTrainedModel]:
    """Give `model` the attention that `packed` needs, and its own back if the block raises.

    Raises UnsupportedModel for a model whose attention cannot be exchanged, or does more than attend.
    """
    config: Any = getattr(model, "config", None)
    if not isinstance(model, PreTrainedModel) or config._attn_implementation != "sdpa":
        raise UnsupportedModel(f"{kind(model)} does not attend by scaled_dot_product_attention.")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None) is not None:
        raise UnsupportedModel(f"{kind(model)} does not let every token attend to the whole text.")
    model.set_attn_implementation(ATTENTION)
    try:
        yield model
    except BaseException:
        model.set_attn_implementation("sdpa")
        raise


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention as `AttentionInterface` wants it: (batch, heads, tokens, width) -> (batch, tokens, heads, width)."""
    texts = _packed.get()
    if texts is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    for name in NOT_TEXT_BY_TEXT:
        if settings.get(name) is not None:
            raise UnsupportedModel(f"The attention of {kind(module)} wants {name}.")
    if len(texts.lengths) == 1:
        return sdpa_attention_forward(module, query, key, value, None, **settings)
    parts = []
    for length, start, end in texts.alike:
        queries, keys, values = (_split(states[0, :, start:end], length) for states in (query, key, value))
        parts.append(sdpa_attention_forward(module, queries, keys, values, None, **settings)[0].flatten(0, 1))
    return torch.cat(parts).unsqueeze(0), None


def _split(states: Tensor, length: int) -> Tensor:
    """Texts of the same length as a batch: (heads, tokens, width) -> (texts, heads, length, width)."""
    split: Tensor = states.unflatten(1, (-1, length))
    return split.transpose(0, 1)


def _mask(*args: Any, **settings: Any) -> Tensor | None:
    return sdpa_mask(*args, **settings) if _packed.get() is None else None


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, _mask)
