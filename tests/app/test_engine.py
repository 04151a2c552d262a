"""The device thread: predictions go on while a fit runs, a fit gets on while predictions run."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any

import pytest

from app.engine.device import FEW_RUNNING, DeviceThread


class Texts:
    """Records what is run, and can be held up."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.done: list[str] = []
        self.go = threading.Event()
        self.go.set()
        self.ran = threading.Semaphore(0)

    def run(self, rows: Sequence[str]) -> list[Iterator[None]]:
        return [self.batch(rows)]

    def batch(self, rows: Sequence[str]) -> Iterator[None]:
        """A text takes as many slices as it has exclamation marks, and one more."""
        self.go.wait()
        self.batches.append(list(rows))
        for _ in range(max(row.count("!") for row in rows)):
            yield
        self.done.extend(rows)
        self.ran.release(len(rows))

    def wait_for(self, rows: int) -> None:
        for _ in range(rows):
            assert self.ran.acquire(timeout=10)


@pytest.fixture
def texts() -> Texts:
    return Texts()


@pytest.fixture
def device(texts: Texts) -> Iterator[DeviceThread[str]]:
    device: DeviceThread[str] = DeviceThread(texts.run, max_batch=4, fit_share=0.3)
    yield device
    texts.go.set()
    device.close()


def test_what_waits_forms_the_next_batch_up_to_its_limit(device: DeviceThread[str], texts: Texts) -> None:
    texts.go.clear()
    device.submit(["first"])
    device.submit(["a", "b"])
    device.submit(["c", "d", "e"])
    texts.go.set()
    texts.wait_for(6)
    assert texts.batches[-2:] == [["a", "b", "c", "d"], ["e"]] or texts.batches[0] == ["first", "a", "b", "c"]


def test_a_short_answer_does_not_wait_for_a_long_one(device: DeviceThread[str], texts: Texts) -> None:
    device.submit(["long" + "!" * 100_000])
    while not texts.batches:
        device.call(lambda: None).result(10)
    device.submit(["short!"])
    texts.wait_for(2)
    assert texts.done[0] == "short!"


class Held(Texts):
    """Every batch goes on until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()

    def batch(self, rows: Sequence[str]) -> Iterator[None]:
        self.batches.append(list(rows))
        while not self.release.is_set():
            yield
        self.ran.release(len(rows))

    def fill(self, device: DeviceThread[str]) -> None:
        """Let as many batches run as usually take turns."""
        for number in range(FEW_RUNNING):
            device.submit([f"running {number}"])
            while len(self.batches) <= number:
                device.call(lambda: None).result(10)


def test_beyond_so_many_running_batches_rows_wait_and_become_one() -> None:
    held = Held()
    device: DeviceThread[str] = DeviceThread(held.run, max_batch=4, fit_share=0.3, patience=1000.0)
    try:
        held.fill(device)
        device.submit(["waits"])
        device.submit(["waits too"])
        device.call(lambda: None).result(10)
        assert len(held.batches) == FEW_RUNNING
    finally:
        held.release.set()
        device.close()
    assert held.batches[-1] == ["waits", "waits too"]


def test_rows_that_waited_long_enough_begin_beside_what_is_running() -> None:
    held = Held()
    device: DeviceThread[str] = DeviceThread(held.run, max_batch=4, fit_share=0.3, patience=0.01)
    try:
        held.fill(device)
        device.submit(["patient"])
        deadline = time.monotonic() + 10
        while len(held.batches) == FEW_RUNNING:
            assert time.monotonic() < deadline
    finally:
        held.release.set()
        device.close()
    assert held.batches[-1] == ["patient"]


def test_a_fit_gets_on_between_the_tokens_of_a_long_answer() -> None:
    held = Held()
    device: DeviceThread[str] = DeviceThread(held.run, max_batch=4, fit_share=0.3)
    try:
        device.submit(["text"])
        assert device.work(iter_then(20), lambda _: None).result(10) == 20
    finally:
        held.release.set()
        device.close()


def test_a_job_returns_its_value_and_tells_each_slice(device: DeviceThread[str]) -> None:
    told: list[int] = []

    def job() -> Generator[int, None, Any]:
        yield from (1, 2, 3)
        return "done"

    assert device.work(job(), told.append).result(10) == "done"
    assert told == [1, 2, 3]


def test_predictions_are_answered_between_the_slices_of_a_fit(device: DeviceThread[str], texts: Texts) -> None:
    enough = threading.Event()

    def endless() -> Generator[None, None, None]:
        while not enough.is_set():
            yield

    fit = device.work(endless(), lambda _: None)
    for _ in range(5):
        device.submit(["text"])
        texts.wait_for(1)
    assert not fit.done()
    enough.set()
    fit.result(10)


def test_a_fit_gets_on_while_predictions_never_pause(device: DeviceThread[str], texts: Texts) -> None:
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            device.submit(["text"] * 8)
            texts.wait_for(8)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        assert device.work(iter_then(50), lambda _: None).result(10) == 50
    finally:
        stop.set()
        asking.join()


def test_jobs_take_turns(device: DeviceThread[str]) -> None:
    begin, turns = threading.Event(), list[str]()

    def job(name: str) -> Generator[None, None, None]:
        begin.wait(10)
        for _ in range(3):
            turns.append(name)
            yield

    jobs = [device.work(job(name), lambda _: None) for name in ("fit", "verdict")]
    begin.set()
    for each in jobs:
        each.result(10)
    assert turns[1:5] == ["verdict", "fit", "verdict", "fit"]


def test_an_error_in_a_fit_reaches_whoever_waits_and_the_thread_goes_on(
    device: DeviceThread[str], texts: Texts
) -> None:
    def broken() -> Generator[None, None, None]:
        yield
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        device.work(broken(), lambda _: None).result(10)
    device.submit(["text"])
    texts.wait_for(1)


def test_a_short_call_runs_between_batches(device: DeviceThread[str]) -> None:
    assert device.call(lambda: threading.current_thread().name).result(10) == "device"


def test_closing_answers_what_waits_and_drops_the_fits(texts: Texts) -> None:
    device: DeviceThread[str] = DeviceThread(texts.run, max_batch=4, fit_share=0.3)

    def endless() -> Generator[None, None, None]:
        while True:
            yield

    fit = device.work(endless(), lambda _: None)
    device.submit(["text"] * 9)
    device.close()
    assert sum(map(len, texts.batches)) == 9
    with pytest.raises(CancelledError):
        fit.result(10)
    with pytest.raises(RuntimeError):
        device.submit(["late"])


def iter_then(count: int) -> Generator[int, None, Any]:
    yield from range(count)
    return count


def test_a_job_that_nobody_waits_for_any_more_is_dropped_and_the_thread_goes_on(device: DeviceThread[str]) -> None:
    began, go, slices = threading.Event(), threading.Event(), [0]

    def job() -> Generator[int, None, str]:
        while True:
            began.set()
            go.wait(10)
            slices[0] += 1
            yield slices[0]

    done = device.work(job(), lambda step: None)
    assert began.wait(10)
    assert done.cancel()
    go.set()
    assert device.call(lambda: "still here").result(10) == "still here"
    assert slices[0] == 1


def test_a_job_or_a_call_that_ends_when_nobody_waits_any_more_does_no_harm(device: DeviceThread[str]) -> None:
    began, go = threading.Event(), threading.Event()

    def last_slice() -> str:
        began.set()
        go.wait(10)
        return "done"

    def job() -> Generator[int, None, str]:
        yield 1
        return last_slice()

    for begin in (lambda: device.work(job(), lambda step: None), lambda: device.call(last_slice)):
        began.clear()
        go.clear()
        done = begin()
        assert began.wait(10)
        assert done.cancel()
        go.set()
        assert device.call(lambda: "still here").result(10) == "still here"
