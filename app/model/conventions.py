"""How the two kinds of generating models take an input and its answer: what `transformers` itself trains them with."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.errors import InputTooLong, Unprocessable, UnwritableTarget
from app.model.answers import Encoding
from app.model.chat import openings
from app.model.tokenizing import max_tokens, padded, token_ids
from editors.errors import UnsupportedModel
from editors.inside import Fed

IGNORED = -100
"""The label of positions that are none, as transformers marks them."""


class Convention(Protocol):
    """How one kind of model is fed."""

    task: ClassVar[str]
    max_tokens: int

    def encode(self, texts: Sequence[str], name: str) -> list[Encoding]:
        """Token ids of inputs. Raises InputTooLong."""

    def room(self, encoding: Encoding) -> int:
        """The most tokens that an answer may have, its end token included."""

    def target(self, text: str) -> str:
        """A wanted answer, without what makes no difference."""

    def wanted(self, encoding: Encoding, target: str) -> Tensor:
        """The tokens of a wanted answer, end token included: (tokens,). Raises InputTooLong and UnwritableTarget."""

    def inputs(self, encodings: Sequence[Encoding]) -> dict[str, Tensor]:
        """The batch that `generate` takes."""

    def feed(self, encodings: Sequence[Encoding], wanted: Sequence[Tensor]) -> Fed:
        """The batch that feeds the wanted answers."""

    def text(self, encoding: Encoding, tokens: Sequence[int]) -> str:
        """What the tokens of an answer say."""


class EncoderDecoder:
    """The input goes to the encoder; the labels are the answer as the tokenizer makes targets."""

    task: ClassVar[str] = "seq2seq"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> None:
        self._model, self._tokenizer, self._end = model, tokenizer, ends[0]
        self._ends = frozenset(ends)
        self._pad = _pad_token(tokenizer)
        self._shift: Callable[..., Tensor] = model.prepare_decoder_input_ids_from_labels  # type: ignore[assignment]
        self.max_tokens = max_tokens(model, tokenizer)

    def encode(self, texts: Sequence[str], name: str) -> list[Encoding]:
        return token_ids(self._tokenizer, texts, limit=self.max_tokens, model=name)

    def room(self, encoding: Encoding) -> int:
        return self.max_tokens

    def target(self, text: str) -> str:
        return text.strip()

    def wanted(self, encoding: Encoding, target: str) -> Tensor:
        tokens = list(self._tokenizer(text_target=target, truncation=False, verbose=False)["input_ids"])
        if not tokens or tokens[-1] not in self._ends:
            tokens.append(self._end)
        return _checked(target, tokens, self.text(encoding, tokens), room=self.room(encoding))

    def inputs(self, encodings: Sequence[Encoding]) -> dict[str, Tensor]:
        return padded([each.input_ids for each in encodings], self._pad, device=self._model.device)

    def feed(self, encodings: Sequence[Encoding], wanted: Sequence[Tensor]) -> Fed:
        labels = pad_sequence(list(wanted), batch_first=True, padding_value=IGNORED)
        labels = labels.to(self._model.device)
        inputs = self.inputs(encodings)
        given = inputs["attention_mask"].bool()
        return _fed({**inputs, "decoder_input_ids": self._shift(labels=labels)}, given, labels != IGNORED, wanted)

    def text(self, encoding: Encoding, tokens: Sequence[int]) -> str:
        return _decode(self._tokenizer, tokens)


class DecoderOnly:
    """The answer goes on where the prompt ends; only the prompt's last position and the answer's own say it."""

    task: ClassVar[str] = "causal"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> None:
        self._model, self._tokenizer, self._end = model, tokenizer, ends[0]
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]  # masked, as in training
        special = (token for token in tokenizer.all_special_tokens if token)
        self._beginnings = (*special, *openings(tokenizer))
        self._positions = max_tokens(model, tokenizer)
        self.max_tokens = self._positions - 1  # an answer has one token at least

    def encode(self, texts: Sequence[str], name: str) -> list[Encoding]:
        """Raises Unprocessable for a text without tokens.

        A text that begins with a special token, or as the chat template begins, says itself where it begins.
        """
        encodings = []
        for index, text in enumerate(texts):
            special = not text.startswith(self._beginnings)
            (encoding,) = token_ids(self._tokenizer, [text], limit=UNCHECKED, model=name, special=special)
            if len(encoding) > self.max_tokens:
                raise InputTooLong(
                    f"Input {index} has {len(encoding)} tokens; {name} reads at most {self.max_tokens} "
                    "and one of the answer."
                )
            if not len(encoding):
                raise Unprocessable(f"Input {index} has no tokens: an answer cannot begin where there is nothing.")
            encodings.append(encoding)
        return encodings

    def room(self, encoding: Encoding) -> int:
        return self._positions - len(encoding)

    def target(self, text: str) -> str:
        return text.strip(" ")  # whether one stands before it follows from the prompt; line ends are the caller's

    def wanted(self, encoding: Encoding, target: str) -> Tensor:
        """The answer goes on after the prompt as its text would: a word after a word begins with a space."""
        said = f" {target}" if self._needs_space(encoding, target) else target
        ways = [*self._after_a_line_end(said), self._ids(said), self._ids(said.lstrip())]
        exact = [way for way in ways if self.text(encoding, way) == said]
        tokens = min(exact or ways, key=len)
        return _checked(target, [*tokens, self._end], self.text(encoding, tokens), room=self.room(encoding))

    def _needs_space(self, encoding: Encoding, target: str) -> bool:
        """Whether the prompt ends in a word, or a mark that one follows, and the target begins with one."""
        last = int(encoding.input_ids[-1])
        text = _decode(self._tokenizer, encoding.input_ids.tolist())
        if last in self._tokenizer.all_special_ids or not target[0].isalnum():
            return False
        if not text or not (text[-1].isalnum() or text[-1] in CLOSING):
            return False
        return unicodedata.east_asian_width(target[0]) not in ("W", "F")  # such scripts put no spaces between words

    def _after_a_line_end(self, text: str) -> list[list[int]]:
        """The ids of a text in the middle of another: some tokenizers put a space before the first word of all."""
        anchor, both = self._ids("\n"), self._ids(f"\n{text}")
        return [both[len(anchor) :]] if both[: len(anchor)] == anchor else []

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def inputs(self, encodings: Sequence[Encoding]) -> dict[str, Tensor]:
        return padded([each.input_ids for each in encodings], self._pad, device=self._model.device, side="left")

    def feed(self, encodings: Sequence[Encoding], wanted: Sequence[Tensor]) -> Fed:
        pairs = list(zip((each.input_ids for each in encodings), wanted, strict=True))
        inputs = padded(
            [torch.cat([prompt, answer[:-1]]) for prompt, answer in pairs], self._pad, device=self._model.device
        )
        lengths = [torch.tensor([len(prompt), len(answer)], device=self._model.device) for prompt, answer in pairs]
        prompts, answers = torch.stack(lengths).unsqueeze(-1).unbind(1)  # (batch, 1) each
        columns = torch.arange(inputs["input_ids"].shape[1], device=self._model.device)
        said = (columns >= prompts - 1) & (columns < prompts - 1 + answers)  # a prompt's last token says the first
        return _fed(inputs, columns < prompts, said, wanted)

    def text(self, encoding: Encoding, tokens: Sequence[int]) -> str:
        """What the answer adds to the prompt's text, a space between them included."""
        prompt = encoding.input_ids.tolist()
        before, after = (_decode(self._tokenizer, ids) for ids in (prompt, [*prompt, *tokens]))
        return after[len(before) :] if after.startswith(before) else _decode(self._tokenizer, tokens)


def _fed(inputs: dict[str, Tensor], given: Tensor, said: Tensor, wanted: Sequence[Tensor]) -> Fed:
    """said: the positions that say the wanted answers, (batch, tokens) bool."""
    rows, columns = said.nonzero(as_tuple=True)
    return Fed(inputs, given, rows, columns, torch.cat(list(wanted)).to(said.device))


UNCHECKED = 2**40
CLOSING = ".,;:!?)"
"""Marks that a space follows."""


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end an answer, the tokenizer's own first. Raises UnsupportedModel if there are none."""
    given = getattr(model.generation_config, "eos_token_id", None)
    ends: Collection[int] = given if isinstance(given, list) else [] if given is None else [given]
    own = tokenizer.eos_token_id
    if not ends and own is None:
        raise UnsupportedModel(f"{type(model).__name__} has no end token: its answers would never end.")
    return tuple(sorted(ends or [own], key=lambda token: token != own))


def _pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.pad_token_id is None:
        raise UnsupportedModel("The tokenizer has no padding token.")
    return int(tokenizer.pad_token_id)


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    text = tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


def _checked(target: str, tokens: Sequence[int], written: str, *, room: int) -> Tensor:
    if len(tokens) > room:
        raise InputTooLong(
            f"The target has {len(tokens)} tokens with its end; there is room for {room} after this input."
        )
    if written.strip() != target.strip():
        raise UnwritableTarget(
            f"The target {target!r} cannot be written: this model's tokenizer makes {written!r} of it."
        )
    return torch.tensor(tokens, dtype=torch.int64)
