"""Which guard edits are measured on: the newest one that was put into the ledger, or else the one of the files."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import structlog

from app.engine import Engine
from app.memory import Guard, Known, KnownInput, Memory, parse
from app.memory.known import check, numbered
from app.store import GuardRecord, Ledger

log = structlog.get_logger()

FOLLOWED_SECONDS = 1.0
"""How often somebody who waits for a guard looks into the store, for the case that it is replaced meanwhile."""

Source = Literal["put", "guard file", "memory file", "none"]
Learn = Callable[[Sequence[KnownInput]], Awaitable[Known]]


@dataclass(frozen=True, slots=True)
class GuardState:
    """What is to be measured on, and what is measured on now.

    put: the record of a guard that was put. ready: whether it is the one in use; until it is, edits wait.
    """

    source: Source
    put: GuardRecord | None
    ready: bool
    in_use: Guard

    @property
    def at(self) -> datetime | None:
        return None if self.put is None else self.put.at


class Guarding:
    """The guard of one model in one process. Used from the event loop."""

    def __init__(
        self, ledger: Ledger, engine: Engine, memory: Memory, learn: Learn, *, source: Source, limit: int
    ) -> None:
        """learn: what the unedited model makes of inputs. source: where the guard of `memory` came from."""
        self._ledger = ledger
        self._engine = engine
        self._memory = memory
        self._learn = learn
        self._of_files, self._source = memory.guard, source
        self._limit = limit
        self._number = 0
        self._one_at_a_time = asyncio.Lock()
        self._wake, self._changed = asyncio.Event(), asyncio.Event()

    async def put(self, content: bytes, *, actor: str) -> GuardRecord:
        """Measure on these JSON Lines from now on. What is returned is stored. Raises Unprocessable naming the line."""
        inputs = await asyncio.to_thread(self._parsed, content)
        record = await asyncio.to_thread(self._ledger.put_guard, content, inputs=len(inputs), actor=actor)
        self._wake.set()
        return record

    async def withdraw(self, *, actor: str) -> None:
        """Measure on the guard of the files again."""
        await asyncio.to_thread(self._ledger.withdraw_guard, actor=actor)
        await self.catch_up()

    async def content(self) -> bytes:
        """The newest guard that was put, as it was put; nothing if there is none."""
        record = await asyncio.to_thread(self._ledger.guard)
        return b"" if record is None else await asyncio.to_thread(self._ledger.guard_bytes, record.number)

    async def state(self) -> GuardState:
        """What is measured on."""
        record = await asyncio.to_thread(self._ledger.guard)
        in_use = self._memory.guard
        ready = in_use.number == (0 if record is None else record.number)
        return GuardState(self._source if record is None else "put", record, ready, in_use)

    async def catch_up(self) -> Guard:
        """Measure on the newest guard of the ledger; returns it. A guard that is new is read first."""
        async with self._one_at_a_time:
            number = await asyncio.to_thread(self._ledger.guard_number)
            if number != self._number:
                record = await asyncio.to_thread(self._ledger.guard)
                self._memory.guard = self._of_files if record is None else await self._read(record)
                self._number = number
                self._changed.set()
                self._changed.clear()
                log.info("guard", number=number, inputs=len(self._memory.guard))
            return self._memory.guard

    async def follow(self, seconds: float) -> None:
        """Catch up every so often, also with what other processes were told, until cancelled."""
        while True:
            try:
                await self.catch_up()
            except Exception:  # the job boundary: the database may be away for a while
                log.exception("cannot follow the guard")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), seconds)
            self._wake.clear()

    async def wait(self, seconds: float) -> None:
        """Return when the newest guard is in use, or when the time is over."""
        deadline = time.monotonic() + seconds
        while not (await self.state()).ready and (left := deadline - time.monotonic()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(left, FOLLOWED_SECONDS))

    def _parsed(self, content: bytes) -> list[KnownInput]:
        inputs = numbered(content, limit=self._limit)
        check(self._engine.model, inputs)
        return list(inputs.values())

    async def _read(self, record: GuardRecord) -> Guard:
        content = await asyncio.to_thread(self._ledger.guard_bytes, record.number)
        known = await self._learn(parse(content, limit=max(record.inputs, self._limit)))
        return await asyncio.to_thread(Guard.of, known, record.number)
