"""Work that the service runs in slices on its device thread, run here to its end."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

T = TypeVar("T")


def finish(slices: Generator[Any, None, T], on_slice: Callable[[], None] = lambda: None) -> T:
    """Run all slices; `on_slice` is called after each but the last."""
    while True:
        try:
            next(slices)
        except StopIteration as end:
            result: T = end.value
            return result
        on_slice()
