"""The curves of a benchmark as one HTML page that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.curves import MEASURES, Curve

PUBLISHED_MEASURES = ("SR", "GR", "ER", "TrainR", "TestR")
PUBLISHED = {
    "BERT base, FEVER": (1.00, 0.82, 1.00, 0.999, 1.000),
    "BART base, zsRE": (1.00, 0.82, 0.81, 0.997, 0.996),
}
"""Huang et al. 2023, recalled from the paper's table."""


def page(curves: Sequence[Curve], *, title: str, lead: str, svg: str, configuration: Mapping[str, Any]) -> str:
    """The page. svg: the figure, put in as it is."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("sme.html").render(
        title=title,
        lead=lead,
        svg=svg,
        curves=curves,
        measures=MEASURES,
        published=PUBLISHED,
        published_measures=PUBLISHED_MEASURES,
        configuration=configuration,
    )
