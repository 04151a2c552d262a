"""Live edits that the removal of another has broken: they wait here for another patch, and get it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, select, update

from app.store import archive, changes, patches
from app.store.canonical import digest
from app.store.changes import Change, entered, happening
from app.store.database import chunks
from app.store.history import Event, Happening, append, move
from app.store.records import Cause, EditRecord, Json, Learned, RevisionRecord, Status
from app.store.scope import SERVICE, Model, Scope
from app.store.succession import edit_row
from app.store.tables import edits


class Refits(Scope):
    """New patches for edits that have gone live before."""

    def claim_refit(self) -> EditRecord | None:
        """The oldest live edit that waits to be fitted again; it goes on waiting. None if there is none."""
        with self._reading() as connection:
            # SQLite would find the live ones by their status, and look at all of them: those that wait are few.
            waiting = connection.execute(
                select(edits.c.id, edits.c.status)
                .where(edits.c.model_id == self._model.id, edits.c.refit_due.is_not(None))
                .order_by(edits.c.number)
            ).all()
            edit_id = next((row.id for row in waiting if row.status == Status.LIVE), None)
            return None if edit_id is None else archive.read(connection, self._model, edit_id)

    def refit(self, edit_id: str, learned: Learned, *, expected_head: int) -> RevisionRecord | None:
        """Exchange the patch of a live edit for a new one; the old one is kept. None if the edit does not wait for one.

        Raises NotFound, or HeadMoved if the revision has moved on.
        """
        with self._writing() as connection:
            edit = edit_row(connection, self._model, edit_id)
            if edit.status != Status.LIVE or edit.refit_due is None:
                return None
            patches.check_head(connection, self._model, expected_head)
            closed = patches.of_edits(connection, [edit_id])
            (opened,) = patches.next_patches(connection, self._model, [(edit, learned)])
            change = Change(Cause.REFIT, edit_id, SERVICE, datetime.now(UTC), (opened,), closed, learned)
            record = changes.write(connection, self._model, change)
            evidence = archive.evidence_values(learned.evidence)
            told = {"patch": learned.sha256, "replaced": closed[0].sha256, "evidence": digest(evidence)}
            refitted = happening(Event.REFITTED, record, **told)
            move(connection, self._model, refitted, [edit_id], {**evidence, **entered(record, opened)})
            return record

    def refit_failed(self, edit_id: str, *, reason: str, verdict: Json | None) -> bool:
        """Give up on another patch: the edit stays live with the one it has. False if it does not wait for one.

        verdict: of what was fitted, if anything was; kept in the history. Raises NotFound.
        """
        with self._writing() as connection:
            edit = edit_row(connection, self._model, edit_id)
            if edit.status != Status.LIVE or edit.refit_due is None:
                return False
            failed = Happening(Event.REFIT_FAILED, SERVICE, datetime.now(UTC), {"reason": reason, "verdict": verdict})
            move(connection, self._model, failed, [edit_id], {"refit_due": None})
            return True


def mark_broken(
    connection: Connection, model: Model, broken: Sequence[str], record: RevisionRecord, *, refit: bool
) -> None:
    """Tell those of the edits that are live that the revision has broken them; with `refit` they wait for a patch.

    One that waits already goes on waiting since when it did.
    """
    live = _live_of(connection, model, broken)
    append(connection, model, happening(Event.BROKEN, record, by=record.edit_id), live)
    if not refit:
        return
    for piece in chunks(live):
        waiting = update(edits).where(edits.c.id.in_(piece), edits.c.refit_due.is_(None))
        connection.execute(waiting.values(refit_due=record.number))


def _live_of(connection: Connection, model: Model, edit_ids: Sequence[str]) -> list[str]:
    """Those of the edits that are live, in the order in which they were accepted."""
    standing = select(edits.c.model_id, edits.c.id, edits.c.number, edits.c.status)
    found = archive.rows_of(connection, model, standing, edit_ids)
    return [row.id for row in sorted(found, key=lambda row: row.number) if row.status == Status.LIVE]
