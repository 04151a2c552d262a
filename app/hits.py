"""How often each edit took part in an answer: counted in memory, written every so often."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime

import structlog

from app.store import Ledger

log = structlog.get_logger()


class Hits:
    """Counts since the last writing."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._counts: dict[str, tuple[int, datetime]] = {}

    def count(self, edit_ids: Iterable[str]) -> None:
        """These edits took part in an answer just now."""
        now = datetime.now(UTC)
        for edit_id in edit_ids:
            self._counts[edit_id] = (self._counts.get(edit_id, (0, now))[0] + 1, now)

    async def write(self) -> None:
        """Bring the counts to the store."""
        counts, self._counts = self._counts, {}
        if not counts:
            return
        try:
            await asyncio.to_thread(self._ledger.record_hits, counts)
        except Exception:
            for edit_id, (count, at) in counts.items():
                counted, last = self._counts.get(edit_id, (0, at))
                self._counts[edit_id] = (count + counted, last)
            raise

    async def write_every(self, seconds: float) -> None:
        """Write every so often, until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.write()
            except Exception:  # the job boundary: the database may be away for a while
                log.exception("cannot write hits")
