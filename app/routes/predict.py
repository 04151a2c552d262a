"""POST /predict: answers under any revision. Touches no database and takes no lock."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from app.engine import Engine as EnginePart
from app.engine import Place, View
from app.errors import Unprocessable
from app.model import Answered, Decoding, Encoding
from app.routes.answering import (
    EVENTS,
    Events,
    Piece,
    Whole,
    decoding_of,
    event,
    failed,
    json_response,
    turn,
    view_of,
    written,
)
from app.routes.middleware import replay
from app.routes.problems import Problem, problems
from app.routes.schemas import (
    DoneOut,
    PieceOut,
    PredictIn,
    PredictOut,
    WholeOut,
    check_texts,
    prediction_out,
)
from app.routes.service import Service, ServiceOf, service


class Direct(APIRoute):
    """A route that bodies which are right take at once, past what FastAPI does for any endpoint: that costs as much
    again as all else for a short answer.

    Whatever is wrong goes FastAPI's way and is refused there, in the words of every other route.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST" or _content_type(scope) != b"application/json":
            await super().handle(scope, receive, send)
            return
        request = Request(scope, receive)
        content = await request.body()
        try:
            body = PredictIn.model_validate(json.loads(content))
        except (ValueError, RecursionError):  # no JSON, or not what is asked for
            await super().handle(scope, replay(content, receive), send)
            return
        response = await predict(body, request, await service(request))
        await response(scope, receive, send)


def _content_type(scope: Scope) -> bytes:
    return next((value for name, value in scope["headers"] if name == b"content-type"), b"")


router = APIRouter(tags=["predict"], route_class=Direct)


@router.post(
    "/predict",
    response_model=PredictOut,
    responses={**problems(409, 413, 429, 504), 200: {"model": PredictOut, "content": {EVENTS: {}}}},
)
async def predict(body: PredictIn, request: Request, service: ServiceOf) -> Response:
    """Answer each input, and name the revision and the edits that made the answer.

    With `stream`, server-sent events: `token` with a piece of text, `prediction` with each whole answer, then `done`,
    or `error` with a problem.
    """
    engine, settings = service.parts.engine, service.settings
    check_texts(body.inputs, "inputs", at_most=settings.max_inputs, settings=settings)
    view, decoding = view_of(engine, body), decoding_of(engine, body.generation, settings)
    if body.stream and decoding is None:
        raise Unprocessable("body.stream: this model classifies; its answers come whole.")
    async with turn(request, service) as place:
        place.take(len(body.inputs))
        encodings = await engine.encode(body.inputs)
        bases = await _bases(engine, encodings, decoding, place) if body.explain else [None] * len(encodings)
        if body.stream and decoding is not None:
            place = place.move()
            news = written(engine, encodings, decoding, view, place)
            return Events(_written(service, news, view, bases), view, place)
        remember = body.edits == "on" and body.as_of is None and (decoding is None or decoding.sampling is None)
        answers = await engine.answer(encodings, view, decoding=decoding, remember=remember, place=place)
    predictions = engine.decode(answers)
    service.parts.hits.count(fired.edit_id for answer in answers for fired in answer.fired)
    out = PredictOut(
        revision=view.revision,
        model=engine.model.fingerprint,
        predictions=[prediction_out(*each) for each in zip(predictions, answers, bases, strict=True)],
    )
    return json_response(out.model_dump_json(exclude_none=True), view)


async def _written(
    service: Service, news: AsyncGenerator[Piece | Whole, None], view: View, bases: Sequence[Answered | None]
) -> AsyncGenerator[bytes, None]:
    fingerprint, hits = service.parts.engine.model.fingerprint, service.parts.hits
    try:
        async with aclosing(news):
            async for item in news:
                if isinstance(item, Piece):
                    yield event("token", PieceOut(index=item.index, text=item.text))
                    continue
                hits.count(fired.edit_id for fired in item.answer.fired)
                out = prediction_out(item.generation, item.answer, bases[item.index])
                yield event("prediction", WholeOut(index=item.index, prediction=out))
    except Exception as error:  # noqa: BLE001 - the answer has begun: all that is left is to say so
        yield event("error", Problem.of(failed(error, service.metrics)))
        return
    yield event("done", DoneOut(revision=view.revision, model=fingerprint))


async def _bases(
    engine: EnginePart, encodings: Sequence[Encoding], decoding: Decoding | None, place: Place
) -> Sequence[Answered | None]:
    return engine.decode(await engine.answer(encodings, engine.live.bare(), decoding=decoding, place=place))
