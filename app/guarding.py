"""Which guard edits are measured on: the newest one that was put into the ledger, or else the one of the files."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import structlog

from app.engine import Engine
from app.errors import Unavailable, Unprocessable
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


class Guarding:
    """The guard of one model in one process. Used from the event loop."""

    def __init__(
        self,
        ledger: Ledger,
        engine: Engine,
        memory: Memory,
        learn: Learn,
        *,
        source: Source,
        limit: int,
        max_characters: int,
    ) -> None:
        """learn: what the unedited model makes of inputs. source: where the guard of `memory` came from. limit: inputs
        that are taken, of so many characters each.
        """
        self._ledger = ledger
        self._engine = engine
        self._memory = memory
        self._learn = learn
        self._of_files, self._source = memory.guard, source
        self._limit = limit
        self._max_characters = max_characters
        self._number = 0
        self._stopping = False
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
        self._wake.set()

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
        """The newest guard of the ledger, as soon as it is read. Raises Unavailable when the service stops."""
        while await asyncio.to_thread(self._ledger.guard_number) != self._number:
            if self._stopping:
                raise Unavailable("The service is stopping.")
            self._wake.set()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), FOLLOWED_SECONDS)
        return self._memory.guard

    async def follow(self, seconds: float) -> None:
        """Read the newest guard, of whichever process, until cancelled; one that is replaced meanwhile is let go."""
        taking: tuple[int, asyncio.Task[None]] | None = None
        try:
            while True:
                number = await self._newest()
                if number != self._number and (taking is None or taking[0] != number or taking[1].done()):
                    if taking is not None:
                        taking[1].cancel()
                    taking = number, asyncio.create_task(self._take_up(number))
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), seconds)
                self._wake.clear()
        finally:
            if taking is not None:
                taking[1].cancel()

    def stop(self) -> None:
        """Let go of whoever waits for a guard."""
        self._stopping = True
        self._changed.set()

    async def wait(self, seconds: float) -> None:
        """Return when the newest guard is in use, or when the time is over."""
        deadline = time.monotonic() + seconds
        while not (await self.state()).ready and (left := deadline - time.monotonic()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(left, FOLLOWED_SECONDS))

    async def _newest(self) -> int:
        try:
            return await asyncio.to_thread(self._ledger.guard_number)
        except Exception:  # the job boundary: the database may be away for a while
            log.exception("cannot follow the guard")
            return self._number

    async def _take_up(self, number: int) -> None:
        try:
            record = await asyncio.to_thread(self._ledger.guard)
            self._memory.guard = self._of_files if record is None else await self._read(record)
            self._number = number
        except Exception:  # the job boundary: it is tried again
            log.exception("cannot read the guard", number=number)
            return
        self._changed.set()
        if not self._stopping:
            self._changed.clear()
        log.info("guard", number=number, inputs=len(self._memory.guard))

    def _parsed(self, content: bytes) -> list[KnownInput]:
        inputs = numbered(content, limit=self._limit)
        if not inputs:
            raise Unprocessable("There are no inputs. DELETE /guard goes back to the guard of the service's files.")
        for number, each in inputs.items():
            if len(each.input) > self._max_characters:
                held = f"{len(each.input)} characters; at most {self._max_characters}"
                raise Unprocessable(f"line {number}: the input has {held} are taken.")
        check(self._engine.model, inputs)
        return list(inputs.values())

    async def _read(self, record: GuardRecord) -> Guard:
        content = await asyncio.to_thread(self._ledger.guard_bytes, record.number)
        known = await self._learn(parse(content, limit=max(record.inputs, self._limit)))
        return await asyncio.to_thread(Guard.of, known, record.number)
