"""Generality against locality on BANKING77: what the options of the closed-form fit that move along that curve give.

    python -m benchmarks.tradeoff --data FOLDER --output DIR [--thresholds T ...] [--ridges R ...]

The setting is that of `benchmarks.banking77`: every mistake of a MiniLM classifier on the test file, edited in order.
Generality is the share of the mistakes' surface variants that are right at the end, locality the share of the other
test rows that are still right, or whose bits are unchanged. A grid over threshold and ridge, and the default with the
exemption of rows of the edit's own label taken away, or with another margin. Writes tradeoff.json and tradeoff.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.banking77 import prepare
from benchmarks.sequences import Outcome, edit_all
from editors.neuron import Options

if TYPE_CHECKING:
    from matplotlib.axes import Axes

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
RIDGES = (0.00003, 0.0001, 0.0003, 0.001, 0.01, 0.1)
MARGINS = (1.0, 5.0, 8.0)
DEFAULT = Options()
FIRST_POINTS = {"lam 0.01": (0.842, 0.987), "lam 0.01, t nearer to x": (0.880, 0.983)}
"""(GR, kept) of the closed-form fit as it was first tried, before rows of the edit's own label were exempt."""

LOCALITY = {"kept": "right ones kept", "unchanged": "right ones with unchanged bits"}
RIDGE_COLOURS = ("#56B4E9", "#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7")  # Okabe and Ito's


@dataclass(frozen=True, slots=True)
class Point:
    """What was chosen, and what came of it; shares between 0 and 1."""

    threshold: float
    ridge: float
    spare_same_label: bool
    margin: float
    edits: int
    success: float
    retained: float
    generalisation: float
    generalisation_differs: float
    kept: float
    unchanged: float
    neurons_an_edit: float

    @classmethod
    def of(cls, options: Options, outcome: Outcome) -> Point:
        """The point of one sequence of edits."""
        chosen = {name: getattr(options, name) for name in ("threshold", "ridge", "spare_same_label", "margin")}
        measured = {name: value for name, value in asdict(outcome).items() if name in cls.__dataclass_fields__}
        return cls(**chosen, **measured)

    @property
    def options(self) -> Options:
        """The options that it was measured with."""
        return replace(
            DEFAULT,
            threshold=self.threshold,
            ridge=self.ridge,
            spare_same_label=self.spare_same_label,
            margin=self.margin,
        )

    @property
    def in_grid(self) -> bool:
        """Whether nothing but threshold and ridge is another than the default."""
        return (self.spare_same_label, self.margin) == (DEFAULT.spare_same_label, DEFAULT.margin)


def choices(thresholds: Sequence[float], ridges: Sequence[float]) -> list[Options]:
    """The grid, and what lies beside it."""
    grid = [replace(DEFAULT, threshold=threshold, ridge=ridge) for threshold, ridge in product(thresholds, ridges)]
    unspared = [replace(DEFAULT, threshold=threshold, spare_same_label=False) for threshold in thresholds]
    margins = [replace(DEFAULT, margin=margin) for margin in MARGINS]
    return [*grid, *unspared, *margins]


def run(data: Path, options: Sequence[Options]) -> list[Point]:
    """One sequence of edits for each choice."""
    bench, points = prepare(data), list[Point]()
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("Editing", total=len(options) * len(bench.mistakes))
        for each in options:
            outcome = edit_all("tradeoff", bench, each, report=partial(progress.advance, task))
            points.append(Point.of(each, outcome))
    return points


def front(points: Sequence[Point], locality: str) -> list[Point]:
    """The points that no other one beats in generality without losing locality, the most local first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda each: (-getattr(each, locality), -each.generalisation)):
        if not best or point.generalisation > best[-1].generalisation:
            best.append(point)
    return best


def plot(points: Sequence[Point], file: Path) -> None:
    """GR over both kinds of locality. Needs matplotlib: `pip install 'errata[bench]'`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.5), layout="constrained")
    for axes, locality in zip(figure.subplots(1, 2, sharey=True), LOCALITY, strict=True):
        _draw(axes, points, locality)
        axes.set(xlabel=f"locality: {LOCALITY[locality]}")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left, right = figure.axes
    for name, (generality, kept) in FIRST_POINTS.items():
        left.plot(kept, generality, "x", color="0.35", markersize=8, markeredgewidth=2, zorder=4)
        left.annotate(f"first trial, {name}", (kept, generality), (6, -12), textcoords="offset points", color="0.35")
    left.set(ylabel="generality: surface variants that are right (GR)")
    right.legend(loc="lower left", fontsize=9)
    figure.suptitle(f"Generality against locality: {points[0].edits} edits in sequence on BANKING77, MiniLM")
    figure.savefig(file, dpi=120)


def _draw(axes: Axes, points: Sequence[Point], locality: str) -> None:
    def where(some: Sequence[Point]) -> tuple[list[float], list[float]]:
        return [getattr(each, locality) for each in some], [each.generalisation for each in some]

    ridges = sorted({each.ridge for each in points})
    for colour, ridge in zip(RIDGE_COLOURS, ridges, strict=False):
        along = sorted((each for each in points if each.in_grid and each.ridge == ridge), key=lambda p: p.threshold)
        axes.plot(*where(along), "o-", color=colour, linewidth=1, markersize=4, label=f"ridge {ridge:g}, by threshold")
    unspared = [each for each in points if not each.spare_same_label]
    axes.plot(*where(unspared), "s:", color="#000000", markersize=4, label="own label's rows not exempt")
    other_margins = [each for each in points if each.margin != DEFAULT.margin]
    axes.plot(*where(other_margins), "D", color="0.5", markersize=5, label=f"margin {_listed(MARGINS)}")
    axes.plot(
        *where(front(points, locality)), "-", color="0.8", linewidth=7, zorder=0, label="Pareto front, with thresholds"
    )
    for at in [each for each in points if each.options == DEFAULT]:
        axes.plot(*where([at]), "*", color="#F0E442", markeredgecolor="black", markersize=17, zorder=5, label="default")
    for each in front(points, locality):
        place = getattr(each, locality), each.generalisation
        axes.annotate(f"{each.threshold:g}", place, (5, 5), textcoords="offset points", fontsize=8)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def show(points: Sequence[Point], console: Console) -> None:
    """The points as a table, the most general first; the front and the default are marked."""
    fronts = {name: front(points, name) for name in LOCALITY}
    table = Table("threshold", "ridge", "exempt", "margin", "GR", "GR differs", box=SIMPLE_HEAD)
    for name in ("kept", "unchanged", "SR", "ER", "neurons", "on the front of"):
        table.add_column(name, justify="right")
    for each in sorted(points, key=lambda point: -point.generalisation):
        chosen = (f"{each.threshold:g}", f"{each.ridge:g}", "yes" if each.spare_same_label else "no")
        shares = (each.kept, each.unchanged, each.success, each.retained)
        table.add_row(
            *chosen,
            f"{each.margin:g}",
            *(f"{share:.4f}" for share in (each.generalisation, each.generalisation_differs, *shares)),
            f"{each.neurons_an_edit:.2f}",
            ", ".join(name for name, best in fronts.items() if each in best),
            style="bold" if each.options == DEFAULT else "",
        )
    console.print(table)


def document(points: Sequence[Point]) -> Mapping[str, Any]:
    """What is written: every point, and which of them are on a front."""
    return {
        "points": [asdict(each) for each in points],
        "fronts": {name: [asdict(each) for each in front(points, name)] for name in LOCALITY},
        "default": {name: getattr(DEFAULT, name) for name in ("threshold", "ridge", "spare_same_label", "margin")},
        "first_points": {name: {"generalisation": gr, "kept": kept} for name, (gr, kept) in FIRST_POINTS.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the two BANKING77 files")
    parser.add_argument("--output", type=Path, required=True, help="folder for tradeoff.json and tradeoff.png")
    parser.add_argument("--thresholds", type=float, nargs="+", default=THRESHOLDS)
    parser.add_argument("--ridges", type=float, nargs="+", default=RIDGES)
    given = parser.parse_args()
    points = run(given.data, choices(given.thresholds, given.ridges))
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "tradeoff.json").write_text(json.dumps(document(points), indent=1) + "\n", "utf-8")
    plot(points, given.output / "tradeoff.png")
    show(points, Console(width=None if sys.stdout.isatty() else 140))


if __name__ == "__main__":
    main()
