"""Some of many rows, beside one another: what fits remember of the edits while not all of these are live."""

from __future__ import annotations

import torch
from torch import Tensor

from editors.columns import Columns
from editors.types import Rows


class Chosen:
    """Copies rows once, not for every fit: as long as the same of the former ones are asked for, just those that came
    since are copied.
    """

    def __init__(self) -> None:
        self._flags: Tensor | None = None
        self._columns: Columns | None = None
        self._count = 0  # of the rows copied

    def of(self, rows: Rows, flags: Tensor) -> Rows:
        """The rows with flags, (n,) bool. rows: those of the last call, with further ones behind them or fewer."""
        if self._flags is None or not torch.equal(flags[: len(self._flags)], self._flags):
            self._flags, self._columns, self._count = flags[:0], Columns(_columns(rows)), 0
        assert self._columns is not None
        known = len(self._flags)
        fresh = rows[known:][flags[known:]]
        start, end = self._count, self._count + len(fresh)
        self._columns = self._columns.reserve(start, end)
        self._columns.write(start, end, **_columns(fresh))
        self._flags, self._count = flags, end
        return Rows(**self._columns.upto(end))


def _columns(rows: Rows) -> dict[str, Tensor]:
    return {"queries": rows.queries, "residuals": rows.residuals, "labels": rows.labels}
