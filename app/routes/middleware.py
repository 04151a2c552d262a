"""Around every request: an id that names it in answers and logs, and a bound on its body."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from uuid import uuid4

import structlog
from anyio import BrokenResourceError, ClosedResourceError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BodyTooLarge, ServiceError, Unavailable
from app.observe import Metrics
from app.routes.problems import error_at

log = structlog.get_logger()

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods that metrics tell apart; a client may send any word."""


class RequestContext:
    """Gives each request an id (the caller's, if it sends a sane one), logs it, counts it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if re.fullmatch(r"[\w.:-]{1,128}", given, re.ASCII) else uuid4().hex
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
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
                self._account(scope, status or 500)

    def _account(self, scope: Scope, status: int) -> None:
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.requests.labels(method, route, str(status)).inc()
        log.debug("request", method=scope["method"], path=scope["path"], status=status)


def _reader_has_gone(error: BaseException) -> bool:
    """Whether this is all that a stream says when its reader has closed the connection."""
    if isinstance(error, BaseExceptionGroup):
        return all(_reader_has_gone(each) for each in error.exceptions)
    return isinstance(error, BrokenResourceError | ClosedResourceError)


class BoundedBody:
    """Refuses bodies beyond a limit before anything reads them; some paths have a larger one."""

    def __init__(self, app: ASGIApp, limit: int, larger: Mapping[str, int]) -> None:
        self._app = app
        self._limit = limit
        self._larger = larger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "DELETE", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        limit = self._larger.get(scope["path"], self._limit)
        declared = Headers(scope=scope).get("content-length", "0")
        try:
            body = None if declared.isdecimal() and int(declared) > limit else await _read(receive, limit)
        except ClientDisconnect:
            log.debug("the client went away", path=scope["path"])
            return
        if body is None:
            error = BodyTooLarge(f"The body is larger than {limit} bytes.")
            await error_at(scope["path"], error)(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)


async def _read(receive: Receive, limit: int) -> bytes | None:
    """The whole body; None if there is more than `limit`.

    Raises ClientDisconnect for one that breaks off: the part that came may read as something whole.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """`body` as one message, then whatever else comes."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed
