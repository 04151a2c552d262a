"""A deployed model run without a service."""

from __future__ import annotations

from collections.abc import Sequence

from app.model import Ask, Model, Output
from editors.types import Acting


def run(model: Model, asks: Sequence[Ask], acting: Acting | None = None) -> list[Output]:
    """The outputs of one batch, to its end; of the unedited model, if nothing acts."""
    finished = {row: output for some in model.run(asks, acting) for row, output in some}
    return [finished[row] for row in range(len(asks))]
