"""Measured figures: medians with their quartiles, ratios of what was measured in turn, and what they should reach."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

Way = Callable[[int], float]
"""One way of doing something: from the number of the turn to what was measured of it."""


class Skipped(Exception):
    """A part cannot be measured here; the message says why."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Lower quartile, median and upper quartile of so many measurements."""

    lower: float
    median: float
    upper: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """At least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(lower, median, upper, len(values))

    def __str__(self) -> str:
        return f"{_plain(self.median)} ({_plain(self.lower)}–{_plain(self.upper)})"


@dataclass(frozen=True, slots=True)
class Bound:
    """What a figure should reach."""

    limit: float
    at_least: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` reaches it."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {_plain(self.limit)}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure. parts: what it was computed of, by name and unit. required: None if it is only reported."""

    key: str
    case: str
    measured: Spread
    required: Bound | None = None
    unit: str = "×"
    parts: Mapping[str, Spread] = field(default_factory=dict)

    @property
    def reached(self) -> bool | None:
        """Whether the median is what is required; None if nothing is."""
        return None if self.required is None else self.required.holds(self.measured.median)

    def as_json(self) -> dict[str, Any]:
        """The figure as the result file keeps it."""
        return {**asdict(self), "reached": self.reached}


def in_turn(ways: Sequence[Way], turns: int) -> list[list[float]]:
    """What each way measured, turn by turn. They take turns, each first as often as the others, so that whatever
    drifts meanwhile weighs on all alike.
    """
    measured: list[list[float]] = [[] for _ in ways]
    for turn in range(turns):
        for place in range(len(ways)):
            number = (place + turn) % len(ways)
            measured[number].append(ways[number](turn))
    return measured


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """The ratios of what was measured in the same turns."""
    return Spread.of([above / below for above, below in zip(numerator, denominator, strict=True)])


def milliseconds(seconds: Sequence[float]) -> Spread:
    """Durations in ms."""
    return Spread.of([1000 * each for each in seconds])


def table(figures: Sequence[Figure]) -> Table:
    """The figures beside what is required of them."""
    made = Table("figure", "", "measured (quartiles)", "required", "", "of", title="Speed", box=SIMPLE_HEAD)
    for column in (made.columns[2], made.columns[3]):
        column.justify = "right"
        column.no_wrap = True
    for figure in figures:
        parts = ", ".join(f"{name} {_plain(part.median)}" for name, part in figure.parts.items())
        made.add_row(
            figure.key,
            figure.case,
            f"{figure.measured} {figure.unit}",
            "reported" if figure.required is None else str(figure.required),
            _mark(figure.reached),
            parts,
        )
    return made


def _mark(reached: bool | None) -> Text:
    if reached is None:
        return Text("")
    return Text("yes", style="green") if reached else Text("no", style="red")


def _plain(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.3g}"
