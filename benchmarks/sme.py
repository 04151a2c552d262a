"""Lifelong editing as in Huang et al. 2023, through the service: every mistake reported in order, editors side by side.

    errata bench sme --data FILE... --output DIR [--model FOLDER] [--editors NAME ...] [--edits N] [--name NAME]

FILE: JSON Lines of `input` and `target`, or of `text` and `label`. All are pooled and cut into a train, an edit and a
test part by a seed. Without --model a MiniLM classifier is fine-tuned on the train part, and kept in the user's cache
folder. For each editor a service of its own is started, with the train part as its memory file. What the unedited model
gets wrong of the edit part is reported, one after the other, without rephrases. After 1, 10, 30, 100, ... reports and
the last everything is measured over HTTP. DIR/NAME.json, .csv, .png and .html are written when all editors are done;
until then DIR/NAME/work keeps what is done, and the same command goes on from there after an interruption.

Baselines are fine-tuning of the last layer in sequence. Of their edits only their own input is asked for: with the
service's gates none of them would go live.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from platformdirs import user_cache_path
from rich.console import Console

from app.cli.client import Client, ClientError
from benchmarks.curves import as_csv, as_svg, figure, table, write_png
from benchmarks.journal import Differs, Occupied, occupied
from benchmarks.lifelong import EDITORS, Facts, NothingToEdit, Plan, Ran, Starting, run
from benchmarks.page import page
from benchmarks.reporting import Entry
from benchmarks.server import NotStarted, Server
from benchmarks.splits import Split, split

NEW_TOKENS = "128"
"""Written answers may be so long: one that is cut off is not right, however well it was learned."""


class BadLine(Exception):
    """A line of data that cannot be used."""


def read_pool(files: Sequence[Path]) -> list[Entry]:
    """The examples of all files. Raises BadLine."""
    pool = []
    for file in files:
        for number, line in enumerate(file.read_text("utf-8").split("\n"), start=1):
            if line.strip():
                pool.append(_example(line, f"{file}, line {number}"))
    return pool


def _example(line: str, where: str) -> Entry:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BadLine(f"{where}: {error}.") from None
    for given, wanted in (("input", "target"), ("text", "label")):
        if isinstance(row, dict) and isinstance(row.get(given), str) and isinstance(row.get(wanted), str):
            return Entry(row[given], row[wanted])
    raise BadLine(f"{where}: neither `input` and `target` nor `text` and `label` are given as texts.")


def measure(
    plan: Plan, parts: Split, names: Sequence[str], output: Path, starting: Starting, *, keep: bool = False
) -> list[Ran]:
    """Measure the editors, or go on from where an interrupted run has come, and write the results into `output`.

    keep: leave the folder of work. Raises Differs where it holds another plan's, Occupied where it is in use.
    """
    work = output / plan.name / "work"
    with occupied(work):
        ran = run(plan, parts, names, work, starting)
        write(plan, ran, output)
    if not keep:
        shutil.rmtree(work)
        with suppress(OSError):  # something else is kept there
            work.parent.rmdir()
    return ran


def write(plan: Plan, ran: Sequence[Ran], output: Path) -> None:
    """NAME.json, .csv, .png and .html."""
    facts, curves = ran[0].facts, [each.curve for each in ran]
    most = max(curve.last.reports for curve in curves)
    title = f"Lifelong editing: {most:,} mistakes of {plan.name}, one after the other"
    lead = (
        f"The unedited model gets {facts.test_accuracy:.1%} of the test part right (a sample of "
        f"{min(plan.test_sample, facts.test):,}), and {facts.train_accuracy:.1%} of the train part. "
        f"What it gets wrong of the edit part was reported in order; every figure is measured over HTTP."
    )
    drawing = figure(curves, title)
    made = page(curves, title=title, lead=lead, svg=as_svg(drawing), configuration=_described(plan, facts))
    document = {
        "configuration": {**asdict(plan), "model": _named(plan)},
        "before": asdict(facts),
        "editors": [asdict(each) for each in curves],
    }
    (output / f"{plan.name}.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    (output / f"{plan.name}.csv").write_text(as_csv(curves), "utf-8")
    (output / f"{plan.name}.html").write_text(made, "utf-8")
    write_png(drawing, output / f"{plan.name}.png")


def _named(plan: Plan) -> str | None:
    """A hub id as it is, a folder without the place where it lies."""
    local = plan.model is not None and Path(plan.model).exists()
    return Path(str(plan.model)).name if local else plan.model


def _described(plan: Plan, facts: Facts) -> dict[str, str]:
    """The configuration, for a person."""
    asked = [
        f"{min(plan.test_sample, size):,} of the {part} part"
        for part, size in (("train", facts.train), ("test", facts.test))
    ]
    return {
        "data": ", ".join(f"{name} (sha256 {digest}…)" for name, digest in plan.data.items()),
        "model": _named(plan) or "MiniLM, fine-tuned on the train part",
        "weights and tokenizer": facts.model,
        "task": facts.task,
        "train, edit and test part": f"{facts.train:,}, {facts.edit:,} and {facts.test:,} inputs",
        "memory file": f"the first {min(plan.memory, facts.train):,} inputs of the train part",
        "asked at every checkpoint": " and ".join(asked),
        "options": json.dumps(plan.options) if plan.options else "the defaults",
        "seed": str(plan.seed),
    }


@contextmanager
def served(folder: Path, settings: Mapping[str, str]) -> Iterator[Client]:
    """`errata serve` as a process of its own. One that a killed run has left there is ended first."""
    fixed = {
        "MEMORY_FROM_TRAFFIC": "0",
        "NEW_TOKENS": NEW_TOKENS,
        "LOG_LEVEL": "warning",
        "CACHE_DIR": str(user_cache_path("errata")),
    }
    server = Server(folder.resolve(), {**fixed, **settings})
    end_those_left(server.database)
    try:
        server.start()
        with Client(server.url) as client:
            yield client
    except Exception:
        print(server.last_words(), file=sys.stderr)
        raise
    finally:
        server.close()


def end_those_left(database: str) -> None:
    """The folder is ours alone, so whoever serves the database in it belongs to a run that is no more."""
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        pid, _, command = line.strip().partition(" ")
        if command.endswith(f"--database {database}"):
            os.kill(int(pid), signal.SIGKILL)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, nargs="+", required=True, help="JSON Lines; all files are pooled")
    add("--output", type=Path, required=True, help="folder for the results, and for the work until it is done")
    add("--name", help="of the results, and of the fine-tuned model (the first file's, up to an underscore)")
    add("--model", help="folder or hub id; without it MiniLM is fine-tuned on the train part")
    add("--editors", nargs="+", choices=list(EDITORS), default=list(EDITORS), help="in this order (all)")
    add("--edits", type=int, help="mistakes to report (all of the edit part)")
    add("--baseline-edits", type=int, help="mistakes to report to baselines (as many)")
    for part, size in (("train", 0.5), ("edit", 0.35), ("test", 0.15)):
        add(f"--{part}", type=float, default=size, help=f"inputs of the {part} part: a share, or from 1 on a number")
    add("--test-sample", type=int, default=2_000, help="inputs of train and test part asked at checkpoints (2000)")
    add("--memory", type=int, default=40_000, help="inputs of the train part in the memory file, at most (40000)")
    add("--seed", type=int, default=0, help="of the parts and of whatever is drawn from them (0)")
    add("--options", type=json.loads, default={}, help='options of the editors: JSON like {"grace": {"steps": 50}}')
    add("--keep", action="store_true", help="keep the folder of work when all is done")
    return parser


def _plan(given: argparse.Namespace) -> Plan:
    return Plan(
        name=given.name or given.data[0].stem.partition("_")[0],
        data={file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in given.data},
        model=given.model,
        sizes=(given.train, given.edit, given.test),
        edits=given.edits,
        baseline_edits=given.baseline_edits,
        test_sample=given.test_sample,
        memory=given.memory,
        seed=given.seed,
        options=given.options,
    )


def main() -> int:
    """Run the benchmark; 1 when the service failed, 130 when it was interrupted."""
    parser = _arguments()
    given = parser.parse_args()
    if unknown := given.options.keys() - EDITORS.keys():
        parser.error(f"--options: there is no editor {min(unknown)!r}.")
    try:
        plan = _plan(given)
        parts = split(read_pool(given.data), plan.sizes, plan.seed)
    except (OSError, BadLine, ValueError) as refusal:
        parser.error(str(refusal))
    try:
        ran = measure(plan, parts, given.editors, given.output, served, keep=given.keep)
    except (Differs, Occupied, NothingToEdit) as refusal:
        parser.error(str(refusal))
    except (NotStarted, ClientError) as failure:
        print(f"{failure}\nThe same command goes on from here.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from here.", file=sys.stderr)
        return 130
    curves = [each.curve for each in ran]
    Console(width=None if sys.stdout.isatty() else 140).print(table(curves, f"Lifelong editing, {plan.name}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
