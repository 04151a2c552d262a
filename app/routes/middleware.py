"""Around every request: an id that names it in answers and logs, a bound on its body, and on all at once."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from anyio import BrokenResourceError, ClosedResourceError
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils import uuid4

from app.errors import BodyTooLarge, BodyTooSlow, Overloaded, ServiceError, Unavailable
from app.observe import Metrics
from app.routes.problems import error_at

log = structlog.get_logger()

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods that metrics tell apart; a client may send any word."""
FOR_OPERATORS = frozenset({"/livez", "/readyz", "/metrics"})
SECONDS_BETWEEN_PARTS = 30.0
SOON = {"Retry-After": "1"}


class RequestContext:
    """Gives each request an id (the caller's, if it sends a sane one), logs it, counts it, takes its time."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._log = log.bind()  # to bind at each request takes longer than to leave a message out

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = _request_id(scope)
        status: int | None = None
        counted = False

        def count() -> None:
            nonlocal counted
            if not counted:
                counted = True
                self._count(scope, status or 500, time.perf_counter() - began)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            elif message["type"] == "http.response.body" and not message.get("more_body", False):
                count()  # whoever has the whole answer finds it counted
            await send(message)

        bound = structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:  # the server is stopping and has waited long enough
            if status is None:
                stopping = Unavailable("The service is stopping.")
                await error_at(scope["path"], stopping)(scope, receive, send_with_id)
        except Exception as error:
            if _reader_has_gone(error):
                log.debug("the client went away", path=scope["path"])
            elif status is not None:
                raise
            else:
                log.exception("a request failed", path=scope["path"])
                failure = ServiceError("The service failed to answer this request; its log says why.")
                await error_at(scope["path"], failure)(scope, receive, send_with_id)
        finally:
            count()
            structlog.contextvars.reset_contextvars(**bound)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.answered(method, route, status, seconds)
        self._log.debug("request", method=scope["method"], path=scope["path"], status=status)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given: str = value.decode("latin-1")
            return given if re.fullmatch(r"[\w.:-]{1,128}", given, re.ASCII) else uuid4().hex
    return uuid4().hex


class BoundedRequests:
    """Refuses requests beyond a number at once, before anything of them is read; operators' tools always get in."""

    def __init__(self, app: ASGIApp, limit: int, metrics: Metrics) -> None:
        self._app = app
        self._limit = limit
        self._metrics = metrics
        self._open = 0
        metrics.requests_in_flight.set_function(lambda: self._open)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in FOR_OPERATORS:
            await self._app(scope, receive, send)
            return
        if self._open >= self._limit:
            error = Overloaded(f"{self._open} requests are being answered, and no more are taken.", headers=SOON)
            self._metrics.refused(error)
            await error_at(scope["path"], error)(scope, receive, send)
            return
        self._open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open -= 1


def _reader_has_gone(error: BaseException) -> bool:
    """Whether this is all that a stream says when its reader has closed the connection."""
    if isinstance(error, BaseExceptionGroup):
        return all(_reader_has_gone(each) for each in error.exceptions)
    return isinstance(error, BrokenResourceError | ClosedResourceError)


class BoundedBody:
    """Reads bodies, and refuses those beyond a limit, those that do not arrive, and more than fit at once."""

    def __init__(
        self,
        app: ASGIApp,
        limit: int,
        larger: Mapping[str, int],
        *,
        at_once: int,
        metrics: Metrics,
        patience: float = SECONDS_BETWEEN_PARTS,
    ) -> None:
        """Bytes. larger: the limits of some paths. at_once: of all requests. patience: seconds without a part."""
        self._app = app
        self._limit = limit
        self._larger = larger
        self._room = at_once
        self._metrics = metrics
        self._patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "DELETE", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        held = _Held()
        try:
            inner = await self._let_in(scope, receive, held)
            await inner(scope, receive, send)
        finally:
            self._room += held.bytes

    async def _let_in(self, scope: Scope, receive: Receive, held: _Held) -> ASGIApp:
        """The application with the body that was read, or what answers instead."""
        try:
            body = await self._read(scope, receive, held)
        except ClientDisconnect:
            log.debug("the client went away", path=scope["path"])
            return _silence
        except ServiceError as error:
            self._metrics.refused(error)
            return error_at(scope["path"], error)

        async def with_body(scope: Scope, receive: Receive, send: Send) -> None:
            await self._app(scope, replay(body, receive), send)

        return with_body

    async def _read(self, scope: Scope, receive: Receive, held: _Held) -> bytes:
        """The whole body; what it takes is held until the request is answered.

        Raises ClientDisconnect for one that breaks off, since the part that came may read as something whole;
        BodyTooLarge, BodyTooSlow and Overloaded.
        """
        limit = self._larger.get(scope["path"], self._limit)
        too_large = BodyTooLarge(f"The body is larger than {limit} bytes.")
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > limit:
            raise too_large
        parts: list[bytes] = []
        while True:
            message = await self._next(receive, held)
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part = message.get("body", b"")
            if held.bytes + len(part) > limit:
                raise too_large
            if len(part) > self._room:
                raise Overloaded(
                    "The bodies of the requests being read are as much as there is room for.", headers=SOON
                )
            self._room -= len(part)
            held.bytes += len(part)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    async def _next(self, receive: Receive, held: _Held) -> Message:
        """The next part of the body. Raises BodyTooSlow."""
        try:
            async with asyncio.timeout(self._patience):
                return await receive()
        except TimeoutError:
            why = f"{held.bytes} bytes of the body came, and no more for {self._patience:g} seconds."
            raise BodyTooSlow(why) from None


async def _silence(scope: Scope, receive: Receive, send: Send) -> None:
    """Nobody is there to be answered."""


@dataclass(slots=True)
class _Held:
    """What the body of one request takes."""

    bytes: int = 0


def replay(body: bytes, receive: Receive) -> Receive:
    """`body` as one message, then whatever else comes."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed
