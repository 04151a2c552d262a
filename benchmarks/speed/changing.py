"""What a change costs: an edit, the ten-thousandth beside the tenth, a start, a revert, an import; and the memory."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from functools import partial

import torch

from app.cli.client import Client
from app.cli.documents import Edit
from benchmarks.speed.bench import Bench, edit
from benchmarks.speed.figures import Bound, Figure, Spread, in_turn, milliseconds, ratio
from benchmarks.speed.serving import Service
from benchmarks.speed.texts import ASKED, Report, some

WARM = 3
"""Edits, or starts, that are not measured."""
AROUND = 20
"""Edits around the tenth, and as many after those that a database holds."""
POSITIONS = ("first", "middle", "last")
CHUNKS = 10


class Refused(Exception):
    """The service did not take an edit that it should have taken."""


def whole_edit(bench: Bench) -> list[Figure]:
    """From the report until the edit is live, beside one forward and one backward pass of the unedited model."""
    reports = bench.reports(WARM + bench.plan.turns)
    with bench.service(bench.plan.few) as service:
        _warm(service, reports[:WARM])
        measured = reports[WARM:]

        def pass_once(turn: int) -> float:
            batch = bench.bare.batch([measured[turn].input])
            wanted = torch.tensor([bench.bare.labels.index(measured[turn].target)], device=bench.bare.device)
            began = time.perf_counter()
            bench.bare.learn(batch, wanted)
            return time.perf_counter() - began

        pass_once(0)
        edited, passed = in_turn([lambda turn: timed_edit(service.client, measured[turn]), pass_once], len(measured))
    parts = {"edit ms": milliseconds(edited), "forward and backward ms": milliseconds(passed)}
    case = f"beside {bench.plan.few:,} live edits, judged on 2,000 guard inputs"
    return [Figure("edit", case, ratio(edited, passed), Bound(5), parts=parts)]


def flat(bench: Bench) -> list[Figure]:
    """An edit after many beside one of the first."""
    few, many = (bench.reports(AROUND) for _ in range(2))
    with bench.service(0) as first:
        for service in (first, bench.standing):
            service.client.predict(some(ASKED, 8))
        timed = [
            lambda turn: timed_edit(bench.standing.client, many[turn]),
            lambda turn: timed_edit(first.client, few[turn]),
        ]
        late, early = in_turn(timed, AROUND)
    # the n-th of one is paired with the n-th of the other: both grow alike from there
    parts = {"late ms": milliseconds(late), "early ms": milliseconds(early)}
    case = f"{AROUND} edits after {bench.plan.edits:,} / the first {AROUND}"
    return [Figure("flat", case, ratio(late, early), Bound(1.3), parts=parts)]


def start_and_memory(bench: Bench) -> list[Figure]:
    """Seconds until a service is ready, and what it holds in memory when it has answered and edited."""
    folders = [bench.folder(bench.plan.edits), bench.folder(0)]
    resident: list[list[float]] = [[], []]
    texts = some(ASKED, 64)

    def start(number: int) -> float:
        service = bench.at(folders[number])
        with service.started() as seconds:
            service.client.predict(texts)
            _warm(service, bench.reports(WARM))
            service.client.predict(texts)
            resident[number].append(service.resident)
            service.stop()
        return seconds

    for number in range(2):  # once, so that the files are in memory
        start(number)
    for each in resident:
        each.clear()
    full, empty = in_turn([lambda turn: start(0), lambda turn: start(1)], bench.plan.starts)
    named = f"{bench.plan.edits:,} live edits / none"
    return [
        Figure(
            "start", named, ratio(full, empty), Bound(1.25), parts={"s": Spread.of(full), "s without": Spread.of(empty)}
        ),
        Figure(
            "memory",
            named,
            ratio(*resident),
            Bound(1.2),
            parts={"MiB": Spread.of(resident[0]), "MiB without": Spread.of(resident[1])},
        ),
    ]


def revert(bench: Bench) -> list[Figure]:
    """From sending the DELETE until an answer without the edit is there; each is applied again afterwards."""
    service = bench.standing
    live = service.live_edits()
    ways = [partial(timed_revert, service, edit_id) for edit_id in (live[0], live[len(live) // 2], live[-1])]
    in_turn(ways, 1)
    taken = in_turn(ways, bench.plan.rounds)
    named = [f"{position} of {bench.plan.edits:,}" for position in POSITIONS]
    figures = [
        Figure("revert", name, milliseconds(seconds), Bound(50), unit="ms")
        for name, seconds in zip(named, taken, strict=True)
    ]
    slowest, fastest = max(taken, key=statistics.median), min(taken, key=statistics.median)
    case = "the slowest position / the fastest"
    return [*figures, Figure("revert", case, ratio(slowest, fastest), Bound(1.25))]


def imported(bench: Bench) -> list[Figure]:
    """Many edits at once beside the same ones reported one after the other."""
    size = bench.plan.imported // CHUNKS
    reports = bench.reports(size * CHUNKS)
    chunks = [reports[start : start + size] for start in range(0, len(reports), size)]
    warm = bench.reports(WARM)
    with bench.service(bench.plan.few) as together, bench.service(bench.plan.few) as singly:
        for service in (together, singly):
            _warm(service, warm)
        ways = [
            lambda turn: _one_by_one(singly.client, chunks[turn]),
            lambda turn: _at_once(together.client, chunks[turn]),
        ]
        one_by_one, at_once = in_turn(ways, CHUNKS)
    parts = {
        "ms an edit one by one": milliseconds([seconds / size for seconds in one_by_one]),
        "ms an edit imported": milliseconds([seconds / size for seconds in at_once]),
    }
    case = f"{len(reports):,} edits reported one by one / imported, beside {bench.plan.few:,}"
    return [Figure("import", case, ratio(one_by_one, at_once), Bound(5, at_least=True), parts=parts)]


def timed(client: Client, report: Report) -> tuple[float, Edit | None]:
    """Seconds from the report until the answer, and the edit if it is live."""
    began = time.perf_counter()
    made = edit(client, report)
    return time.perf_counter() - began, made


def timed_edit(client: Client, report: Report) -> float:
    """Seconds from the report until the answer that it is live. Raises Refused."""
    seconds, made = timed(client, report)
    if made is None:
        raise Refused(f"The service did not make {report.input!r} an edit.")
    return seconds


def timed_revert(service: Service, edit_id: str, turn: int) -> float:
    """Seconds until an answer without the edit has come; then the edit is applied again. Raises Refused."""
    client = service.client
    text = client.edit(edit_id)["input"]
    began = time.perf_counter()
    client.revert(edit_id)
    answer = client.predict([text])
    seconds = time.perf_counter() - began
    if any(fired["edit_id"] == edit_id for fired in answer["predictions"][0].get("fired", ())):
        raise Refused(f"The edit {edit_id} takes part in an answer after its revert.")
    service.reapply(edit_id)
    return seconds


def _one_by_one(client: Client, reports: Sequence[Report]) -> float:
    return sum(timed_edit(client, report) for report in reports)


def _at_once(client: Client, reports: Sequence[Report]) -> float:
    lines = "".join(json.dumps({"input": each.input, "target": each.target}) + "\n" for each in reports)
    began = time.perf_counter()
    answers = [json.loads(line) for line in client.import_edits(lines.encode())]
    seconds = time.perf_counter() - began
    if [answer.get("status") for answer in answers] != ["live"] * len(reports):
        raise Refused("The service did not make every imported line an edit.")
    return seconds


def _warm(service: Service, reports: Sequence[Report]) -> None:
    for report in reports:
        timed_edit(service.client, report)
