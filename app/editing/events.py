"""Who listens to which edit. What happened is in the store; here are only the wake-ups, and the progress of fits."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

QUEUE = 1000
"""Events that wait for a slow listener; progress beyond that is dropped, states are read from the store."""


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event. `number` is that of the last row of the edit's history before it."""

    kind: Literal["status", "progress", "verdict"]
    number: int
    content: dict[str, Any]


class Listeners:
    """Queues of whoever waits for news of an edit. Used from the event loop alone."""

    def __init__(self) -> None:
        self._queues: defaultdict[str, set[asyncio.Queue[dict[str, Any] | None]]] = defaultdict(set)

    @contextmanager
    def listening(self, edit_id: str) -> Iterator[asyncio.Queue[dict[str, Any] | None]]:
        """A queue of the edit's progress; None means that its record has changed."""
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(QUEUE)
        self._queues[edit_id].add(queue)
        try:
            yield queue
        finally:
            self._queues[edit_id].discard(queue)
            if not self._queues[edit_id]:
                del self._queues[edit_id]

    def tell(self, edit_id: str, progress: dict[str, Any] | None = None) -> None:
        """Progress of a fit; without it, that the record has changed."""
        for queue in self._queues.get(edit_id, ()):
            if progress is None and queue.full():
                queue.get_nowait()
            if not queue.full():
                queue.put_nowait(progress)
