"""One revision as it is written: its row, the spans it opens and closes, the hash that covers them, and how the edits
stand that it lets in or out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, bindparam, insert, select, update

from app.store import patches
from app.store.canonical import digest
from app.store.database import chunks
from app.store.history import Event, Happening
from app.store.records import Cause, Json, Learned, LedgerPatch, RevisionRecord
from app.store.scope import Model
from app.store.tables import edits, revisions, spans, time_text

COVERED: Json = {"reverted_at": None, "reverted_revision": None, "refit_due": None}
"""How an edit stands that another one supersedes."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a revision does to the set of live patches, and on whose behalf. Patches are in ledger order."""

    cause: Cause
    edit_id: str | None
    actor: str
    at: datetime
    opened: tuple[LedgerPatch, ...] = ()
    closed: tuple[LedgerPatch, ...] = ()


def begin(connection: Connection, model: Model, actor: str, at: datetime) -> None:
    """Write revision 0, the unedited model."""
    _insert(connection, model, 0, model.fingerprint, Change(Cause.BASE, None, actor, at))


def write(connection: Connection, model: Model, change: Change, learned: Learned | None = None) -> RevisionRecord:
    """Append a revision. `learned` belongs to the opened patch when that goes live for the first time."""
    parent = connection.execute(
        select(revisions.c.number, revisions.c.hash)
        .where(revisions.c.model_id == model.id)
        .order_by(revisions.c.number.desc())
        .limit(1)
    ).one()
    record = _insert(connection, model, parent.number + 1, parent.hash, change)
    if learned is not None:
        (patch,) = change.opened
        patches.keep(connection, model, patch, learned, since=record.number)
    _open(connection, model, change.opened, record.number)
    _close(connection, model, _numbers(change.closed), record.number)
    return record


def happening(event: Event, record: RevisionRecord, **detail: object) -> Happening:
    """What the revision does to an edit, for its history."""
    return Happening(event, record.actor, record.at, {"revision": record.number, **detail})


def entered(record: RevisionRecord) -> Json:
    """How an edit stands that the revision makes live."""
    return {"revision": record.number, **COVERED}


def left(record: RevisionRecord) -> Json:
    """How an edit stands that is reverted in the revision."""
    return {"reverted_at": record.at, "reverted_revision": record.number, "refit_due": None}


def revision_hash(parent: str, number: int, change: Change) -> str:
    """The hash of a revision whose parent's hash is `parent`; that of revision 0 is the model's fingerprint."""
    return digest(
        {
            "parent": parent,
            "number": number,
            "cause": change.cause,
            "edit": change.edit_id,
            "actor": change.actor,
            "at": time_text(change.at),
            "opened": _named(change.opened),
            "closed": _named(change.closed),
        }
    )


def _insert(connection: Connection, model: Model, number: int, parent_hash: str, change: Change) -> RevisionRecord:
    record = RevisionRecord(
        number, change.cause, change.edit_id, change.actor, change.at, revision_hash(parent_hash, number, change)
    )
    connection.execute(
        insert(revisions).values(
            model_id=model.id,
            number=number,
            parent=number - 1 if number else None,
            cause=record.cause,
            edit_id=record.edit_id,
            actor=record.actor,
            at=record.at,
            hash=record.hash,
        )
    )
    return record


def _open(connection: Connection, model: Model, opened: Sequence[LedgerPatch], revision: int) -> None:
    entering = update(edits).where(edits.c.id == bindparam("its_id")).values(patch=bindparam("its_patch"))
    for piece in chunks(opened):
        rows = [{"model_id": model.id, "patch": patch.number, "since": revision} for patch in piece]
        connection.execute(insert(spans), rows)
        connection.execute(entering, [{"its_id": patch.edit_id, "its_patch": patch.number} for patch in piece])


def _close(connection: Connection, model: Model, numbers: Sequence[int], revision: int) -> None:
    for piece in chunks(numbers):
        closed = connection.execute(
            update(spans)
            .where(spans.c.model_id == model.id, spans.c.patch.in_(piece), spans.c.until.is_(None))
            .values(until=revision)
        )
        assert closed.rowcount == len(piece), "a live patch has one open span"


def _numbers(opened_or_closed: Iterable[LedgerPatch]) -> list[int]:
    return [patch.number for patch in opened_or_closed]


def _named(opened_or_closed: Iterable[LedgerPatch]) -> list[list[str]]:
    return [[patch.edit_id, patch.sha256] for patch in opened_or_closed]
