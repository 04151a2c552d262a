"""What an edit looks like when it has been worked on: predictions as records keep them, gates of its own texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from app.engine import Answer, Engine, View
from app.judge import Gate
from app.model import Classifier, Encoding, Prediction
from app.store import Draft


@dataclass(frozen=True, slots=True)
class Encoded:
    """The texts of an edit as token ids."""

    input: Encoding
    rephrases: Sequence[Encoding]
    keep: Sequence[Encoding]

    @classmethod
    def of(cls, model: Classifier, draft: Draft) -> Encoded:
        """Raises InputTooLong."""
        return cls(model.encode([draft.input])[0], _encode(model, draft.rephrases), _encode(model, draft.keep))


@dataclass(frozen=True, slots=True)
class Answers:
    """What the model says to an edit's texts under one view."""

    input: Answer
    rephrases: Sequence[Answer]
    keep: Sequence[Answer]
    predictions: Sequence[Prediction]  # of the input, the rephrases and the texts to keep, in this order

    @classmethod
    async def under(cls, engine: Engine, encoded: Encoded, view: View) -> Answers:
        """The input passes alone, as a request with it alone would, so that the record can be recomputed."""
        (answer,) = await engine.answer([encoded.input], view)
        rephrases = await engine.answer(encoded.rephrases, view)
        keep = await engine.answer(encoded.keep, view)
        logits = torch.stack([each.logits for each in (answer, *rephrases, *keep)])
        return cls(answer, rephrases, keep, engine.model.decode(logits))

    @property
    def prediction(self) -> Prediction:
        return self.predictions[0]

    @property
    def of_rephrases(self) -> Sequence[Prediction]:
        return self.predictions[1 : 1 + len(self.rephrases)]

    @property
    def of_keep(self) -> Sequence[Prediction]:
        return self.predictions[1 + len(self.rephrases) :]

    def as_json(self) -> dict[str, Any]:
        """As the record of an edit keeps it."""
        return {
            "prediction": asdict(self.prediction),
            "rephrases": [asdict(prediction) for prediction in self.of_rephrases],
        }


def own_gates(draft: Draft, before: Answers, after: Answers, *, rephrases_required: float) -> list[Gate]:
    """The edit holds, its rephrases hold, its texts to keep are unchanged."""
    return [
        _holding("edit_holds", [draft.input], [after.prediction], draft.target, required=1.0),
        _holding("rephrases_hold", draft.rephrases, after.of_rephrases, draft.target, required=rephrases_required),
        _keeping(draft.keep, before.of_keep, after.of_keep),
    ]


def _holding(name: str, texts: Sequence[str], now: Sequence[Prediction], target: str, *, required: float) -> Gate:
    failures = [
        {"input": text, "wanted": target, "now": prediction.label}
        for text, prediction in zip(texts, now, strict=True)
        if prediction.label != target
    ]
    return Gate.share(name, len(texts), required=required, failures=failures)


def _keeping(texts: Sequence[str], was: Sequence[Prediction], now: Sequence[Prediction]) -> Gate:
    failures = [
        {"input": text, "was": old.label, "now": new.label}
        for text, old, new in zip(texts, was, now, strict=True)
        if old.label != new.label
    ]
    return Gate.share("keep_unchanged", len(texts), required=1.0, failures=failures)


def _encode(model: Classifier, texts: Sequence[str]) -> Sequence[Encoding]:
    return model.encode(texts) if texts else []
