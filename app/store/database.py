"""The database: connections, transactions and migrations, for SQLite and PostgreSQL alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from filelock import FileLock
from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, func, make_url, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.errors import Unavailable

MIGRATIONS = Path(__file__).parents[2] / "migrations"
"""Beside the package `app`, in the source tree and in an installed wheel alike."""

ADVISORY_CLASS = 0x45727261
"""The first half of every advisory lock on PostgreSQL; the second is 0 for migrating, or the model's id."""

_BUSY_MILLISECONDS = 30_000
_CHUNK = 1000  # values in one IN (...), well below what either database takes

Value = TypeVar("Value")


class UnsupportedDatabase(ValueError):
    """The URL names no database that the store can use; the message says why."""


class Database:
    """One SQLite file or one PostgreSQL database. Safe to share between threads."""

    def __init__(self, url: str) -> None:
        self._url = _supported(url)
        self.engine = create_engine(
            self._url, pool_size=10, max_overflow=40, pool_pre_ping=self.is_postgresql, **self._options()
        )
        if not self.is_postgresql:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        # A reader sees one snapshot from its first statement to its last: on SQLite by itself, here by asking.
        snapshot = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True} if self.is_postgresql else {}
        self._readers = self.engine.execution_options(**snapshot)
        self._writers = self.engine.execution_options(writes=True)

    def _options(self) -> dict[str, Any]:
        return {"isolation_level": "READ COMMITTED"} if self.is_postgresql else {}

    @property
    def is_postgresql(self) -> bool:
        return self._url.get_backend_name() == "postgresql"

    @property
    def exists(self) -> bool:
        """Whether there is anything to connect to; to connect to a missing SQLite file would make it."""
        return self.is_postgresql or Path(str(self._url.database)).exists()

    def __str__(self) -> str:
        return self._url.render_as_string(hide_password=True)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that reads one consistent snapshot."""
        with _transaction(self._readers) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that may write; on SQLite it holds the one write lock from its first moment."""
        with _transaction(self._writers) as connection:
            yield connection

    def beside(self, suffix: str) -> Path:
        """A file next to the SQLite database, such as a lock."""
        assert self._url.database is not None
        return Path(f"{self._url.database}.{suffix}")

    def migrate(self) -> None:
        """Bring the schema to the present version; a second process that starts meanwhile waits.

        Raises Unavailable if the database cannot be reached, UnsupportedDatabase if its schema is not ours.
        """
        try:
            with self._alone() as connection:
                command.upgrade(alembic_config(connection), "head")
        except Unavailable as error:
            raise Unavailable(f"The database {self} cannot be used: {error.__cause__}") from error
        except CommandError as error:
            raise UnsupportedDatabase(f"The database {self} cannot be migrated: {error}") from error

    @contextmanager
    def _alone(self) -> Iterator[Connection]:
        if self.is_postgresql:
            with self.writing() as connection:
                connection.execute(select(func.pg_advisory_xact_lock(ADVISORY_CLASS, 0)))
                yield connection
            return
        lock = self.beside("migrate.lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        # SQLite's own lock does not do: turning a new file to WAL fails at once while another connection does so.
        with FileLock(lock, thread_local=False), self.writing() as connection:
            yield connection

    def close(self) -> None:
        self.engine.dispose()


def dialect_insert(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that can say what to do on a conflict, in the dialect at hand."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def chunks(values: Sequence[Value]) -> Iterator[Sequence[Value]]:
    """`values` in pieces that one statement can carry."""
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]


def alembic_config(connection: Connection) -> Config:
    """Alembic's settings for the packaged migrations, run on this connection and in its transaction."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@contextmanager
def _transaction(engine: Engine) -> Iterator[Connection]:
    try:
        with engine.begin() as connection:
            yield connection
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        raise Unavailable("The database is busy or cannot be reached.") from error


def _supported(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise UnsupportedDatabase(f"{url!r} is no database URL, such as sqlite:///errata.db.") from error
    shown = parsed.render_as_string(hide_password=True)
    if parsed.drivername in ("postgresql", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise UnsupportedDatabase(f"The database {shown} is neither sqlite:/// nor postgresql://.")
    if parsed.database in (None, "", ":memory:"):
        raise UnsupportedDatabase(f"The database {shown} has no file; what is kept in memory would be lost.")
    return parsed


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # sqlite3 would begin transactions by itself, late and deferred
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that turns to writing after another has written fails instead of waiting.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
