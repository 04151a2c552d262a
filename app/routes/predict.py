"""POST /predict: answers under any revision. Touches no database and takes no lock."""

from __future__ import annotations

from fastapi import APIRouter, Response

from app.engine import Answer, View
from app.engine import Engine as EnginePart
from app.errors import NotCaughtUp, UnknownEdit, UnknownRevision, Unprocessable
from app.model import Encoding, Prediction
from app.routes.problems import problems
from app.routes.schemas import PredictIn, PredictOut, check_texts, prediction_out
from app.routes.service import ServiceOf

router = APIRouter(tags=["predict"])


@router.post("/predict", response_model_exclude_none=True, responses=problems(409, 413))
async def predict(body: PredictIn, response: Response, service: ServiceOf) -> PredictOut:
    """Answer each input, and name the revision and the edits that made the answer."""
    engine, settings = service.parts.engine, service.settings
    check_texts(body.inputs, "inputs", at_most=settings.max_inputs, settings=settings)
    view = _view(engine, body)
    with service.metrics.predict_seconds.time():
        encodings = await engine.encode(body.inputs)
        answers = await engine.answer(encodings, view, remember=body.edits == "on" and body.as_of is None)
        bases = await _bases(engine, encodings) if body.explain else [None] * len(answers)
        predictions = _decoded(engine, answers)
    service.parts.hits.count(fired.edit_id for answer in answers for fired in answer.fired)
    response.headers["X-Model-Revision"] = str(view.revision)
    return PredictOut(
        revision=view.revision,
        model=engine.model.fingerprint,
        predictions=[prediction_out(*each) for each in zip(predictions, answers, bases, strict=True)],
    )


def _view(engine: EnginePart, body: PredictIn) -> View:
    """What this request is answered under. Raises what a caller can have asked wrongly."""
    if body.generation is not None:
        raise Unprocessable("body.generation: this model classifies; it generates nothing.")
    live = engine.live
    if body.min_revision is not None and live.revision < body.min_revision:
        raise NotCaughtUp(
            f"This process serves revision {live.revision}, not {body.min_revision} yet.", headers={"Retry-After": "1"}
        )
    if body.as_of is not None and body.as_of > live.revision:
        raise UnknownRevision(f"There is no revision {body.as_of}; the newest is {live.revision}.")
    unknown = [edit_id for edit_id in body.exclude if not live.patches_of(edit_id)]
    if unknown:
        raise UnknownEdit(f"No edit {unknown[0]} was ever live.", unknown=unknown)
    return live.bare() if body.edits == "off" else live.view(as_of=body.as_of, exclude=frozenset(body.exclude))


def _decoded(engine: EnginePart, answers: list[Answer]) -> list[Prediction]:
    return [prediction for answer in answers for prediction in engine.model.decode(answer.logits.unsqueeze(0))]


async def _bases(engine: EnginePart, encodings: list[Encoding]) -> list[Prediction]:
    return _decoded(engine, await engine.answer(encodings, engine.live.bare()))
