"""Corrections of a pronunciation model, one after the other over HTTP: a thousand words, and its maintainers' own.

The lexicon is shuffled with a seed. Its first words are the memory file, as they are: the service leaves out what the
model gets wrong. Of the words after them, those that the unedited model gets right are watched, never told to the
service; those that it gets wrong are reported with their lexicon entry, each as soon as the one before is done. All
answers are written freely, by POST /predict.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.reporting import INPUTS_A_REQUEST, Entry, Reported, Service, mean, read_entries, serving, share

SEED = 0
ENDS = 100
"""Edits at the beginning and at the end whose times are compared."""
SOME_LEARNED_BEFORE = 5
"""One in so many mistakes, at most, is right already when its turn comes, thanks to earlier edits."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The measures of one sequence; shares between 0 and 1."""

    name: str
    reports: int
    statuses: dict[str, int]
    failed_gates: dict[str, int]
    success: float  # of the edits that were needed
    retained: float  # of the words edited, their last correction
    retained_unneeded: float  # of the words that needed no edit when they were reported
    unchanged: float  # of the watched words
    watched: int
    memory_words: int
    neurons_an_edit: float
    seconds_first: float  # an edit, over HTTP
    seconds_last: float
    fit_seconds_first: float
    fit_seconds_last: float
    seconds: tuple[float, ...]  # of each edit that went live

    @property
    def slowdown(self) -> float:
        """Time of the last edits over that of the first."""
        return self.seconds_last / self.seconds_first


def run_lexicon(data: Path, model: str, *, edits: int, watched: int, memory: int, options: dict[str, Any]) -> Outcome:
    """Report words of the lexicon that the model gets wrong, until `edits` of them needed an edit."""
    entries = _shuffled(data)
    remembered, rest = entries[:memory], entries[memory:]
    with serving(model, remembered, options) as service:
        mistakes, right = _sorted_out(service, rest, mistakes=edits + edits // SOME_LEARNED_BEFORE, right=watched)
        return _edited("lexicon", service, mistakes, right, memory, needed=edits)


def run_corrections(
    data: Path, model: str, *, edits: int | None, watched: int, memory: int, options: dict[str, Any]
) -> Outcome:
    """Report what the maintainers corrected, in their order; these words are neither remembered nor watched."""
    stream = read_entries(data / "g2p_us_corrections.jsonl")[:edits]
    corrected = {entry.input for entry in stream}
    entries = [entry for entry in _shuffled(data) if entry.input not in corrected]
    remembered, rest = entries[:memory], entries[memory:]
    with serving(model, remembered, options) as service:
        _, right = _sorted_out(service, rest, mistakes=0, right=watched)
        return _edited("corrections", service, stream, right, memory)


def _shuffled(data: Path) -> list[Entry]:
    entries = read_entries(data / "g2p_us_lexicon.jsonl")
    random.Random(SEED).shuffle(entries)
    return entries


def _sorted_out(
    service: Service, entries: Sequence[Entry], *, mistakes: int, right: int
) -> tuple[list[Entry], list[Entry]]:
    """The first so many entries that the unedited model gets wrong, and right."""
    wrong_ones: list[Entry] = []
    right_ones: list[Entry] = []
    for start in range(0, len(entries), 4 * INPUTS_A_REQUEST):
        some = entries[start : start + 4 * INPUTS_A_REQUEST]
        for entry, said in zip(some, service.says([entry.input for entry in some], edited=False), strict=True):
            (right_ones if said == entry.target.strip() else wrong_ones).append(entry)
        if len(wrong_ones) >= mistakes and len(right_ones) >= right:
            break
    return wrong_ones[:mistakes], right_ones[:right]


def _edited(
    name: str,
    service: Service,
    stream: Sequence[Entry],
    watched: Sequence[Entry],
    memory: int,
    *,
    needed: int | None = None,
) -> Outcome:
    words = [entry.input for entry in watched]
    before = service.says(words, edited=False)
    done: list[Reported] = []
    left = len(stream) if needed is None else needed
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(f"Editing: {name}", total=left)
        for entry in stream:
            if left == 0:
                break
            done.append(service.report(entry))
            counts = needed is None or done[-1].needed
            left -= counts
            progress.advance(task, counts)
    unchanged = [now == was for now, was in zip(service.says(words), before, strict=True)]
    return _measured(name, service, done, unchanged, memory)


def _measured(name: str, service: Service, done: Sequence[Reported], unchanged: Sequence[bool], memory: int) -> Outcome:
    needed = [each for each in done if each.needed]
    live = [each for each in needed if each.status == "live"]
    last = {each.entry.input: each for each in done if each.status in ("live", "not_needed")}
    held = {
        word: said == last[word].entry.target.strip() for word, said in zip(last, service.says(list(last)), strict=True)
    }
    return Outcome(
        name=name,
        reports=len(done),
        statuses=_counted(each.status for each in done),
        failed_gates=_counted(gate for each in done for gate in each.failed_gates),
        success=share([each.right for each in needed]),
        retained=share([held[word] for word, each in last.items() if each.status == "live"]),
        retained_unneeded=share([held[word] for word, each in last.items() if each.status == "not_needed"]),
        unchanged=share(unchanged),
        watched=len(unchanged),
        memory_words=memory,
        neurons_an_edit=mean([each.values for each in live]),
        seconds_first=mean([each.seconds for each in live[:ENDS]]),
        seconds_last=mean([each.seconds for each in live[-ENDS:]]),
        fit_seconds_first=mean([each.fit_seconds for each in live[:ENDS]]),
        fit_seconds_last=mean([each.fit_seconds for each in live[-ENDS:]]),
        seconds=tuple(round(each.seconds, 5) for each in live),
    )


def _counted(names: Iterator[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts


def show(outcomes: Sequence[Outcome], console: Console) -> None:
    """The outcomes as a table, one column each."""
    table = Table("", *(one.name for one in outcomes), title="Corrections of a pronunciation model", box=SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    rows = {
        "reports": [str(one.reports) for one in outcomes],
        "how they ended": [
            "\n".join(f"{count} {status}" for status, count in one.statuses.items()) for one in outcomes
        ],
        "gates that rejected": [_listed(one.failed_gates) for one in outcomes],
        "SR": [f"{one.success:.4f}" for one in outcomes],
        "ER": [f"{one.retained:.4f}" for one in outcomes],
        "not needed, still right": [f"{one.retained_unneeded:.4f}" for one in outcomes],
        "unchanged": [f"{one.unchanged:.4f} of {one.watched}" for one in outcomes],
        "memory file, words": [str(one.memory_words) for one in outcomes],
        "neurons an edit": [f"{one.neurons_an_edit:.3f}" for one in outcomes],
        f"seconds an edit, first {ENDS}": [f"{one.seconds_first:.4f}" for one in outcomes],
        f"seconds an edit, last {ENDS}": [f"{one.seconds_last:.4f}" for one in outcomes],
        "last / first": [f"{one.slowdown:.2f}" for one in outcomes],
        f"of these fit and judge, first {ENDS}": [f"{one.fit_seconds_first:.4f}" for one in outcomes],
        f"of these fit and judge, last {ENDS}": [f"{one.fit_seconds_last:.4f}" for one in outcomes],
    }
    for name, values in rows.items():
        table.add_row(name, *values)
    console.print(table)


def _listed(counts: dict[str, int]) -> str:
    return "\n".join(f"{count} {name}" for name, count in counts.items()) or "none"


def plot(outcomes: Sequence[Outcome], file: Path) -> None:
    """The time of every edit over the number of live ones. Needs matplotlib: `pip install 'errata[bench]'`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for one in outcomes:
        (points,) = axes.plot(one.seconds, ".", markersize=2, alpha=0.4)
        half = ENDS // 2
        around = [sorted(one.seconds[max(at - half, 0) : at + half]) for at in range(len(one.seconds))]
        axes.plot([each[len(each) // 2] for each in around], color=points.get_color(), label=f"{one.name} (median)")
    axes.set(xlabel="edits made before", ylabel="seconds an edit, over HTTP", ylim=(0, None))
    axes.legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the lexicon and its corrections")
    parser.add_argument("--model", required=True, help="folder or hub id of the pronunciation model")
    parser.add_argument("--output", type=Path, help="folder for pronunciation.json and .png")
    parser.add_argument("--only", nargs="+", choices=("lexicon", "corrections"), default=("lexicon", "corrections"))
    parser.add_argument("--edits", type=int, default=1_000, help="words of the lexicon to correct (1000)")
    parser.add_argument("--corrections", type=int, help="how much of the stream to report (all)")
    parser.add_argument("--watched", type=int, default=2_000, help="words that must not change (2000)")
    parser.add_argument("--memory", type=int, default=6_000, help="lexicon words in the memory file (6000)")
    parser.add_argument("--options", type=json.loads, default={}, help="options of the editor, as JSON")
    given = parser.parse_args()
    outcomes: list[Outcome] = []
    sizes = {"watched": given.watched, "memory": given.memory, "options": given.options}
    if "lexicon" in given.only:
        outcomes.append(run_lexicon(given.data, given.model, edits=given.edits, **sizes))
    if "corrections" in given.only:
        outcomes.append(run_corrections(given.data, given.model, edits=given.corrections, **sizes))
    if given.output is not None:
        given.output.mkdir(parents=True, exist_ok=True)
        written = [{**asdict(one), "slowdown": one.slowdown} for one in outcomes]
        (given.output / "pronunciation.json").write_text(json.dumps(written, indent=1) + "\n")
        plot(outcomes, given.output / "pronunciation.png")
    show(outcomes, Console(width=None if sys.stdout.isatty() else 120))


if __name__ == "__main__":
    main()
