"""More is asked than the service does: what is refused, what is given up, and that nothing of it stays."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.engine import Engine, Live
from app.engine.admission import LONGEST_RETRY, Admission
from app.engine.device import DeviceThread, Pace
from app.errors import Overloaded
from app.model import Ask, Decoding, load
from app.observe import Metrics
from app.routes.answering import Events
from app.routes.middleware import BoundedBody, BoundedRequests
from app.settings import Settings
from editors.composition import Composition
from editors.registry import editors
from tests.app.conftest import Caller, sentence, settings_in, started
from tests.app.test_answering import in_a_loop
from tests.deployed import CHAT_TEMPLATE, deploy

FEW = {"max_inputs": 4, "max_waiting_inputs": 8}


def eventually(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.002)


class Service:
    """A service whose device can be held up."""

    def __init__(self, client: TestClient) -> None:
        app: Any = client.app
        self.client = client
        self.engine: Engine = app.state.service.parts.engine

    @property
    def portal(self) -> Any:
        assert self.client.portal is not None
        return self.client.portal

    @property
    def inputs(self) -> int:
        return self.engine.admission.inputs

    def begun(self) -> float:
        """Inputs that went into a forward pass."""
        return self.metric("errata_batch_size_sum")

    def metric(self, name: str) -> float:
        (line,) = (line for line in self.client.get("/metrics").text.splitlines() if line.startswith(f"{name} "))
        return float(line.rpartition(" ")[2])

    def fill(self) -> None:
        """Let callers' inputs be as many as there may be."""
        self.portal.call(self.engine.admission.take, FEW["max_waiting_inputs"])

    @contextmanager
    def held(self) -> Iterator[None]:
        holds, release = threading.Event(), threading.Event()

        def hold() -> None:
            holds.set()
            release.wait(30)

        self.portal.start_task_soon(self.engine.call, hold)
        assert holds.wait(10)
        try:
            yield
        finally:
            release.set()

    def ask(self, inputs: int = 1, **body: Any) -> Any:
        return self.client.post("/predict", json={"inputs": [sentence(number) for number in range(inputs)], **body})


@contextmanager
def serving(settings: Settings, **changes: Any) -> Iterator[Service]:
    with started(settings.model_copy(update={**FEW, **changes})) as client:
        yield Service(client)


@pytest.fixture
def service(settings: Settings) -> Iterator[Service]:
    with serving(settings) as service:
        yield service


def test_inputs_beyond_the_bound_are_refused_until_others_are_answered(service: Service) -> None:
    with ThreadPoolExecutor(2) as pool:
        with service.held():
            asked: list[Future[Any]] = [pool.submit(service.ask, 4) for _ in range(2)]
            eventually(lambda: service.inputs == 8)
            refused = service.ask(1)
            assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
            assert 1 <= int(refused.headers["Retry-After"]) <= LONGEST_RETRY
            assert service.metric('errata_refused_total{reason="overloaded"}') == 1
            assert service.metric("errata_waiting_inputs") == 8
        assert [each.result().status_code for each in asked] == [200, 200]
    assert service.inputs == 0
    assert service.ask(4).status_code == 200


def test_a_refused_request_takes_no_place(service: Service) -> None:
    for body in ({"inputs": ["w1"], "as_of": 7}, {"inputs": [" ".join(["w1"] * 100)]}, {"inputs": ["w1"] * 5}):
        assert service.client.post("/predict", json=body).status_code == 422
    assert service.inputs == 0


def test_an_edit_is_fitted_and_judged_while_callers_are_refused(service: Service) -> None:
    caller = Caller(service.client)
    target = caller.mistaken(sentence(1))
    service.fill()
    assert service.ask().status_code == 429
    assert caller.edit(sentence(1), target)["status"] == "live"


def test_the_bound_holds_for_streams_and_for_openai_s_routes(tmp_path: Path) -> None:
    model = deploy(tmp_path / "llama", family="Llama", chat_template=CHAT_TEMPLATE)
    with started(settings_in(tmp_path, model, **FEW)) as client:
        service, named = Service(client), {"model": "llama", "max_tokens": 2}
        chat = {**named, "messages": [{"role": "user", "content": "w1"}]}
        paths: list[tuple[str, dict[str, Any]]] = [
            ("/predict", {"inputs": ["w1"], "generation": {"max_new_tokens": 2}}),
            ("/v1/completions", {**named, "prompt": ["w1", "w2"], "n": 2}),
            ("/v1/chat/completions", chat),
        ]
        asked = [(path, {**body, **stream}) for path, body in paths for stream in ({}, {"stream": True})]
        for path, body in asked:
            assert client.post(path, json=body).status_code == 200
            assert service.inputs == 0
        service.fill()
        for path, body in asked:
            refused = client.post(path, json=body)
            assert refused.status_code == 429, path
            assert int(refused.headers["Retry-After"]) >= 1
            error = refused.json().get("error", refused.json())
            assert error["code"] == "overloaded"


def test_inputs_that_waited_too_long_are_not_run(settings: Settings) -> None:
    with serving(settings, max_queue_seconds=0.05) as service, ThreadPoolExecutor(1) as pool:
        with service.held():
            asked = pool.submit(service.ask, 3)
            eventually(lambda: service.inputs == 3)
            time.sleep(0.06)
        late = asked.result()
        assert (late.status_code, late.json()["code"]) == (503, "waited_too_long")
        assert int(late.headers["Retry-After"]) >= 1
        assert (service.inputs, service.begun()) == (0, 0)
        assert service.ask().status_code == 200


def test_a_request_that_is_out_of_time_leaves_the_queue_at_once(settings: Settings) -> None:
    with serving(settings, request_seconds=0.1) as service:
        with service.held():
            late = service.ask(3)
            assert (late.status_code, late.json()["code"]) == (504, "timed_out")
            assert service.inputs == 0
            assert service.metric('errata_refused_total{reason="timed_out"}') == 1
        assert service.ask().status_code == 200
        assert service.begun() == 1


@pytest.mark.parametrize("inputs", [1, 4])
def test_a_client_that_vanishes_costs_no_forward_pass(service: Service, inputs: int) -> None:
    vanish = asyncio.Event()
    with ThreadPoolExecutor(1) as pool:
        with service.held():
            body = json.dumps({"inputs": [sentence(1)] * inputs}).encode()
            asking = pool.submit(service.portal.call, _asgi, service.client.app, "/predict", body, vanish)
            eventually(lambda: service.inputs == inputs)
            service.portal.call(vanish.set)
            asking.result(20)
            assert service.inputs == 0
        assert service.begun() == 0


def test_a_client_that_vanishes_while_it_waits_for_an_edit_leaves_the_edit_alone(service: Service) -> None:
    caller, vanish = Caller(service.client), asyncio.Event()
    report = {"input": sentence(1), "target": caller.mistaken(sentence(1))}
    with ThreadPoolExecutor(1) as pool:
        with service.held():
            body, wait = json.dumps(report).encode(), (b"prefer", b"wait=60")
            asking = pool.submit(service.portal.call, _asgi, service.client.app, "/edits", body, vanish, wait)
            eventually(lambda: service.client.get("/edits").json()["items"])
            service.portal.call(vanish.set)
            asking.result(20)
        eventually(lambda: service.client.get("/edits").json()["items"][0]["status"] == "live")


async def _asgi(app: Any, path: str, body: bytes, vanish: asyncio.Event, *headers: tuple[bytes, bytes]) -> None:
    """A client that sends its request, and goes away when it is told to."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await vanish.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        assert message.get("status") in (None, 499)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), *headers],
        "app": app,
    }
    await app(scope, receive, send)


@pytest.fixture
def engine(tiny_model: Path) -> Iterator[Engine]:
    model = load(tiny_model, device="cpu")
    engine = Engine(
        model, Live(0, Composition(editors(), model.sites, model.device), ()), Metrics(), max_batch=4, fit_share=0.3
    )
    yield engine
    engine.close()


@in_a_loop
async def test_nothing_of_a_cancelled_request_stays_in_memory(engine: Engine) -> None:
    holds, release = threading.Event(), threading.Event()

    def hold() -> None:
        holds.set()
        release.wait(30)

    holding = asyncio.ensure_future(engine.call(hold))
    try:
        assert await asyncio.to_thread(holds.wait, 10)
        encodings = engine.model.encode(["w1 w2 w3"] * 6)
        kept = [weakref.ref(encoding.input_ids) for encoding in encodings]
        asking = asyncio.ensure_future(engine.answer(encodings, engine.live.view()))
        del encodings
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        del asking
        await asyncio.sleep(0)  # what woke us up holds what it brought
        gc.collect()
        assert [each() for each in kept] == [None] * 6
    finally:
        release.set()
        await holding


@in_a_loop
async def test_tokenising_that_has_not_begun_is_dropped(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    release, begun, busy = threading.Event(), list[str](), threading.Semaphore(0)

    def encode(texts: Sequence[str]) -> list[Any]:
        begun.append(texts[0])
        busy.release()
        release.wait(30)
        return []

    monkeypatch.setattr(engine.model, "encode", encode)
    asked = [asyncio.ensure_future(engine.encode([f"text {number}", ""])) for number in range(6)]
    for _ in range(2):
        assert await asyncio.to_thread(busy.acquire, timeout=10)
    for each in asked[2:5]:
        each.cancel()
    await asyncio.sleep(0)
    release.set()
    await asyncio.gather(*asked, return_exceptions=True)
    assert begun == ["text 0", "text 1", "text 5"]


@in_a_loop
async def test_the_place_of_a_stream_is_left_when_all_is_written_however_slowly_it_is_read(tmp_path: Path) -> None:
    model = load(deploy(tmp_path / "model", family="Llama"), device="cpu")
    overlay = Composition(editors(), model.sites, model.device)
    engine = Engine(model, Live(0, overlay, ()), Metrics(), max_batch=4, fit_share=0.3)
    try:
        place = engine.admission.place()
        place.take(1)
        (encoding,) = model.encode(["w1 w2"])
        news = engine.stream([Ask(encoding, Decoding(8))], engine.live.bare(), place)
        await anext(news)
        for _ in range(1_000):  # the answer of eight tokens is there long before
            await engine.call(lambda: None)
        assert engine.admission.inputs == 0
        assert len([item async for item in news]) > 0
    finally:
        engine.close()


@in_a_loop
async def test_the_place_of_a_stream_that_never_begins_is_left(engine: Engine) -> None:
    async def nothing() -> Any:
        raise AssertionError
        yield b""

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        raise OSError("gone")

    place = engine.admission.place()
    place.take(3)
    response = Events(nothing(), engine.live.view(), place)
    with pytest.raises(BaseException):  # noqa: B017 - whatever starlette makes of it
        await response({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)
    assert engine.admission.inputs == 0


class Rows:
    """What a device ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.holds, self.release = threading.Event(), threading.Event()

    def run(self, rows: Sequence[str]) -> list[Iterator[None]]:
        self.ran.extend(rows)
        return []

    def hold(self) -> None:
        self.holds.set()
        self.release.wait(30)


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def device(rows: Rows) -> Iterator[DeviceThread[str]]:
    """It is held until `rows.release` is set."""
    device: DeviceThread[str] = DeviceThread(rows.run, max_batch=4, fit_share=0.3)
    device.call(rows.hold)
    assert rows.holds.wait(10)
    yield device
    rows.release.set()
    device.close()


def test_what_is_withdrawn_is_not_run_and_the_others_keep_their_order(device: DeviceThread[str], rows: Rows) -> None:
    groups = [device.submit([f"{name}1", f"{name}2"]) for name in "abc"]
    device.withdraw(groups[1])
    rows.release.set()
    device.close()
    assert rows.ran == ["a1", "a2", "c1", "c2"]


def test_what_is_late_is_given_up_and_the_others_are_run(device: DeviceThread[str], rows: Rows) -> None:
    given_up: list[str] = []
    device.submit(["late"], until=time.monotonic(), given_up=lambda: given_up.append("late"))
    device.submit(["in time"], until=time.monotonic() + 60, given_up=lambda: given_up.append("in time"))
    device.submit(["patient"])
    rows.release.set()
    device.close()
    assert rows.ran == ["in time", "patient"]
    assert given_up == ["late"]


def test_a_request_that_has_begun_is_finished_even_late(device: DeviceThread[str], rows: Rows) -> None:
    group = device.submit(["a", "b", "c", "d", "e"])
    group.begun, group.until = True, time.monotonic()
    rows.release.set()
    device.close()
    assert rows.ran == ["a", "b", "c", "d", "e"]


def test_the_pace_is_that_of_late() -> None:
    pace = Pace()
    assert pace.rows_a_second() == 0
    for _ in range(100):
        pace.add(10, 1.0)
    assert pace.rows_a_second() == pytest.approx(10)
    for _ in range(100):
        pace.add(30, 1.0)
    assert pace.rows_a_second() == pytest.approx(30)


@pytest.mark.parametrize(("pace", "seconds"), [(0.0, 1), (1000.0, 1), (20.0, 5), (0.1, LONGEST_RETRY)])
def test_a_refused_caller_is_told_when_what_is_there_should_be_answered(pace: float, seconds: int) -> None:
    admission = Admission(100, 10.0, lambda: pace)
    admission.take(100)
    with pytest.raises(Overloaded) as refused:
        admission.take(1)
    assert refused.value.headers["Retry-After"] == str(seconds)


@pytest.mark.parametrize(
    "changes", [{"max_waiting_inputs": 255}, {"max_buffered_bytes": 2**27 - 1}, {"max_inputs": 1_025}]
)
def test_settings_under_which_the_largest_request_could_never_be_answered_are_refused(changes: Any) -> None:
    with pytest.raises(ValidationError, match="less than"):
        Settings(**changes)


class Edge:
    """What answers at the edge, around an application that waits until it is let go."""

    def __init__(self, wrap: Callable[[ASGIApp], ASGIApp]) -> None:
        self.go = asyncio.Event()
        self.bodies: list[bytes] = []
        self._edge = wrap(self._answer)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.bodies.append((await receive())["body"])
        await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def ask(self, *parts: bytes, path: str = "/predict", ended: bool = True) -> int:
        """The status of the answer; a body that is not ended never comes to its end."""
        left: list[Message] = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        statuses: list[int] = []
        if ended:
            left[-1]["more_body"] = False

        async def receive() -> Message:
            if not left:
                await asyncio.Event().wait()
            return left.pop(0)

        async def send(message: Message) -> None:
            statuses.extend([message["status"]] if "status" in message else [])

        scope = {"type": "http", "method": "POST", "path": path, "headers": []}
        await self._edge(scope, receive, send)
        return statuses[0]


def bounded_body(**changes: Any) -> Callable[[ASGIApp], ASGIApp]:
    sizes = {"limit": 10, "larger": {}, "at_once": 12, "metrics": Metrics(), **changes}
    return lambda app: BoundedBody(app, **sizes)


@in_a_loop
async def test_requests_beyond_so_many_at_once_are_refused_but_for_operators() -> None:
    edge = Edge(lambda app: BoundedRequests(app, limit=1, metrics=Metrics()))
    first = asyncio.ensure_future(edge.ask(b""))
    await asyncio.sleep(0)
    assert await edge.ask(b"") == 429
    operators = [asyncio.ensure_future(edge.ask(b"", path=path)) for path in ("/livez", "/readyz", "/metrics")]
    edge.go.set()
    assert [await each for each in (first, *operators)] == [200] * 4
    assert await edge.ask(b"") == 200


@in_a_loop
async def test_bodies_beyond_so_many_bytes_at_once_are_refused_until_there_is_room() -> None:
    edge = Edge(bounded_body())
    first = asyncio.ensure_future(edge.ask(b"12345", b"678"))
    await asyncio.sleep(0.01)
    assert await edge.ask(b"12345") == 429
    edge.go.set()
    assert await first == 200
    assert await edge.ask(b"1234567890") == 200
    assert await edge.ask(b"12345678901") == 413
    assert await edge.ask(b"1234567890") == 200
    assert edge.bodies == [b"12345678", b"1234567890", b"1234567890"]


@in_a_loop
async def test_a_body_that_does_not_come_is_given_up() -> None:
    edge = Edge(bounded_body(patience=0.02))
    edge.go.set()
    assert await edge.ask(b"12345", ended=False) == 408
    assert await edge.ask(b"1234567890") == 200


def test_what_is_refused_is_a_problem_with_a_code(service: Service) -> None:
    service.fill()
    refused = service.ask()
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["title"] == Overloaded.title
    assert refused.headers["X-Request-ID"]
