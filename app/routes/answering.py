"""What all routes that answer share: which view, how to decode, and answers that come piece by piece."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from app.engine import Answer, Place, View
from app.engine import Engine as EnginePart
from app.errors import ClientGone, NotCaughtUp, ServiceError, TimedOut, UnknownEdit, UnknownRevision, Unprocessable
from app.model import Ask, Decoding, Encoding, Generation, Generator, Sampling
from app.observe import Metrics
from app.routes.schemas import GenerationIn, Under
from app.routes.service import Service
from app.settings import Settings

log = structlog.get_logger()

T = TypeVar("T")

EVENTS = EventSourceResponse.media_type
UNWATCHED_SECONDS = 0.02
"""An answer that comes sooner is not worth a task that watches whether its reader is still there."""


def view_of(engine: EnginePart, body: Under) -> View:
    """What this request is answered under. Raises what a caller can have asked wrongly."""
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


def decoding_of(engine: EnginePart, given: GenerationIn | None, settings: Settings) -> Decoding | None:
    """How to decode; None for a classifier. Raises Unprocessable."""
    if not isinstance(engine.model, Generator):
        if given is not None:
            raise Unprocessable("body.generation: this model classifies; it generates nothing.")
        return None
    given = given or GenerationIn.model_validate({})
    new_tokens = settings.new_tokens if given.max_new_tokens is None else given.max_new_tokens
    if new_tokens > settings.max_new_tokens:
        raise Unprocessable(
            f"body.generation.max_new_tokens: is {new_tokens}; at most {settings.max_new_tokens} are written."
        )
    return Decoding(new_tokens, _sampling(given), tuple(given.stop))


def _sampling(given: GenerationIn) -> Sampling | None:
    if given.do_sample:
        temperature = 1.0 if given.temperature is None else given.temperature
        return Sampling(temperature, given.top_k, given.top_p, given.seed)
    for name in ("temperature", "top_k", "top_p"):
        if getattr(given, name) is not None:
            raise Unprocessable(f"body.generation.{name}: is for sampling; send do_sample: true with it.")
    return None


@asynccontextmanager
async def turn(request: Request, service: Service) -> AsyncIterator[Place]:
    """One request's place among the inputs that are answered, for as long as it is wanted and in time."""
    with service.parts.engine.admission.place() as place:
        async with wanted(request, service.settings.request_seconds):
            yield place


@asynccontextmanager
async def wanted(request: Request, seconds: float | None = None) -> AsyncIterator[None]:
    """Cancels what is done here when the client has gone, and after so many seconds.

    Raises ClientGone then, to nobody, and TimedOut.
    """
    watch = _Watch(request, seconds)
    try:
        async with asyncio.timeout(None) as limit:
            watch.begin(limit)
            yield
    except TimeoutError as over:
        if watch.gone:
            raise ClientGone("The client went away.") from over
        if limit.expired():
            raise TimedOut(f"There is no answer after {seconds:g} seconds.") from over
        raise
    finally:
        watch.end()


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is given up when the client has gone. Raises ClientGone then, to nobody."""
    async with wanted(request):
        return await work


class _Watch:
    """Lets a time limit expire after so many seconds, and when the client has gone.

    Both begin a little later, by one timer: most requests end before.
    """

    def __init__(self, request: Request, seconds: float | None) -> None:
        self.gone = False
        self._request = request
        self._seconds = math.inf if seconds is None else seconds
        self._begins: asyncio.TimerHandle | None = None
        self._watching: asyncio.Task[None] | None = None

    def begin(self, limit: asyncio.Timeout) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._seconds
        self._begins = loop.call_later(min(UNWATCHED_SECONDS, self._seconds), self._begin, limit, until)

    def end(self) -> None:
        if self._begins is not None:
            self._begins.cancel()
        if self._watching is not None:
            self._watching.cancel()

    def _begin(self, limit: asyncio.Timeout, until: float) -> None:
        limit.reschedule(None if until == math.inf else until)
        self._watching = asyncio.ensure_future(self._watch(limit))

    async def _watch(self, limit: asyncio.Timeout) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        limit.reschedule(asyncio.get_running_loop().time())


def json_response(content: str, view: View, headers: Mapping[str, str] | None = None) -> Response:
    """The JSON of an answer as it is sent. FastAPI would check the answer again, and walk through all of it twice."""
    revision = {"X-Model-Revision": str(view.revision)}
    return Response(content, media_type="application/json", headers={**revision, **(headers or {})})


class Events(StreamingResponse):
    """Server-sent events of an answer that is written; it has its place until all is written or nobody reads."""

    def __init__(self, content: AsyncGenerator[bytes, None], view: View, place: Place) -> None:
        headers = {"X-Model-Revision": str(view.revision), "Cache-Control": "no-cache"}
        super().__init__(content, media_type=EVENTS, headers=headers)
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            await super().__call__(scope, receive, send)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more text of one answer."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Whole:
    """One answer, when all of its text is there."""

    index: int
    answer: Answer
    generation: Generation


async def written(
    engine: EnginePart,
    encodings: Sequence[Encoding],
    decoding: Decoding | Sequence[Decoding],
    view: View,
    place: Place,
) -> AsyncGenerator[Piece | Whole, None]:
    """Answers as they are written: pieces that add up to the text of the whole that follows them."""
    assert isinstance(engine.model, Generator)
    how = decoding if isinstance(decoding, Sequence) else [decoding] * len(encodings)
    asks = [Ask(*each) for each in zip(encodings, how, strict=True)]
    texts = [_Text(engine.model, ask) for ask in asks]
    async with aclosing(engine.stream(asks, view, place)) as news:
        async for index, item in news:
            if isinstance(item, int):
                if piece := texts[index].add(item):
                    yield Piece(index, piece)
                continue
            (generation,) = engine.decode([item])
            assert isinstance(generation, Generation)
            if rest := texts[index].rest(generation.text):
                yield Piece(index, rest)
            yield Whole(index, item, generation)


class _Text:
    """One answer's text so far. What may be the beginning of a stop text is held back until it is known."""

    def __init__(self, model: Generator, ask: Ask) -> None:
        self._pieces = model.pieces(ask.encoding)
        self._held = max((len(stop) - 1 for stop in ask.decoding.stop), default=0) if ask.decoding else 0
        self._stops = ask.decoding.stop if ask.decoding else ()
        self._text = ""
        self._shown = 0

    def add(self, token: int) -> str:
        """What may be shown now that this token has come."""
        self._text += self._pieces.add(token)
        if any(stop in self._text for stop in self._stops):
            return ""  # the whole, which follows, is cut there
        upto = max(len(self._text) - self._held, self._shown)
        piece = self._text[self._shown : upto]
        self._shown = upto
        return piece

    def rest(self, whole: str) -> str:
        """What is still to be shown of the whole text."""
        return whole[self._shown :]


def failed(error: Exception, metrics: Metrics) -> ServiceError:
    """What a reader is told of a failure in the middle of a stream; what nobody expected goes to the log."""
    if isinstance(error, ServiceError):
        metrics.refused(error)
        return error
    log.error("a stream failed", exc_info=error)
    return ServiceError("The service failed to go on with this answer; its log says why.")


def event(kind: str, content: BaseModel) -> bytes:
    """One server-sent event."""
    return format_sse_event(event=kind, data_str=content.model_dump_json(exclude_none=True))
