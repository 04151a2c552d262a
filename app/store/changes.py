"""One revision as it is written: its row, the spans it opens and closes, the hash that covers them, and how the edits
stand that it lets in or out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from app.store import patches
from app.store.canonical import digest
from app.store.database import chunks
from app.store.history import Event, Happening
from app.store.records import Cause, Json, Learned, LedgerPatch, RevisionRecord
from app.store.scope import Model
from app.store.tables import revisions, spans, time_text

COVERED: Json = {"reverted_at": None, "reverted_revision": None, "refit_due": None}
"""How an edit stands that another one supersedes."""

_LAST = (
    select(revisions.c.number, revisions.c.hash)
    .where(revisions.c.model_id == bindparam("model_id"))
    .order_by(revisions.c.number.desc())
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class Change:
    """What a revision does to the set of live patches, and on whose behalf. Patches are in ledger order."""

    cause: Cause
    edit_id: str | None
    actor: str
    at: datetime
    opened: tuple[LedgerPatch, ...] = ()
    closed: tuple[LedgerPatch, ...] = ()
    learned: Learned | None = None  # the opened patch itself, when it goes live for the first time


def begin(connection: Connection, model: Model, actor: str, at: datetime) -> None:
    """Write revision 0, the unedited model."""
    base = _record(0, model.fingerprint, Change(Cause.BASE, None, actor, at))
    connection.execute(insert(revisions), [_row(model, base)])


def write(connection: Connection, model: Model, change: Change) -> RevisionRecord:
    """Append a revision."""
    (record,) = write_each(connection, model, [change])
    return record


def write_each(connection: Connection, model: Model, changes: Sequence[Change]) -> list[RevisionRecord]:
    """Append a revision a change, each the parent of the next."""
    parent = connection.execute(_LAST, {"model_id": model.id}).one()
    records: list[RevisionRecord] = []
    previous: str = parent.hash
    for number, change in enumerate(changes, start=parent.number + 1):
        records.append(_record(number, previous, change))
        previous = records[-1].hash
    for piece in chunks(records):
        connection.execute(insert(revisions), [_row(model, record) for record in piece])
    written = list(zip(records, changes, strict=True))
    fresh = [(change.opened[0], change.learned, record.number) for record, change in written if change.learned]
    patches.keep(connection, model, fresh)
    _open(connection, model, [(patch.number, record.number) for record, change in written for patch in change.opened])
    for record, change in written:
        _close(connection, model, _numbers(change.closed), record.number)
    return records


def happening(event: Event, record: RevisionRecord, **detail: object) -> Happening:
    """What the revision does to an edit, for its history."""
    return Happening(event, record.actor, record.at, {"revision": record.number, **detail})


def entered(record: RevisionRecord, patch: LedgerPatch | None = None) -> Json:
    """How an edit stands that the revision makes live: with the patch that it had, or with this one."""
    patched = {} if patch is None else {"patch": patch.number}
    return {"revision": record.number, **patched, **COVERED}


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


def _record(number: int, parent_hash: str, change: Change) -> RevisionRecord:
    sealed = revision_hash(parent_hash, number, change)
    return RevisionRecord(number, change.cause, change.edit_id, change.actor, change.at, sealed)


def _row(model: Model, record: RevisionRecord) -> dict[str, Any]:
    return {
        "model_id": model.id,
        "number": record.number,
        "parent": record.number - 1 if record.number else None,
        "cause": record.cause,
        "edit_id": record.edit_id,
        "actor": record.actor,
        "at": record.at,
        "hash": record.hash,
    }


def _open(connection: Connection, model: Model, opened: Sequence[tuple[int, int]]) -> None:
    """Open a span for each number of a patch, in the revision beside it."""
    for piece in chunks(opened):
        rows = [{"model_id": model.id, "patch": number, "since": revision} for number, revision in piece]
        connection.execute(insert(spans), rows)


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
