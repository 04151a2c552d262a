"""Both editors side by side over HTTP: mistakes of two classifiers and of a pronunciation model, edited in sequence.

    python -m benchmarks.editors --data FOLDER [--pronunciation MODEL] [--only TASK ...] [--output DIR]

FOLDER holds the files of BANKING77, SST-2 and the g2p-us lexicon; MODEL is the folder of g2p-us. The classifiers are
MiniLM, fine-tuned once on the training files and kept in the user's cache folder; what they get right of these is the
memory file. The lexicon is shuffled with a seed, its first words are the memory file. The mistakes come in the order of
the test files, or of the lexicon. Rephrases are surface variants of the mistakes (`benchmarks.surface`), of words the
same with the case of their first letter turned; no editor is told of them.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.finetuning import finetuned, read_examples
from benchmarks.reporting import Entry, Reported, Service, mean, read_entries, said, serving, share
from benchmarks.surface import variants

SEED = 0
EDITORS = ("transformer-patcher", "grace")
TIMED = 3
"""How often the unseen inputs are answered to take the time of a prediction, with and without edits in turn."""
MEMORY_WORDS = 6_000


@dataclass(frozen=True, slots=True)
class Task:
    """A model, what it is known to get right, and inputs with their answers that it has not seen.

    rephrases: from an input to others that mean the same.
    """

    name: str
    model: str
    memory: Sequence[Entry]
    unseen: Sequence[Entry]
    rephrases: Callable[[str], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The measures of one sequence of edits; shares between 0 and 1."""

    task: str
    editor: str
    reports: int
    statuses: dict[str, int]
    success: float  # of the reports, directly afterwards
    retained: float  # of the reports, after the last one
    retained_edits: float  # of those that became edits
    generalisation: float  # of the rephrases
    generalisation_bare: float  # the same before any edit
    test_retain: float  # right answers to unseen inputs after, over before
    kept: float  # of the unseen inputs that were right, those that still are
    unchanged: float  # of these, those whose whole answer is the same
    unseen: int
    values_an_edit: float
    seconds_an_edit: float  # of fit and judge
    seconds_http: float  # from report to answer
    milliseconds: float  # a prediction, with the edits
    milliseconds_bare: float  # without them, in turn with the above


def banking77(data: Path) -> Task:
    """Which of 77 wishes a customer of a bank has."""
    return _classified("banking77", data / "banking77_train.jsonl", [data / "banking77_test.jsonl"])


def sst2(data: Path) -> Task:
    """Whether a sentence of a film review is positive."""
    return _classified("sst2", data / "sst2_train.jsonl", [data / "sst2_test.jsonl", data / "sst2_dev.jsonl"])


def pronunciation(data: Path, model: str) -> Task:
    """Which phonemes a word has."""
    entries = read_entries(data / "g2p_us_lexicon.jsonl")
    random.Random(SEED).shuffle(entries)
    remembered, rest = entries[:MEMORY_WORDS], entries[MEMORY_WORDS:]
    return Task("g2p-us", model, remembered, rest, lambda word: [word[0].swapcase() + word[1:]])


def _classified(name: str, training: Path, testing: Sequence[Path]) -> Task:
    known = read_examples(training)
    unseen = [example for path in testing for example in read_examples(path)]
    memory, testing_entries = ([Entry(each.text, each.label) for each in some] for some in (known, unseen))
    return Task(name, str(finetuned(name, known)), memory, testing_entries, lambda text: variants(text, SEED))


def run(task: Task, editor: str, *, edits: int, unseen: int, options: Mapping[str, Any]) -> Outcome:
    """Report the first `edits` mistakes among the inputs that the model has not seen.

    unseen: of how many of the inputs that it gets right the answers are watched.
    """
    cache = user_cache_path("errata")
    with serving(task.model, task.memory, options, editor=editor, cache=cache) as service:
        mistakes, right = _sorted_out(service, task.unseen, mistakes=edits, right=unseen)
        rephrased = [Entry(text, entry.target) for entry in mistakes for text in task.rephrases(entry.input)]
        bare = _rights(service, rephrased, edited=False)
        before = service.predictions([entry.input for entry in right], edited=False)
        done = [service.report(entry) for entry in _shown(mistakes, f"{task.name}, {editor}")]
        after = service.predictions([entry.input for entry in right])
        kept = [said(now) == entry.target.strip() for now, entry in zip(after, right, strict=True)]
        held = _rights(service, mistakes)
        with_edits, without = _timed(service, [entry.input for entry in right])
        return Outcome(
            task=task.name,
            editor=editor,
            reports=len(done),
            statuses={status: sum(each.status == status for each in done) for status in {each.status for each in done}},
            success=share([each.right for each in done]),
            retained=share(held),
            retained_edits=share([held[index] for index, each in enumerate(done) if each.status == "live"]),
            generalisation=share(_rights(service, rephrased)),
            generalisation_bare=share(bare),
            test_retain=(sum(kept) + sum(held)) / len(right),
            kept=share(kept),
            unchanged=share([_same(now, was) for now, was in zip(after, before, strict=True)]),
            unseen=len(right),
            **_of_edits([each for each in done if each.status == "live"]),
            milliseconds=1000 * with_edits,
            milliseconds_bare=1000 * without,
        )


def _of_edits(live: Sequence[Reported]) -> dict[str, float]:
    return {
        "values_an_edit": mean([each.values for each in live]),
        "seconds_an_edit": mean([each.fit_seconds for each in live]),
        "seconds_http": mean([each.seconds for each in live]),
    }


def _sorted_out(
    service: Service, entries: Sequence[Entry], *, mistakes: int, right: int
) -> tuple[list[Entry], list[Entry]]:
    """The first so many entries that the unedited model gets wrong, and right."""
    wrong_ones: list[Entry] = []
    right_ones: list[Entry] = []
    for start in range(0, len(entries), 500):
        some = entries[start : start + 500]
        for entry, answer in zip(some, service.says([each.input for each in some], edited=False), strict=True):
            (right_ones if answer == entry.target.strip() else wrong_ones).append(entry)
        if len(wrong_ones) >= mistakes and len(right_ones) >= right:
            break
    return wrong_ones[:mistakes], right_ones[:right]


def _rights(service: Service, entries: Sequence[Entry], *, edited: bool = True) -> list[bool]:
    answers = service.says([entry.input for entry in entries], edited=edited)
    return [answer == entry.target.strip() for answer, entry in zip(answers, entries, strict=True)]


def _same(now: Mapping[str, Any], was: Mapping[str, Any]) -> bool:
    """Whether nothing fired: then the computation is that of the unedited model, bit for bit."""
    assert now["fired"] or said(now) == said(was), f"an answer changed though nothing fired: {was} became {now}"
    return not now["fired"]


def _timed(service: Service, texts: Sequence[str]) -> tuple[float, float]:
    """Seconds a prediction with the edits, and without, in turn."""
    seconds = {True: 0.0, False: 0.0}
    for turn in range(2 * TIMED):
        edited = turn % 2 == 0
        began = time.perf_counter()
        service.predictions(texts, edited=edited)
        seconds[edited] += time.perf_counter() - began
    return seconds[True] / TIMED / len(texts), seconds[False] / TIMED / len(texts)


def _shown(entries: Sequence[Entry], what: str) -> Any:
    with Progress(console=Console(stderr=True)) as progress:
        yield from progress.track(entries, description=what)


def show(outcomes: Sequence[Outcome], console: Console) -> None:
    """The outcomes as a table, one column each."""
    table = Table(
        "", *(f"{one.task}\n{one.editor}" for one in outcomes), title="Edits in sequence, over HTTP", box=SIMPLE_HEAD
    )
    for column in table.columns[1:]:
        column.justify = "right"
    rows: dict[str, Callable[[Outcome], str]] = {
        "reports": lambda one: str(one.reports),
        "how they ended": lambda one: "\n".join(f"{count} {status}" for status, count in sorted(one.statuses.items())),
        "SR": lambda one: f"{one.success:.4f}",
        "ER": lambda one: f"{one.retained:.4f}",
        "ER of live edits": lambda one: f"{one.retained_edits:.4f}",
        "GR": lambda one: f"{one.generalisation:.4f}",
        "the same before": lambda one: f"{one.generalisation_bare:.4f}",
        "TestR": lambda one: f"{one.test_retain:.4f}",
        "kept": lambda one: f"{one.kept:.4f}",
        "unchanged": lambda one: f"{one.unchanged:.4f}",
        "of so many": lambda one: str(one.unseen),
        "neurons or values an edit": lambda one: f"{one.values_an_edit:.2f}",
        "seconds an edit, fit and judge": lambda one: f"{one.seconds_an_edit:.4f}",
        "seconds an edit, over HTTP": lambda one: f"{one.seconds_http:.4f}",
        "ms a prediction, with edits": lambda one: f"{one.milliseconds:.3f}",
        "ms a prediction, without": lambda one: f"{one.milliseconds_bare:.3f}",
    }
    for name, shown in rows.items():
        table.add_row(name, *map(shown, outcomes))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data files")
    parser.add_argument("--pronunciation", help="folder or hub id of the pronunciation model")
    parser.add_argument("--only", nargs="+", choices=("banking77", "sst2", "g2p-us"), help="tasks to measure (all)")
    parser.add_argument("--editors", nargs="+", choices=EDITORS, default=EDITORS)
    parser.add_argument("--edits", type=int, default=250, help="mistakes to report, if there are as many (250)")
    parser.add_argument("--unseen", type=int, default=2_000, help="right answers to watch, if there are as many (2000)")
    parser.add_argument("--options", type=json.loads, default={}, help="options of the editors, as JSON by name")
    parser.add_argument("--output", type=Path, help="folder for editors.json")
    given = parser.parse_args()
    makers: dict[str, Callable[[], Task]] = {
        "banking77": lambda: banking77(given.data),
        "sst2": lambda: sst2(given.data),
    }
    if given.pronunciation is not None:
        makers["g2p-us"] = lambda: pronunciation(given.data, given.pronunciation)
    elif given.only and "g2p-us" in given.only:
        parser.error("g2p-us needs --pronunciation")
    outcomes = [
        run(task, editor, edits=given.edits, unseen=given.unseen, options=given.options.get(editor, {}))
        for task in (make() for name, make in makers.items() if not given.only or name in given.only)
        for editor in given.editors
    ]
    if given.output is not None:
        given.output.mkdir(parents=True, exist_ok=True)
        (given.output / "editors.json").write_text(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n")
    show(outcomes, Console(width=None if sys.stdout.isatty() else 140))


if __name__ == "__main__":
    main()
