"""Edit every mistake of a MiniLM classifier on BANKING77 in sequence, and measure what holds and what breaks.

    python -m benchmarks.banking77 --data FOLDER [--output DIR] [--only NAME ...] [--gradient-edits N]

FOLDER holds banking77_train.jsonl and banking77_test.jsonl, one `text` and `label` a line. The classifier is
fine-tuned once and kept in the user's cache folder. Mistakes are edited in the order of the test file; surface
variants of them are held back from the fits (GR; "GR differs" leaves out those that the tokenizer reads as the
very same text, which an uncased model does with a change of case).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from app.model import Classifier, load
from benchmarks.finetuning import Example, finetuned, read_examples
from benchmarks.sequences import Bench, Outcome, Read, edit_all, read
from benchmarks.surface import variants
from editors.neuron import Options

VARIANTS_SEED = 0


@dataclass(frozen=True, slots=True)
class Setting:
    """What is varied from one sequence of edits to the next."""

    options: Options
    memory: int | None = None  # how many memory rows, drawn at random; None for all
    short: bool = False  # only the first mistakes, as many as fits by gradient get


def settings() -> dict[str, Setting]:
    """The settings that are compared, the defaults first."""
    descent = Options(fit="gradient", steps=400, max_neurons=2)
    default = Options()
    return {
        "defaults": Setting(default),
        "defaults-short": Setting(default, short=True),
        "threshold-0.2": Setting(replace(default, threshold=0.2)),
        "threshold-0.3": Setting(replace(default, threshold=0.3)),
        "threshold-0.5": Setting(replace(default, threshold=0.5)),
        "ridge-0.01": Setting(replace(default, ridge=0.01)),
        "ridge-0.1": Setting(replace(default, ridge=0.1)),
        "ridge-1": Setting(replace(default, ridge=1.0)),
        "margin-1": Setting(replace(default, margin=1.0)),
        "margin-5": Setting(replace(default, margin=5.0)),
        "no-exemption": Setting(replace(default, spare_same_label=False)),
        "memory-1000": Setting(default, memory=1000),
        "memory-200": Setting(default, memory=200),
        "gradient": Setting(descent, short=True),
        "gradient-no-exemption": Setting(replace(descent, spare_same_label=False), short=True),
    }


def run(data: Path, *, output: Path | None = None, only: Sequence[str] = (), gradient_edits: int = 60) -> list[Outcome]:
    """Measure every setting, or those named `only`; the `short` ones stop after `gradient_edits` mistakes.

    Writes `banking77.json` into `output`, if given.
    """
    chosen = {name: setting for name, setting in settings().items() if not only or name in only}
    bench = prepare(data)
    outcomes = []
    with Progress() as progress:
        for name, setting in chosen.items():
            count = gradient_edits if setting.short else len(bench.mistakes)
            part = _remembering(bench.first(count), setting.memory)
            task = progress.add_task(f"Editing: {name}", total=len(part.mistakes))
            outcomes.append(edit_all(name, part, setting.options, report=partial(progress.advance, task)))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "banking77.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
    return outcomes


def _remembering(bench: Bench, count: int | None) -> Bench:
    drawn = torch.randperm(len(bench.memory), generator=torch.Generator().manual_seed(0))[:count]
    return bench if count is None else replace(bench, memory=bench.memory[drawn])


def prepare(data: Path) -> Bench:
    """Fine-tune or find the classifier, read every text once, find the mistakes."""
    training = read_examples(data / "banking77_train.jsonl")
    testing = read_examples(data / "banking77_test.jsonl")
    classifier = load(finetuned("banking77", training), device="cpu")
    assert isinstance(classifier, Classifier)
    with Progress() as progress:

        def read_all(what: str, examples: Sequence[Example]) -> Read:
            task = progress.add_task(f"Reading {what}", total=len(examples))
            texts, labels = [each.text for each in examples], [each.label for each in examples]
            return read(classifier, texts, labels, lambda done: progress.advance(task, done))

        trained, tested = read_all("training rows", training), read_all("test rows", testing)
        wrong = (~tested.right).nonzero().squeeze(-1).tolist()
        varied = [
            (position, Example(text, testing[index].label))
            for position, index in enumerate(wrong)
            for text in variants(testing[index].text, VARIANTS_SEED)
        ]
        wrong_ids = classifier.encode([testing[index].text for index in wrong])
        varied_ids = classifier.encode([example.text for _, example in varied])
        held_back = read_all("surface variants", [example for _, example in varied])
    return Bench(
        mistakes=tested.only(~tested.right).rows,
        variants=held_back.rows,
        variant_of=torch.tensor([position for position, _ in varied]),
        variant_differs=torch.tensor(
            [
                not torch.equal(ids.input_ids, wrong_ids[position].input_ids)
                for ids, (position, _) in zip(varied_ids, varied, strict=True)
            ]
        ),
        memory=trained.only(trained.right).rows,
        right=tested.only(tested.right).rows,
        readout=classifier.readout,
    )


def show(outcomes: Sequence[Outcome], console: Console) -> None:
    """The outcomes as a table."""
    measured = (
        "edits",
        "SR",
        "ER",
        "GR",
        "GR differs",
        "TestR",
        "kept",
        "unchanged",
        "neurons",
        "ms",
        "first 20",
        "last 20",
    )
    table = Table("setting", *measured, title="BANKING77, edits in sequence", box=SIMPLE_HEAD, padding=0)
    for column in table.columns:
        column.no_wrap = True
        column.justify = "left" if column is table.columns[0] else "right"
    for one in outcomes:
        shares = (
            one.success,
            one.retained,
            one.generalisation,
            one.generalisation_differs,
            one.test_retain,
            one.kept,
            one.unchanged,
        )
        times = (one.milliseconds, one.milliseconds_first, one.milliseconds_last)
        table.add_row(
            one.name,
            str(one.edits),
            *(f"{share:.3f}" for share in shares),
            f"{one.neurons_an_edit:.2f}",
            *(f"{time:.0f}" for time in times),
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the two BANKING77 files")
    parser.add_argument("--output", type=Path, help="folder for banking77.json")
    parser.add_argument("--only", nargs="+", default=(), choices=list(settings()), help="settings to measure")
    parser.add_argument("--gradient-edits", type=int, default=60, help="mistakes edited by the short settings (60)")
    given = parser.parse_args()
    show(
        run(given.data, output=given.output, only=given.only, gradient_edits=given.gradient_edits),
        Console(width=None if sys.stdout.isatty() else 130),
    )


if __name__ == "__main__":
    main()
