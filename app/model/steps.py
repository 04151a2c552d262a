"""What happens between two tokens of a running `generate`: draw, count, tell, stop, and let others use the device.

All of it hangs on the two hooks that transformers offers, logits processors and stopping criteria, row by row, so that
what a row gets does not depend on the batch it is in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from app.model.answers import Ask, Sampling


class Steps(StoppingCriteria):
    """Called after each token of a batch: keeps every row's tokens and says which rows are finished."""

    def __init__(
        self,
        asks: Sequence[Ask],
        rooms: Sequence[int],
        ends: Collection[int],
        text: Callable[[int], str],
        tell: Callable[[Sequence[int]], None],
    ) -> None:
        """rooms: the most tokens of each row. ends: the end tokens. text: the answer of a row so far.

        tell: is called after every token with the rows that it finished; others may use the device meanwhile.
        """
        self.tokens: list[list[int]] = [[] for _ in asks]
        self.finish_reasons: list[str | None] = [None] * len(asks)
        self.ended_by: list[int | None] = [None] * len(asks)
        self._asks, self._rooms, self._ends, self._text, self._tell = asks, rooms, ends, text, tell

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        open_rows = [row for row, reason in enumerate(self.finish_reasons) if reason is None]
        newest = input_ids[:, -1].tolist()
        for row in open_rows:
            self._take(row, newest[row])
        self._tell([row for row in open_rows if self.finish_reasons[row] is not None])
        return torch.tensor([reason is not None for reason in self.finish_reasons], device=input_ids.device)

    def _take(self, row: int, token: int) -> None:
        ask = self._asks[row]
        if token in self._ends:
            self.finish_reasons[row], self.ended_by[row] = "stop", token
            return
        self.tokens[row].append(token)
        if ask.on_token is not None:
            ask.on_token(token)
        if self._stopped_by_text(row):
            self.finish_reasons[row] = "stop"
        elif len(self.tokens[row]) == self._rooms[row] or ask.cancelled:
            self.finish_reasons[row] = "length"

    def _stopped_by_text(self, row: int) -> bool:
        decoding = self._asks[row].decoding
        return bool(decoding and decoding.stop) and first_stop(self._text(row), decoding.stop) is not None  # type: ignore[union-attr]


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the first of the stop texts begins; None if there is none of them."""
    return min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)


class Draw(LogitsProcessor):
    """Sampling of single rows inside a greedy batch, by the Gumbel-max trick: the arg-max of logits plus Gumbel noise
    is a draw from their softmax (Gumbel 1954; Maddison et al. 2014). The noise is each row's own, from its seed.
    """

    def __init__(self, asks: Sequence[Ask]) -> None:
        self._rows = [
            (row, _warpers(ask.decoding.sampling), torch.Generator().manual_seed(ask.decoding.sampling.seed))
            for row, ask in enumerate(asks)
            if ask.decoding is not None and ask.decoding.sampling is not None
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self._rows:
            return scores
        drawn = scores.float().clone()
        for row, warpers, generator in self._rows:
            here = drawn[row : row + 1]
            for warp in warpers:
                here = warp(input_ids[row : row + 1], here)
            exponential = torch.empty(here.shape).exponential_(generator=generator)  # -log of it is Gumbel noise
            drawn[row] = (here - exponential.log().to(here.device))[0]
        return drawn


def _warpers(sampling: Sampling) -> list[LogitsProcessor]:
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k is not None:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None and sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return warpers


class Confidence(LogitsProcessor):
    """Sees how probable each row's likeliest token is, step by step."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []  # (batch,) each

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps.append(scores.float().softmax(-1).amax(-1))
        return scores
