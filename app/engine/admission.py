"""How much of what callers ask is in the house at once: what is being tokenised, what waits, what is being answered.

The service's own work, such as judging an edit, is never refused, and is not counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from app.errors import Overloaded, WaitedTooLong

LONGEST_RETRY = 60
"""Seconds that a refused caller is told to stay away, at most."""


class Admission:
    """Counts the inputs of callers that are accepted and not answered yet. Used from the event loop alone."""

    def __init__(self, most: float, patience: float, pace: Callable[[], float]) -> None:
        """most: inputs. patience: seconds that an input may wait for its forward pass. pace: inputs a second."""
        self._most = most
        self._patience = patience
        self._pace = pace
        self.inputs = 0

    def place(self) -> Place:
        """A place for one request, which takes what it needs when that is known."""
        return Place(self)

    def take(self, inputs: int) -> None:
        """Accept so many more. Raises Overloaded."""
        if self.inputs + inputs > self._most:
            why = f"{self.inputs} inputs are being answered, and with {inputs} more it would be more than {self._most}."
            raise Overloaded(why, headers=self._come_back())
        self.inputs += inputs

    def until(self) -> float:
        """When the patience of inputs that join the line now is over, on the monotonic clock."""
        return time.monotonic() + self._patience

    def waited_too_long(self) -> WaitedTooLong:
        """What a request is told whose turn has not come in time."""
        why = f"The inputs waited more than {self._patience:g} seconds for their forward pass."
        return WaitedTooLong(why, headers=self._come_back())

    def _come_back(self) -> dict[str, str]:
        """When there should be room: when what is here now is answered."""
        pace = self._pace()
        seconds = self.inputs / pace if pace else 0.0
        return {"Retry-After": str(min(max(math.ceil(seconds), 1), LONGEST_RETRY))}


class Place:
    """What one request holds of the admission, until it leaves; leaving twice does no harm."""

    __slots__ = ("_admission", "_inputs")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._inputs = 0

    def take(self, inputs: int) -> None:
        """Hold so many inputs. Raises Overloaded."""
        self._admission.take(inputs)
        self._inputs += inputs

    def leave(self) -> None:
        """Make room for others."""
        self._admission.inputs -= self._inputs
        self._inputs = 0

    def move(self) -> Place:
        """Another place that holds what this one held: for an answer that outlasts the call that began it."""
        moved = Place(self._admission)
        moved._inputs, self._inputs = self._inputs, 0
        return moved

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
