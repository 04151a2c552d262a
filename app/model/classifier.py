"""A deployed sequence classifier: texts to encodings, encodings to logits, logits to predictions.

See `deployed.Model` for what its methods promise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.errors import UnknownLabel, Unprocessable
from app.model.answers import Answered, Ask, Decoding, Encoding, Finished, Likeliest, Output, Prediction, Read
from app.model.fingerprint import fingerprint
from app.model.keys import Keys
from app.model.tokenizing import describe, first_positions, max_tokens, padded, token_ids
from app.model.unpadded import Unpadded
from editors.errors import UnsupportedModel
from editors.features import Features
from editors.inside import Fed, Inside
from editors.join import Join, Pass, Transform
from editors.layers import LayerSite, Sites
from editors.site import Site
from editors.types import Acting, Reading, Rows
from editors.visit import Visit

ALL_SCORES_UP_TO = 20
BEST_SCORES = 5


class Classifier:
    """A frozen Hugging Face sequence classifier with its site opened."""

    task = "classification"
    mixes_lengths = True
    end_tokens: tuple[str, ...] = ()
    writes = False
    decoding_settings: Mapping[str, Any] = {}

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str) -> None:
        self.name = name
        self.labels = _labels(model)
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.device = model.device
        self.max_tokens = max_tokens(model, tokenizer)
        self.fingerprint = fingerprint(
            model.state_dict(),
            {"labels": self.labels, "tokenizer": describe(tokenizer), "model": type(model).__name__},
        )
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._pad = tokenizer.pad_token_id
        self._index = {label: index for index, label in enumerate(self.labels)}
        if self._pad is None:
            raise UnsupportedModel(f"The tokenizer of {name} has no padding token.")
        self._join = Join.open(model, self._batch(self.encode(["a", "a b c a b c"])))
        self._unpadded = self._without_padding(self.encode(["a b c", "a b c a b c", "a b c", "a"]))

    @property
    def pads(self) -> bool:
        return self._unpadded is None

    @property
    def site(self) -> Site:
        """Where overlays of the last feed-forward layer meet this model."""
        return self._join.site

    @property
    def sites(self) -> Sites:
        return self._join.sites

    @property
    def features(self) -> Features:
        return self._join.features

    @property
    def hidden_size(self) -> int:
        """The width of queries and residuals."""
        return self._join.site.hidden

    def label_index(self, label: str) -> int:
        """The index of a label among the logits. Raises UnknownLabel, naming the labels there are."""
        try:
            return self._index[label]
        except KeyError:
            raise UnknownLabel(
                f"{label!r} is not a label of {self.name}. Its labels are: {', '.join(self.labels)}.",
                labels=list(self.labels),
            ) from None

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        encodings = token_ids(self._tokenizer, texts, limit=self.max_tokens, model=self.name)
        for index, encoding in enumerate(encodings):
            if not len(encoding):
                raise Unprocessable(f"Input {index} has no tokens: there is nothing to classify.")
        return encodings

    def target(self, text: str) -> str:
        self.label_index(text)
        return text

    def wanted(self, encoding: Encoding, target: str) -> Tensor:
        return torch.tensor([self.label_index(target)])

    def run(self, asks: Sequence[Ask], acting: Acting | None) -> Iterator[Finished]:
        with torch.inference_mode():  # less work an operation than no_grad
            logits, call = self._forward([ask.encoding for ask in asks], acting)
            outputs = self._outputs(asks, logits.cpu(), call)
        yield list(enumerate(outputs))

    def read(
        self,
        encodings: Sequence[Encoding],
        wanted: Sequence[Tensor],
        acting: Acting | None = None,
        *,
        keys_at: Sequence[LayerSite] = (),
    ) -> Read:
        keys = Keys(keys_at)
        logits, call = self._forward(encodings, acting if acting is not None else keys)
        assert call.queries is not None
        assert call.residuals is not None
        labels = torch.cat(list(wanted)).to(self.device)
        rows = Rows(call.queries, call.residuals, labels)
        return Read(Reading(rows, (1,) * len(encodings), keys.taken), logits.argmax(-1))

    def inside(
        self, encodings: Sequence[Encoding], wanted: Sequence[Tensor], site: LayerSite, transform: Transform
    ) -> Inside:
        batch = self._batch(encodings)
        mask = batch["attention_mask"]
        rows, labels = torch.arange(len(mask), device=self.device), torch.cat(list(wanted)).to(self.device)
        return Inside(self._join, Fed(batch, mask.bool(), rows, self._join.positions(mask), labels), site, transform)

    def readout(self, residuals: Tensor) -> Tensor:
        return self._join.readout(residuals)

    def decode(self, asks: Sequence[Ask], outputs: Sequence[Output]) -> list[Answered]:
        return [self._prediction(output.likeliest or self._likeliest(output.raw[None])[0]) for output in outputs]

    def answered(self, output: Output) -> Tensor:
        return output.raw.argmax(-1, keepdim=True)

    def to_the_end(self, wanted: Tensor, *, at_least: int) -> Decoding | None:
        return None

    def show(self, answered: Tensor, upto: int) -> str:
        return self.labels[int(answered[0])]

    def _without_padding(self, encodings: Sequence[Encoding]) -> Unpadded | None:
        """How texts share a pass without padding; None where padding costs less, or nothing else is possible.

        A GPU waits for its launches rather than for its products, and attention text by text has more of these. In
        half precision the two differ by too much to prove one by the other.
        """
        if self.device.type != "cpu" or self.dtype != "float32":
            return None
        ids = [each.input_ids for each in encodings]
        try:
            return Unpadded.open(
                self._join, ids, lambda: self._padded(encodings, None)[0], first_positions(self._model)
            )
        except UnsupportedModel:
            return None

    @torch.no_grad()
    def _forward(self, encodings: Sequence[Encoding], acting: Acting | None) -> tuple[Tensor, Pass]:
        if self._unpadded is None:
            return self._padded(encodings, acting)
        ids = [each.input_ids for each in encodings]
        return self._unpadded.run(ids, acting, None if acting is None else acting.visit)

    @torch.no_grad()
    def _padded(self, encodings: Sequence[Encoding], acting: Acting | None) -> tuple[Tensor, Pass]:
        batch = self._batch(encodings)
        mask = batch["attention_mask"]
        visit: Visit | None = None if acting is None else acting.visit(mask.bool())
        with self._join.during(Pass.at(self._join.positions(mask), acting), visit) as call:
            logits: Tensor = self._model(**batch).logits
        return logits, call

    def _outputs(self, asks: Sequence[Ask], logits: Tensor, call: Pass) -> list[Output]:
        """`logits` on the CPU. What is done to all rows at once costs hardly more than to one."""
        assert call.queries is not None
        assert call.residuals is not None
        likeliest = self._likeliest(logits)
        seen: list[Rows | None] = [None] * len(asks)
        if any(ask.remember for ask in asks):
            said = torch.tensor([labels[0] for _, labels in likeliest])
            columns = call.queries.cpu().split(1), call.residuals.cpu().split(1), said.split(1)
            rows = zip(asks, *columns, strict=True)
            seen = [Rows(*row) if ask.remember else None for ask, *row in rows]
        each = zip(logits.unbind(), seen, likeliest, strict=True)
        return [Output(raw, 1, None, None, row, best[0][0], best) for raw, row, best in each]

    def _likeliest(self, logits: Tensor) -> list[Likeliest]:
        """Of each row of logits on the CPU, (rows, labels)."""
        scores = logits.float().softmax(-1)
        best = scores.topk(len(self.labels) if len(self.labels) <= ALL_SCORES_UP_TO else BEST_SCORES)
        return list(zip(best.values.tolist(), best.indices.tolist(), strict=True))

    def _prediction(self, likeliest: Likeliest) -> Prediction:
        scores, indices = likeliest
        named = {self.labels[index]: score for index, score in zip(indices, scores, strict=True)}
        return Prediction(self.labels[indices[0]], scores[0], named)

    def _batch(self, encodings: Sequence[Encoding]) -> dict[str, Tensor]:
        return padded([each.input_ids for each in encodings], self._pad, device=self.device)


def _labels(model: PreTrainedModel) -> tuple[str, ...]:
    config: Any = model.config
    if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
        raise UnsupportedModel(
            f"{type(model).__name__} with {config.num_labels} label(s) and problem_type "
            f"{config.problem_type!r} does not choose one label of several."
        )
    labels = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    if len(set(labels)) < len(labels):
        raise UnsupportedModel(f"Two labels of {type(model).__name__} have the same name.")
    return labels
