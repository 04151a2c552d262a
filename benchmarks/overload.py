"""What a service does that is asked for far more than it can answer, for ten minutes, also by clients that vanish.

    errata bench overload [--minutes N] [--connections N] [--output DIR]

The service is a process of its own with the built-in model and default settings. Each connection asks as fast as it is
answered: most requests are one sentence, every twentieth is 256 of them, and of every twentieth the client hangs up
before the answer. A client that is refused comes back within a tenth of a second, whatever Retry-After says.
Afterwards one prediction and one edit are timed: the service must be as healthy as before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from app.model.builtin import intents
from benchmarks.server import Server

SEED = 0
LARGE, LARGE_SHARE = 256, 0.05
VANISHING_SHARE = 0.05
VANISHES_WITHIN = 0.2  # seconds
COMES_BACK_WITHIN = 0.1  # seconds
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Minute:
    """One minute, from the clients' side; milliseconds of answers with status 200."""

    minute: int
    rss_mib: float  # of the service, at the minute's end
    answered: int  # requests
    inputs: int  # in those
    refused: int  # 429
    given_up: int  # 503 and 504
    other: int
    vanished: int
    p50: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Health:
    """One prediction and one edit; seconds over HTTP."""

    prediction: float
    edit: float
    edit_status: str
    waiting_inputs: int


@dataclass(frozen=True, slots=True)
class Overload:
    connections: int
    started_mib: float
    minutes: list[Minute]
    before: Health
    afterwards: Health


@dataclass(slots=True)
class Tally:
    """What happened since the last minute ended."""

    statuses: Counter[int] = field(default_factory=Counter)
    inputs: int = 0
    vanished: int = 0
    seconds: list[float] = field(default_factory=list)

    def minute(self, number: int, rss_mib: float) -> Minute:
        """The minute that ends now; counting begins anew."""
        known = {200, 429, 503, 504}
        cuts = statistics.quantiles(self.seconds, n=100) if len(self.seconds) > 1 else []
        ended = Minute(
            number,
            round(rss_mib, 1),
            answered=self.statuses[200],
            inputs=self.inputs,
            refused=self.statuses[429],
            given_up=self.statuses[503] + self.statuses[504],
            other=sum(count for status, count in self.statuses.items() if status not in known),
            vanished=self.vanished,
            p50=round(1000 * cuts[49], 1) if cuts else None,
            p99=round(1000 * cuts[98], 1) if cuts else None,
        )
        self.statuses.clear()
        self.seconds.clear()
        self.inputs = self.vanished = 0
        return ended


class Clients:
    """So many connections that ask without pause."""

    def __init__(self, url: str, texts: Sequence[str], tally: Tally) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        assert address.port is not None
        self._address = address.hostname, address.port
        self._texts = texts
        self._tally = tally
        self._random = random.Random(SEED)

    async def flood(self, connections: int) -> None:
        """Until cancelled."""
        await asyncio.gather(*(self._client() for _ in range(connections)))

    async def _client(self) -> None:
        while True:
            try:
                await self._connection()
            except (OSError, asyncio.IncompleteReadError):
                self._tally.statuses[0] += 1  # the service hung up
                await asyncio.sleep(self._random.random() * COMES_BACK_WITHIN)

    async def _connection(self) -> None:
        """Ask on one connection until this client vanishes."""
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            while True:
                inputs = LARGE if self._random.random() < LARGE_SHARE else 1
                began = time.perf_counter()
                writer.write(self._request(inputs))
                if self._random.random() < VANISHING_SHARE:
                    await asyncio.sleep(self._random.random() * VANISHES_WITHIN)
                    self._tally.vanished += 1
                    return
                await self._answer(reader, inputs, began)
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, inputs: int, began: float) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
        status = int(head[9:12])
        self._tally.statuses[status] += 1
        if status == 200:
            self._tally.inputs += inputs
            self._tally.seconds.append(time.perf_counter() - began)
        else:
            await asyncio.sleep(self._random.random() * COMES_BACK_WITHIN)

    def _request(self, inputs: int) -> bytes:
        body = json.dumps({"inputs": self._random.choices(self._texts, k=inputs)}).encode()
        head = f"POST /predict HTTP/1.1\r\nhost: {self._address[0]}\r\ncontent-type: application/json\r\n"
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def run(server: Server, connections: int, minutes: int) -> Overload:
    """Flood a service that is ready."""
    texts = [each.text for each in intents("train")]
    tally = Tally()
    clients = Clients(server.url, texts, tally)
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        before = await health(client, texts[0])
        started = await rss_mib(client)
        flooding = asyncio.ensure_future(clients.flood(connections))
        measured = []
        with Progress(console=Console(stderr=True)) as progress:
            for number in progress.track(range(1, minutes + 1), description="Minutes of overload"):
                await asyncio.wait([flooding], timeout=60)
                measured.append(tally.minute(number, await rss_mib(client)))
        flooding.cancel()
        await asyncio.wait([flooding])
        await asyncio.sleep(1)
        return Overload(connections, started, measured, before, await health(client, texts[1]))


async def rss_mib(client: httpx.AsyncClient) -> float:
    """What the service has in memory."""
    return round(await metric(client, "process_resident_memory_bytes") / MIB, 1)


async def metric(client: httpx.AsyncClient, name: str) -> float:
    """A metric that has no labels."""
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    return next(sample.value for family in families for sample in family.samples if sample.name == name)


async def health(client: httpx.AsyncClient, text: str) -> Health:
    """Predict one text, and correct it to a label that it does not get."""
    waiting = int(await metric(client, "errata_waiting_inputs"))
    began = time.perf_counter()
    answer = (await client.post("/predict", json={"inputs": [text]})).raise_for_status().json()
    predicted = time.perf_counter() - began
    labels = (await client.get("/model")).json()["labels"]
    target = next(label for label in labels if label != answer["predictions"][0]["label"])
    report = {"input": text, "target": target, "reason": "overload"}
    began = time.perf_counter()
    edit = (await client.post("/edits", json=report, headers={"Prefer": "wait=60"})).json()
    edited = time.perf_counter() - began
    return Health(round(predicted, 4), round(edited, 3), str(edit.get("status")), waiting)


def show(measured: Overload, console: Console) -> None:
    """The minutes as a table, and how the service was before and afterwards."""
    table = Table(
        "minute",
        "RSS, MiB",
        "answered",
        "inputs/s",
        "429",
        "503, 504",
        "other",
        "vanished",
        "p50, ms",
        "p99, ms",
        title=f"{measured.connections} connections",
        caption=f"RSS before: {measured.started_mib:.0f} MiB",
        box=SIMPLE_HEAD,
    )
    for column in table.columns:
        column.justify = "right"
    for one in measured.minutes:
        counts = one.refused, one.given_up, one.other, one.vanished
        latencies = ("-" if value is None else f"{value:,.0f}" for value in (one.p50, one.p99))
        shown = f"{one.rss_mib:,.0f}", f"{one.answered:,}", f"{one.inputs / 60:,.0f}"
        table.add_row(str(one.minute), *shown, *(f"{count:,}" for count in counts), *latencies)
    console.print(table)
    for when, seen in (("before", measured.before), ("afterwards", measured.afterwards)):
        waiting = f", {seen.waiting_inputs} inputs waiting" if seen.waiting_inputs else ""
        console.print(
            f"{when}: a prediction in {1000 * seen.prediction:.0f} ms, an edit {seen.edit_status} "
            f"in {seen.edit:.1f} s{waiting}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=10, help="10")
    parser.add_argument("--connections", type=int, default=256, help="256")
    parser.add_argument("--output", type=Path, help="folder for overload.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            server.start(shown=True)
            measured = asyncio.run(run(server, given.connections, given.minutes))
        finally:
            server.close()
    if given.output is not None:
        given.output.mkdir(parents=True, exist_ok=True)
        (given.output / "overload.json").write_text(json.dumps(asdict(measured), indent=1) + "\n")
    show(measured, Console(width=None if sys.stdout.isatty() else 110))


if __name__ == "__main__":
    main()
