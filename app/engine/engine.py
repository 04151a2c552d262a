"""Predictions and fits on one model, under any revision.

A row is one ask and the view it is answered under. Rows of different views share a batch; rows are cut into batches
by length, so that little is padded.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from app.engine.admission import Admission, Place
from app.engine.device import FEW_RUNNING, DeviceThread
from app.engine.live import Live, View
from app.engine.patched import Fired, Patched
from app.engine.reading import reading
from app.engine.traffic import Reservoir
from app.errors import Unavailable
from app.model import Answered, Ask, Decoding, Encoding, Model, Output, Read
from app.observe import Metrics
from editors.layers import LayerSite
from editors.types import Readout

T = TypeVar("T")

TOKENIZING_THREADS = 2
TOKENIZING_AHEAD = 64
"""Requests that wait at the tokenising threads themselves, so that these go on without the event loop."""
PADDING_ALLOWED = 1.5
"""A batch that is padded takes rows of up to this times its shortest row, plus a few tokens."""
ENOUGH_TOKENS = 512
"""A batch that is not padded takes no more rows than reach so many tokens: more of them cost as much each."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said to one ask."""

    ask: Ask
    output: Output
    fired: tuple[Fired, ...]  # strongest first


@dataclass(slots=True)
class _Request:
    """The rows of one request, and who waits for them."""

    answers: list[Answer | None]
    missing: int
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[list[Answer]]
    queued: float  # on the monotonic clock


@dataclass(slots=True)
class _Row:
    ask: Ask
    view: View
    request: _Request
    index: int

    def __len__(self) -> int:
        return len(self.ask.encoding)


_Outcome = tuple[_Request, list[Answer] | Exception]


class Engine:
    """The model, what it serves, and the thread that runs it."""

    def __init__(
        self,
        model: Model,
        live: Live,
        metrics: Metrics,
        *,
        max_batch: int,
        fit_share: float,
        traffic: Reservoir | None = None,
        few_running: int = FEW_RUNNING,
        max_waiting: float = math.inf,
        max_queue_seconds: float = math.inf,
    ) -> None:
        """max_waiting, max_queue_seconds: of what callers ask; see `Admission`."""
        self.model = model
        self.traffic = traffic
        self._live = live
        self._metrics = metrics
        self._max_batch = max_batch
        self._lock = threading.Lock()
        # of its own, so that threads that wait for the database keep no prediction waiting
        self._tokenizing = ThreadPoolExecutor(TOKENIZING_THREADS, thread_name_prefix="tokenizing")
        self._tokenizing_ahead = asyncio.Semaphore(TOKENIZING_AHEAD)
        self._device: DeviceThread[_Row] = DeviceThread(
            self._run, max_batch=max_batch, fit_share=fit_share, few_running=few_running
        )
        self.admission = Admission(max_waiting, max_queue_seconds, self._device.pace)
        metrics.serves(model.name, model.fingerprint, lambda: self.admission.inputs)

    @property
    def live(self) -> Live:
        """What requests that start now are answered from."""
        return self._live

    @property
    def readout(self) -> Readout:
        """Norm and head alone; for work that runs on the device thread."""
        return self.model.readout

    def swap(self, live: Live) -> None:
        """Serve `live` from now on. Requests under way keep the view they started with."""
        with self._lock:
            if live.revision < self._live.revision:
                raise AssertionError(f"revision {live.revision} would replace {self._live.revision}")
            self._live = live

    async def answer(
        self,
        encodings: Sequence[Encoding],
        view: View,
        *,
        decoding: Decoding | Sequence[Decoding | None] | None = None,
        remember: bool = False,
        place: Place | None = None,
    ) -> list[Answer]:
        """Answers under `view`, in order. `remember` lets confident ones join the memory.

        decoding: for generating models, of all encodings or one each. place: a caller's, whose patience counts; what
        the service asks itself has none. Raises WaitedTooLong. Whoever stops waiting takes the rows that wait along.
        """
        how = decoding if isinstance(decoding, Sequence) else [decoding] * len(encodings)
        remember = remember and self.traffic is not None
        asks = [Ask(*each, remember=remember) for each in zip(encodings, how, strict=True)]
        return await self._answers(asks, view, place)

    async def stream(
        self, asks: Sequence[Ask], view: View, place: Place | None = None
    ) -> AsyncGenerator[tuple[int, int | Answer], None]:
        """Tokens as they come, each with the index of its ask, and each ask's answer when all are there.

        Whoever stops listening stops the writing. The place is left when all is written, however slowly it is read.
        """
        loop = asyncio.get_running_loop()
        news: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue()

        def teller(index: int) -> Callable[[int], None]:
            return lambda token: _tell(loop, news, (index, token))

        for index, ask in enumerate(asks):
            ask.on_token = teller(index)
        answers = asyncio.ensure_future(self._answers(asks, view, place))
        answers.add_done_callback(lambda done: news.put_nowait(None))
        if place is not None:
            answers.add_done_callback(lambda done: place.leave())
        try:
            while (token := await news.get()) is not None:
                yield token
            for index, answer in enumerate(await answers):
                yield index, answer
        finally:
            answers.cancel()

    def decode(self, answers: Sequence[Answer]) -> list[Answered]:
        """What the answers say."""
        return self.model.decode([each.ask for each in answers], [each.output for each in answers])

    async def read(
        self,
        encodings: Sequence[Encoding],
        wanted: Sequence[Tensor],
        *,
        view: View | None = None,
        keys_at: Sequence[LayerSite] = (),
    ) -> Read:
        """What the model computes when fed the wanted answers; see `reading`."""
        slices = reading(self.model, encodings, wanted, view=view, keys_at=keys_at, max_batch=self._max_batch)
        while (read := await self.call(partial(_next, slices))) is None:
            pass
        return read

    async def _answers(self, asks: Sequence[Ask], view: View, place: Place | None) -> list[Answer]:
        if not asks:
            return []
        loop = asyncio.get_running_loop()
        request = _Request([None] * len(asks), len(asks), loop, loop.create_future(), time.monotonic())

        def give_up() -> None:
            _settle([(request, self.admission.waited_too_long())])

        rows = [_Row(ask, view, request, index) for index, ask in enumerate(asks)]
        until = math.inf if place is None else self.admission.until()
        try:
            waiting = self._device.submit(rows, until=until, given_up=give_up)
        except RuntimeError as stopped:
            raise Unavailable("The service is stopping.") from stopped
        del rows  # those that are withdrawn are nobody's
        try:
            return await request.done
        except asyncio.CancelledError:  # nobody wants them any more
            self._device.withdraw(waiting)
            for ask in asks:
                ask.cancelled = True
            raise

    async def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Token ids of each text, computed in a thread. Raises InputTooLong."""
        async with self._tokenizing_ahead:  # who waits here can leave without a trace
            loop = asyncio.get_running_loop()
            try:
                encodings = loop.run_in_executor(self._tokenizing, self.model.encode, texts)
            except RuntimeError as stopped:  # the executor takes no more
                raise Unavailable("The service is stopping.") from stopped
            return await encodings

    async def call(self, work: Callable[[], T]) -> T:
        """Run a short piece of work on the device thread."""
        return await asyncio.wrap_future(self._device.call(work))

    async def work(self, slices: Generator[Any, None, T], on_slice: Callable[[Any], None]) -> T:
        """Run a fit on the device thread, slice by slice between predictions."""
        return await asyncio.wrap_future(self._device.work(slices, on_slice))

    def close(self) -> None:
        """Answer what waits, then stop."""
        self._device.close()
        self._tokenizing.shutdown()

    def _run(self, rows: Sequence[_Row]) -> list[Iterator[None]]:
        model = self.model
        groups = _similar(rows, mixed=model.mixes_lengths) if model.pads else _enough(rows)
        return [self._batch(group) for group in groups]

    def _batch(self, rows: Sequence[_Row]) -> Iterator[None]:
        """Answer the rows, each as soon as it is finished; yields where others may use the device."""
        started = time.monotonic()
        self._metrics.batch_begins([started - row.request.queued for row in rows], sum(map(len, rows)))
        patched = Patched([row.view for row in rows], self.model.device)
        own, began = 0.0, started  # without what others did between its slices
        try:
            for finished in self.model.run([row.ask for row in rows], patched):
                outcomes = [
                    self._answered(rows[number], output, patched.fired(number, output.positions))
                    for number, output in finished
                ]
                if self.model.writes:
                    self._metrics.output_tokens.inc(sum(output.positions for _, output in finished))
                _settle([outcome for outcome in outcomes if outcome is not None])
                own += time.monotonic() - began
                yield
                began = time.monotonic()
        except Exception as error:  # noqa: BLE001 - the job boundary: it fails its requests, not the thread
            _settle([(request, error) for request in {id(row.request): row.request for row in rows}.values()])
        self._metrics.forward_seconds.observe(own + time.monotonic() - began)

    def _answered(self, row: _Row, output: Output, fired: tuple[Fired, ...]) -> _Outcome | None:
        """Keep one answer; the outcome of its request, if it was the last."""
        if self.traffic is not None and output.seen is not None and not fired:
            self.traffic.offer(output.seen, output.confidence)
        request = row.request
        request.answers[row.index] = Answer(row.ask, output, fired)
        request.missing -= 1
        if request.missing:
            return None
        return request, [answer for answer in request.answers if answer is not None]


def _similar(rows: Sequence[_Row], *, mixed: bool) -> list[list[_Row]]:
    """The rows in groups of similar length, so that padding costs little; of the same length unless `mixed`."""
    groups: list[list[_Row]] = []
    for row in sorted(rows, key=len):
        longest = PADDING_ALLOWED * len(groups[-1][0]) + 8 if groups and mixed else len(groups[-1][0]) if groups else 0
        if groups and len(row) <= longest:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _enough(rows: Sequence[_Row]) -> list[list[_Row]]:
    """The rows in groups that are large enough, the short ones first: these need not wait for the long ones."""
    groups: list[list[_Row]] = [[]]
    tokens = 0
    for row in sorted(rows, key=len):
        if tokens >= ENOUGH_TOKENS:
            groups.append([])
            tokens = 0
        groups[-1].append(row)
        tokens += len(row)
    return groups


def _next(slices: Generator[None, None, T]) -> T | None:
    """Run one slice; what they return when it was the last."""
    try:
        next(slices)
    except StopIteration as end:
        result: T = end.value
        return result
    return None


def _tell(loop: asyncio.AbstractEventLoop, news: asyncio.Queue[Any], item: tuple[int, int]) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody listens any more
        loop.call_soon_threadsafe(news.put_nowait, item)


def _settle(outcomes: Sequence[_Outcome]) -> None:
    """Tell all who wait for these, each event loop once: to wake it costs more than to tell."""
    of_loop: defaultdict[asyncio.AbstractEventLoop, list[_Outcome]] = defaultdict(list)
    for outcome in outcomes:
        of_loop[outcome[0].loop].append(outcome)
    for loop, told in of_loop.items():
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(_tell_all, told)


def _tell_all(outcomes: Sequence[_Outcome]) -> None:
    for request, outcome in outcomes:
        if request.done.done():  # the caller has gone
            continue
        if isinstance(outcome, Exception):
            request.done.set_exception(outcome)
        else:
            request.done.set_result(outcome)
