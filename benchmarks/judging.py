"""What it costs to judge one edit against ten thousand live ones and ten thousand inputs of the guard.

    python -m benchmarks.judging [--live N ...] [--guard N] [--output DIR]

The model is the built-in MiniLM, the editor Transformer-Patcher with its defaults. Sentences are made of the words of
the model's training texts; so many are the guard, so many are live edits with a label drawn at random, each fitted
beside the guard. Then further edits are judged and go live, one after the other, as the service does it: the time is
that of the whole verdict, every gate and the consistency of the guard among them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from platformdirs import user_cache_path
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from app.engine import Entry, Live, View
from app.judge import Exemption, Judge, Required
from app.memory import Guard, Known, Memory, Said, Shelving, Texts
from app.memory.known import sureness
from app.model import Model, load
from app.model.builtin import builtin
from benchmarks.codebook_cost import read, sentences
from benchmarks.slices import finish
from editors.composition import Composition
from editors.moments import Moments
from editors.neuron import TransformerPatcher
from editors.registry import options_of
from editors.types import Header, Patch, Problem, Reading, Rows

SEED = 0
JUDGED = 20
EDITOR = TransformerPatcher()
REQUIRED = Required(rephrases_hold=0.8, guard_unchanged=0.999, guard_fires=0.005, other_edits_hold=1.0)
GATED = ("other_edits_hold", "guard_unchanged", "guard_fires")


@dataclass(frozen=True, slots=True)
class Cost:
    """Milliseconds; medians over the edits that were judged."""

    live: int
    guard: int
    at_start: float  # the first look at everything, once a process
    verdict: float  # from a patch to its verdict
    slowest: float
    passed: int  # verdicts
    judged: int


def fitted(model: Model, reading: Reading, memory: Rows) -> list[Patch]:
    """A patch for each text, for a label drawn at random among those that it does not get."""
    options, moments = options_of(EDITOR, {}, model.sites.family), Moments.of(memory.queries)
    header = Header(EDITOR.name, EDITOR.version, model.fingerprint, model.site.name, model.dtype)
    with Progress(console=Console(stderr=True)) as progress:
        return [
            Patch(header, finish(EDITOR.fit(_problem(model, rows, memory, moments), options)).tensors)
            for rows in progress.track([reading.of_text(text) for text in range(len(reading))], description="Fitting")
        ]


def _problem(model: Model, rows: Rows, memory: Rows, moments: Moments) -> Problem:
    return Problem(rows, torch.zeros_like(rows.labels), [memory], model.readout, SEED, moments)


def judged(model: Model, guard: Known, texts: Sequence[str], reading: Reading, patches: Sequence[Patch]) -> Cost:
    """Judge the last edits, each while all before it are live."""
    memory = Memory(guard, Guard.of(guard), None, limit=len(guard))
    judge = Judge(memory, model, REQUIRED)
    live = len(patches) - JUDGED
    for number in range(live):
        _put(memory, number, texts, reading)
    present = _live(model, patches, live)
    at_start = _timed(lambda: finish(judge.rows_of(present, present.alive)))
    seconds, passed = [], 0
    for number in range(live, live + JUDGED):
        following = _live(model, patches, number + 1)
        view = View(number + 1, following.overlay, following.alive, following.edit_ids)
        judging = judge.of_patch(present, view, exempt=Exemption(), own=reading.of_text(number), required=REQUIRED)
        began = time.perf_counter()
        verdict = finish(judging).verdict
        seconds.append(time.perf_counter() - began)
        passed += all(gate.passed for gate in verdict.gates if gate.name in GATED)
        _put(memory, number, texts, reading)
        present = following
    return Cost(
        live, len(guard), 1000 * at_start, 1000 * statistics.median(seconds), 1000 * max(seconds), passed, JUDGED
    )


def _put(memory: Memory, number: int, texts: Sequence[str], reading: Reading) -> None:
    memory.edits.put([Shelving(str(number), texts[number], [texts[number]], Reading(reading.of_text(number), (1,)))])


def _live(model: Model, patches: Sequence[Patch], count: int) -> Live:
    """The first patches, each live since its own revision."""
    overlay = Composition({EDITOR.name: EDITOR}, model.sites, model.device).extend(patches[:count])
    entries = tuple(Entry(str(number), None, str(number), "", ((number + 1, None),)) for number in range(count))
    return Live(count, overlay, entries)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def run(live: Sequence[int], guard: int) -> list[Cost]:
    """The costs beside so many live edits each."""
    model = load(builtin(user_cache_path("errata")), device="cpu")
    texts = sentences(guard + max(live) + JUDGED)
    given = read(model, texts)
    known = _known(model, texts[:guard], _part(given, 0, guard))
    edits = _part(given, guard, len(texts))
    draw = torch.Generator().manual_seed(SEED)
    other = torch.randint(1, len(model.labels), edits.rows.labels.shape, generator=draw)
    labels = (edits.rows.labels + other) % len(model.labels)
    wanted = replace(edits, rows=replace(edits.rows, labels=labels))
    patches = fitted(model, wanted, known.right_rows())
    return [judged(model, known, texts[guard:], wanted, patches[: count + JUDGED]) for count in live]


def _known(model: Model, texts: Sequence[str], reading: Reading) -> Known:
    sure = finish(sureness(reading.rows, model.readout))
    wrong = torch.zeros(len(texts), dtype=torch.bool)
    return Known(Texts.of(texts, reading), Said(reading.rows.labels, sure["scores"], sure["gaps"]), wrong)


def _part(given: Reading, start: int, end: int) -> Reading:
    """Some texts of a classifier's reading: one row each."""
    return Reading(given.rows[start:end], given.lengths[start:end])


def show(costs: Sequence[Cost], console: Console) -> None:
    """The costs as a table."""
    table = Table(
        "live edits",
        "guard inputs",
        "at start, ms",
        "a verdict, ms",
        "slowest, ms",
        "passed",
        title="Judging one more edit",
        box=SIMPLE_HEAD,
    )
    for column in table.columns:
        column.justify = "right"
    for one in costs:
        shown = f"{one.at_start:.0f}", f"{one.verdict:.1f}", f"{one.slowest:.1f}", f"{one.passed} of {one.judged}"
        table.add_row(f"{one.live:,}", f"{one.guard:,}", *shown)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--live", type=int, nargs="+", default=[100, 1_000, 10_000], help="100 1000 10000")
    parser.add_argument("--guard", type=int, default=10_000, help="inputs of the guard (10000)")
    parser.add_argument("--output", type=Path, help="folder for judging.json")
    given = parser.parse_args()
    costs = run(given.live, given.guard)
    if given.output is not None:
        given.output.mkdir(parents=True, exist_ok=True)
        (given.output / "judging.json").write_text(json.dumps([asdict(one) for one in costs], indent=1) + "\n")
    show(costs, Console(width=None if sys.stdout.isatty() else 100))


if __name__ == "__main__":
    main()
