"""The store: everything that outlives the process, for one model at a time.

    database, tables, canonical     the databases, the tables, and the text of what is hashed
    scope                           one model's transactions
    history, changes, succession    how an event, a revision and a change of standing are written
    intake, edits, archive          the way into the queue, the queue and the records; with what follows, a Ledger
    commits, revisions, refits      going live, the sets of live patches, and new patches for broken edits
    patches, guards, audit          patches and guards, and the check of it all
    lock                            who may work the queue

The only speaker of SQL. Synchronous: callers run it in threads. It knows no tensors, no HTTP and no settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from sqlalchemy import Connection, inspect, select

from app.store import changes
from app.store.archive import Archive
from app.store.audit import Audit
from app.store.commits import Commits
from app.store.database import Database, UnsupportedDatabase, dialect_insert
from app.store.edits import Queue
from app.store.guards import Guards
from app.store.intake import Intake
from app.store.lock import QueueLock, queue_lock
from app.store.patches import Patches
from app.store.records import (
    IN_WORK,
    Accepted,
    Cause,
    Changes,
    Draft,
    EditRecord,
    Evidence,
    Flaw,
    GuardRecord,
    HistoryRow,
    IdempotencyKey,
    Json,
    Learned,
    LedgerPatch,
    LoadedPatch,
    ModelIdentity,
    Page,
    PatchSummary,
    RevisionPage,
    RevisionRecord,
    Span,
    Status,
)
from app.store.refits import Refits
from app.store.revisions import Revisions
from app.store.scope import SERVICE, HeadMoved, Model
from app.store.tables import models

__all__ = [
    "IN_WORK",
    "Accepted",
    "Cause",
    "Changes",
    "Draft",
    "EditRecord",
    "Evidence",
    "Flaw",
    "GuardRecord",
    "HeadMoved",
    "HistoryRow",
    "IdempotencyKey",
    "Json",
    "Learned",
    "Ledger",
    "LedgerPatch",
    "LoadedPatch",
    "ModelIdentity",
    "Page",
    "PatchSummary",
    "QueueLock",
    "RevisionPage",
    "RevisionRecord",
    "Span",
    "Status",
    "Store",
    "UnsupportedDatabase",
]


class Ledger(Intake, Queue, Archive, Commits, Revisions, Refits, Patches, Guards, Audit):
    """Everything of one model. Safe to share between threads: each method is one transaction of its own."""

    def queue_lock(self) -> QueueLock:
        """The right to work this model's queue, not held yet."""
        return queue_lock(self._database, self._model.id)

    @contextmanager
    def working(self) -> Iterator[bool]:
        """Hold the right to work this model's queue, if it is free; yields whether it is held."""
        lock = self.queue_lock()
        held = lock.try_acquire()
        try:
            yield held
        finally:
            lock.release()


class Store:
    """A database of ledgers, one a model."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, url: str) -> Store:
        """The store at `url`, sqlite:///file or postgresql://...; nothing is connected yet.

        Raises UnsupportedDatabase for any other.
        """
        return cls(Database(url))

    def migrate(self) -> None:
        """Bring the tables to the present version. Two processes may start at once.

        Raises Unavailable if the database cannot be reached, UnsupportedDatabase if it holds something else.
        """
        self._database.migrate()

    def holds(self, identity: ModelIdentity) -> bool:
        """Whether there is a ledger of this model. Makes nothing that is not there."""
        if not self._database.exists:
            return False
        with self._database.reading() as connection:
            known = select(models.c.id).where(models.c.fingerprint == identity.fingerprint)
            return inspect(connection).has_table(models.name) and connection.scalar(known) is not None

    def ledger(self, identity: ModelIdentity) -> Ledger:
        """The ledger of the model with that fingerprint; a new one starts with revision 0."""
        with self._database.writing() as connection:
            return Ledger(self._database, _find_or_create(connection, identity))

    def close(self) -> None:
        """Let go of all connections."""
        self._database.close()


def _find_or_create(connection: Connection, identity: ModelIdentity) -> Model:
    at = datetime.now(UTC)
    created: int | None = connection.scalar(
        dialect_insert(connection, models)
        .values(
            fingerprint=identity.fingerprint,
            name=identity.name,
            task=identity.task,
            site=identity.site,
            dtype=identity.dtype,
            created_at=at,
        )
        .on_conflict_do_nothing(index_elements=[models.c.fingerprint])
        .returning(models.c.id)
    )
    if created is None:
        found = connection.execute(select(models.c.id).where(models.c.fingerprint == identity.fingerprint)).one()
        return Model(found.id, identity.fingerprint)
    model = Model(created, identity.fingerprint)
    changes.begin(connection, model, SERVICE, at)
    return model
