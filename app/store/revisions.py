"""The ledger: numbered sets of live patches, each made from the one before it, none ever changed.

Every change is one transaction: the revision, the spans that it opens and closes, the edits' standing and the history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, select

from app.errors import ConflictingEdit, NotLive, NotReverted
from app.store import changes, patches
from app.store.archive import cursor_number, evidence_values
from app.store.canonical import digest
from app.store.changes import COVERED, Change, entered, happening, left
from app.store.history import Event, Happening, append, move
from app.store.records import (
    Cause,
    Evidence,
    Json,
    LedgerPatch,
    RevisionPage,
    RevisionRecord,
    Status,
)
from app.store.refits import mark_broken
from app.store.scope import Scope
from app.store.succession import (
    Answers,
    edit_row,
    ever_live,
    orphans,
    returning,
    standings,
    successor,
)
from app.store.tables import revisions


class Revisions(Scope):
    """The model's revisions."""

    def head(self) -> int:
        """The number of the newest revision."""
        with self._reading() as connection:
            return patches.head_of(connection, self._model)

    def revisions(self, *, limit: int = 50, cursor: str | None = None) -> RevisionPage:
        """A page of revisions, newest first. Raises Unprocessable for a cursor that no page gave."""
        wanted = select(revisions).where(revisions.c.model_id == self._model.id)
        if cursor is not None:
            wanted = wanted.where(revisions.c.number < cursor_number(cursor))
        with self._reading() as connection:
            rows = connection.execute(wanted.order_by(revisions.c.number.desc()).limit(limit + 1)).all()
        shown = tuple(_record(row) for row in rows[:limit])
        return RevisionPage(items=shown, next_cursor=str(shown[-1].number) if len(rows) > limit else None)

    def revision(self, number: int) -> RevisionRecord:
        """The revision of that number. Raises NotFound."""
        with self._reading() as connection:
            patches.check_revision(connection, self._model, number)
            row = connection.execute(
                select(revisions).where(revisions.c.model_id == self._model.id, revisions.c.number == number)
            ).one()
            return _record(row)

    def returning(self, edit_id: str) -> str | None:
        """The superseded edit that would come back if this one were reverted now. Raises NotFound."""
        with self._reading() as connection:
            return returning(connection, self._model, edit_row(connection, self._model, edit_id))

    def revert(
        self,
        edit_id: str,
        *,
        actor: str,
        reason: str,
        verdict: Json,
        expected_head: int,
        broken: Sequence[str] = (),
        refit: bool = False,
    ) -> RevisionRecord:
        """Take a live edit out of service; the edit that it had superseded comes back.

        verdict: what the removal does to the others; kept in the history. broken: the edits that do not hold any more
        without this one; with `refit` those that stay live wait to be fitted again. Raises NotFound, NotLive or
        HeadMoved.
        """
        with self._writing() as connection:
            edit = edit_row(connection, self._model, edit_id)
            if edit.status == Status.REVERTED:  # by somebody else meanwhile, and the head tells so
                patches.check_head(connection, self._model, expected_head)
            if edit.status != Status.LIVE:
                raise NotLive(_not_live(connection, edit))
            patches.check_head(connection, self._model, expected_head)
            freed = [row.id for row in orphans(connection, self._model, edit)]
            back = returning(connection, self._model, edit)
            opened = patches.of_edits(connection, [back]) if back else ()
            closed = patches.of_edits(connection, [edit_id])
            change = Change(Cause.REVERT, edit_id, actor, datetime.now(UTC), opened=opened, closed=closed)
            record = changes.write(connection, self._model, change)
            reverted = happening(Event.REVERTED, record, reason=reason, verdict=verdict)
            move(connection, self._model, reverted, [edit_id], left(record))
            if back is not None:
                move(connection, self._model, happening(Event.RETURNED, record), [back], entered(record))
            elif freed:  # another edit of the same input stands in the way of what would have come back
                move(connection, self._model, happening(Event.REVERTED, record), freed, left(record))
            mark_broken(connection, self._model, broken, record, refit=refit)
            return record

    def reapply(self, edit_id: str, *, actor: str, verdict: Json, after: Json, expected_head: int) -> RevisionRecord:
        """Make a reverted edit live again with the patch that it had; what it supersedes goes again.

        verdict, after: its evidence from now on. Raises NotFound, NotReverted, ConflictingEdit or HeadMoved.
        """
        with self._writing() as connection:
            edit = edit_row(connection, self._model, edit_id)
            if edit.status != Status.REVERTED:
                raise NotReverted(f"The edit {edit_id} is {edit.status}; only a reverted edit can be applied again.")
            Answers(connection, self._model, [edit.input_key]).check(edit)
            above = successor(connection, edit_id)
            if above is not None:
                raise ConflictingEdit(f"The edit {above} is live, and supersedes the edit {edit_id}.", [above])
            patches.check_head(connection, self._model, expected_head)
            opened = patches.of_edits(connection, [edit_id])
            below = tuple(patches.live_of(connection, [edit.supersedes]).values())
            change = Change(Cause.REAPPLY, edit_id, actor, datetime.now(UTC), opened=opened, closed=below)
            record = changes.write(connection, self._model, change)
            evidence = evidence_values(Evidence(edit.before, after, verdict, edit.fit))
            patches.judged_again(connection, self._model, edit.patch, evidence)
            reapplied = happening(Event.REAPPLIED, record, verdict=verdict, evidence=digest(evidence))
            move(connection, self._model, reapplied, [edit_id], {**evidence, **entered(record)})
            self._supersede(connection, record, below)
            return record

    def restore(self, number: int, *, actor: str, reason: str, expected_head: int) -> RevisionRecord:
        """Make a revision with exactly the patches of revision `number`.

        An edit that had another patch then gets that one back, and its evidence. Raises NotFound or HeadMoved.
        """
        with self._writing() as connection:
            patches.check_revision(connection, self._model, number)
            patches.check_head(connection, self._model, expected_head)
            present = patches.live_in(connection, self._model, expected_head)
            wanted = patches.live_in(connection, self._model, number)
            opened, closed = _without(wanted, present), _without(present, wanted)
            exchanged = _among(patches.replaced(connection, self._model), opened)
            change = Change(Cause.RESTORE, None, actor, datetime.now(UTC), opened=opened, closed=closed)
            record = changes.write(connection, self._model, change)
            restored = happening(Event.RESTORED, record, restored=number)
            append(connection, self._model, happening(Event.RESTORED, record, restored=number, reason=reason), [None])
            moved = standings(ever_live(connection, self._model), {patch.edit_id for patch in wanted})
            gone = replace(restored, event=Event.REVERTED)
            move(connection, self._model, gone, moved[Status.REVERTED], left(record))
            covered = replace(restored, event=Event.SUPERSEDED)
            move(connection, self._model, covered, moved[Status.SUPERSEDED], COVERED)
            otherwise = {patch.edit_id for patch in exchanged}
            returned = [edit_id for edit_id in moved[Status.LIVE] if edit_id not in otherwise]
            move(connection, self._model, restored, returned, entered(record))
            self._exchange(connection, record, restored, exchanged)
            return record

    def _exchange(
        self, connection: Connection, record: RevisionRecord, restored: Happening, exchanged: Sequence[LedgerPatch]
    ) -> None:
        """Give edits that come with an earlier patch the evidence of that patch."""
        for patch in exchanged:
            evidence = patches.evidence_with(connection, self._model, patch.number)
            told = {**restored.detail, "patch": patch.sha256, "evidence": digest(evidence)}
            values = {**evidence, **entered(record, patch)}
            move(connection, self._model, replace(restored, detail=told), [patch.edit_id], values)

    def _supersede(self, connection: Connection, record: RevisionRecord, below: Sequence[LedgerPatch]) -> None:
        edit_ids = [patch.edit_id for patch in below]
        move(connection, self._model, happening(Event.SUPERSEDED, record), edit_ids, COVERED)


def _without(these: Sequence[LedgerPatch], those: Sequence[LedgerPatch]) -> tuple[LedgerPatch, ...]:
    numbers = {patch.number for patch in those}
    return tuple(patch for patch in these if patch.number not in numbers)


def _among(these: Sequence[LedgerPatch], those: Sequence[LedgerPatch]) -> tuple[LedgerPatch, ...]:
    numbers = {patch.number for patch in those}
    return tuple(patch for patch in these if patch.number in numbers)


def _not_live(connection: Connection, edit: Row[Any]) -> str:
    if edit.status == Status.SUPERSEDED:
        return f"The edit {edit.id} is not live: the edit {successor(connection, edit.id)} superseded it."
    if edit.status == Status.REVERTED:
        return f"The edit {edit.id} is not live: it was reverted in revision {edit.reverted_revision}."
    return f"The edit {edit.id} is not live: it is {edit.status}."


def _record(row: Row[Any]) -> RevisionRecord:
    return RevisionRecord(row.number, Cause(row.cause), row.edit_id, row.actor, row.at, row.hash)
