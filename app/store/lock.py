"""The right to work a model's queue: one process holds it, and it is free again the moment that process dies.

On SQLite the operating system keeps it (a locked file beside the database), on PostgreSQL the server (an advisory
lock of one connection). A row that says "locked" would outlive a killed process.
"""

from __future__ import annotations

from threading import Lock
from typing import Protocol

from filelock import FileLock, Timeout
from sqlalchemy import Connection, create_engine, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from app.errors import Unavailable
from app.store.database import ADVISORY_CLASS, Database


class QueueLock(Protocol):
    """Safe to share between threads; two of them exclude each other also within one process."""

    def try_acquire(self) -> bool:
        """Take the lock if it is free; True if it is held now, also if it was before. Never waits."""

    def held(self) -> bool:
        """Whether it is held still. A lost connection has lost the lock."""

    def release(self) -> None:
        """Let go. Nothing happens if it is not held."""


def queue_lock(database: Database, model_id: int) -> QueueLock:
    """The lock of the model's queue, not held yet."""
    if database.is_postgresql:
        return AdvisoryLock(database, model_id)
    return LockedFile(database, model_id)


class LockedFile:
    """A file that the operating system locks for this process."""

    def __init__(self, database: Database, model_id: int) -> None:
        path = database.beside(f"queue-{model_id}.lock")
        # The worker's thread takes the lock and the main thread lets it go.
        self._lock = FileLock(path, thread_local=False)
        self._turn = Lock()

    def try_acquire(self) -> bool:
        with self._turn:
            if self._lock.is_locked:
                return True
            try:
                self._lock.acquire(blocking=False)
            except Timeout:
                return False
            return True

    def held(self) -> bool:
        return self._lock.is_locked

    def release(self) -> None:
        with self._turn:
            self._lock.release()


class AdvisoryLock:
    """A lock of the PostgreSQL server, bound to a connection of its own."""

    def __init__(self, database: Database, model_id: int) -> None:
        # No pool: what is closed is closed, and with the session goes the lock.
        self._engine = create_engine(database.engine.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._name = (ADVISORY_CLASS, model_id)
        self._connection: Connection | None = None
        self._turn = Lock()

    def try_acquire(self) -> bool:
        with self._turn:
            if self._alive():
                return True
            try:
                self._connection = self._engine.connect()
                got = self._connection.scalar(select(func.pg_try_advisory_lock(*self._name)))
            except DBAPIError as error:
                self._drop()
                raise Unavailable("The database is busy or cannot be reached.") from error
            if not got:
                self._drop()
            return bool(got)

    def held(self) -> bool:
        with self._turn:
            return self._alive()

    def release(self) -> None:
        with self._turn:
            self._drop()

    def _alive(self) -> bool:
        if self._connection is None:
            return False
        try:
            self._connection.scalar(select(1))
        except DBAPIError:
            self._drop()
            return False
        return True

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
