"""Services on copies of prepared databases: their processes, memory and metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from app.cli.client import Client
from benchmarks.server import Server

MEGABYTE = 2**20


class Service(Server):
    """A server, and clients for it while it runs."""

    client: Client
    http: httpx.Client
    """For what the client of the command line has no method for."""

    @property
    def resident(self) -> float:
        """What the process holds in memory, in MiB."""
        assert self._process is not None
        return float(psutil.Process(self._process.pid).memory_info().rss) / MEGABYTE

    def live_edits(self) -> list[str]:
        """The edits that are live, in ledger order."""
        revision = self.client.model()["revision"]
        live: list[str] = self.http.get(f"/revisions/{revision}").raise_for_status().json()["live"]
        return live

    def reapply(self, edit_id: str) -> None:
        """Make a reverted edit live again."""
        self.http.post(f"/edits/{edit_id}/reapply").raise_for_status()

    def metrics(self) -> str:
        """The text of GET /metrics."""
        return self.http.get("/metrics").raise_for_status().text

    @contextmanager
    def started(self) -> Iterator[float]:
        """The service while the block lasts, and the seconds that it took to start."""
        try:
            seconds = self.start()
            with (
                Client(self.url) as self.client,
                httpx.Client(base_url=self.url, timeout=None, trust_env=False) as self.http,
            ):
                yield seconds
        finally:
            self.close()


def write_lines(file: Path, lines: list[dict[str, str]]) -> Path:
    """JSON Lines, as memory and guard files are."""
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return file
