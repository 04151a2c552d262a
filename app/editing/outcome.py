"""What an edit looks like when it has been worked on: predictions as records keep them, gates of its own texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from app.engine import Engine, View
from app.judge import Gate
from app.model import Answered, Encoding, Model
from app.store import Draft


@dataclass(frozen=True, slots=True)
class Encoded:
    """The texts of an edit as token ids, and what the head should say to the input and to each rephrase."""

    input: Encoding
    rephrases: Sequence[Encoding]
    keep: Sequence[Encoding]
    wanted: Sequence[Tensor]  # of the input, then of each rephrase: (positions,) int64

    @classmethod
    def of(cls, model: Model, draft: Draft) -> Encoded:
        """Raises InputTooLong, UnknownLabel and UnwritableTarget."""
        (given,) = model.encode([draft.input])
        rephrases, keep = (model.encode(texts) if texts else [] for texts in (draft.rephrases, draft.keep))
        wanted = [model.wanted(encoding, draft.target) for encoding in (given, *rephrases)]
        return cls(given, rephrases, keep, wanted)


@dataclass(frozen=True, slots=True)
class Answers:
    """What the model says to an edit's texts under one view."""

    predictions: Sequence[Answered]  # of the input, the rephrases and the texts to keep, in this order
    rephrases: int  # how many of these are of rephrases

    @classmethod
    async def under(cls, engine: Engine, encoded: Encoded, view: View, *, new_tokens: int) -> Answers:
        """The input passes alone, as a request with it alone would, so that the record can be recomputed.

        A generating model writes freely: as long an answer as the target is, or `new_tokens` where that is more.
        """
        decoding = [engine.model.to_the_end(wanted, at_least=new_tokens) for wanted in encoded.wanted]
        freely = [engine.model.to_the_end(encoded.wanted[0], at_least=new_tokens)] * len(encoded.keep)
        answers = [
            *await engine.answer([encoded.input], view, decoding=decoding[:1]),
            *await engine.answer(encoded.rephrases, view, decoding=decoding[1:]),
            *await engine.answer(encoded.keep, view, decoding=freely),
        ]
        return cls(engine.decode(answers), len(encoded.rephrases))

    @property
    def prediction(self) -> Answered:
        return self.predictions[0]

    @property
    def of_rephrases(self) -> Sequence[Answered]:
        return self.predictions[1 : 1 + self.rephrases]

    @property
    def of_keep(self) -> Sequence[Answered]:
        return self.predictions[1 + self.rephrases :]

    def as_json(self) -> dict[str, Any]:
        """As the record of an edit keeps it."""
        return {
            "prediction": asdict(self.prediction),
            "rephrases": [asdict(prediction) for prediction in self.of_rephrases],
        }


def own_gates(
    draft: Draft, before: Answers, after: Answers, *, rephrases_required: float, decoding: Mapping[str, Any]
) -> list[Gate]:
    """The edit holds, its rephrases hold, its texts to keep are unchanged.

    decoding: settings of the model's own that may not let a target through; named where one does not hold.
    """
    named = {"decoding": dict(decoding)} if decoding else {}
    return [
        _holding("edit_holds", [draft.input], [after.prediction], draft, required=1.0, named=named),
        _holding(
            "rephrases_hold", draft.rephrases, after.of_rephrases, draft, required=rephrases_required, named=named
        ),
        _keeping(draft.keep, before.of_keep, after.of_keep),
    ]


def _holding(
    name: str,
    texts: Sequence[str],
    now: Sequence[Answered],
    draft: Draft,
    *,
    required: float,
    named: Mapping[str, Any],
) -> Gate:
    failures = [
        {"input": text, "wanted": draft.target, "now": prediction.said, **named}
        for text, prediction in zip(texts, now, strict=True)
        if not prediction.says(draft.target)
    ]
    return Gate.share(name, len(texts), required=required, failures=failures)


def _keeping(texts: Sequence[str], was: Sequence[Answered], now: Sequence[Answered]) -> Gate:
    failures = [
        {"input": text, "was": old.said, "now": new.said}
        for text, old, new in zip(texts, was, now, strict=True)
        if not new.says(old.said)
    ]
    return Gate.share("keep_unchanged", len(texts), required=1.0, failures=failures)
