"""A deployed model run without a service."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from app.model import Ask, Model, Output
from editors.join import Transform


def bare(queries: Tensor, residuals: Tensor) -> Tensor:
    """The transform of the unedited model."""
    return residuals


def run(model: Model, asks: Sequence[Ask], transform: Transform = bare) -> list[Output]:
    """The outputs of one batch, to its end."""
    finished = {row: output for some in model.run(asks, transform) for row, output in some}
    return [finished[row] for row in range(len(asks))]
