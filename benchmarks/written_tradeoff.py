"""Generality against locality where answers are written: words edited in sequence, by where neurons begin to fire.

    python -m benchmarks.written_tradeoff --data FOLDER --model FOLDER [--edits N] [--output DIR]

The lexicon is shuffled with a seed: its first words are the memory, mistakes are found in the words after them, the
last words are watched. No service and no judge take part: the fits alone, on stored activations, as in
`benchmarks.sequences`. Generality is the share of the mistakes, written with the case of their first letter turned,
that are right at the end; locality the share of the watched words that were right and still are, after half of the
edits and after all.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from app.engine.reading import reading
from app.model import Model, load
from benchmarks.reporting import Entry, read_entries
from benchmarks.slices import finish
from editors import codec
from editors.errors import FitFailed
from editors.moments import Moments
from editors.neuron import NeuronBank, Options, TransformerPatcher
from editors.registry import options_of
from editors.types import Header, Patch, Problem, Reading, Rows

SEED = 0
BATCH = 64
CHUNK = 4_096
WRONG_OF = 3.4
"""One in so many words, at least, is a mistake of the pronunciation model."""
CHOICES: Mapping[str, Mapping[str, Any]] = {
    "defaults": {},
    "threshold 0.6": {"threshold": 0.6},
    "threshold 0.7": {"threshold": 0.7},
    "threshold 0.85": {"threshold": 0.85},
    "threshold 0.9": {"threshold": 0.9},
    "ridge 0.0001": {"ridge": 0.0001},
    "no exemption": {"spare_same_label": False},
}
EDITOR = TransformerPatcher()
HEADER = Header(EDITOR.name, EDITOR.version, base="benchmark", site="benchmark", dtype="float32")


@dataclass(frozen=True, slots=True)
class Words:
    """Words fed what they should get. right: (words,) bool, those that the unedited model says."""

    reading: Reading
    right: Tensor

    def only(self, chosen: Tensor) -> Words:
        """Some of the words: (words,) bool."""
        lengths = tuple(length for length, kept in zip(self.reading.lengths, chosen.tolist(), strict=True) if kept)
        return Words(Reading(self.reading.rows[chosen[self.reading.owners()]], lengths), self.right[chosen])


@dataclass(frozen=True, slots=True)
class Bench:
    """What a sequence of edits is made of and measured on."""

    memory: Rows
    mistakes: Words
    turned: Words  # the same words, with the case of their first letter turned
    watched: Words  # all of them right
    model: Model


@dataclass(frozen=True, slots=True)
class Outcome:
    """The measures of one sequence; shares between 0 and 1."""

    name: str
    options: dict[str, Any]
    reports: int
    edits: int
    failed: int
    retained: float
    generalisation: float
    kept_halfway: float
    kept: float
    neurons_an_edit: float
    milliseconds: float  # an edit


def prepare(data: Path, model: Model, *, edits: int, memory: int, watched: int) -> Bench:
    """Read every word once, and find the mistakes."""
    entries = read_entries(data / "g2p_us_lexicon.jsonl")
    random.Random(SEED).shuffle(entries)
    looked_at = entries[memory : memory + int(edits * WRONG_OF)]
    known, seen, last = (read(model, some) for some in (entries[:memory], looked_at, entries[-watched:]))
    wrong = ~seen.right & ((~seen.right).cumsum(0) <= edits)
    chosen = [entry for entry, is_wrong in zip(looked_at, wrong.tolist(), strict=True) if is_wrong]
    turned = read(model, [Entry(each.input[0].swapcase() + each.input[1:], each.target) for each in chosen])
    return Bench(known.only(known.right).reading.rows, seen.only(wrong), turned, last.only(last.right), model)


def read(model: Model, entries: Sequence[Entry]) -> Words:
    """The unedited model's activations on words, fed their targets."""
    encodings = model.encode([entry.input for entry in entries])
    wanted = [model.wanted(encoding, entry.target) for encoding, entry in zip(encodings, entries, strict=True)]
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("Reading words", total=len(entries))
        done = finish(reading(model, encodings, wanted, max_batch=BATCH), lambda: progress.advance(task, BATCH))
    return Words(done.reading, _all_right(done.answered, done.reading))


def edit_all(name: str, bench: Bench, given: Mapping[str, Any], progress: Progress) -> Outcome:
    """Edit every mistake in order; one that is right already, thanks to earlier ones, needs no patch."""
    options: Options = options_of(EDITOR, given, bench.model.sites.family)
    moments, began = Moments.of(bench.memory.queries), time.perf_counter()
    bank = EDITOR.overlay(bench.model.hidden_size, torch.device("cpu"))
    learned: list[Rows] = []
    count, failed, neurons, halfway = len(bench.mistakes.right), 0, 0, 1.0
    lived = torch.zeros(count, dtype=torch.bool)
    task = progress.add_task(f"Editing: {name}", total=count)
    starts = [0, *torch.tensor(bench.mistakes.reading.lengths).cumsum(0).tolist()]
    for number in range(count):
        rows = bench.mistakes.reading.rows[starts[number] : starts[number + 1]]
        memory = [bench.memory, *([Rows.join(learned)] if learned else [])]
        problem = Problem(_patched(bank, rows), torch.arange(len(rows)), memory, bench.model.readout, SEED, moments)
        if not bool((bench.model.readout(problem.edit.residuals).argmax(-1) == rows.labels).all()):
            try:
                patch = Patch(HEADER, finish(EDITOR.fit(problem, options)).tensors)
            except FitFailed:
                failed += 1
            else:
                bank, learned = bank.extend([codec.decode(codec.encode(patch))]), [*memory[1:], rows]
                neurons += len(patch.tensors["biases"])
                lived[number] = True
        if number + 1 == count // 2:
            halfway = _share_right(bank, bench.watched, bench.model)
        progress.advance(task)
    return Outcome(
        name=name,
        options=dict(given),
        reports=count,
        edits=int(lived.sum()),
        failed=failed,
        milliseconds=1000 * (time.perf_counter() - began) / count,
        retained=_share_right(bank, bench.mistakes.only(lived), bench.model),
        generalisation=_share_right(bank, bench.turned, bench.model),
        kept_halfway=halfway,
        kept=_share_right(bank, bench.watched, bench.model),
        neurons_an_edit=neurons / max(int(lived.sum()), 1),
    )


def _patched(bank: NeuronBank, rows: Rows) -> Rows:
    alive = torch.ones(1, len(bank), dtype=torch.bool)
    nobody = torch.zeros(len(rows), dtype=torch.int64)
    return replace(rows, residuals=bank.apply(rows.queries, rows.residuals, alive, nobody)[0])


@torch.no_grad()
def _share_right(bank: NeuronBank, words: Words, model: Model) -> float:
    rows = words.reading.rows
    pieces = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    answered = torch.cat([model.readout(_patched(bank, piece).residuals).argmax(-1) for piece in pieces])
    return float(_all_right(answered, words.reading).double().mean())


def _all_right(answered: Tensor, of: Reading) -> Tensor:
    """Which words are right at every position: (rows,) -> (words,) bool."""
    right = torch.ones(len(of), dtype=torch.bool)
    right[of.owners()[answered != of.rows.labels]] = False
    return right


def show(outcomes: Sequence[Outcome], console: Console) -> None:
    """The outcomes as a table."""
    table = Table("options", title="Written answers, edits in sequence", box=SIMPLE_HEAD)
    for name in ("edits", "failed", "ER", "GR", "kept halfway", "kept", "neurons", "ms an edit"):
        table.add_column(name, justify="right")
    for one in outcomes:
        shares = (one.retained, one.generalisation, one.kept_halfway, one.kept)
        counts = str(one.edits), str(one.failed)
        table.add_row(
            one.name,
            *counts,
            *(f"{each:.4f}" for each in shares),
            f"{one.neurons_an_edit:.2f}",
            f"{one.milliseconds:.0f}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the lexicon")
    parser.add_argument("--model", required=True, help="folder or hub id of the pronunciation model")
    parser.add_argument("--edits", type=int, default=2_000, help="mistakes (2000)")
    parser.add_argument("--memory", type=int, default=6_000, help="words of the memory (6000)")
    parser.add_argument("--watched", type=int, default=4_000, help="words that are watched, if they are right (4000)")
    parser.add_argument("--only", nargs="+", choices=list(CHOICES), default=list(CHOICES), help="options to measure")
    parser.add_argument("--output", type=Path, help="folder for written_tradeoff.json")
    given = parser.parse_args()
    model = load(given.model, device="cpu")
    bench = prepare(given.data, model, edits=given.edits, memory=given.memory, watched=given.watched)
    with Progress(console=Console(stderr=True)) as progress:
        outcomes = [edit_all(name, bench, CHOICES[name], progress) for name in given.only]
    if given.output is not None:
        given.output.mkdir(parents=True, exist_ok=True)
        (given.output / "written_tradeoff.json").write_text(
            json.dumps([asdict(one) for one in outcomes], indent=1) + "\n"
        )
    show(outcomes, Console(width=None if sys.stdout.isatty() else 120))


if __name__ == "__main__":
    main()
