"""Which edits stand in each other's way, which take each other's place, and which come back.

Two live edits conflict if they want different answers for the same input. An edit may name one that it supersedes;
while it is live, that one is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from app.errors import ConflictingEdit, NotFound
from app.store.records import Draft, Status
from app.store.scope import Model
from app.store.tables import edits


def edit_row(connection: Connection, model: Model, edit_id: str) -> Row[Any]:
    """The model's edit of that id. Raises NotFound."""
    row = connection.execute(select(edits).where(edits.c.id == edit_id, edits.c.model_id == model.id)).one_or_none()
    if row is None:
        raise NotFound(f"There is no edit {edit_id}.")
    return row


def input_digest(input_key: str) -> str:
    """What edits are found by: an input key may be longer than an index takes."""
    return hashlib.sha256(input_key.encode()).hexdigest()


def conflicts(
    connection: Connection, model: Model, input_key: str, target: str, *, besides: Collection[str | None]
) -> Sequence[str]:
    """Live edits of the same input that want another answer, leaving out `besides`; oldest first."""
    found = connection.scalars(
        select(edits.c.id)
        .where(
            edits.c.model_id == model.id,
            edits.c.input_digest == input_digest(input_key),
            edits.c.status == Status.LIVE,
            edits.c.target != target,
        )
        .order_by(edits.c.number)
    )
    return [edit_id for edit_id in found if edit_id not in besides]


def check_conflicts(
    connection: Connection, model: Model, edit: Draft | Row[Any], *, besides: Collection[str | None]
) -> None:
    """Raise ConflictingEdit if a live edit other than `besides` wants another answer for this one's input."""
    found = conflicts(connection, model, edit.input_key, edit.target, besides=besides)
    if found:
        named = ", ".join(found)
        raise ConflictingEdit(
            f"Another answer for this input is live: {named}. Name that edit in `supersedes` to replace it.", found
        )


def successor(connection: Connection, edit_id: str, *, besides: str | None = None) -> str | None:
    """A live edit that supersedes this one, directly or through others that once were live."""
    asked = [edit_id]
    while asked:
        rows = connection.execute(
            select(edits.c.id, edits.c.status)
            .where(edits.c.supersedes.in_(asked), edits.c.patch.is_not(None))
            .order_by(edits.c.number)
        ).all()
        for row in rows:
            if row.status == Status.LIVE and row.id != besides:
                return str(row.id)
        asked = [row.id for row in rows]
    return None


def orphans(connection: Connection, model: Model, edit: Row[Any]) -> Sequence[Row[Any]]:
    """The superseded edits below `edit` that no live edit would supersede any more without it, nearest first."""
    found: list[Row[Any]] = []
    below = edit.supersedes
    while below is not None:
        row = edit_row(connection, model, below)
        if row.status != Status.SUPERSEDED or successor(connection, row.id, besides=edit.id) is not None:
            break
        found.append(row)
        below = row.supersedes
    return found


def returning(connection: Connection, model: Model, edit: Row[Any]) -> str | None:
    """The edit that comes back when `edit` is reverted: the one it had superseded, unless another stands in its way."""
    for row in orphans(connection, model, edit)[:1]:
        if not conflicts(connection, model, row.input_key, row.target, besides={edit.id}):
            return str(row.id)
    return None


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an edit that once was live stands, and which one it supersedes while it is."""

    edit_id: str
    status: Status
    supersedes: str | None


def ever_live(connection: Connection, model: Model) -> Sequence[Standing]:
    """Every edit that ever was live, in ledger order."""
    rows = connection.execute(
        select(edits.c.id, edits.c.status, edits.c.supersedes)
        .where(edits.c.model_id == model.id, edits.c.patch.is_not(None))
        .order_by(edits.c.patch)
    )
    return [Standing(row.id, Status(row.status), row.supersedes) for row in rows]


def standings(present: Sequence[Standing], live: Collection[str]) -> Mapping[Status, list[str]]:
    """Which edits stand differently once exactly `live` are live: by their new status, in the order of `present`.

    present: every edit that ever was live. One that is not live is superseded if a live edit supersedes it, directly
    or through others, else reverted.
    """
    below = {standing.edit_id: standing.supersedes for standing in present}
    superseded: set[str] = set()
    for edit_id in live:
        lower = below[edit_id]
        while lower is not None and lower not in superseded:
            superseded.add(lower)
            lower = below[lower]
    moved: dict[Status, list[str]] = {Status.REVERTED: [], Status.SUPERSEDED: [], Status.LIVE: []}
    for standing in present:
        dead = Status.SUPERSEDED if standing.edit_id in superseded else Status.REVERTED
        status = Status.LIVE if standing.edit_id in live else dead
        if standing.status != status:
            moved[status].append(standing.edit_id)
    return moved
