"""The one thread that owns the device.

It takes whatever rows are waiting, without waiting for more, and runs them as batches. A batch is a generator: a
classifier's ends in one slice, a text's takes one for each token, so batches that write take turns, and a short answer
does not wait for a long one. Between slices of batches run slices of jobs, fits and verdicts, in turn. Under full
load these still get a settled share of the time, and a prediction never waits for more than one of its slices.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")


class Waiting(Protocol):
    """One row that waits for its forward pass."""

    def __len__(self) -> int: ...


Row = TypeVar("Row", bound=Waiting)

FEW_RUNNING = 2
"""Batches that take turns. Rows that come later wait, and so become one batch, which costs less than several."""
PATIENCE = 0.25
"""Seconds after which rows begin a batch of their own beside those few: so a short answer outwaits no long one."""
MOST_RUNNING = 8
PACE_SECONDS = 5.0
"""Time at the rows over which their pace is averaged."""


Batches = Sequence[Iterator[None]]


@dataclass(slots=True, eq=False)
class Group(Generic[Row]):
    """Rows that were submitted together, as far as they wait.

    until: when to give them up, on the monotonic clock, if none has begun. given_up: is called then.
    """

    rows: deque[Row]
    since: float
    until: float
    given_up: Callable[[], None]
    begun: bool = False


@dataclass(slots=True)
class _Job(Generic[T]):
    slices: Generator[Any, None, T]
    on_slice: Callable[[Any], None]
    done: Future[T]


class DeviceThread(Generic[Row]):
    """Runs batches of rows, short calls and sliced jobs, slice by slice, in its own thread."""

    def __init__(
        self,
        run: Callable[[Sequence[Row]], Batches],
        *,
        max_batch: int,
        fit_share: float,
        few_running: int = FEW_RUNNING,
        patience: float = PATIENCE,
    ) -> None:
        """run: from rows to the batches they make, each a generator that reports its answers itself."""
        self._run = run
        self._running: deque[Iterator[None]] = deque()
        self._max_batch = max_batch
        self._few_running = few_running
        self._patience = patience
        self._slice_per_batch = fit_share / (1 - fit_share)
        self._groups: OrderedDict[Group[Row], None] = OrderedDict()  # in the order in which they came
        self._pace = Pace()
        self._calls: deque[Callable[[], None]] = deque()
        self._jobs: deque[_Job[Any]] = deque()
        self._waiting = threading.Condition()
        self._stopping = False
        self._owed = 0.0  # seconds of fitting that batches have earned
        self._thread = threading.Thread(target=self._loop, name="device", daemon=True)
        self._thread.start()

    def submit(
        self, rows: Sequence[Row], *, until: float = math.inf, given_up: Callable[[], None] = lambda: None
    ) -> Group[Row]:
        """Queue rows for the next batches; `run` reports their answers.

        until: rows of which none has begun by then, on the monotonic clock, are dropped, and `given_up` is called.
        """
        group = Group(deque(rows), time.monotonic(), until, given_up)
        with self._waiting:
            self._refuse_when_stopped()
            if group.rows:
                self._groups[group] = None
                self._waiting.notify()
        return group

    def withdraw(self, group: Group[Row]) -> None:
        """Drop the rows of a group that still wait; at once, so that nothing of them stays in memory."""
        with self._waiting:
            self._groups.pop(group, None)
            group.rows.clear()

    def pace(self) -> float:
        """Rows a second, of late, while there were any; 0 before the first."""
        return self._pace.rows_a_second()

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Run a short piece of work between two batches."""
        done: Future[T] = Future()
        with self._waiting:
            self._refuse_when_stopped()
            self._calls.append(lambda: _settle(done, work))
            self._waiting.notify()
        return done

    def work(self, slices: Generator[Any, None, T], on_slice: Callable[[Any], None]) -> Future[T]:
        """Run a job slice by slice between batches; `on_slice` gets what each slice yields."""
        job = _Job(slices, on_slice, Future())
        with self._waiting:
            self._refuse_when_stopped()
            self._jobs.append(job)
            self._waiting.notify()
        return job.done

    def close(self) -> None:
        """Finish the rows and calls that wait, drop the jobs, end the thread."""
        with self._waiting:
            self._stopping = True
            self._waiting.notify()
        self._thread.join()

    def _refuse_when_stopped(self) -> None:
        if self._stopping:
            raise RuntimeError("The device thread has stopped.")

    def _loop(self) -> None:
        while True:
            with self._waiting:
                self._waiting.wait_for(
                    lambda: self._groups or self._calls or self._jobs or self._running or self._stopping
                )
                late, rows = self._late_groups(), self._next_rows()
                calls, self._calls = self._calls, deque()
                if self._stopping and not late and not rows and not calls and not self._running:
                    break
            for group in late:
                group.given_up()
            started = time.monotonic()
            if rows:
                self._running.extend(self._run(rows))
            answering = bool(self._running)
            for _ in range(len(self._running)):
                self._advance(self._running.popleft())
            for call in calls:
                call()
            self._owed += (time.monotonic() - started) * self._slice_per_batch
            self._fit()
            if answering:
                self._pace.add(len(rows), time.monotonic() - started)
        for job in self._jobs:
            job.done.cancel()

    def _late_groups(self) -> list[Group[Row]]:
        """Take out of the line, as far as they are its head, the groups whose turn has not come in time."""
        now, late = time.monotonic(), []
        while self._groups:
            group = next(iter(self._groups))
            if group.begun or now < group.until:
                break
            del self._groups[group]
            group.rows.clear()
            late.append(group)
        return late

    def _next_rows(self) -> list[Row]:
        """What waits, as far as it makes one batch; nothing while enough is running."""
        running = len(self._running)
        if not self._groups or running >= MOST_RUNNING:
            return []
        if running >= self._few_running and time.monotonic() - next(iter(self._groups)).since < self._patience:
            return []
        taken: list[Row] = []
        while self._groups and len(taken) < self._max_batch:
            group = next(iter(self._groups))
            group.begun = True
            while group.rows and len(taken) < self._max_batch:
                taken.append(group.rows.popleft())
            if not group.rows:
                del self._groups[group]
        return taken

    def _advance(self, batch: Iterator[None]) -> None:
        """One slice of a batch, which goes to the end of the line if it is not done."""
        for _ in batch:
            self._running.append(batch)
            return

    def _fit(self) -> None:
        """Slices of jobs in turn: one at least, then as many as are owed, or as long as nothing else waits."""
        while self._jobs and not self._stopping:
            started = time.monotonic()
            job = self._jobs.popleft()
            if self._slice(job):
                self._jobs.append(job)
            self._owed -= time.monotonic() - started
            if (self._groups or self._calls or self._running) and self._owed <= 0:
                break
        self._owed = min(max(self._owed, 0.0), 1.0) if self._jobs else 0.0

    def _slice(self, job: _Job[Any]) -> bool:
        """One slice of a job; whether there is more of it."""
        try:
            if not job.done.cancelled():  # somebody waits for it still
                job.on_slice(next(job.slices))
                return True
            job.slices.close()
        except StopIteration as end:
            with suppress(InvalidStateError):
                job.done.set_result(end.value)
        except Exception as error:  # noqa: BLE001 - the job boundary: whoever waits for the job learns of it
            with suppress(InvalidStateError):
                job.done.set_exception(error)
        return False


def _settle(done: Future[T], work: Callable[[], T]) -> None:
    with suppress(InvalidStateError):  # nobody waits for it any more
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - the job boundary: whoever waits for the call learns of it
            done.set_exception(error)
        else:
            done.set_result(result)


class Pace:
    """Rows a second: means that forget, so that the newest seconds spent on rows count most."""

    def __init__(self) -> None:
        self._rows = 0.0
        self._seconds = 0.0

    def add(self, rows: int, seconds: float) -> None:
        """So many rows were taken, and so much time was spent on those that are running."""
        kept = math.exp(-seconds / PACE_SECONDS)
        self._rows = self._rows * kept + rows
        self._seconds = self._seconds * kept + seconds

    def rows_a_second(self) -> float:
        """0 before the first row."""
        return self._rows / self._seconds if self._seconds else 0.0
