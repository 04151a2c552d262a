"""The guard as callers put it: inputs that no edit may change. Every one is kept; the newest row counts.

The bytes are opaque here.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select

from app.errors import NotFound
from app.store.history import Event, Happening, append
from app.store.records import GuardRecord, Json
from app.store.scope import Model, Scope
from app.store.tables import guards

_RECORDS = select(guards.c.number, guards.c.sha256, guards.c.inputs, guards.c.actor, guards.c.at)


class Guards(Scope):
    """The guards of one model."""

    def put_guard(self, content: bytes, *, inputs: int, actor: str) -> GuardRecord:
        """Make these bytes, which hold so many inputs, the guard. If they are already, nothing is written."""
        sha256 = hashlib.sha256(content).hexdigest()
        with self._writing() as connection:
            newest = _newest(connection, self._model)
            if newest is not None and newest.sha256 == sha256:
                return newest
            record = GuardRecord(_next(newest), sha256, inputs, actor, datetime.now(UTC))
            self._write(connection, record, content)
            return record

    def withdraw_guard(self, *, actor: str) -> GuardRecord | None:
        """Go back to no guard of the callers'; gives the row that says so. None if there is nothing to withdraw."""
        with self._writing() as connection:
            newest = _newest(connection, self._model)
            if newest is None or newest.sha256 is None:
                return None
            record = GuardRecord(_next(newest), None, 0, actor, datetime.now(UTC))
            self._write(connection, record, None)
            return record

    def guard(self) -> GuardRecord | None:
        """The guard that counts. None if none was put, or the last one was withdrawn."""
        with self._reading() as connection:
            newest = _newest(connection, self._model)
        return None if newest is None or newest.sha256 is None else newest

    def guard_number(self) -> int:
        """The number of the newest guard, or of its withdrawal; 0 if none was ever put."""
        with self._reading() as connection:
            number: int | None = connection.scalar(
                select(func.max(guards.c.number)).where(guards.c.model_id == self._model.id)
            )
        return number or 0

    def guard_bytes(self, number: int) -> bytes:
        """The bytes of the guard of that number. Raises NotFound, for a withdrawal too."""
        with self._reading() as connection:
            content: bytes | None = connection.scalar(
                select(guards.c.bytes).where(guards.c.model_id == self._model.id, guards.c.number == number)
            )
        if content is None:
            raise NotFound(f"There is no guard number {number}.")
        return content

    def _write(self, connection: Connection, record: GuardRecord, content: bytes | None) -> None:
        connection.execute(
            insert(guards).values(
                model_id=self._model.id,
                number=record.number,
                actor=record.actor,
                at=record.at,
                inputs=record.inputs,
                sha256=record.sha256,
                bytes=content,
            )
        )
        append(connection, self._model, Happening(Event.GUARD, record.actor, record.at, told(record)), [None])


def told(row: GuardRecord | Row[Any]) -> Json:
    """What the history says of a guard."""
    return {"number": row.number, "sha256": row.sha256, "inputs": row.inputs}


def _newest(connection: Connection, model: Model) -> GuardRecord | None:
    row = connection.execute(
        _RECORDS.where(guards.c.model_id == model.id).order_by(guards.c.number.desc()).limit(1)
    ).one_or_none()
    return None if row is None else GuardRecord(**row._mapping)


def _next(newest: GuardRecord | None) -> int:
    return 1 if newest is None else newest.number + 1
