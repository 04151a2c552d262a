"""What predictions cost: in process and over HTTP, while edits are made, under former revisions, beside LitServe."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks.speed import inside
from benchmarks.speed.bench import Bench, asking, reporting
from benchmarks.speed.figures import Bound, Figure, Skipped, Spread, in_turn, milliseconds, ratio
from benchmarks.speed.load import Command, Load, Measured
from benchmarks.speed.texts import ASKED, PREPARED, some

SINGLES = 8
"""Texts that are answered one after the other in one repetition."""
POOL = 512
"""Texts of which those are chosen that edits fire on, or none."""
MOST = 32
SIZES = (8, 16, 32, 64)
"""Of batches that the unedited model is tried with."""
CONNECTIONS = 32
WHILE_EDITING = 16
REPORTERS = 2
"""Connections that report mistakes: one edit is fitted, and the next waits."""
REVISIONS = 8
TRIED = 3
"""Turns in which the best batches, or settings, are found."""


@dataclass(frozen=True, slots=True)
class Case:
    """What a figure is called, and what it should reach."""

    key: str
    name: str
    required: Bound | None


def in_process(bench: Bench) -> list[Figure]:
    """The same padded batches through the unedited model, and with all the edits."""
    return _in_process(bench, "predict", bench.plan.edits, {1: Bound(1.05), MOST: Bound(1.05)})


def in_process_many(bench: Bench) -> list[Figure]:
    """The same with ten times as many edits."""
    return _in_process(bench, "predict-100k", bench.plan.many, {1: None, MOST: Bound(1.25)})


def over_http(bench: Bench) -> list[Figure]:
    """Requests with one text each beside the best that the unedited model does with the same texts in batches."""
    texts = some(ASKED, bench.plan.texts)
    service = bench.standing
    command = asking(service, texts, connections=CONNECTIONS, seconds=bench.plan.seconds)
    passes = {size: partial(_rate_of_bare, bench, bench.bare.by_length(texts, size)) for size in SIZES}
    tried = dict(zip(passes, in_turn(list(passes.values()), TRIED), strict=True))
    best = max(tried, key=lambda size: max(tried[size]))
    with Load() as load:
        load.run(command)
        rates, bare = in_turn([partial(_rate, load, command), passes[best]], bench.plan.rounds)
    case = f"{CONNECTIONS} connections / the unedited model in batches of {best}"
    parts = {"requests/s": Spread.of(rates), "texts/s in process": Spread.of(bare)}
    return [Figure("http", case, ratio(rates, bare), Bound(0.85, at_least=True), parts=parts)]


def while_editing(bench: Bench) -> list[Figure]:
    """The slowest hundredth of predictions while edits are fitted without pause, beside phases without."""
    service, plan = bench.standing, bench.plan
    texts = some(ASKED, plan.texts)
    command = asking(service, texts, connections=WHILE_EDITING, seconds=plan.phase_seconds)
    edits: list[float] = []
    means: list[list[float]] = [[], []]

    def quiet(turn: int) -> float:
        return noted(load.run(command), 1)

    def editing(turn: int) -> float:
        reports = bench.reports(plan.reports_a_phase)
        reporter.begin(reporting(service, reports, connections=REPORTERS, seconds=plan.phase_seconds))
        measured = load.run(command)
        edits.append(reporter.end().rate)
        return noted(measured, 0)

    def noted(measured: Measured, way: int) -> float:
        means[way].append(sum(measured.latencies) / len(measured.latencies))
        return measured.quantile(0.99)

    with Load() as load, Load() as reporter:
        load.run(command)
        slow, quick = in_turn([editing, quiet], plan.phases)
    case = f"p99 at {WHILE_EDITING} connections while edits are fitted / without"
    parts = {"ms": milliseconds(slow), "ms without": milliseconds(quick), "edits/s": Spread.of(edits)}
    mean = {"ms": milliseconds(means[0]), "ms without": milliseconds(means[1])}
    return [
        Figure("p99", case, ratio(slow, quick), Bound(2), parts=parts),
        Figure("p99", "the mean of the same", ratio(*means), parts=mean),
    ]


def as_of(bench: Bench) -> list[Figure]:
    """Requests that ask for different former revisions in turn beside such that ask for one."""
    service = bench.standing
    texts, newest = some(ASKED, bench.plan.texts), bench.plan.edits
    several = [{"as_of": newest * number // REVISIONS} for number in range(1, REVISIONS + 1)]
    command = partial(asking, service, texts, connections=CONNECTIONS, seconds=bench.plan.seconds)
    with Load() as load:
        ways = [partial(_mean_latency, load, command(further=further)) for further in (several, several[-1:])]
        in_turn(ways, 1)
        cycling, one = in_turn(ways, bench.plan.rounds)
    parts = {"ms": milliseconds(cycling), "ms at one revision": milliseconds(one)}
    case = f"{REVISIONS} revisions in turn / one, {CONNECTIONS} connections"
    return [Figure("as_of", case, ratio(cycling, one), Bound(1.3), parts=parts)]


def beside_litserve(bench: Bench) -> list[Figure]:
    """Requests with one text each to the service beside the same to LitServe with the unedited model."""
    try:
        from benchmarks.speed import litserver
    except ModuleNotFoundError as missing:
        raise Skipped(f"{missing.name} is not installed: pip install 'errata[bench]'") from missing
    service, texts = bench.standing, some(ASKED, bench.plan.texts)
    ours = asking(service, texts, connections=CONNECTIONS, seconds=bench.plan.seconds)
    with Load() as load, ExitStack() as servers:
        serving = {
            timeout: servers.enter_context(litserver.served(bench.model, bench.bare.device.type, timeout))
            for timeout in litserver.TIMEOUTS
        }
        ways = {timeout: partial(_rate, load, replace(ours, url=url)) for timeout, url in serving.items()}
        in_turn(list(ways.values()), 1)
        tried = dict(zip(ways, in_turn(list(ways.values()), TRIED), strict=True))
        best = max(tried, key=lambda timeout: statistics.median(tried[timeout]))
        here, there = in_turn([partial(_rate, load, ours), ways[best]], bench.plan.rounds)
    case = f"{CONNECTIONS} connections / LitServe, max_batch_size {litserver.MAX_BATCH}, batch_timeout {best:g} s"
    parts = {"requests/s": Spread.of(here), "LitServe's": Spread.of(there)}
    return [Figure("litserve", case, ratio(here, there), parts=parts)]


def _rate(load: Load, command: Command, turn: int) -> float:
    return load.run(command).rate


def _mean_latency(load: Load, command: Command, turn: int) -> float:
    latencies = load.run(command).latencies
    return sum(latencies) / len(latencies)


def _in_process(bench: Bench, key: str, edits: int, required: Mapping[int, Bound | None]) -> list[Figure]:
    with inside.served(bench.model, bench.database(edits), bench.plan.device) as served:
        fresh, of_edits = some(ASKED, POOL), some(PREPARED, edits)[:: -(-edits // POOL)]
        kinds = {
            "no edit fires": _firing(served, fresh, wanted=False),
            "edited inputs": _firing(served, of_edits, wanted=True),
        }
        return [
            figure
            for size, bound in required.items()
            for kind, texts in kinds.items()
            for figure in _beside_bare(bench, served, _cut(texts, size), Case(key, f"batch {size}, {kind}", bound))
        ]


def _firing(served: inside.Served, texts: Sequence[str], *, wanted: bool) -> list[str]:
    """Those of the texts on which edits fire, or on which none does."""
    fired = [each for part in _parts(texts, MOST) for each in served.fired(served.asks(part))]
    return [text for text, fires in zip(texts, fired, strict=True) if fires == wanted]


def _cut(texts: Sequence[str], size: int) -> list[list[Sequence[str]]]:
    """What is answered in one repetition, for some repetitions: one batch, or several texts one after the other."""
    if size > 1:
        return [[part] for part in _parts(texts, size) if len(part) == size]
    return [[[text] for text in part] for part in _parts(texts, SINGLES) if len(part) == SINGLES]


def _parts(texts: Sequence[str], size: int) -> list[Sequence[str]]:
    return [texts[start : start + size] for start in range(0, len(texts), size)]


def _beside_bare(
    bench: Bench, served: inside.Served, repetitions: Sequence[Sequence[Sequence[str]]], case: Case
) -> list[Figure]:
    """With the edits, and through the queue as well, beside the unedited model, and beside the same without edits."""
    padded = [[bench.bare.batch(texts) for texts in batches] for batches in repetitions]
    asks = [[served.asks(texts) for texts in batches] for batches in repetitions]
    ways = [
        lambda turn: _timed(bench.bare.predict, padded[turn % len(padded)]),
        lambda turn: _timed(served.predict, asks[turn % len(asks)]),
        lambda turn: served.through_queue(asks[turn % len(asks)]),
        lambda turn: _timed(partial(served.predict, edits=False), asks[turn % len(asks)]),
    ]
    in_turn(ways, 2)
    bare, within, queued, without = in_turn(ways, bench.plan.turns)
    parts = {"ms": milliseconds(within), "ms unedited": milliseconds(bare)}
    return [
        Figure(case.key, case.name, ratio(within, bare), case.required, parts=parts),
        Figure(case.key, f"{case.name}, through the queue", ratio(queued, bare), parts={"ms": milliseconds(queued)}),
        Figure(case.key, f"{case.name} / edits off", ratio(within, without), parts={"ms off": milliseconds(without)}),
    ]


def _timed(answer: Callable[[Any], object], batches: Sequence[Any]) -> float:
    """Seconds a batch."""
    began = time.perf_counter()
    for batch in batches:
        answer(batch)
    return (time.perf_counter() - began) / len(batches)


def _rate_of_bare(bench: Bench, batches: Sequence[Any], turn: int) -> float:
    """Texts a second."""
    seconds = _timed(bench.bare.predict, batches) * len(batches)
    return sum(len(batch["input_ids"]) for batch in batches) / seconds
