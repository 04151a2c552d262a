"""Going live: a judged edit's patch enters the ledger, one edit at a time or several in a row.

Every edit gets a revision of its own, also when many are written in one transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row

from app.errors import ConflictingEdit
from app.store import changes, patches
from app.store.archive import evidence_values
from app.store.canonical import digest
from app.store.changes import COVERED, Change, entered, happening
from app.store.history import Event, Move, move_each
from app.store.records import IN_HAND, Cause, Learned, LedgerPatch, RevisionRecord
from app.store.scope import Scope
from app.store.succession import Answers, edit_rows
from app.store.tables import edits

_STANDING = (
    edits.c.status,
    edits.c.actor,
    edits.c.input_key,
    edits.c.target,
    edits.c.supersedes,
)


class Commits(Scope):
    """What a worker writes when an edit has passed."""

    def commit(self, edit_id: str, learned: Learned, *, expected_head: int) -> RevisionRecord | None:
        """Make a judged edit live: its patch, the revision, the end of what it supersedes. None if it was cancelled.

        Raises NotFound, ConflictingEdit if another answer for its input went live meanwhile, HeadMoved if anything did.
        """
        with self._writing() as connection:
            (edit,) = edit_rows(connection, self._model, [edit_id], _STANDING)
            if edit.status not in IN_HAND:
                return None
            Answers(connection, self._model, [edit.input_key]).check(edit)
            patches.check_head(connection, self._model, expected_head)
            (record,) = self._go_live(connection, [(edit, learned)])
            return record

    def commit_each(self, learned: Sequence[tuple[str, Learned]], *, expected_head: int) -> list[RevisionRecord]:
        """Make judged edits live, one after the other, as `commit` would, in one transaction.

        Stops before the first one that was cancelled, or whose input has another answer that is live by then; gives
        the revisions of those before it. Raises HeadMoved, or NotFound; nothing is live then.
        """
        with self._writing() as connection:
            patches.check_head(connection, self._model, expected_head)
            found = edit_rows(connection, self._model, [edit_id for edit_id, _ in learned], _STANDING)
            free = self._unhindered(connection, found)
            brought = [(edit, what) for edit, (_, what) in zip(free, learned, strict=False)]
            return self._go_live(connection, brought)

    def _unhindered(self, connection: Connection, found: Sequence[Row[Any]]) -> list[Row[Any]]:
        """The edits up to the first one that cannot go live after those before it."""
        answers = Answers(connection, self._model, [edit.input_key for edit in found])
        free: dict[str, Row[Any]] = {}
        for edit in found:
            if edit.id in free or edit.status not in IN_HAND:
                break
            try:
                answers.check(edit)
            except ConflictingEdit:
                break
            answers.enter(edit)
            free[edit.id] = edit
        return list(free.values())

    def _go_live(self, connection: Connection, brought: Sequence[tuple[Row[Any], Learned]]) -> list[RevisionRecord]:
        if not brought:
            return []
        live = patches.live_of(connection, [edit.supersedes for edit, _ in brought])
        made = [
            _change(edit, learned, patch, live.pop(edit.supersedes, None))
            for (edit, learned), patch in zip(
                brought, patches.next_patches(connection, self._model, brought), strict=True
            )
        ]
        records = changes.write_each(connection, self._model, made)
        moves = [each for record, change in zip(records, made, strict=True) for each in _moves(record, change)]
        move_each(connection, self._model, moves)
        return records


def _change(edit: Row[Any], learned: Learned, patch: LedgerPatch, below: LedgerPatch | None) -> Change:
    closed = () if below is None else (below,)
    return Change(Cause.EDIT, edit.id, edit.actor, datetime.now(UTC), (patch,), closed, learned)


def _moves(record: RevisionRecord, change: Change) -> list[Move]:
    """The edit goes live, and what it supersedes is superseded."""
    assert change.learned is not None
    (patch,) = change.opened
    evidence = evidence_values(change.learned.evidence)
    live = happening(Event.LIVE, record, patch=patch.sha256, evidence=digest(evidence))
    entering = Move(live, patch.edit_id, {**evidence, **entered(record, patch), "finished_at": record.at})
    superseded = happening(Event.SUPERSEDED, record)
    return [entering, *(Move(superseded, below.edit_id, COVERED) for below in change.closed)]
