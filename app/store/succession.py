"""Which edits stand in each other's way, which take each other's place, and which come back.

Two live edits conflict if they want different answers for the same input. An edit may name one that it supersedes;
while it is live, that one is not.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, Row, bindparam, select

from app.errors import ConflictingEdit, NotFound
from app.store.archive import rows_of
from app.store.database import chunks
from app.store.records import Draft, Status
from app.store.scope import Model
from app.store.tables import edits

_ONE = select(edits).where(edits.c.id == bindparam("edit_id"), edits.c.model_id == bindparam("model_id"))


def edit_row(connection: Connection, model: Model, edit_id: str) -> Row[Any]:
    """The model's edit of that id. Raises NotFound."""
    row = connection.execute(_ONE, {"edit_id": edit_id, "model_id": model.id}).one_or_none()
    if row is None:
        raise NotFound(f"There is no edit {edit_id}.")
    return row


def edit_rows(
    connection: Connection, model: Model, edit_ids: Sequence[str], columns: Sequence[Column[Any]]
) -> list[Row[Any]]:
    """These columns of the edits, and `id`, in the order of `edit_ids`. Raises NotFound."""
    wanted = select(edits.c.model_id, edits.c.id, *columns)
    found = {row.id: row for row in rows_of(connection, model, wanted, edit_ids)}
    missing = [edit_id for edit_id in edit_ids if edit_id not in found]
    if missing:
        raise NotFound(f"There is no edit {missing[0]}.")
    return [found[edit_id] for edit_id in edit_ids]


def statuses(connection: Connection, model: Model, edit_ids: Sequence[str]) -> dict[str, Status]:
    """How each of the edits stands. Raises NotFound."""
    rows = edit_rows(connection, model, edit_ids, (edits.c.status,))
    return {row.id: Status(row.status) for row in rows}


def input_digest(input_key: str) -> str:
    """What edits are found by: an input key may be longer than an index takes."""
    return hashlib.sha256(input_key.encode()).hexdigest()


class Answers:
    """The live edits of some inputs and what they want, as one transaction sees them."""

    def __init__(self, connection: Connection, model: Model, input_keys: Collection[str]) -> None:
        self._live: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)  # id and target, oldest first
        self._replaced: set[str | None] = set()
        for piece in chunks(sorted({input_digest(input_key) for input_key in input_keys})):
            # Neither asked for what is live nor put in order by the database, which would go through every live edit,
            # or through every edit, to spare itself one or the other.
            rows = connection.execute(
                select(edits.c.id, edits.c.number, edits.c.input_digest, edits.c.target, edits.c.status).where(
                    edits.c.model_id == model.id, edits.c.input_digest.in_(piece)
                )
            )
            for row in sorted(rows, key=lambda row: row.number):
                if row.status == Status.LIVE:
                    self._live[row.input_digest].append((row.id, row.target))

    def against(self, edit: Draft | Row[Any], *, besides: Collection[str | None]) -> list[str]:
        """Live edits of the same input that want another answer, leaving out `besides`; oldest first."""
        gone = self._replaced.union(besides)
        live = self._live[input_digest(edit.input_key)]
        return [edit_id for edit_id, target in live if target != edit.target and edit_id not in gone]

    def check(self, edit: Draft | Row[Any]) -> None:
        """Raise ConflictingEdit if a live edit that this one does not supersede wants another answer for its input."""
        found = self.against(edit, besides={edit.supersedes})
        if found:
            named = ", ".join(found)
            raise ConflictingEdit(
                f"Another answer for this input is live: {named}. Name that edit in `supersedes` to replace it.", found
            )

    def enter(self, edit: Row[Any]) -> None:
        """From now on the edit is live, and what it supersedes is not."""
        self._live[input_digest(edit.input_key)].append((edit.id, edit.target))
        self._replaced.add(edit.supersedes)


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
        if not Answers(connection, model, [row.input_key]).against(row, besides={edit.id}):
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
