"""Buffers that overlays grow into, so that one more patch does not copy those there are."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from torch import Tensor


class Columns:
    """Tensors of equal length, by name. Rows once written never change, so a shorter overlay can go on reading."""

    def __init__(self, like: Mapping[str, Tensor], capacity: int = 0) -> None:
        """like: a tensor of any length for each name, of the shape, dtype and device of its rows."""
        # Not filled: memory that nobody has written to yet costs nothing.
        self._tensors = {name: tensor.new_empty((capacity, *tensor.shape[1:])) for name, tensor in like.items()}
        self._capacity = capacity
        self._used = 0
        self._lock = threading.Lock()

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Columns:
        """These tensors themselves, of equal length, not copies."""
        columns = cls(tensors)
        columns._tensors = dict(tensors)
        columns._capacity = columns._used = len(next(iter(tensors.values())))
        return columns

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def upto(self, end: int) -> dict[str, Tensor]:
        """The first rows of every tensor."""
        return {name: tensor[:end] for name, tensor in self._tensors.items()}

    def reserve(self, start: int, end: int) -> Columns:
        """Columns with what these hold up to `start`, where start..end belong to the caller alone."""
        with self._lock:
            if self._used == start and end <= self._capacity:
                self._used = end
                return self
        grown = Columns(self._tensors, max(end, 2 * start, 16))
        for name, tensor in self._tensors.items():
            grown[name][:start] = tensor[:start]
        grown._used = end
        return grown

    def release(self, start: int, end: int) -> None:
        """Give reserved rows back, if they are the last: nobody reads them any more."""
        if self._used == end:
            self._used = start

    def pick(self, rows: Tensor) -> Columns:
        """These rows alone, in this order: (n,) int64."""
        picked = Columns(self._tensors, len(rows))
        for name, tensor in self._tensors.items():
            picked[name][:] = tensor[rows]
        picked._used = len(rows)
        return picked

    def write(self, start: int, end: int, **rows: Tensor | float | bool) -> None:
        """Put rows at start..end."""
        for name, values in rows.items():
            column = self._tensors[name]
            column[start:end] = values.to(column) if isinstance(values, Tensor) else values


class Lease:
    """Rows that an overlay has reserved. They are given back when it is dropped, as that of a rejected patch is, so
    that the next one takes their place and nothing is copied.
    """

    def __init__(self, columns: Columns, start: int, end: int) -> None:
        self._columns, self._start, self._end = columns, start, end

    def __del__(self) -> None:
        # Without the lock: only an overlay that ends at these rows could reserve further ones, and it is gone.
        self._columns.release(self._start, self._end)
