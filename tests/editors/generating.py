"""Tiny models that write, encoder-decoder and decoder-only: fed an answer, or left to generate one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from editors.inside import Fed
from editors.join import Join, Pass, Transform
from tests.editors.tiny import END, WORDS, Answers, Seen, batch, visit_of

MOST_TOKENS = 6


class TinyGenerator:
    """A random generating model; its answer is tokens, the end token included when it comes in time."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)
        inputs, _ = feeding(self.model, [[5, 6, 7], [8, 9, 10, 11, 12]], [[13, 14, END]] * 2)
        self.join = Join.open(self.model, inputs)

    def fed(self, texts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], side: str = "right") -> Fed:
        inputs, mask = feeding(self.model, texts, answers, side)
        rows, columns = mask.nonzero(as_tuple=True)
        labels = torch.tensor([token for answer in answers for token in answer])
        return Fed(inputs, given_of(texts, inputs["attention_mask"]), rows, columns, labels)

    @torch.no_grad()
    def forward(
        self,
        texts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        transform: Transform | None = None,
        side: str = "right",
    ) -> Seen:
        fed = self.fed(texts, answers, side)
        with self.join.during(Pass(fed.rows, fed.columns, transform), visit_of(transform, fed.given)) as call:
            logits = self.model(**fed.inputs).logits[fed.rows, fed.columns]
        assert call.queries is not None
        assert call.residuals is not None
        return Seen(logits, call.queries, call.residuals, tuple(map(len, answers)))

    def answer(
        self, texts: Sequence[Sequence[int]], transform: Transform | None = None, *, cached: bool = True
    ) -> Answers:
        given = batch(texts, padded(self.model))["attention_mask"].bool()
        with self.join.during(Pass.at(torch.full((len(texts),), -1), transform), visit_of(transform, given)):
            return generate(self.model, texts, cached=cached)

    def another(self, text: Sequence[int], answer: Sequence[int]) -> list[int]:
        """The beginning of the answer, then another token or two, then the end: how many tells the text's length."""
        kept = [token for token in answer[: len(text) % 3] if token != END]
        said = answer[min(len(kept), len(answer) - 1)]
        others = [WORDS[(said + step) % len(WORDS)] for step in (1, 12)]
        return [*kept, *others[: 1 + len(text) % 2], END]


def feeding(
    model: Any, texts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], side: str = "right"
) -> tuple[dict[str, Tensor], Tensor]:
    """What a forward pass takes to be fed the answers, and the positions that make their logits: (batch, tokens) bool.

    The logits of an answer's first token are made at the start token of a decoder, or at a prompt's last token.
    """
    if model.config.is_encoder_decoder:
        fed = batch([[model.config.decoder_start_token_id, *answer[:-1]] for answer in answers])
        return {**batch(texts, side), "decoder_input_ids": fed["input_ids"]}, fed["attention_mask"].bool()
    inputs = batch([[*text, *answer[:-1]] for text, answer in zip(texts, answers, strict=True)], side)
    places = inputs["attention_mask"].cumsum(-1) - 1
    firsts = torch.tensor([[len(text) - 1] for text in texts])
    inputs["position_ids"] = places.masked_fill(inputs["attention_mask"] == 0, 0)
    return inputs, inputs["attention_mask"].bool() & (places >= firsts)


def given_of(texts: Sequence[Sequence[int]], attention_mask: Tensor) -> Tensor:
    """Which columns are tokens of the texts, not of answers behind them: (batch, width) bool."""
    lengths = torch.tensor([[len(text)] for text in texts])
    return attention_mask.bool() & (attention_mask.cumsum(-1) <= lengths)


def padded(model: Any) -> str:
    """The side on which texts are padded before a model goes on by itself."""
    return "right" if model.config.is_encoder_decoder else "left"


@torch.no_grad()
def generate(model: Any, texts: Sequence[Sequence[int]], *, cached: bool = True) -> Answers:
    """What transformers' greedy generation gives: prompts padded on the left, the texts of an encoder on the right."""
    two_sided = model.config.is_encoder_decoder
    inputs = batch(texts, padded(model))
    output = model.generate(
        **inputs,
        do_sample=False,
        num_beams=1,
        max_new_tokens=MOST_TOKENS,
        use_cache=cached,
        return_dict_in_generate=True,
        output_logits=True,
    )
    started = 1 if two_sided else inputs["input_ids"].shape[1]
    tokens = [upto_end(sequence) for sequence in output.sequences[:, started:].tolist()]
    steps = torch.stack(output.logits, dim=1)  # (batch, steps, tokens of the vocabulary)
    return Answers(torch.cat([row[: len(answer)] for row, answer in zip(steps, tokens, strict=True)]), tokens)


def upto_end(tokens: list[int]) -> list[int]:
    """The tokens up to the end token, which is kept."""
    return tokens[: tokens.index(END) + 1] if END in tokens else tokens
