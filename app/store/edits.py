"""The queue: edits are claimed oldest first, worked on, and brought to an end, one by one or several at once.

How they come in is app.store.intake's, going live app.store.commits'; what lies between, and every other end, is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from sqlalchemy import Connection, func, select

from app.errors import Conflict, NotLive
from app.store import archive
from app.store.canonical import digest
from app.store.history import Event, Happening, Move, move, move_each
from app.store.records import IN_HAND, IN_WORK, EditRecord, Evidence, Json, Status
from app.store.scope import SERVICE, Scope
from app.store.succession import edit_row, statuses
from app.store.tables import edits

_WITHOUT_PATCH = frozenset({Status.REJECTED, Status.FAILED, Status.NOT_NEEDED, Status.DRY_RUN})


class Queue(Scope):
    """Edits on their way."""

    def queued(self, limit: int) -> list[EditRecord]:
        """The oldest queued edits, oldest first, without their histories."""
        with self._reading() as connection:
            waiting = archive.RECORDS.where(edits.c.model_id == self._model.id, edits.c.status == Status.QUEUED)
            return archive.read_all(connection, waiting.order_by(edits.c.number).limit(limit))

    def claim(self) -> EditRecord | None:
        """Take the oldest queued edit into work; it comes without its history. None if the queue is empty."""
        while oldest := self.queued(1):  # idle workers ask all the time, and must not take the write lock for it
            if claimed := self.claim_these([oldest[0].id]):
                return claimed[0]
        return None

    def claim_these(self, edit_ids: Sequence[str]) -> list[EditRecord]:
        """Take those of the edits into work that are still queued, oldest first; they come without their histories."""
        with self._writing() as connection:
            found = archive.read_each(connection, self._model, edit_ids)
            waiting = [record.id for record in found if record.status is Status.QUEUED]
            at = datetime.now(UTC)
            move(connection, self._model, Happening(Event.FITTING, SERVICE, at, {}), waiting, {"started_at": at})
            return [
                replace(record, status=Status.FITTING, started_at=at)
                for record in found
                if record.status is Status.QUEUED
            ]

    def judging(self, edit_id: str) -> bool:
        """The fit is over. False if the edit is no longer in work; one that is judged again stays as it is.

        Raises NotFound.
        """
        return edit_id in self.judging_these([edit_id])

    def judging_these(self, edit_ids: Sequence[str]) -> frozenset[str]:
        """The fits of these edits are over. Gives those that are still in work. Raises NotFound."""
        with self._writing() as connection:
            status = statuses(connection, self._model, edit_ids)
            fitted = [edit_id for edit_id in status if status[edit_id] is Status.FITTING]
            move(connection, self._model, Happening(Event.JUDGING, SERVICE, datetime.now(UTC), {}), fitted)
            return frozenset(edit_id for edit_id in status if status[edit_id] in IN_HAND)

    def finish(self, edit_id: str, status: Status, evidence: Evidence, *, detail: Json) -> bool:
        """End an edit that does not go live. False if it was cancelled meanwhile. Raises NotFound."""
        with self._writing() as connection:
            return edit_id in self._finish(connection, [(edit_id, status, evidence, detail)])

    def finish_each(self, ended: Sequence[tuple[str, Status, Evidence]]) -> frozenset[str]:
        """End edits that do not go live; the history of one that failed says why. Gives those that were still in work.

        Raises NotFound.
        """
        with self._writing() as connection:
            return self._finish(
                connection,
                [
                    (edit_id, status, evidence, {"reason": evidence.failure} if evidence.failure else {})
                    for edit_id, status, evidence in ended
                ],
            )

    def cancel(self, edit_id: str, *, actor: str, reason: str) -> EditRecord:
        """Take an edit out of the queue or out of work. A cancelled one is returned as it is.

        Raises NotFound, NotLive for one that has ended without going live, Conflict for one that has gone live.
        """
        with self._writing() as connection:
            row = edit_row(connection, self._model, edit_id)
            if row.status in IN_WORK:
                at = datetime.now(UTC)
                happening = Happening(Event.CANCELLED, actor, at, {"reason": reason})
                move(connection, self._model, happening, [edit_id], {"finished_at": at})
            elif row.status in _WITHOUT_PATCH:
                raise NotLive(f"The edit {edit_id} never went live: it is {row.status}.")
            elif row.status != Status.CANCELLED:
                raise Conflict(f"The edit {edit_id} is {row.status}; only an edit that is not live yet is cancelled.")
            return archive.read(connection, self._model, edit_id)

    def requeue_abandoned(self) -> int:
        """Queue again what a worker that died had in work; how many. For the holder of the queue lock only."""
        with self._writing() as connection:
            abandoned = connection.scalars(
                select(edits.c.id)
                .where(edits.c.model_id == self._model.id, edits.c.status.in_([Status.FITTING, Status.JUDGING]))
                .order_by(edits.c.number)
            ).all()
            if abandoned:
                happening = Happening(Event.REQUEUED, SERVICE, datetime.now(UTC), {})
                move(connection, self._model, happening, abandoned, {"started_at": None})
            return len(abandoned)

    def waiting(self) -> int:
        """How many edits are queued."""
        counted = select(func.count()).where(edits.c.model_id == self._model.id, edits.c.status == Status.QUEUED)
        with self._reading() as connection:
            return connection.scalar(counted) or 0

    def _finish(self, connection: Connection, ended: Sequence[tuple[str, Status, Evidence, Json]]) -> frozenset[str]:
        before = statuses(connection, self._model, [edit_id for edit_id, *_ in ended])
        at = datetime.now(UTC)
        moves: dict[str, Move] = {}
        for edit_id, status, evidence, detail in ended:
            assert status in _WITHOUT_PATCH, f"{status} is no end without a patch"
            if before[edit_id] not in IN_HAND or edit_id in moves:
                continue
            values = archive.evidence_values(evidence)
            happening = Happening(Event(status.value), SERVICE, at, {**detail, "evidence": digest(values)})
            moves[edit_id] = Move(happening, edit_id, {**values, "finished_at": at})
        move_each(connection, self._model, list(moves.values()))
        return frozenset(moves)
