"""What a benchmark of lifelong editing has measured: as JSON, as CSV, as a table on the terminal, as a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.checkpoints import Checkpoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, told apart by every kind of colour vision."""
MARKERS = "osD^vPX"
COLUMNS = 4
MANIFOLD = 30
"""Seconds and bytes that differ by more than this are drawn on a logarithmic scale."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One editor's checkpoints."""

    editor: str
    baseline: bool
    options: Mapping[str, Any]
    checkpoints: Sequence[Checkpoint]

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Curve:
        """From what `asdict` made of it."""
        return cls(**{**document, "checkpoints": [Checkpoint(**each) for each in document["checkpoints"]]})

    @property
    def last(self) -> Checkpoint:
        """The measures after the last report."""
        return self.checkpoints[-1]

    @property
    def title(self) -> str:
        """The editor, as it is named in tables."""
        return f"{self.editor} (baseline)" if self.baseline else self.editor


@dataclass(frozen=True, slots=True)
class Measure:
    """A field of a checkpoint, and how it is shown."""

    field: str
    title: str
    meaning: str
    unit: Literal["share", "seconds", "bytes", "count"] = "share"
    bare: str | None = None  # the field with the same of the unedited model
    drawn: bool = True

    def shown(self, checkpoint: Checkpoint) -> str:
        """The value as text."""
        value = getattr(checkpoint, self.field)
        if value is None:
            return "–"
        return f"{value:,.0f}" if self.unit in ("bytes", "count") else f"{value:.4f}"


MEASURES = (
    Measure("reports", "reports", "mistakes reported so far", "count", drawn=False),
    Measure("live", "live", "of these, those that became edits", "count", drawn=False),
    Measure("not_needed", "not needed", "those that earlier edits had put right", "count", drawn=False),
    Measure("refused", "refused", "those that the judge rejected, or that could not be fitted", "count", drawn=False),
    Measure("accepted", "accepted", "share of the reports that are live or were not needed"),
    Measure("success", "SR", "live edits that are right directly after their own edit"),
    Measure("retained", "ER", "live edits that are right now, after the last one"),
    Measure("retained_reports", "ER of reports", "all reports that are right now", drawn=False),
    Measure(
        "generalisation",
        "GR",
        "surface variants of the live edits' inputs, told to no editor, that are right (dotted: before any edit)",
        bare="generalisation_bare",
    ),
    Measure("generalisation_bare", "GR before", "the same by the unedited model", drawn=False),
    Measure("train_retain", "TrainR", "accuracy on the train part now / before"),
    Measure("test_retain", "TestR", "accuracy on the test part now / before"),
    Measure("kept", "kept", "test inputs that were right and are right now"),
    Measure("unchanged", "unchanged", "test inputs that get the unedited model's answer"),
    Measure("untouched", "untouched", "test inputs on which no edit fires, so whose bits are unchanged", drawn=False),
    Measure("pearson", "consistency", "Pearson correlation of the guard's scores, unedited and now"),
    Measure("right_to_wrong", "right → wrong", "of the guard", "count", drawn=False),
    Measure("wrong_to_right", "wrong → right", "of the guard", "count", drawn=False),
    Measure("wrong_to_other_wrong", "wrong → other", "of the guard", "count", drawn=False),
    Measure(
        "robust",
        "robustness",
        "changed versions (typo, case, punctuation, dropped word) of live edits' inputs that are right "
        "(dotted: before any edit)",
        bare="robust_bare",
    ),
    Measure("robust_bare", "robustness before", "the same by the unedited model", drawn=False),
    Measure("robust_test", "robustness, test", "changed versions of right test inputs that are right", drawn=False),
    Measure("robust_test_bare", "robustness, test, before", "the same by the unedited model", drawn=False),
    Measure("seconds", "seconds an edit", "from report to answer, over HTTP; median of the last 100", "seconds"),
    Measure(
        "fit_seconds", "of these fit", "seconds of fitting and judging; median of the last 100", "seconds", drawn=False
    ),
    Measure("bytes", "bytes an edit", "of a stored patch, in the mean", "bytes"),
)


def as_csv(curves: Sequence[Curve]) -> str:
    """One row an editor and checkpoint."""
    text = io.StringIO()
    rows = csv.DictWriter(text, [field.name for field in fields(Checkpoint)], lineterminator="\n")
    rows.writeheader()
    rows.writerows(asdict(checkpoint) for curve in curves for checkpoint in curve.checkpoints)
    return text.getvalue()


def table(curves: Sequence[Curve], title: str) -> Table:
    """The last checkpoint of every editor, one column each."""
    made = Table("", *(curve.title for curve in curves), title=title, box=SIMPLE_HEAD)
    for column in made.columns[1:]:
        column.justify = "right"
    for measure in MEASURES:
        made.add_row(measure.title, *(measure.shown(curve.last) for curve in curves))
    return made


def figure(curves: Sequence[Curve], title: str) -> Figure:
    """Every measure over the number of reports. Needs matplotlib: `pip install 'errata[bench]'`."""
    from matplotlib.figure import Figure

    drawn = [measure for measure in MEASURES if measure.drawn]
    rows = -(-len(drawn) // COLUMNS)
    made = Figure(figsize=(3.6 * COLUMNS, 2.7 * rows + 0.9), layout="constrained")
    panels = made.subplots(rows, COLUMNS, sharex=True).flat
    for axes, measure in zip(panels, drawn, strict=False):
        _draw(axes, curves, measure)
    for axes in list(panels)[len(drawn) :]:
        axes.set_visible(False)
    lines, names = made.axes[0].get_legend_handles_labels()
    made.legend(lines, names, loc="outside upper right", ncols=len(names), frameon=False, fontsize=11)
    made.suptitle(title, x=0.01, ha="left", fontsize=13)
    made.supxlabel("mistakes reported", fontsize=11)
    return made


def _draw(axes: Axes, curves: Sequence[Curve], measure: Measure) -> None:
    """Later curves are thinner, so that one under them is seen where both are equal."""
    for number, curve in enumerate(curves):
        style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "linestyle": "--" if curve.baseline else "-"}
        under = len(curves) - number - 1
        style |= {
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 4 + 1.5 * under,
            "linewidth": 1.4 + 0.9 * under,
        }
        axes.plot(*_points(curve, measure.field), **style, label=curve.title)
        if measure.bare is not None:
            axes.plot(*_points(curve, measure.bare), color=style["color"], linestyle=":", linewidth=1.2)
    axes.set_title(measure.title, loc="left", fontsize=11, fontweight="bold")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    shown = [name for name in (measure.field, measure.bare) if name is not None]
    _scale(axes, measure, [value for curve in curves for name in shown for value in _points(curve, name)[1]])


def _scale(axes: Axes, measure: Measure, values: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_plain)
    axes.tick_params(labelbottom=True)
    if not values:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="0.5")
    elif measure.unit == "share":
        axes.set_ylim(*_span(values))
        axes.ticklabel_format(axis="y", useOffset=False)
    else:
        if max(values) > MANIFOLD * min(values):
            axes.set_yscale("log")
        else:
            axes.set_ylim(0, 1.1 * max(values))
        axes.yaxis.set_major_formatter(_plain)


def _plain(value: float, _: float) -> str:
    return f"{value:,.10g}"


def _points(curve: Curve, field: str) -> tuple[list[int], list[float]]:
    known = [(each.reports, getattr(each, field)) for each in curve.checkpoints if getattr(each, field) is not None]
    return [reports for reports, _ in known], [value for _, value in known]


def _span(shares: Sequence[float]) -> tuple[float, float]:
    """Limits around shares, at least a hundredth wide, so that a thousandth is not drawn like a fall."""
    lowest, highest = min(*shares, 0.99), max(*shares, 1.0)
    room = 0.05 * (highest - lowest)
    return lowest - room, highest + room


def write_png(made: Figure, file: Path) -> None:
    """The figure for a page of documentation."""
    made.savefig(file, dpi=110)


def as_svg(made: Figure) -> str:
    """The figure as an element for a page, its letters drawn as paths, so that it needs no font."""
    import matplotlib as mpl

    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "errata"}):
        made.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
