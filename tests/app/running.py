"""A deployed model run without a service."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from app.model import Ask, Model, Output
from editors.site import Transform


def bare(queries: Tensor, residuals: Tensor) -> Tensor:
    """The transform of the unedited model."""
    return residuals


def run(model: Model, asks: Sequence[Ask], transform: Transform = bare) -> list[Output]:
    """The outputs of one batch, to its end."""
    slices = model.run(asks, transform)
    while True:
        try:
            next(slices)
        except StopIteration as end:
            return list(end.value)
