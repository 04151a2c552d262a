"""Where the time of one prediction and of one edit goes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import pairwise
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed import inside
from benchmarks.speed.bench import Bench, edit
from benchmarks.speed.serving import Service
from benchmarks.speed.texts import ASKED, Report, some

PREDICTIONS, EDITS = 200, 20
PROFILED = 20
PROFILE_LINES = 25


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the way of one prediction or edit, in the mean. times: how often it comes in one."""

    of: str
    name: str
    milliseconds: float
    times: float = 1.0


def stages(bench: Bench) -> list[Stage]:
    """Of single predictions and of edits, one after the other, with all the live edits."""
    service, texts = bench.standing, some(ASKED, PREDICTIONS)
    reports = bench.reports(EDITS)
    service.client.predict(texts[:1])
    predicting = list(_measured(service, "prediction", [partial(service.client.predict, [text]) for text in texts]))
    made: list[Any] = []
    editing = list(_measured(service, "edit", [partial(_keep, made, service, each) for each in reports]))
    return [*predicting, *_in_process(bench, texts), *editing, *_between_events([each for each in made if each])]


def profiled(bench: Bench) -> str:
    """What torch does in single predictions with all the live edits, as a table."""
    with inside.served(bench.model, bench.database(bench.plan.edits), bench.plan.device) as served:
        asks = [served.asks([text]) for text in some(ASKED, PROFILED)]
        served.predict(asks[0])
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.bare.device.type == "cuda" else [])]
        with profile(activities=activities) as running:
            for each in asks:
                served.predict(each)
    shown: str = running.key_averages().table(sort_by="self_cpu_time_total", row_limit=PROFILE_LINES)
    return f"{PROFILED} predictions of one input each, {bench.plan.edits:,} live edits\n{shown}"


def shown(found: Sequence[Stage]) -> Table:
    """The stages as a table."""
    made = Table("of one", "stage", "ms", "times", title="Where the time goes", box=SIMPLE_HEAD)
    for column in made.columns[2:]:
        column.justify = "right"
    for stage in found:
        made.add_row(stage.of, stage.name, f"{stage.milliseconds:.3f}", f"{stage.times:.2f}")
    return made


def histograms(exposition: str) -> Mapping[str, tuple[float, float]]:
    """Sum and count of every histogram of seconds, by name and labels."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            for end in ("_sum", "_count"):
                if family.type == "histogram" and sample.name.endswith(f"_seconds{end}"):
                    labels = ", ".join(sample.labels.values())
                    name = sample.name.removesuffix(end) + (f" {labels}" if labels else "")
                    found.setdefault(name, {})[end] = sample.value
    return {name: (each["_sum"], each["_count"]) for name, each in found.items()}


def _measured(service: Service, of: str, ways: Sequence[Callable[[], object]]) -> Iterator[Stage]:
    """What the client sees, and what the service's own histograms saw meanwhile."""
    before, began = histograms(service.metrics()), time.perf_counter()
    for way in ways:
        way()
    yield Stage(of, "all, as the client sees it", 1000 * (time.perf_counter() - began) / len(ways))
    for name, (total, count) in histograms(service.metrics()).items():
        total_before, count_before = before.get(name, (0.0, 0.0))
        if count > count_before:
            times = (count - count_before) / len(ways)
            yield Stage(of, name, 1000 * (total - total_before) / (count - count_before), times)


def _keep(made: list[Any], service: Service, report: Report) -> None:
    made.append(edit(service.client, report))


def _in_process(bench: Bench, texts: Sequence[str]) -> Iterator[Stage]:
    with inside.served(bench.model, bench.database(bench.plan.edits), bench.plan.device) as served:
        for name, seconds in inside.timed_stages(served, texts).items():
            yield Stage("prediction", f"in process: {name}", 1000 * statistics.mean(seconds))
        batches = [bench.bare.batch([text]) for text in texts]
        began = time.perf_counter()
        for batch in batches:
            bench.bare.predict(batch)
        yield Stage("prediction", "in process: unedited model", 1000 * (time.perf_counter() - began) / len(batches))


def _between_events(made: Sequence[Any]) -> Iterator[Stage]:
    """From one event of the edits' histories to the next."""
    between: dict[str, list[float]] = {}
    for each in made:
        for former, later in pairwise(each["history"]):
            passed = datetime.fromisoformat(later["at"]) - datetime.fromisoformat(former["at"])
            name = f"history: {former['event']} to {later['event']}"
            between.setdefault(name, []).append(passed.total_seconds())
    for name, seconds in between.items():
        yield Stage("edit", name, 1000 * statistics.mean(seconds), len(seconds) / len(made))
