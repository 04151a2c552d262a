"""Predictions and fits on one model, under any revision.

A row is one encoding and the view it is answered under. Rows of different views share a batch; rows are cut
into forward passes by length, so that little is padded.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from app.engine.device import DeviceThread
from app.engine.live import Live, View
from app.engine.traffic import Reservoir
from app.errors import Unavailable
from app.model import Classifier, Encoding
from app.observe import Metrics
from editors.types import Firing, Readout

T = TypeVar("T")

TOKENIZING_THREADS = 2
PADDING_ALLOWED = 1.5
"""A forward pass takes rows of up to this times its shortest row, plus a few tokens."""


@dataclass(frozen=True, slots=True)
class Fired:
    """An edit whose patch took part in an answer, and how strongly."""

    edit_id: str
    strength: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said to one encoding: on the CPU, one row each."""

    logits: Tensor  # (labels,)
    fired: tuple[Fired, ...]  # strongest first
    query: Tensor  # (hidden,)
    residual: Tensor  # (hidden,), before any patch


@dataclass(slots=True)
class _Batch:
    """The rows of one request, and who waits for them."""

    answers: list[Answer | None]
    settle: Callable[[list[Answer] | Exception], None]
    missing: int
    remember: bool


@dataclass(slots=True)
class _Row:
    encoding: Encoding
    view: View
    batch: _Batch
    index: int
    queued: float = field(default_factory=time.monotonic)

    def __len__(self) -> int:
        return len(self.encoding)


class Engine:
    """The model, what it serves, and the thread that runs it."""

    def __init__(
        self,
        model: Classifier,
        live: Live,
        metrics: Metrics,
        *,
        max_batch: int,
        fit_share: float,
        traffic: Reservoir | None = None,
    ) -> None:
        self.model = model
        self.traffic = traffic
        self._live = live
        self._metrics = metrics
        self._lock = threading.Lock()
        # of its own, so that threads that wait for the database keep no prediction waiting
        self._tokenizing = ThreadPoolExecutor(TOKENIZING_THREADS, thread_name_prefix="tokenizing")
        self._device: DeviceThread[_Row] = DeviceThread(self._run, max_batch=max_batch, fit_share=fit_share)

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

    async def answer(self, encodings: Sequence[Encoding], view: View, *, remember: bool = False) -> list[Answer]:
        """Answers under `view`, in order. `remember` lets confident ones join the memory."""
        if not encodings:
            return []
        loop = asyncio.get_running_loop()
        done: asyncio.Future[list[Answer]] = loop.create_future()

        def settle(outcome: list[Answer] | Exception) -> None:
            loop.call_soon_threadsafe(_settle, done, outcome)

        batch = _Batch([None] * len(encodings), settle, len(encodings), remember)
        try:
            self._device.submit([_Row(encoding, view, batch, index) for index, encoding in enumerate(encodings)])
        except RuntimeError as stopped:
            raise Unavailable("The service is stopping.") from stopped
        return await done

    async def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Token ids of each text, computed in a thread. Raises InputTooLong."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, self.model.encode, texts)

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

    def _run(self, rows: Sequence[_Row]) -> None:
        for group in _similar(rows):
            try:
                answers = self._forward(group)
            except Exception as error:  # noqa: BLE001 - the job boundary: it fails its requests, not the thread
                _fail(group, error)
                continue
            for row, answer in zip(group, answers, strict=True):
                row.batch.answers[row.index] = answer
                row.batch.missing -= 1
                if row.batch.missing == 0:
                    row.batch.settle([answer for answer in row.batch.answers if answer is not None])

    def _forward(self, rows: Sequence[_Row]) -> list[Answer]:
        started = time.monotonic()
        for row in rows:
            self._metrics.queue_seconds.observe(started - row.queued)
        patched = _Patched(rows)
        outputs = self.model.forward([row.encoding for row in rows], patched)
        logits, queries, residuals = (tensor.cpu() for tensor in (outputs.logits, outputs.queries, outputs.residuals))
        fired = patched.fired()
        self._metrics.batch_size.observe(len(rows))
        self._metrics.forward_seconds.observe(time.monotonic() - started)
        self._remember(rows, logits, queries, residuals, fired)
        return [Answer(logits[index], fired[index], queries[index], residuals[index]) for index in range(len(rows))]

    def _remember(
        self,
        rows: Sequence[_Row],
        logits: Tensor,
        queries: Tensor,
        residuals: Tensor,
        fired: Sequence[Sequence[Fired]],
    ) -> None:
        if self.traffic is None:
            return
        kept = [index for index, row in enumerate(rows) if row.batch.remember and not fired[index]]
        if kept:
            self.traffic.offer(logits[kept], queries[kept], residuals[kept])


class _Patched:
    """The overlay of one forward pass: each row under its own view."""

    def __init__(self, rows: Sequence[_Row]) -> None:
        self._view_of_row, self._views = _distinct([row.view for row in rows])
        self._firings: list[tuple[View, Firing]] = []
        self._rows = len(rows)

    def __call__(self, queries: Tensor, residuals: Tensor) -> Tensor:
        for overlay in dict.fromkeys(view.overlay for view in self._views if not view.bare):
            sharing = [index for index, view in enumerate(self._views) if view.overlay is overlay]
            residuals = self._apply(sharing, queries, residuals)
        return residuals

    def _apply(self, sharing: Sequence[int], queries: Tensor, residuals: Tensor) -> Tensor:
        """One overlay, seen through several views; rows of other overlays see nothing of it."""
        views = [self._views[index] for index in sharing]
        nothing = torch.zeros_like(views[0].alive)
        alive = torch.stack([*(view.alive for view in views), nothing]).to(queries.device)
        place = {index: place for place, index in enumerate(sharing)}
        view = torch.tensor([place.get(index, len(views)) for index in self._view_of_row], device=queries.device)
        residuals, firing = views[0].overlay.apply(queries, residuals, alive, view)
        self._firings.append((views[0], firing))
        return residuals

    def fired(self) -> list[tuple[Fired, ...]]:
        """What fired in each row, strongest first."""
        fired: list[list[Fired]] = [[] for _ in range(self._rows)]
        for view, firing in self._firings:
            triples = zip(firing.rows.tolist(), firing.patches.tolist(), firing.strengths.tolist(), strict=True)
            for row, patch, strength in triples:
                fired[row].append(Fired(view.edit_ids[patch], strength))
        return [tuple(sorted(row, key=lambda each: -each.strength)) for row in fired]


def _distinct(views: Sequence[View]) -> tuple[list[int], list[View]]:
    """Each view once, and for every row the index of its own."""
    index: dict[int, int] = {}
    distinct: list[View] = []
    for view in views:
        if id(view) not in index:
            index[id(view)] = len(distinct)
            distinct.append(view)
    return [index[id(view)] for view in views], distinct


def _similar(rows: Sequence[_Row]) -> list[list[_Row]]:
    """The rows in groups of similar length, so that padding costs little."""
    groups: list[list[_Row]] = []
    for row in sorted(rows, key=len):
        if groups and len(row) <= PADDING_ALLOWED * len(groups[-1][0]) + 8:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _fail(rows: Sequence[_Row], error: Exception) -> None:
    for batch in {id(row.batch): row.batch for row in rows}.values():
        batch.settle(error)


def _settle(done: asyncio.Future[list[Answer]], outcome: list[Answer] | Exception) -> None:
    if done.done():  # the caller has gone
        return
    if isinstance(outcome, Exception):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)
