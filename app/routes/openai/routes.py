"""/v1: models, completions and conversations, whole or as they are written."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing

from fastapi import APIRouter, Request, Response
from fastapi.sse import format_sse_event

from app.engine import Answer, Fired, Place
from app.model import Generation
from app.routes.answering import EVENTS, Events, Piece, Whole, failed, json_response, turn, written
from app.routes.openai.answers import (
    Body,
    ChatForm,
    ChatOut,
    CompletionForm,
    CompletionOut,
    Errata,
    Form,
    ModelCard,
    ModelsOut,
    Usage,
)
from app.routes.openai.asking import Asked, asked_to_chat, asked_to_complete, causal, is_causal
from app.routes.openai.errors import PREFIX, error_out, openai_errors
from app.routes.openai.requests import ChatIn, CompletionIn, Writing
from app.routes.schemas import FiredOut
from app.routes.service import Engine, Service, ServiceOf

router = APIRouter(prefix=PREFIX, tags=["openai"], responses=openai_errors())

MAX_FIRED = 50
"""Edits that the header X-Errata-Fired names at most; the body names all."""


@router.get("/models")
async def list_models(engine: Engine) -> ModelsOut:
    """The served model, if it is a causal one; no other kind can be asked on /v1."""
    return ModelsOut(data=[ModelCard(id=engine.model.name)] if is_causal(engine.model) else [])


@router.get("/models/{model_id:path}")
async def show_model(model_id: str, engine: Engine) -> ModelCard:
    """The served model, by its id, the last part of its id, or its fingerprint."""
    return ModelCard(id=causal(engine.model, model_id).name)


@router.post("/completions", response_model=CompletionOut, responses={200: {"content": {EVENTS: {}}}})
async def complete(body: CompletionIn, request: Request, service: ServiceOf) -> Response:
    """Go on with each prompt."""
    engine = service.parts.engine
    async with turn(request, service) as place:
        asked = await asked_to_complete(engine, body, service.settings, place)
        echoed = _echoed(body, asked, service) if body.echo else [""] * len(asked.encodings)
        return await _answered(service, asked, CompletionForm(engine.model.name, echoed), body, place)


@router.post("/chat/completions", response_model=ChatOut, responses={200: {"content": {EVENTS: {}}}})
async def chat(body: ChatIn, request: Request, service: ServiceOf) -> Response:
    """Say the next turn of a conversation."""
    engine = service.parts.engine
    async with turn(request, service) as place:
        asked = await asked_to_chat(engine, body, service.settings, place)
        return await _answered(service, asked, ChatForm(engine.model.name), body, place)


def _echoed(body: CompletionIn, asked: Asked, service: Service) -> list[str]:
    """Of each choice its prompt, as it was sent or, of token ids, as they read."""
    model = causal(service.parts.engine.model)
    texts = [
        prompt if isinstance(prompt, str) else model.read_back(encoding)
        for prompt, encoding in zip(body.prompts, asked.prompts, strict=True)
    ]
    return [text for text in texts for _ in asked.decodings]


async def _answered(service: Service, asked: Asked, form: Form, body: Writing, place: Place) -> Response:
    engine, view = service.parts.engine, asked.view
    if body.stream:
        place = place.move()
        include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        return Events(_chunks(service, asked, form, place, include_usage=include_usage), view, place)
    answers = await engine.answer(asked.encodings, view, decoding=asked.how, remember=asked.remember, place=place)
    said = [each for each in engine.decode(answers) if isinstance(each, Generation)]
    service.parts.hits.count(fired.edit_id for answer in answers for fired in answer.fired)
    usage = Usage.of(asked.prompt_tokens, sum(answer.output.positions for answer in answers))
    fired = strongest(fired for answer in answers for fired in answer.fired)
    out = form.whole(said, usage, _errata(service, asked, answers))
    return json_response(out.model_dump_json(), view, {"X-Errata-Fired": fired})


async def _chunks(
    service: Service, asked: Asked, form: Form, place: Place, *, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """The answers as they are written, as server-sent events. What fails once they have begun is an event too."""
    hidden = None if include_usage else {"usage"}
    tokens = 0
    try:
        for index in range(len(asked.encodings)):
            if opening := form.opening(index):
                yield _event(opening.model_dump_json(exclude=hidden))
        news = written(service.parts.engine, asked.encodings, asked.how, asked.view, place)
        async with aclosing(news):
            async for item in news:
                tokens += item.answer.output.positions if isinstance(item, Whole) else 0
                yield _event(_chunk(service, asked, form, item).model_dump_json(exclude=hidden))
    except Exception as error:  # noqa: BLE001 - the answer has begun: all that is left is to say so
        yield _event(error_out(failed(error, service.metrics)).model_dump_json())
        return
    if include_usage:
        yield _event(form.counted(Usage.of(asked.prompt_tokens, tokens)).model_dump_json())
    yield _event("[DONE]")


def _chunk(service: Service, asked: Asked, form: Form, item: Piece | Whole) -> Body:
    if isinstance(item, Piece):
        return form.piece(item.index, item.text)
    service.parts.hits.count(fired.edit_id for fired in item.answer.fired)
    return form.closing(item.index, item.generation, _errata(service, asked, [item.answer]))


def _errata(service: Service, asked: Asked, answers: Sequence[Answer]) -> Errata:
    return Errata(
        revision=asked.view.revision,
        model=service.parts.engine.model.fingerprint,
        fired=[
            [FiredOut(edit_id=each.edit_id, strength=each.strength, positions=each.positions) for each in answer.fired]
            for answer in answers
        ],
        input=asked.input,
    )


def strongest(fired: Iterable[Fired]) -> str:
    """The edits that took part in any choice, strongest first, each once."""
    ordered = sorted(fired, key=lambda each: -each.strength)
    return ",".join(list(dict.fromkeys(each.edit_id for each in ordered))[:MAX_FIRED])


def _event(content: str) -> bytes:
    return format_sse_event(data_str=content)
