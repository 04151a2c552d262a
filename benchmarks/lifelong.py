"""Mistakes edited one after the other, editor by editor, in a folder from which an interrupted run goes on.

What a service is, and how it is started, is the caller's to say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from app.cli.client import Client
from benchmarks.checkpoints import Checkpoint, Measuring, Unedited, Watched, drawn, schedule
from benchmarks.curves import Curve
from benchmarks.finetuning import Example, finetuned
from benchmarks.journal import Journal, settle
from benchmarks.reporter import Reporter, reports
from benchmarks.reporting import Entry, Service, share
from benchmarks.splits import Split
from editors.registry import editors

EDITORS = editors()
LOOSE = {
    "BASELINES": "1",
    "EDITS_REQUIRED": "0",
    "REPHRASES_REQUIRED": "0",
    "GUARD_REQUIRED": "0",
    "GUARD_FIRES_ALLOWED": "1",
}
"""Settings under which only the edit's own input is asked of a baseline."""
TEXTS_A_LOOK = 1_000
"""So many texts of the edit part are answered at a time until there are mistakes enough."""

Starting = Callable[[Path, Mapping[str, str]], AbstractContextManager[Client]]
"""Starts a service whose database is in the folder, with these settings (without their prefix)."""


class NothingToEdit(Exception):
    """There is no mistake to report."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that decides the figures of one editor."""

    name: str
    data: Mapping[str, str]  # the files' names and hashes
    model: str | None  # None: MiniLM, fine-tuned on the train part
    sizes: tuple[float, float, float]  # of train, edit and test part
    edits: int | None  # mistakes to report; None for all
    baseline_edits: int | None
    test_sample: int
    memory: int
    seed: int
    options: Mapping[str, Mapping[str, Any]]  # by editor

    def reports(self, editor: str) -> int | None:
        """How many mistakes are reported to an editor; None for all."""
        fewer = self.baseline_edits if EDITORS[editor].baseline else None
        return self.edits if fewer is None else fewer


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found before any edit."""

    model: str  # its fingerprint
    task: str
    train: int
    edit: int
    test: int
    train_accuracy: float  # of the sample
    test_accuracy: float
    mistakes: int  # that are reported


@dataclass(frozen=True, slots=True)
class Ran:
    """One editor's curve."""

    facts: Facts
    curve: Curve

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Ran:
        """From what `asdict` made of it."""
        return cls(Facts(**document["facts"]), Curve.read(document["curve"]))


def run(plan: Plan, parts: Split, names: Sequence[str], work: Path, starting: Starting) -> list[Ran]:
    """Measure the editors one after the other. work: what is done is kept there, and not done again.

    Raises Differs where it holds the work of another plan, NothingToEdit where the model makes no mistake.
    """
    settle(work / "configuration.json", asdict(plan))
    model = plan.model or str(finetuned(plan.name, [Example(each.input, each.target) for each in parts.train]))
    memory = work / "memory.jsonl"
    memory.write_text("".join(json.dumps(asdict(each)) + "\n" for each in parts.train[: plan.memory]), "utf-8")
    settings = {"MODEL": model, "MEMORY_FILE": str(memory.resolve())}
    return [_ran(plan, parts, name, work / name, starting, settings) for name in names]


def _ran(plan: Plan, parts: Split, editor: str, folder: Path, starting: Starting, settings: Mapping[str, str]) -> Ran:
    finished = folder / "finished.json"
    if not finished.exists():
        folder.mkdir(exist_ok=True)
        loosened = LOOSE if EDITORS[editor].baseline else {}
        with starting(folder, {**settings, **loosened}) as client:
            ran = _Running(plan, parts, editor, folder, client).go_on()
        unfinished = finished.with_suffix(".new")
        unfinished.write_text(json.dumps(asdict(ran)), "utf-8")
        unfinished.replace(finished)
    return Ran.read(json.loads(finished.read_text("utf-8")))


class _Running:
    """One editor's sequence on its service."""

    def __init__(self, plan: Plan, parts: Split, editor: str, folder: Path, client: Client) -> None:
        self._plan, self._parts, self._editor, self._folder, self._client = plan, parts, editor, folder, client
        self._service = Service(client, {}, editor=editor)
        self._unedited = Unedited(Journal(folder.parent / "unedited.jsonl"))
        train, test = (drawn(part, plan.test_sample, plan.seed) for part in (parts.train, parts.test))
        self._watched = Watched(train, test, plan.seed)

    def go_on(self) -> Ran:
        """Find the mistakes, report those that are left, measure at each checkpoint that is left."""
        with _progress() as progress:
            mistakes = self._mistakes(progress)
            facts = self._facts(mistakes, progress)
            checkpoints = self._edited(mistakes, progress)
        options = self._plan.options.get(self._editor, {})
        return Ran(facts, Curve(self._editor, EDITORS[self._editor].baseline, options, checkpoints))

    def _edited(self, mistakes: Sequence[Entry], progress: Progress) -> list[Checkpoint]:
        written, measured = Journal(self._folder / "reports.jsonl"), Journal(self._folder / "checkpoints.jsonl")
        options = self._plan.options.get(self._editor, {})
        reporter = Reporter(self._client, self._editor, options, seed=self._plan.seed, mistakes=mistakes)
        done = {row["reports"] for row in measured}
        task = progress.add_task(f"{self._plan.name}, {self._editor}", total=len(mistakes), completed=len(written))
        for at in schedule(len(mistakes)):
            while len(written) < at:
                reporter.go_on(written)
                progress.advance(task)
            if at not in done:
                measured.add(asdict(self._measured(mistakes, written, at, progress)))
        return [Checkpoint(**row) for row in measured]

    def _measured(self, mistakes: Sequence[Entry], written: Journal, at: int, progress: Progress) -> Checkpoint:
        task = progress.add_task(f"  measuring after {at} reports", total=None)
        measuring = Measuring(self._service, self._unedited, self._watched, lambda count: progress.advance(task, count))
        checkpoint = measuring.after(self._editor, mistakes, reports(written)[:at])
        progress.remove_task(task)
        return checkpoint

    def _mistakes(self, progress: Progress) -> list[Entry]:
        """The first so many of the edit part that the unedited model gets wrong. Raises NothingToEdit."""
        wanted = self._plan.reports(self._editor)
        task = progress.add_task(f"{self._plan.name}, looking for mistakes", total=wanted)
        found: list[Entry] = []
        for start in range(0, len(self._parts.edit), TEXTS_A_LOOK):
            some = self._parts.edit[start : start + TEXTS_A_LOOK]
            said = self._unedited.says(self._service, [entry.input for entry in some])
            found += [entry for entry, answer in zip(some, said, strict=True) if answer != entry.target.strip()]
            progress.update(task, completed=min(len(found), wanted or len(found)))
            if wanted is not None and len(found) >= wanted:
                break
        progress.remove_task(task)
        if not found[:wanted]:
            raise NothingToEdit(f"There is nothing to edit: {len(found)} mistakes in {len(self._parts.edit)} inputs.")
        return found[:wanted]

    def _facts(self, mistakes: Sequence[Entry], progress: Progress) -> Facts:
        task = progress.add_task(f"{self._plan.name}, before any edit", total=None)

        def accuracy(entries: Sequence[Entry]) -> float:
            texts = [entry.input for entry in entries]
            said = self._unedited.says(self._service, texts, lambda count: progress.advance(task, count))
            return share([answer == entry.target.strip() for answer, entry in zip(said, entries, strict=True)])

        model, parts = self._client.model(), self._parts
        facts = Facts(
            model=model["fingerprint"],
            task=model["task"],
            train=len(parts.train),
            edit=len(parts.edit),
            test=len(parts.test),
            train_accuracy=accuracy(self._watched.train),
            test_accuracy=accuracy(self._watched.test),
            mistakes=len(mistakes),
        )
        progress.remove_task(task)
        return facts


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
