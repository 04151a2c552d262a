"""The options of GRACE, swept over four models: which layer and token, where values go, how far an entry reaches.

    python -m benchmarks.codebook_sweep --data FOLDER [--pronunciation MODEL] [--stories MODEL] [--only TASK ...]

The classifiers, the pronunciation model and their data are those of `benchmarks.editors`; the stories model is a small
LLaMA, whose task is made up: prompts of one kind get a fixed other ending. Every setting changes the family's defaults
in what its name says. Mistakes are edited in sequence as the service does it, without its gates: one that is right
already when its turn comes gets no entry, and all that is measured comes from the full model under the entries.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from app.engine import View
from app.engine.patched import Patched
from app.engine.reading import reading
from app.judge.standing import Standing
from app.memory import Texts
from app.model import Ask, Decoding, Encoding, Model, Read, load
from benchmarks.editors import Task, banking77, pronunciation, sst2
from benchmarks.reporting import Entry, mean, share
from benchmarks.slices import finish
from editors import codec
from editors.codebook import Grace, Options
from editors.composition import NOTHING, Composition
from editors.errors import FitFailed
from editors.layers import TOKENS, LayerSite
from editors.registry import options_of
from editors.types import Header, Patch, Problem, Reading, Remembered

SEED = 0
BATCH = 64
GRACE = Grace()
ADJECTIVES = ("little", "big", "happy", "sad", "old", "kind", "red", "small", "good", "funny", "brave", "shy")
ANIMALS = ("cat", "dog", "bird", "girl", "boy", "bear", "fish", "frog", "rabbit", "duck", "lion", "mouse", "cow", "fox")
PLACES = ("park", "house", "garden", "forest", "school")
EDITED_STORIES = 200
NEW_TOKENS = 8
WHATEVER = ""
"""The target of an input for which whatever the unedited model says is right."""
ENDINGS = ("a red ball.", "a big tree.", "his mom.", "the sun.", "a new friend.")


@dataclass(frozen=True, slots=True)
class Bench:
    """A model, and the texts of a task as it reads them."""

    model: Model
    memory: Texts
    mistakes: Texts
    rephrases: Texts
    right: Texts


@dataclass(frozen=True, slots=True)
class Outcome:
    """The measures of one sequence; shares between 0 and 1."""

    task: str
    setting: str
    reports: int
    entries: int
    failed: int
    success: float
    retained: float
    generalisation: float
    kept: float
    unchanged: float
    steps: float
    milliseconds: float  # an edit, keys of the memory aside


def settings(family: str) -> dict[str, dict[str, Any]]:
    """What is changed of the family's defaults, by name."""
    chosen: dict[str, dict[str, Any]] = {"defaults": {}}
    for token in TOKENS:
        chosen[f"key {token}"] = {"key_token": token}
    for radius in (0.25, 0.5, 0.75, 1.0):
        chosen[f"radius {radius}"] = {"radius": radius}
    for start, rate in product(("cold", "warm"), (0.1, 0.3, 1.0)):
        chosen[f"{start}, rate {rate}"] = {"start": start, "learning_rate": rate}
    if family in ("encoder-decoder", "decoder"):
        for layer in (-2, -4):
            chosen[f"layer {layer}"] = {"layer": layer}
        for layer, replace in product((-1, -2, -4), ("all", "prompt", "last")):
            one = {"layer": layer, "replace": replace, "values": "one", "learning_rate": 0.3}
            chosen[f"layer {layer}, one value, {replace}"] = one
    else:
        for layer in (-2, -4):
            chosen[f"layer {layer}"] = {"layer": layer}
            chosen[f"layer {layer}, key first"] = {"layer": layer, "key_token": "first"}
        chosen["layer -2, prompt"] = {"layer": -2, "replace": "prompt"}
        chosen["layer -2, all"] = {"layer": -2, "replace": "all"}
    return chosen


def stories(model: str) -> Task:
    """Prompts of a story; some get another ending, of the others whatever the model itself says next is right."""
    openings = ("Once upon a time, there was a", "One day, a")
    prompts = [
        f"{opening} {adjective} {animal} who went to the {place} and saw"
        for opening, adjective, animal, place in product(openings, ADJECTIVES, ANIMALS, PLACES)
    ]
    random.Random(SEED).shuffle(prompts)
    edited = [Entry(prompt, ENDINGS[turn % len(ENDINGS)]) for turn, prompt in enumerate(prompts[:EDITED_STORIES])]
    others = [Entry(prompt, WHATEVER) for prompt in prompts[EDITED_STORIES:]]
    half = len(others) // 2
    return Task("stories", model, others[:half], [*edited, *others[half:]], lambda text: [text.replace(" the ", " a ")])


def prepare(
    task: Task, model: Model, chosen: Mapping[str, Mapping[str, Any]], *, edits: int, unseen: int, memory: int
) -> Bench:
    """Read every text once, with its keys at every site that a chosen setting asks for."""
    every = [GRACE.site(model.sites, options_of(GRACE, given, model.sites.family)) for given in chosen.values()]
    sites = list({site.name: site for site in every}.values())
    remembered = _right(model, task.memory[:memory], sites)
    given = task.unseen[: 4 * (edits + unseen)]
    known = _right(model, given, ())
    right = {known[number] for number in range(len(known))}
    mistakes = [entry for entry in given if entry.input not in right][:edits]
    kept = [entry for entry in given if entry.input in right][:unseen]
    rephrased = [Entry(text, entry.target) for entry in mistakes for text in task.rephrases(entry.input)]
    read = (_read(model, entries, sites) for entries in (mistakes, rephrased, kept))
    return Bench(model, remembered, *(Texts.of(inputs, each.reading) for inputs, each in read))


def sweep(task: str, bench: Bench, chosen: Mapping[str, Mapping[str, Any]]) -> Iterator[Outcome]:
    """The sequence of edits under each of the chosen settings."""
    for name, given in chosen.items():
        yield _edited(task, name, bench, options_of(GRACE, given, bench.model.sites.family))


def _edited(task: str, name: str, bench: Bench, options: Options) -> Outcome:
    model, mistakes = bench.model, bench.mistakes
    site = GRACE.site(model.sites, options)
    composition = Composition({GRACE.name: GRACE}, model.sites, model.device)
    steps, seconds, succeeded, failed = list[int](), list[float](), list[bool](), 0
    for number in range(len(mistakes)):
        (encoding,), (wanted,) = mistakes.batch(torch.tensor([number]), model)
        if not _says(model, encoding, wanted, _all_alive(composition)):
            began = time.perf_counter()
            remembered = Remembered(finish(bench.memory.keys(site, model)), ~bench.memory.wanting(wanted))
            inside = model.inside([encoding], [wanted], site, _nothing_added)
            rows = finish(reading(model, [encoding], [wanted], max_batch=1)).reading.rows
            places = torch.arange(len(rows))
            problem = Problem(rows, places, [], model.readout, inside=inside, remembered=[remembered])
            try:
                fitted = finish(GRACE.fit(problem, options))
            except FitFailed:
                failed += 1
            else:
                header = Header(GRACE.name, GRACE.version, model.fingerprint, site.name, model.dtype)
                patch = codec.decode(codec.encode(Patch(header, fitted.tensors)))
                composition = composition.extend([patch])
                steps.append(fitted.steps)
            seconds.append(time.perf_counter() - began)
        succeeded.append(_says(model, encoding, wanted, _all_alive(composition)))
    view = _all_alive(composition)
    retained, generalised, kept = (_rights(texts, model, view) for texts in (mistakes, bench.rephrases, bench.right))
    entered = composition.found(
        {site.name: finish(bench.right.keys(site, model))}, view.alive, torch.arange(len(bench.right))
    )
    return Outcome(
        task=task,
        setting=name,
        reports=len(mistakes),
        entries=len(composition),
        failed=failed,
        success=share(succeeded),
        retained=share(retained),
        generalisation=share(generalised),
        kept=share(kept),
        unchanged=share((entered == NOTHING).tolist()),
        steps=mean(steps),
        milliseconds=1000 * mean(seconds),
    )


def _rights(texts: Texts, model: Model, view: View) -> list[bool]:
    """Which texts are right at every position under a view."""
    standing = Standing(texts, model)  # what the unedited model says to them is not what they want
    finish(standing.stand(view, texts.shown))
    wrong = texts.shown.owners[standing.now.answers != texts.shown.rows.labels].unique()
    right = torch.ones(len(texts), dtype=torch.bool)
    right[wrong] = False
    flags: list[bool] = right.tolist()
    return flags


def _says(model: Model, encoding: Encoding, wanted: torch.Tensor, view: View) -> bool:
    answered = model.read([encoding], [wanted], Patched([view], model.device)).answered
    return torch.equal(answered.cpu(), wanted)


def _all_alive(composition: Composition) -> View:
    alive = torch.ones(len(composition), dtype=torch.bool)
    return View(0, composition, alive, [str(number) for number in range(len(composition))])


def _nothing_added(queries: torch.Tensor, residuals: torch.Tensor) -> torch.Tensor:
    return residuals


def _chosen(model: Model, only: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The settings of those names, or all, that a model has the layers for."""
    every = settings(model.sites.family)
    layers = min(len(each) for each in (model.sites.layers, model.sites.answering) if each)
    return {
        name: given for name, given in every.items() if (not only or name in only) and -given.get("layer", -1) <= layers
    }


def _read(model: Model, entries: Sequence[Entry], sites: Sequence[LayerSite]) -> tuple[list[str], Read]:
    """The inputs, and what the unedited model computes when fed their targets."""
    inputs = [entry.input for entry in entries]
    encodings = model.encode(inputs)
    wanted = [
        _continued(model, encoding) if entry.target == WHATEVER else model.wanted(encoding, entry.target)
        for encoding, entry in zip(encodings, entries, strict=True)
    ]
    return inputs, finish(reading(model, encodings, wanted, keys_at=sites, max_batch=BATCH))


def _continued(model: Model, encoding: Encoding) -> torch.Tensor:
    """The next tokens of the model itself."""
    ((_, output),) = [each for some in model.run([Ask(encoding, Decoding(NEW_TOKENS))], None) for each in some]
    return model.answered(output)


def _right(model: Model, entries: Sequence[Entry], sites: Sequence[LayerSite]) -> Texts:
    """Those that the unedited model gets right."""
    inputs, read = _read(model, entries, sites)
    rows, owners = read.reading.rows, read.reading.owners()
    right = torch.ones(len(inputs), dtype=torch.bool)
    right[owners[read.answered != rows.labels]] = False
    lengths = tuple(length for length, kept in zip(read.reading.lengths, right.tolist(), strict=True) if kept)
    keys = {name: every[right] for name, every in read.reading.keys.items()}
    kept = [text for text, kept in zip(inputs, right.tolist(), strict=True) if kept]
    return Texts.of(kept, Reading(rows[right[owners]], lengths, keys))


def show(outcomes: Sequence[Outcome], console: Console) -> None:
    """The outcomes as a table."""
    measured = ("edits", "entries", "failed", "SR", "ER", "GR", "kept", "unchanged", "steps", "ms an edit")
    table = Table("task", "setting", *measured, title="Options of GRACE", box=SIMPLE_HEAD)
    for column in table.columns[2:]:
        column.justify = "right"
    for one in outcomes:
        shares = (one.success, one.retained, one.generalisation, one.kept, one.unchanged)
        counts = (one.reports, one.entries, one.failed)
        shown = [*map(str, counts), *(f"{each:.4f}" for each in shares), f"{one.steps:.1f}", f"{one.milliseconds:.1f}"]
        table.add_row(one.task, one.setting, *shown)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data files")
    parser.add_argument("--pronunciation", help="folder or hub id of the pronunciation model")
    parser.add_argument("--stories", help="folder or hub id of a small model that goes on with stories")
    parser.add_argument("--only", nargs="+", default=(), help="tasks to measure (all that there is a model of)")
    parser.add_argument("--settings", nargs="+", default=(), help="settings to measure (all)")
    parser.add_argument("--edits", type=int, default=200, help="mistakes to edit, if there are as many (200)")
    parser.add_argument("--unseen", type=int, default=1_000, help="right answers to watch, if there are as many (1000)")
    parser.add_argument("--memory", type=int, default=10_000, help="remembered inputs at most (10000)")
    parser.add_argument("--output", type=Path, help="folder for codebook_sweep.json")
    given = parser.parse_args()
    makers: dict[str, Callable[[], Task]] = {
        "banking77": lambda: banking77(given.data),
        "sst2": lambda: sst2(given.data),
    }
    if given.pronunciation is not None:
        makers["g2p-us"] = lambda: pronunciation(given.data, given.pronunciation)
    if given.stories is not None:
        makers["stories"] = lambda: stories(given.stories)
    outcomes: list[Outcome] = []
    for name, make in makers.items():
        if given.only and name not in given.only:
            continue
        task = make()
        model = load(task.model, device="cpu")
        chosen = _chosen(model, given.settings)
        bench = prepare(task, model, chosen, edits=given.edits, unseen=given.unseen, memory=given.memory)
        for number, outcome in enumerate(sweep(name, bench, chosen), start=1):
            outcomes.append(outcome)
            print(f"{name}, {number} of {len(chosen)}: {outcome.setting}", file=sys.stderr)
            if given.output is not None:
                given.output.mkdir(parents=True, exist_ok=True)
                written = json.dumps([asdict(one) for one in outcomes], indent=1)
                (given.output / "codebook_sweep.json").write_text(written + "\n")
    show(outcomes, Console(width=None if sys.stdout.isatty() else 140))


if __name__ == "__main__":
    main()
