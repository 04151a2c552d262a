"""Requests from a process of its own, over connections that stay open, so that asking does not slow answering.

As a program it reads commands, one JSON object a line, and answers each with what was measured.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from typing import Self

import aiohttp


@dataclass(frozen=True, slots=True)
class Command:
    """Send `bodies` one after the other over so many connections for so many seconds; what is under way then is still
    waited for. again: from the first body on when all are sent, else that is the end.
    """

    url: str
    bodies: Sequence[str]
    connections: int
    seconds: float
    headers: Mapping[str, str] = field(default_factory=dict)
    again: bool = True


@dataclass(frozen=True, slots=True)
class Measured:
    """What became of a command. latencies: seconds of each request that was answered with 2xx in time.

    refused: answers with another status, by status. cpu_seconds: what the sending itself cost.
    """

    latencies: Sequence[float]
    refused: Mapping[str, int]
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def quantile(self, share: float) -> float:
        """The latency that such a share of the requests does not exceed, in seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


class Load:
    """A process that sends requests. One command at a time; `begin` and `end` let another process work meanwhile."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.speed.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, command: Command) -> Measured:
        """Send, and wait for all answers."""
        self.begin(command)
        return self.end()

    def begin(self, command: Command) -> None:
        """Send from now on."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(command)) + "\n")
        self._process.stdin.flush()

    def end(self) -> Measured:
        """Wait for what was begun. Raises RuntimeError if the process has died."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("The process that sends requests has died.")
        return Measured(**json.loads(line))


async def send(command: Command, session: aiohttp.ClientSession) -> Measured:
    """Carry out a command."""
    bodies = (body.encode() for body in _in_order(command))
    headers = {"Content-Type": "application/json", **command.headers}
    latencies: list[float] = []
    refused: dict[str, int] = {}
    began, used = time.perf_counter(), time.process_time()
    deadline = began + command.seconds

    async def one_connection() -> None:
        for body in bodies:
            asked = time.perf_counter()
            if asked >= deadline:
                return
            async with session.post(command.url, data=body, headers=headers) as response:
                await response.read()
            answered = time.perf_counter()
            if response.status >= 300:
                refused[str(response.status)] = refused.get(str(response.status), 0) + 1
            elif answered <= deadline or not command.again:
                latencies.append(answered - asked)

    await asyncio.gather(*(one_connection() for _ in range(command.connections)))
    seconds = command.seconds if command.again else time.perf_counter() - began
    return Measured(latencies, refused, seconds, time.process_time() - used)


def _in_order(command: Command) -> Iterator[str]:
    return cycle(command.bodies) if command.again else iter(command.bodies)


async def main() -> None:
    """Carry out the commands of standard input until it ends."""
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        while line := await asyncio.to_thread(sys.stdin.readline):
            measured = await send(Command(**json.loads(line)), session)
            print(json.dumps(asdict(measured)), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
