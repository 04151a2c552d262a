"""What a codebook of ten thousand entries costs: the search in a batch of predictions, and the verdict on one more.

    python -m benchmarks.codebook_cost [--entries N ...] [--output DIR]

The model is the built-in MiniLM of six layers. Keys are its own, of sentences that are made of the words of its
training texts; every entry reaches as far as the editor would let it. In the first table a batch of 32 sentences is
answered in turn by the unedited model and under the codebook. In the second one more entry is judged, and one is taken
away again, while so many edits are live and so many sentences are the guard; every live edit's input finds its own
entry.
"""

from __future__ import annotations

import argparse
import json
import random
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
from torch import Tensor

from app.engine import View
from app.engine.patched import Patched
from app.engine.reading import reading
from app.judge.standing import Standing
from app.memory import Said, Texts
from app.model import Ask, Model, load
from app.model.builtin import builtin, intents
from benchmarks.slices import finish
from editors.codebook import Grace
from editors.codebook.value import reach_of
from editors.composition import Composition
from editors.layers import LayerSite
from editors.registry import options_of
from editors.types import Header, Patch, Reading, Remembered
from editors.visit import Places

SEED = 0
BATCH = 32
WORDS_A_SENTENCE = 10
TURNS = 60
GUARD = 2_000
JUDGED = 20
GRACE = Grace()


@dataclass(frozen=True, slots=True)
class Search:
    """Milliseconds of a batch; medians of many turns."""

    entries: int
    bare: float
    under: float
    found: int  # rows of the batch that find an entry

    @property
    def added(self) -> float:
        """What the codebook adds, as a share of the unedited model's time."""
        return self.under / self.bare - 1


@dataclass(frozen=True, slots=True)
class Judging:
    """Milliseconds of a verdict's computation; medians."""

    live: int
    guard: int
    one_more: float
    run_again_more: float  # texts, in the mean
    one_less: float
    run_again_less: float


def sentences(count: int) -> list[str]:
    """Distinct sentences of words of the built-in training texts, as often as they are used there."""
    draw = random.Random(SEED)
    words = [word for each in intents("train") for word in each.text.split()]
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(draw.choices(words, k=WORDS_A_SENTENCE))] = None
    return list(found)


def read(model: Model, texts: Sequence[str], *keys_at: LayerSite) -> Reading:
    """What the unedited model says to the sentences, which counts as right, and their keys."""
    encodings = model.encode(texts)
    any_label = [torch.zeros(1, dtype=torch.int64)] * len(texts)
    with Progress(console=Console(stderr=True)) as progress:
        shown = progress.add_task("Reading sentences", total=len(texts))
        slices = reading(model, encodings, any_label, keys_at=keys_at, max_batch=BATCH)
        done = finish(slices, lambda: progress.advance(shown, BATCH))
    return replace(done.reading, rows=replace(done.reading.rows, labels=done.answered))


def entries_of(model: Model, keys: Tensor, known: Tensor, site: LayerSite) -> list[Patch]:
    """One entry at each key, with an answer drawn at random, that reaches as far as what is known lets it."""
    draw = torch.Generator().manual_seed(SEED)
    answers = torch.randint(len(model.labels), (len(keys), 1), generator=draw)
    values = float(keys.norm(dim=-1).mean()) * torch.randn(keys.shape, generator=draw) / keys.shape[-1] ** 0.5
    share = options_of(GRACE, {}, model.sites.family).radius
    guard = [Remembered(known, torch.ones(len(known), dtype=torch.bool))]
    header = Header(GRACE.name, GRACE.version, model.fingerprint, site.name, model.dtype)

    def tensors(number: int) -> dict[str, Tensor]:
        return {
            "key": keys[number],
            "values": values[number : number + 1],
            "reach": torch.tensor(reach_of(keys[number : number + 1], guard, share), dtype=torch.float64),
            "answer": answers[number],
            "places": torch.tensor(int(Places.LAST)),
        }

    return [Patch(header, tensors(number)) for number in range(len(keys))]


def search(model: Model, composition: Composition, texts: Sequence[str]) -> Search:
    """A batch under the unedited model and under the codebook, in turn."""
    view = _view(composition, torch.ones(len(composition), dtype=torch.bool))
    asks = [Ask(encoding) for encoding in model.encode(texts)]
    found: set[int] = set()

    def bare() -> None:
        list(model.run(asks, None))

    def under() -> None:
        patched = Patched([view] * len(asks), model.device)
        list(model.run(asks, patched))
        found.update(row for row in range(len(asks)) if patched.fired(row, 1))

    without, within = _in_turn([bare, under], TURNS)
    return Search(len(composition), 1000 * without, 1000 * within, len(found))


def judging(composition: Composition, edits: Texts, guard: Texts, model: Model) -> Judging:
    """One more entry, and one less, beside those of the edits; the composition has a few more than these."""
    live = len(edits)
    alive = torch.zeros(len(composition), dtype=torch.bool)
    alive[:live] = True
    labels = guard.shown.rows.labels
    nothing = torch.zeros_like(labels).float()
    parts = [Standing(edits, model), Standing(guard, model, fixed=Said(labels, nothing, nothing))]
    with Progress(console=Console(stderr=True)) as progress:
        shown = progress.add_task(f"Standing under {live} entries", total=-(-live // BATCH))
        for part, texts in zip(parts, (edits, guard), strict=True):
            finish(part.stand(_view(composition, alive), texts.shown), lambda: progress.advance(shown))

    def changed(number: int) -> tuple[float, int]:
        would = alive.clone()
        would[number] = ~would[number]
        began = time.perf_counter()
        outcomes = [finish(part.under(_view(composition, would))) for part in parts]
        return time.perf_counter() - began, sum(len(outcome.moved) for outcome in outcomes)

    more = [changed(live + turn) for turn in range(JUDGED)]
    less = [changed(turn * (live // JUDGED)) for turn in range(JUDGED)]
    return Judging(
        live=live,
        guard=len(guard),
        one_more=1000 * statistics.median(seconds for seconds, _ in more),
        run_again_more=statistics.mean(texts for _, texts in more),
        one_less=1000 * statistics.median(seconds for seconds, _ in less),
        run_again_less=statistics.mean(texts for _, texts in less),
    )


def run(entries: Sequence[int]) -> tuple[list[Search], list[Judging]]:
    """Both tables, for codebooks of so many entries."""
    model = load(builtin(user_cache_path("errata")), device="cpu")
    site = GRACE.site(model.sites, options_of(GRACE, {}, model.sites.family))
    most = max(entries) + JUDGED
    texts = sentences(GUARD + most + BATCH)
    given = read(model, texts, site)
    keys = given.keys[site.name]
    guard = Texts.of(texts[:GUARD], _part(given, 0, GUARD))
    patches = entries_of(model, keys[GUARD : GUARD + most], keys[:GUARD], site)
    empty = Composition({GRACE.name: GRACE}, model.sites, model.device)
    searches, verdicts = [], []
    for count in entries:
        half = BATCH // 2  # of the batch are inputs of entries, the others nobody's
        searches.append(search(model, empty.extend(patches[:count]), [*texts[GUARD : GUARD + half], *texts[-half:]]))
        edits = Texts.of(texts[GUARD : GUARD + count], _part(given, GUARD, GUARD + count))
        verdicts.append(judging(empty.extend(patches[: count + JUDGED]), edits, guard, model))
    return searches, verdicts


def _part(given: Reading, start: int, end: int) -> Reading:
    """Some texts of a classifier's reading: one row each."""
    keys = {name: every[start:end] for name, every in given.keys.items()}
    return Reading(given.rows[start:end], given.lengths[start:end], keys)


def _view(composition: Composition, alive: Tensor) -> View:
    return View(0, composition, alive, [str(number) for number in range(len(composition))])


def _in_turn(ways: Sequence[Callable[[], None]], turns: int) -> list[float]:
    """Median seconds of each way; they take turns, so that whatever else runs slows all of them."""
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(turns):
        for way, spent in zip(ways, seconds, strict=True):
            began = time.perf_counter()
            way()
            spent.append(time.perf_counter() - began)
    return [statistics.median(spent) for spent in seconds]


def show(searches: Sequence[Search], verdicts: Sequence[Judging], console: Console) -> None:
    """Both as tables."""
    searched = Table("entries", "unedited", "under them", "added", "rows that find one", title=f"ms a batch of {BATCH}")
    for one in searches:
        searched.add_row(f"{one.entries:,}", f"{one.bare:.2f}", f"{one.under:.2f}", f"{one.added:+.2%}", str(one.found))
    judged = Table("live", "one more", "texts run again", "one less", "texts run again", title="ms a verdict")
    for each in verdicts:
        again = f"{each.run_again_more:.1f}", f"{each.run_again_less:.1f}"
        judged.add_row(f"{each.live:,}", f"{each.one_more:.1f}", again[0], f"{each.one_less:.1f}", again[1])
    for table in (searched, judged):
        table.box = SIMPLE_HEAD
        for column in table.columns:
            column.justify = "right"
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, nargs="+", default=[100, 1_000, 10_000], help="100 1000 10000")
    parser.add_argument("--output", type=Path, help="folder for codebook_cost.json")
    given = parser.parse_args()
    searches, verdicts = run(given.entries)
    if given.output is not None:
        given.output.mkdir(parents=True, exist_ok=True)
        written = {
            "search": [{**asdict(one), "added": one.added} for one in searches],
            "judging": [asdict(one) for one in verdicts],
        }
        (given.output / "codebook_cost.json").write_text(json.dumps(written, indent=1) + "\n")
    show(searches, verdicts, Console(width=None if sys.stdout.isatty() else 100))


if __name__ == "__main__":
    main()
