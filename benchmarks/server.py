"""A service of our own for an experiment: a real process, on a free port and a fresh database."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from app.cli.client import Client

ERRATA = [sys.executable, "-m", "app.cli"]
KEPT_SETTINGS = frozenset({"ERRATA_CACHE_DIR", "ERRATA_DEVICE"})
"""Variables of ours that an experiment leaves as they are; any other would make it another one."""

SECONDS_TO_START = 600  # the first start fits the built-in model
SECONDS_TO_STOP = 20
LOG_LINES_SHOWN = 30


class NotStarted(Exception):
    """The service did not come up; the message says how it ended."""


class Server:
    """`errata serve` as a process of its own, on one port and one database. Its log goes to a file."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        """settings: further ones, without their prefix, such as MODEL."""
        self._settings = {f"ERRATA_{name}": value for name, value in (settings or {}).items()}
        self.database = f"sqlite:///{folder / 'errata.db'}"
        self.log = folder / "server.log"
        self.url = f"http://127.0.0.1:{_free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, shown: bool = False) -> float:
        """Wait until the service is ready, and return the seconds it took; `shown` shows its messages meanwhile."""
        began = time.monotonic()
        port = self.url.rpartition(":")[2]
        self._process = subprocess.Popen(
            [*ERRATA, "serve", "--port", port, "--database", self.database],
            env=environment() | self._settings,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        quiet = threading.Event()
        if not shown:
            quiet.set()
        assert self._process.stderr is not None
        threading.Thread(target=self._keep_log, args=(self._process.stderr, quiet), daemon=True).start()
        self._await_readiness(began + SECONDS_TO_START)
        quiet.set()
        return time.monotonic() - began

    def kill(self) -> None:
        """SIGKILL: nothing is finished, nothing is written."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """Ask the service to stop, and return its exit code; negative is the signal that it ended by."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(SECONDS_TO_STOP)

    def close(self) -> None:
        """Leave no process behind, whatever happened."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def last_words(self) -> str:
        """The end of the log."""
        lines = self.log.read_text("utf-8", errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-LOG_LINES_SHOWN:])

    def _await_readiness(self, deadline: float) -> None:
        assert self._process is not None
        with Client(self.url) as client:
            while not client.ready():
                if self._process.poll() is not None:
                    raise NotStarted(f"The service ended with exit code {self._process.returncode} while starting.")
                if time.monotonic() > deadline:
                    raise NotStarted(f"The service was not ready within {SECONDS_TO_START} s.")
                time.sleep(0.05)

    def _keep_log(self, messages: BinaryIO, quiet: threading.Event) -> None:
        with self.log.open("ab") as log:
            while piece := os.read(messages.fileno(), 65536):
                log.write(piece)
                log.flush()
                if not quiet.is_set():
                    sys.stderr.buffer.write(piece)
                    sys.stderr.buffer.flush()


def environment() -> dict[str, str]:
    """Ours, with its settings at their defaults; a progress bar may draw itself where we have a terminal."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("ERRATA_") or name in KEPT_SETTINGS
    }
    return kept | ({"FORCE_COLOR": "1"} if sys.stderr.isatty() else {})


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
