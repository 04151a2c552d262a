"""What editing costs: predictions, edits, starts, reverts and memory, each a ratio measured within one run.

    python -m benchmarks.speed [--only PART ...] [--threads N] [--output DIR] [--quick]

Every figure is the median of ratios of what was measured in turn, with its quartiles, beside what is required of it.
The model is the built-in MiniLM classifier. Databases with many live edits are prepared once and kept in the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from platformdirs import user_cache_path
from rich.console import Console

from app.cli.client import ClientError
from app.model.builtin import builtin
from app.observe import set_up_logging
from benchmarks.server import NotStarted
from benchmarks.speed import answering, changing, gpu, scaling, stages
from benchmarks.speed.bench import Bench, Plan
from benchmarks.speed.changing import Refused
from benchmarks.speed.figures import Figure, Skipped, table

Part = Callable[[Bench], list[Figure]]

PARTS: Mapping[str, Part] = {
    "predict": answering.in_process,
    "predict-100k": answering.in_process_many,
    "http": answering.over_http,
    "as_of": answering.as_of,
    "revert": changing.revert,
    "flat": changing.flat,
    "litserve": answering.beside_litserve,
    "p99": answering.while_editing,
    "edit": changing.whole_edit,
    "import": changing.imported,
    "start": changing.start_and_memory,
    "gpu": gpu.decoding,
}
"""In this order: parts that share a service come one after the other."""
ALSO = {"memory": "start"}
"""Figures that another part measures as well."""
STAGES, SCALING = "stages", "scaling"
EVERY = (*PARTS, STAGES, SCALING)


@dataclass(slots=True)
class Measured:
    """What a run has found so far. skipped: the parts that cannot be measured here, and why;
    failed: those that the service did not bear.
    """

    figures: list[Figure] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    stages: list[stages.Stage] = field(default_factory=list)
    scaling: list[scaling.Point] = field(default_factory=list)
    profile: str = ""
    seconds: dict[str, float] = field(default_factory=dict)  # that each part took


def measure(bench: Bench, names: Collection[str], console: Console) -> Measured:
    """Measure these parts, in the order of EVERY."""
    found = Measured()
    for name in (each for each in EVERY if each in names):
        console.print(f"[dim]{name} …[/dim]")
        began = time.monotonic()
        try:
            _measure_one(bench, name, found)
        except Skipped as reason:
            found.skipped[name] = str(reason)
        except (Refused, ClientError, NotStarted) as failure:  # what the other parts have found is not lost for it
            found.failed[name] = str(failure)
        found.seconds[name] = round(time.monotonic() - began, 1)
    return found


def _measure_one(bench: Bench, name: str, found: Measured) -> None:
    if name == STAGES:
        found.stages, found.profile = stages.stages(bench), stages.profiled(bench)
    elif name == SCALING:
        found.scaling = scaling.scaling(bench)
    else:
        found.figures += PARTS[name](bench)


def machine() -> dict[str, Any]:
    """What it was measured on."""
    return {
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "load_before": psutil.getloadavg()[0],
    }


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", nargs="+", choices=[*EVERY, *ALSO], help="these parts alone")
    add("--threads", type=int, default=1, help="of torch, in the service and in the unedited model (1)")
    add("--device", default="auto", help="auto, cpu or cuda (auto)")
    add("--edits", type=int, help="live edits (10000)")
    add("--output", type=Path, help="folder for speed.json")
    add("--quick", action="store_true", help="everything once, in little; measures nothing well")
    return parser


def _plan(given: argparse.Namespace) -> Plan:
    plan = Plan(threads=given.threads, device=given.device)
    plan = plan.quick() if given.quick else plan
    return plan if given.edits is None else replace(plan, edits=given.edits)


def show(found: Measured, console: Console) -> None:
    """Everything as tables."""
    if found.figures:
        console.print(table(found.figures))
    if found.stages:
        console.print(stages.shown(found.stages))
    for name, reason in found.skipped.items():
        console.print(f"{name}: skipped, {reason}")
    for name, failure in found.failed.items():
        console.print(f"{name}: failed, {failure}")


def write(found: Measured, about: Mapping[str, Any], folder: Path) -> None:
    """speed.json, and beside it speed.png and speed_profile.txt if they were measured."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        **about,
        "seconds": found.seconds,
        "figures": [figure.as_json() for figure in found.figures],
        "skipped": found.skipped,
        "failed": found.failed,
        "stages": [asdict(stage) for stage in found.stages],
        "scaling": [asdict(point) for point in found.scaling],
    }
    (folder / "speed.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if found.profile:
        (folder / "speed_profile.txt").write_text(found.profile, "utf-8")
    if found.scaling:
        scaling.draw(found.scaling, folder / "speed.png")


def main() -> int:
    """Measure, show and write; 1 if a part failed, or a figure is not what is required."""
    given = _arguments().parse_args()
    plan, console = _plan(given), Console(width=None if sys.stdout.isatty() else 160)
    # For the services: threads that spin while they wait would take the core from whatever else runs.
    os.environ |= {"OMP_NUM_THREADS": str(plan.threads), "OMP_WAIT_POLICY": "passive"}
    torch.set_num_threads(plan.threads)
    set_up_logging("warning", "console")
    about = {
        "machine": machine(),
        "began_at": datetime.now(UTC).isoformat(),
        "quick": given.quick,
        "plan": asdict(plan),
    }
    cache, names = user_cache_path("errata"), {ALSO.get(name, name) for name in given.only or EVERY}
    with (
        tempfile.TemporaryDirectory(prefix="errata-speed-") as work,
        Bench(plan, model=builtin(cache), cache=cache, work=Path(work)) as bench,
    ):
        found = measure(bench, names, Console(stderr=True))
    show(found, console)
    if given.output is not None:
        write(found, about, given.output)
    return int(bool(found.failed) or any(figure.reached is False for figure in found.figures))


if __name__ == "__main__":
    sys.exit(main())
