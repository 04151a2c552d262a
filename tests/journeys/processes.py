"""The service as a process of its own, that can be made to die at any stage of a change.

Processes are forked from a server that has imported the service once, so that a start costs a fraction of a second.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from app.settings import Settings

START_SECONDS = 60.0

_fork = multiprocessing.get_context("forkserver")
_fork.set_forkserver_preload(["app.main", "tests.journeys.faults"])


@dataclass(frozen=True, slots=True)
class Fault:
    """Where a process shall kill itself: at the n-th time it comes by."""

    stage: str
    nth: int = 1


class Process:
    """A running service, and an HTTP client for it."""

    def __init__(self, settings: Settings, fault: Fault | None = None) -> None:
        port = _free_port()
        here = settings.model_copy(update={"port": port, "log_level": "error"})
        self._process = _fork.Process(target=_serve, args=(here.model_dump(), fault), daemon=True)
        self._process.start()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        self._wait_until_ready()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process.is_alive():
            self.kill()
        self.client.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL: no time to write or close anything."""
        os.kill(self.pid, signal.SIGKILL)
        self._process.join()

    def stop(self) -> int | None:
        """SIGTERM, and wait for the end; returns the exit code."""
        os.kill(self.pid, signal.SIGTERM)
        self._process.join(START_SECONDS)
        return self._process.exitcode

    def wait_for_death(self) -> None:
        """Wait until the process has killed itself."""
        self._process.join(START_SECONDS)
        assert self._process.exitcode == -signal.SIGKILL, f"it did not die: exit code {self._process.exitcode}"

    def _wait_until_ready(self) -> None:
        eventually(lambda: self._ready() or not self._process.is_alive())
        assert self._process.is_alive(), f"the service did not start: exit code {self._process.exitcode}"

    def _ready(self) -> bool:
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False


def eventually(condition: Callable[[], Any], seconds: float = START_SECONDS) -> None:
    """Return as soon as the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def _serve(settings: dict[str, Any], fault: Fault | None) -> None:
    import torch

    from app.main import serve
    from tests.journeys import faults

    torch.set_num_threads(1)
    if fault is not None:
        faults.arm(fault.stage, fault.nth)
    serve(Settings(**settings))


def _free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])
