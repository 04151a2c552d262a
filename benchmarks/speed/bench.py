"""What every part of the benchmark works with: the plan, the unedited model, prepared databases, services."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from app.cli.client import Client, Problem
from app.cli.documents import Edit
from benchmarks.speed import inside
from benchmarks.speed.bare import Bare
from benchmarks.speed.load import Command
from benchmarks.speed.prepared import DATABASE, Databases, url
from benchmarks.speed.serving import Service, write_lines
from benchmarks.speed.texts import REPORTED, Report, sentences

SECONDS_TO_EDIT = 60


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    threads: int = 1
    device: str = "auto"
    edits: int = 10_000
    many: int = 100_000
    few: int = 1_000
    """Live edits beside which a whole edit is measured."""
    turns: int = 40
    """Repetitions of what takes milliseconds."""
    rounds: int = 20
    """Repetitions of what takes seconds."""
    seconds: float = 2.0
    """Seconds of load in one of these."""
    phases: int = 6
    """Pairs of phases with and without edits."""
    phase_seconds: float = 5.0
    reports_a_phase: int = 400
    """More than can be fitted in one."""
    starts: int = 10
    imported: int = 1_000
    texts: int = 512

    def quick(self) -> Plan:
        """The same parts, none of which measures anything well."""
        few: dict[str, Any] = {"edits": 60, "many": 120, "few": 20, "imported": 20, "texts": 48, "reports_a_phase": 40}
        short: dict[str, Any] = {
            "turns": 3,
            "rounds": 2,
            "seconds": 0.3,
            "phases": 2,
            "phase_seconds": 0.5,
            "starts": 2,
        }
        return replace(self, **few, **short)


class Bench:
    """The parts of the benchmark share these; close it at the end."""

    def __init__(self, plan: Plan, *, model: Path, cache: Path, work: Path) -> None:
        self.plan = plan
        self.model = model
        self.bare = Bare(model, plan.device)
        self.databases = Databases(cache, model, plan.device)
        self._work = work
        self._numbers = count()
        self._reports = self._wanting_another()
        self._services = ExitStack()
        self._standing: Service | None = None
        lines = write_lines(work / "memory.jsonl", inside.known_inputs())
        self._settings = {
            "MODEL": str(model),
            "MEMORY_FILE": str(lines),
            "CACHE_DIR": str(cache),
            "DEVICE": plan.device,
            "LOG_LEVEL": "warning",
            "MAX_QUEUED_EDITS": str(max(1_000, plan.imported)),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._services.close()

    def folder(self, edits: int) -> Path:
        """A folder of its own with a copy of the database of so many live edits."""
        folder = self.new_folder()
        self.databases.copy(edits, folder)
        return folder

    def new_folder(self) -> Path:
        """An empty folder, gone when all is done."""
        folder = self._work / str(next(self._numbers))
        folder.mkdir()
        return folder

    def database(self, edits: int) -> str:
        """The URL of such a copy."""
        return url(self.folder(edits) / DATABASE)

    @contextmanager
    def service(self, edits: int) -> Iterator[Service]:
        """A service with so many live edits, while the block lasts."""
        service = self.at(self.folder(edits))
        with service.started():
            yield service

    def at(self, folder: Path, settings: Mapping[str, str] = MappingProxyType({})) -> Service:
        """A service on the database in the folder, not started yet. settings: other ones than those of all."""
        return Service(folder.resolve(), {**self._settings, **settings})

    @property
    def standing(self) -> Service:
        """The service with all the edits; started when it is first asked for, and used by one part after the other."""
        if self._standing is None:
            self._standing = self._services.enter_context(self.service(self.plan.edits))
        return self._standing

    def reports(self, number: int) -> list[Report]:
        """So many mistakes that nobody has reported before."""
        return [next(self._reports) for _ in range(number)]

    def _wanting_another(self) -> Iterator[Report]:
        """Every sentence with the label that comes after the one that the unedited model gives."""
        labels = self.bare.labels
        for text in sentences(REPORTED):
            (said,) = self.bare.predict(self.bare.batch([text]))
            yield Report(text, labels[(said + 1) % len(labels)])


def edit(client: Client, report: Report) -> Edit | None:
    """The live edit of a report; None if it was refused."""
    draft: Any = {"input": report.input, "target": report.target}
    try:
        made = client.report(draft, key=str(uuid.uuid4()), wait=SECONDS_TO_EDIT)
    except Problem:
        return None
    return made if made["status"] == "live" else None


def asking(
    service: Service,
    texts: Sequence[str],
    *,
    connections: int,
    seconds: float,
    further: Sequence[Mapping[str, Any]] = ({},),
) -> Command:
    """POST /predict with one text each. further: members of the bodies, one after the other."""
    bodies = [json.dumps({"inputs": [text], **further[number % len(further)]}) for number, text in enumerate(texts)]
    return Command(f"{service.url}/predict", bodies, connections, seconds)


def reporting(service: Service, reports: Sequence[Report], *, connections: int, seconds: float) -> Command:
    """POST /edits, each awaited."""
    bodies = [json.dumps({"input": each.input, "target": each.target}) for each in reports]
    headers = {"Prefer": f"wait={SECONDS_TO_EDIT}"}
    return Command(f"{service.url}/edits", bodies, connections, seconds, headers, again=False)
