"""Edits, predictions, memory and start over the number of live edits, and a figure of them."""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.client import Client
from benchmarks.curves import COLOURS, MARKERS, write_png
from benchmarks.speed import inside
from benchmarks.speed.bench import SECONDS_TO_EDIT, Bench
from benchmarks.speed.changing import Refused, timed_edit
from benchmarks.speed.figures import Way, in_turn
from benchmarks.speed.texts import ASKED, Report, some

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEP = 10
EDITS = 11
"""Edits measured at each number; the first two are not counted."""
WARM = 1
STARTS = 3
BATCH = 32
WAITING = ("queued", "fitting", "judging")
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Point:
    """Medians with so many live edits. Milliseconds of an edit over HTTP, and of batches in process; MiB; seconds.

    first: seconds until the first edit after a start is live, for which the judge looks at all live ones once.
    """

    live: int
    first: float
    edit: float
    one: float
    batch: float
    bare_one: float
    bare_batch: float
    memory: float
    start: float


def sizes(most: int) -> list[int]:
    """None, then powers of ten up to so many, and so many."""
    found, size = [0], STEP
    while size < most:
        found.append(size)
        size *= STEP
    return [*found, most]


def scaling(bench: Bench) -> list[Point]:
    """One point a number of live edits."""
    return [_point(bench, live) for live in sizes(bench.plan.many)]


def _point(bench: Bench, live: int) -> Point:
    one, bare_one, batch, bare_batch = _in_process(bench, live)
    service, reports = bench.at(bench.folder(live)), bench.reports(EDITS)
    starts = []
    for _ in range(min(STARTS, bench.plan.starts)):
        with service.started() as seconds:
            starts.append(seconds)
            service.stop()
    with service.started():
        service.client.predict(some(ASKED, 2 * BATCH))
        first = _first_edit(service.client, reports[0])
        edits = [timed_edit(service.client, report) for report in reports[1:]]
        service.client.predict(some(ASKED, 2 * BATCH))
        resident = service.resident
    edited, started = 1000 * statistics.median(edits[WARM:]), statistics.median(starts)
    return Point(live, first, edited, one, batch, bare_one, bare_batch, resident, started)


def _first_edit(client: Client, report: Report) -> float:
    """Seconds until it is live, however long that takes. Raises Refused."""
    began = time.perf_counter()
    made = client.report({"input": report.input, "target": report.target}, key=str(uuid.uuid4()), wait=SECONDS_TO_EDIT)
    while made["status"] in WAITING:
        time.sleep(POLL_SECONDS)
        made = client.edit(made["id"])
    if made["status"] != "live":
        raise Refused(f"The edit of {report.input!r} ended {made['status']}.")
    return time.perf_counter() - began


def _in_process(bench: Bench, live: int) -> list[float]:
    """Milliseconds of one text and of a batch, each with the edits and without."""
    texts = some(ASKED, BATCH)
    with inside.served(bench.model, bench.database(live), bench.plan.device) as served:
        ways: list[Way] = []
        for batch in (texts[:1], texts):
            ways.append(partial(_seconds, served.predict, served.asks(batch)))
            ways.append(partial(_seconds, bench.bare.predict, bench.bare.batch(batch)))
        in_turn(ways, 2)
        return [1000 * statistics.median(each) for each in in_turn(ways, bench.plan.turns)]


def draw(points: Sequence[Point], file: Path) -> None:
    """Four panels over the number of live edits. Needs matplotlib: `pip install 'errata[bench]'`."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(13, 6.6), layout="constrained")
    panels = made.subplots(2, 3).flat
    series = {name: [getattr(point, name) for point in points] for name in Point.__slots__}
    live = series["live"]
    for title, unit, name, bare in (
        ("An edit over HTTP, until it is live", "ms", "edit", None),
        ("One input, in process", "ms", "one", "bare_one"),
        ("A batch of 32, in process", "ms", "batch", "bare_batch"),
        ("From exec to ready", "s", "start", None),
        ("Memory of the service", "MiB", "memory", None),
    ):
        axes = next(panels)
        _line(axes, live, series[name], 0, "with the edits")
        if bare is not None:
            axes.plot(live, series[bare], color="0.45", linestyle=":", linewidth=1.8, label="unedited model")
            axes.legend(frameon=False, loc="lower right")
        _axes(axes, title, unit, live)
        axes.set_ylim(0, 1.2 * max([*series[name], *series.get(bare or "", ())]))
    axes = next(panels)
    for number, (name, label) in enumerate((("one", "one input"), ("batch", "a batch of 32"))):
        bare_too = zip(series[name], series[f"bare_{name}"], strict=True)
        _line(axes, live, [within / without for within, without in bare_too], number, label)
    axes.plot(live, [1] * len(live), color="0.45", linestyle=":", linewidth=1.8)
    axes.legend(frameon=False, loc="upper left")
    _axes(axes, "Predictions / the unedited model's", "×", live)
    axes.set_ylim(min(0.9, axes.get_ylim()[0]), max(1.3, axes.get_ylim()[1]))
    made.supxlabel("live edits", fontsize=11)
    write_png(made, file)


def _line(axes: Axes, live: Sequence[int], values: Sequence[float], number: int, label: str) -> None:
    style: dict[str, Any] = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 5, "linewidth": 1.8}
    axes.plot(live, values, label=label, **style)


def _axes(axes: Axes, title: str, unit: str, live: Sequence[int]) -> None:
    axes.set_title(f"{title} ({unit})", loc="left", fontsize=11, fontweight="bold")
    axes.set_xscale("symlog", linthresh=STEP, linscale=0.6)  # nought has its place on it
    axes.set_xticks(live, [f"{each:,}" for each in live], fontsize=8.5)
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _seconds(predict: Callable[[Any], object], batch: Any, turn: int) -> float:
    began = time.perf_counter()
    predict(batch)
    return time.perf_counter() - began
