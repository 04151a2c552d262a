"""Answers that nobody waits for any more, and answers that fail half-way."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from app.engine import Engine, Live
from app.errors import TimedOut, Unavailable
from app.model import Ask, Decoding, Generator, load
from app.model.answers import Finished
from app.observe import Metrics
from app.routes.answering import UNWATCHED_SECONDS, unless_gone, wanted
from app.routes.middleware import RequestContext
from editors.composition import Composition
from editors.registry import editors
from editors.types import Acting
from tests.app.conftest import settings_in, started
from tests.deployed import deploy


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine function."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def request(messages: Sequence[Message]) -> Request:
    """A request whose connection says these things one after the other, and then nothing."""
    left = list(messages)

    async def receive() -> Message:
        if left:
            return left.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    return Request({"type": "http"}, receive)


@in_a_loop
async def test_work_is_given_up_when_the_client_has_gone() -> None:
    given_up = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            given_up.set()
            raise

    with pytest.raises(Unavailable):
        await unless_gone(request([{"type": "http.disconnect"}]), endless())
    await asyncio.wait_for(given_up.wait(), 10)


@in_a_loop
async def test_work_is_finished_for_a_client_that_stays() -> None:
    async def short() -> int:
        await asyncio.sleep(0)
        return 3

    assert await unless_gone(request([]), short()) == 3


@pytest.mark.parametrize("seconds", [UNWATCHED_SECONDS / 20, UNWATCHED_SECONDS * 2])
@in_a_loop
async def test_work_is_given_up_when_its_time_is_over(seconds: float) -> None:
    began = asyncio.get_running_loop().time()
    with pytest.raises(TimedOut):
        async with wanted(request([]), seconds):
            await asyncio.wait_for(asyncio.Event().wait(), 10)
    assert asyncio.get_running_loop().time() - began >= seconds * 0.99


@in_a_loop
async def test_a_cancelled_answer_is_not_written_on(tmp_path: Path) -> None:
    model = load(deploy(tmp_path / "model", family="Llama", max_tokens=20_000), device="cpu")
    asks: list[Ask] = []
    begun = threading.Event()

    class Watched(Generator):
        """Tells what it is asked."""

        def run(self, given: Sequence[Ask], acting: Acting | None) -> Iterator[Finished]:
            asks.extend(given)
            begun.set()
            return super().run(given, acting)

    model.__class__ = Watched
    overlay = Composition(editors(), model.sites, model.device)
    engine = Engine(model, Live(0, overlay, ()), Metrics(), max_batch=4, fit_share=0.3)
    try:
        encodings = model.encode(["w1 w2"])
        decoding = Decoding(19_000)
        writing = asyncio.ensure_future(engine.answer(encodings, engine.live.bare(), decoding=decoding))
        assert await asyncio.to_thread(begun.wait, 10)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        assert asks[0].cancelled
        await asyncio.wait_for(engine.answer(encodings, engine.live.bare(), decoding=Decoding(2)), 10)
    finally:
        engine.close()


@in_a_loop
async def test_a_request_that_the_stopping_server_cancels_is_answered_with_503() -> None:
    async def cancelled(scope: Scope, receive: Receive, send: Send) -> None:
        raise asyncio.CancelledError

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
    await RequestContext(cancelled, Metrics())(scope, receive, send)
    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"])["code"] == "unavailable"


class Breaking(Generator):
    """Fails after the first token."""

    def run(self, asks: Sequence[Ask], acting: Acting | None) -> Iterator[Finished]:
        slices = super().run(asks, acting)
        yield next(slices)
        raise ArithmeticError("broken")


@pytest.fixture
def breaking(tmp_path: Path) -> Iterator[TestClient]:
    folder = deploy(tmp_path / "model", family="Llama")
    with started(settings_in(tmp_path, folder)) as client:
        app: Any = client.app
        assert isinstance(app, FastAPI)
        app.state.service.parts.engine.model.__class__ = Breaking
        yield client


def test_a_stream_that_fails_half_way_says_so(breaking: TestClient) -> None:
    answer = breaking.post("/predict", json={"inputs": ["w1"], "stream": True})
    assert "event: error" in answer.text
    assert "internal_error" in answer.text
    assert "event: done" not in answer.text


def test_a_stream_of_completions_that_fails_half_way_says_so(breaking: TestClient) -> None:
    body = {"model": breaking.get("/v1/models").json()["data"][0]["id"], "prompt": "w1", "stream": True}
    answer = breaking.post("/v1/completions", json=body)
    assert '"error"' in answer.text
    assert "[DONE]" not in answer.text
