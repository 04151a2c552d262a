"""What happened to a model's edits and to its guard, in order, each row chained to the one before it by hash.

An edit's status follows from the last thing that happened to it, so both are written in one place: `move`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from app.store.canonical import digest
from app.store.database import chunks
from app.store.records import HistoryRow, Json, Status
from app.store.scope import Model
from app.store.tables import edits, history, time_text


class Event(StrEnum):
    """What can happen to an edit."""

    QUEUED = "queued"
    FITTING = "fitting"
    JUDGING = "judging"
    LIVE = "live"
    REJECTED = "rejected"
    FAILED = "failed"
    NOT_NEEDED = "not_needed"
    DRY_RUN = "dry_run"
    CANCELLED = "cancelled"
    REVERTED = "reverted"
    REAPPLIED = "reapplied"
    SUPERSEDED = "superseded"
    RETURNED = "returned"  # the edit that had superseded it was reverted
    REQUEUED = "requeued"  # whoever worked on it died
    RESTORED = "restored"  # live because a revision was restored; without an edit: the restoring itself
    BROKEN = "broken"  # live, but the removal of another has broken it
    REFITTED = "refitted"
    REFIT_FAILED = "refit_failed"
    GUARD = "guard"  # never an edit's: the guard was put, or withdrawn


STATUS_AFTER: Mapping[Event, Status] = MappingProxyType(
    {
        Event.REAPPLIED: Status.LIVE,
        Event.RETURNED: Status.LIVE,
        Event.RESTORED: Status.LIVE,
        Event.REQUEUED: Status.QUEUED,
        Event.BROKEN: Status.LIVE,
        Event.REFITTED: Status.LIVE,
        Event.REFIT_FAILED: Status.LIVE,
    }
    | {Event(status.value): status for status in Status if status is not Status.QUARANTINED}
)
"""Where each event leaves its edit."""


_LAST = (
    select(history.c.seq, history.c.hash)
    .where(history.c.model_id == bindparam("model_id"))
    .order_by(history.c.seq.desc())
    .limit(1)
)


_OF_EDIT = (
    select(history)
    .where(
        history.c.model_id == bindparam("model_id"),
        history.c.edit_id == bindparam("edit_id"),
        history.c.seq > bindparam("after"),
    )
    .order_by(history.c.seq)
)


@dataclass(frozen=True, slots=True)
class Happening:
    """One event, before it is written: it may befall several edits at once."""

    event: Event
    actor: str
    at: datetime
    detail: Json


@dataclass(frozen=True, slots=True)
class Move:
    """What befalls one edit, and the columns that are set beside its status."""

    happening: Happening
    edit_id: str
    values: Json


def move(
    connection: Connection, model: Model, happening: Happening, edit_ids: Sequence[str], values: Json | None = None
) -> None:
    """Let `happening` befall these edits: their status follows, `values` are set beside it, and history is written."""
    status = STATUS_AFTER[happening.event]
    for ids in chunks(edit_ids):
        connection.execute(update(edits).where(edits.c.id.in_(ids)).values({**(values or {}), "status": status}))
    append(connection, model, happening, edit_ids)


def move_each(connection: Connection, model: Model, moves: Sequence[Move]) -> None:
    """As `move`, for edits to which different things happen; no edit twice. History is written in this order."""
    rows: defaultdict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for each in moves:
        values = {**each.values, "status": STATUS_AFTER[each.happening.event], "its_id": each.edit_id}
        rows[tuple(values)].append(values)
    for alike in rows.values():  # one statement sets the same columns in all of its rows
        for piece in chunks(alike):
            connection.execute(update(edits).where(edits.c.id == bindparam("its_id")), piece)
    append_each(connection, model, [(each.happening, each.edit_id) for each in moves])


def append(connection: Connection, model: Model, happening: Happening, edit_ids: Sequence[str | None]) -> None:
    """Write one row an edit at the end of the model's chain. None stands for the model itself."""
    append_each(connection, model, [(happening, edit_id) for edit_id in edit_ids])


def append_each(connection: Connection, model: Model, happenings: Sequence[tuple[Happening, str | None]]) -> None:
    """As `append`, for different happenings, in this order."""
    if not happenings:
        return
    seq, previous = _end(connection, model)
    rows: list[dict[str, Any]] = []
    for number, (happening, edit_id) in enumerate(happenings, start=seq + 1):
        row = {
            "seq": number,
            "edit_id": edit_id,
            "at": happening.at,
            "event": happening.event.value,
            "actor": happening.actor,
            "detail": happening.detail,
        }
        previous = link(previous, row)
        rows.append({**row, "model_id": model.id, "hash": previous})
    for piece in chunks(rows):
        connection.execute(insert(history), piece)


def link(previous: str, row: Mapping[str, Any]) -> str:
    """The hash of a row that follows a row with the hash `previous`."""
    return digest(
        {
            "prev": previous,
            "seq": row["seq"],
            "at": time_text(row["at"]),
            "edit": row["edit_id"],
            "event": row["event"],
            "actor": row["actor"],
            "detail": row["detail"],
        }
    )


def of_edit(connection: Connection, model: Model, edit_id: str, *, after: int) -> tuple[HistoryRow, ...]:
    """The edit's rows with seq > `after`, oldest first."""
    rows = connection.execute(_OF_EDIT, {"model_id": model.id, "edit_id": edit_id, "after": after})
    return tuple(_record(row) for row in rows)


def _end(connection: Connection, model: Model) -> tuple[int, str]:
    """The last row's seq and hash; before the first row, what the chain starts from."""
    last = connection.execute(_LAST, {"model_id": model.id}).one_or_none()
    return (0, model.fingerprint) if last is None else (last.seq, last.hash)


def _record(row: Row[Any]) -> HistoryRow:
    return HistoryRow(
        seq=row.seq, edit_id=row.edit_id, at=row.at, event=row.event, actor=row.actor, detail=row.detail, hash=row.hash
    )
