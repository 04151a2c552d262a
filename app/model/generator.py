"""A deployed model that writes text, encoder-decoder or decoder-only.

Decoding is transformers' own `generate`, run in slices (`slices`) with hooks between the tokens (`steps`). Overlays act
on the position that says the next token: one position a row and a pass, of a prompt the last one alone.
See `deployed.Model` for what the methods promise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import structlog
import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)

from app.errors import InputTooLong, Unprocessable
from app.model.answers import Answered, Ask, Decoding, Encoding, Finished, Generation, Output, Read
from app.model.chat import REFUSALS, render
from app.model.conventions import Convention, end_tokens
from app.model.decoding import counts_padding, described, greedy, shaping
from app.model.fingerprint import fingerprint
from app.model.keys import Keys
from app.model.slices import Pause, in_slices
from app.model.steps import Confidence, Draw, Steps, first_stop
from app.model.tokenizing import describe
from editors.features import Features
from editors.inside import Inside
from editors.join import Join, Pass, Transform
from editors.layers import LayerSite, Sites
from editors.reach import can_lead
from editors.site import Site
from editors.types import Acting, Reading, Rows

log = structlog.get_logger()

PROBES = ("a", "a b c a b c")
UNFINISHED = "�"
"""What a decoder shows for a character of which bytes are missing."""


class Generator:
    """A frozen Hugging Face language model with its site opened."""

    labels: tuple[str, ...] = ()
    pads = True
    writes = True

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: type[Any], *, name: str
    ) -> None:
        """kind: `conventions.EncoderDecoder` or `DecoderOnly`."""
        self.name = name
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.device = model.device
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        given = end_tokens(model, tokenizer)
        self._convention: Convention = kind(model, tokenizer, given)
        self.task = self._convention.task
        self.max_tokens = self._convention.max_tokens
        self._join = Join.open(model, self._probe(given[0]))
        self._ends = self._sayable(given)
        self._convention = kind(model, tokenizer, self._ends)
        model.generation_config = greedy(model.generation_config, tokenizer, self._ends)
        self.mixes_lengths = self.task == "seq2seq" or not counts_padding(model.generation_config)
        self.fingerprint = fingerprint(
            model.state_dict(),
            {
                "tokenizer": describe(tokenizer),
                "model": type(model).__name__,
                "generation": described(model.generation_config),
            },
        )

    @property
    def site(self) -> Site:
        return self._join.site

    @property
    def sites(self) -> Sites:
        return self._join.sites

    @property
    def features(self) -> Features:
        return self._join.features

    @property
    def hidden_size(self) -> int:
        return self._join.site.hidden

    @property
    def decoding_settings(self) -> Mapping[str, Any]:
        """The model's own settings that shape its answers."""
        return shaping(self._model.generation_config)

    @property
    def end_tokens(self) -> tuple[str, ...]:
        """The tokens that end an answer, the one first that edits are taught to say."""
        return tuple(self._tokenizer.convert_ids_to_tokens(list(self._ends)))

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer says how a conversation becomes a prompt."""
        return bool(self._tokenizer.chat_template)

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        return self._convention.encode(texts, self.name)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt of a conversation, by the tokenizer's chat template. Raises Unprocessable."""
        if not self.has_chat_template:
            raise Unprocessable(f"messages: {self.name} has no chat template; use a completion of a prompt.")
        try:
            return render(self._tokenizer, messages)
        except REFUSALS as error:
            raise Unprocessable(f"messages: the chat template of {self.name} refuses them: {error}.") from error

    def encoding(self, tokens: Sequence[int]) -> Encoding:
        """An input that is given as token ids. Raises Unprocessable for ids that are none, and InputTooLong."""
        known = self._model.get_input_embeddings().num_embeddings
        unknown = next((token for token in tokens if not 0 <= token < known), None)
        if unknown is not None:
            raise Unprocessable(f"{self.name} has no token {unknown}; its tokens are 0 to {known - 1}.")
        if len(tokens) > self.max_tokens:
            raise InputTooLong(f"The input has {len(tokens)} tokens; {self.name} reads at most {self.max_tokens}.")
        return Encoding(torch.tensor(list(tokens), dtype=torch.int64))

    def read_back(self, encoding: Encoding) -> str:
        """The text of an input."""
        return self._convention.text(Encoding(torch.zeros(0, dtype=torch.int64)), encoding.input_ids.tolist())

    def room(self, encoding: Encoding) -> int:
        """The most tokens that the answer to this input may have."""
        return self._convention.room(encoding)

    def target(self, text: str) -> str:
        return self._convention.target(text)

    def wanted(self, encoding: Encoding, target: str) -> Tensor:
        return self._convention.wanted(encoding, target)

    def run(self, asks: Sequence[Ask], acting: Acting | None) -> Iterator[Finished]:
        return in_slices(lambda pause: self._generate(asks, acting, pause))

    @torch.no_grad()
    def read(
        self,
        encodings: Sequence[Encoding],
        wanted: Sequence[Tensor],
        acting: Acting | None = None,
        *,
        keys_at: Sequence[LayerSite] = (),
    ) -> Read:
        keys = Keys(keys_at)
        fed = self._convention.feed(encodings, wanted)
        visit = (acting if acting is not None else keys).visit(fed.given)
        with self._join.during(Pass(fed.rows, fed.columns, acting), visit) as call:
            logits = self._model(**fed.inputs, use_cache=False).logits
        assert call.queries is not None
        assert call.residuals is not None
        rows = Rows(call.queries, call.residuals, fed.labels)
        return Read(Reading(rows, tuple(map(len, wanted)), keys.taken), logits[fed.rows, fed.columns].argmax(-1))

    def inside(
        self, encodings: Sequence[Encoding], wanted: Sequence[Tensor], site: LayerSite, transform: Transform
    ) -> Inside:
        return Inside(self._join, self._convention.feed(encodings, wanted), site, transform)

    def readout(self, residuals: Tensor) -> Tensor:
        return self._join.readout(residuals)

    def decode(self, asks: Sequence[Ask], outputs: Sequence[Output]) -> list[Answered]:
        return [self._decoded(ask, output) for ask, output in zip(asks, outputs, strict=True)]

    def answered(self, output: Output) -> Tensor:
        return output.raw if output.end is None else torch.cat([output.raw, torch.tensor([output.end])])

    def to_the_end(self, wanted: Tensor, *, at_least: int) -> Decoding | None:
        return Decoding(max_new_tokens=max(len(wanted), at_least))

    def show(self, answered: Tensor, upto: int) -> str:
        nothing = Encoding(torch.zeros(0, dtype=torch.int64))
        text = self._convention.text(nothing, answered[: upto + 1].tolist())
        return text.strip() + ("" if upto + 1 == len(answered) else "…")

    def pieces(self, encoding: Encoding) -> Pieces:
        """Turns the tokens of one answer into pieces of text as they come."""
        return Pieces(self._tokenizer, encoding if self.task == "causal" else None)

    def _generate(self, asks: Sequence[Ask], acting: Acting | None, pause: Pause[Finished]) -> None:
        """One batch by transformers' `generate`, greedy but for the rows that draw."""
        rooms = [min(_decoding(ask).max_new_tokens, self._convention.room(ask.encoding)) for ask in asks]
        confidence, seen = Confidence(), list[tuple[Tensor, Tensor]]()
        remember = any(ask.remember for ask in asks)

        def at_the_site(queries: Tensor, residuals: Tensor) -> Tensor:
            if remember:
                seen.append((queries, residuals))
            return residuals if acting is None else acting(queries, residuals)

        def tell(rows: Sequence[int]) -> None:
            pause([(row, self._output(row, asks[row], steps, confidence, seen)) for row in rows])

        steps = Steps(asks, rooms, self._ends, lambda row: self._text(asks[row], steps.tokens[row]), tell)
        inputs = self._convention.inputs([ask.encoding for ask in asks])
        visit = None if acting is None else acting.visit(inputs["attention_mask"].bool())
        with self._join.during(Pass.at(torch.full((len(asks),), -1, device=self.device), at_the_site), visit):
            self._model.generate(
                **inputs,
                max_new_tokens=max(rooms),
                logits_processor=LogitsProcessorList([*([confidence] if remember else []), Draw(asks)]),
                stopping_criteria=StoppingCriteriaList([steps]),
            )

    def _output(
        self, row: int, ask: Ask, steps: Steps, confidence: Confidence, seen: Sequence[tuple[Tensor, Tensor]]
    ) -> Output:
        tokens, reason, end = steps.tokens[row], steps.finish_reasons[row], steps.ended_by[row]
        raw, count = torch.tensor(tokens, dtype=torch.int64), len(tokens) + (end is not None)
        if not ask.remember:
            return Output(raw, count, reason, end)
        queries, residuals = (torch.stack([pair[side][row] for pair in seen[:count]]).cpu() for side in (0, 1))
        labels = torch.tensor(tokens if end is None else [*tokens, end], dtype=torch.int64)
        least = min(float(step[row]) for step in confidence.steps[:count])
        return Output(raw, count, reason, end, Rows(queries, residuals, labels), least)

    def _decoded(self, ask: Ask, output: Output) -> Generation:
        assert output.finish_reason is not None
        text = self._text(ask, output.raw.tolist())
        return Generation(text[: first_stop(text, _decoding(ask).stop)], output.finish_reason)

    def _text(self, ask: Ask, tokens: Sequence[int]) -> str:
        return self._convention.text(ask.encoding, tokens)

    def _probe(self, token: int) -> dict[str, Tensor]:
        """Two inputs of different lengths, padded on the right, with `token` a few times as their answers."""
        encodings = self._convention.encode(PROBES, self.name)
        answers = [torch.full((2 + index,), token) for index in range(len(encodings))]
        return self._convention.feed(encodings, answers).inputs

    def _sayable(self, ends: Sequence[int]) -> tuple[int, ...]:
        """The end tokens, those first that the model can be made to say. Where it can say none of them, the token with
        which its texts begin ends an answer as well: to such a model it is what stands between two texts.
        """
        (encoding,) = self._convention.encode(PROBES[:1], self.name)
        residual = self.read([encoding], [torch.tensor([ends[0]])]).reading.rows.residuals[0]
        begin = [token for token in (self._tokenizer.bos_token_id,) if token is not None and token not in ends]
        sayable = [token for token in ends if can_lead(token, residual, self.readout)]
        if not sayable and self.task == "causal":
            sayable = [token for token in begin if can_lead(token, residual, self.readout)]
            if sayable:
                names = self._tokenizer.convert_ids_to_tokens([*ends, *sayable])
                log.warning("the model cannot say its end token; the token that begins a text ends it", tokens=names)
        return (*sayable, *(token for token in ends if token not in sayable))


class Pieces:
    """The tokens of one answer as text, piece by piece; a piece ends where a character does."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Encoding | None) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise Unprocessable("stream: this model's tokenizer cannot write an answer piece by piece.")
        self._backend = backend
        ids = [] if prompt is None else prompt.input_ids.tolist()
        self._stream = DecodeStream(ids=ids, skip_special_tokens=True)

    def add(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        return self._stream.step(self._backend, token) or ""


def _decoding(ask: Ask) -> Decoding:
    assert ask.decoding is not None, "a generating model is asked without saying how to decode"
    return ask.decoding
