"""The queue: edits are accepted, claimed oldest first, worked on one after the other, and brought to an end.

Going live is the ledger's (app.store.revisions); everything before and everything short of it is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select
from uuid_utils.compat import uuid7

from app.errors import Conflict, IdempotencyKeyReused, NotLive, QueueFull, RevisionMoved, UnknownEdit
from app.store import archive
from app.store.canonical import digest
from app.store.history import Event, Happening, append, move
from app.store.records import (
    IN_WORK,
    Accepted,
    Draft,
    EditRecord,
    Evidence,
    IdempotencyKey,
    Json,
    Status,
)
from app.store.scope import SERVICE, Scope
from app.store.succession import check_conflicts, edit_row, input_digest
from app.store.tables import edits, idempotency_keys, revisions

_WITHOUT_PATCH = frozenset({Status.REJECTED, Status.FAILED, Status.NOT_NEEDED, Status.DRY_RUN})
_RETRY_AFTER_SECONDS = 5


class Queue(Scope):
    """Edits on their way."""

    def accept(
        self, draft: Draft, *, actor: str, limit: int, key: IdempotencyKey | None = None, if_match: int | None = None
    ) -> Accepted:
        """Put an edit into the queue, together with its key and its history; all of it or nothing.

        Raises IdempotencyKeyReused, RevisionMoved, UnknownEdit, NotLive, ConflictingEdit or QueueFull, in this order.
        """
        with self._writing() as connection:
            replayed = None if key is None else self._made_by(connection, key)
            if replayed is not None:
                return Accepted(replayed, replayed=True)
            self._check(connection, draft, limit=limit, if_match=if_match)
            edit_id = str(uuid7())
            at = datetime.now(UTC)
            self._insert(connection, edit_id, draft, actor, at)
            if key is not None:
                connection.execute(
                    insert(idempotency_keys).values(
                        model_id=self._model.id, key=key.key, body_hash=key.body_hash, edit_id=edit_id, at=at
                    )
                )
            detail = {"draft": digest(archive.draft_values(draft))}
            append(connection, self._model, Happening(Event.QUEUED, actor, at, detail), [edit_id])
            return Accepted(edit_id, replayed=False)

    def claim(self) -> EditRecord | None:
        """Take the oldest queued edit into work. None if the queue is empty."""
        if not self.waiting():  # idle workers ask all the time, and must not take the write lock for it
            return None
        with self._writing() as connection:
            edit_id = connection.scalar(
                select(edits.c.id)
                .where(edits.c.model_id == self._model.id, edits.c.status == Status.QUEUED)
                .order_by(edits.c.number)
                .limit(1)
            )
            if edit_id is None:
                return None
            at = datetime.now(UTC)
            move(connection, self._model, Happening(Event.FITTING, SERVICE, at, {}), [edit_id], {"started_at": at})
            return archive.read(connection, self._model, edit_id)

    def judging(self, edit_id: str) -> bool:
        """The fit is over. False if the edit is no longer in work; one that is judged again stays as it is."""
        with self._writing() as connection:
            status = edit_row(connection, self._model, edit_id).status
            if status != Status.FITTING:
                return bool(status == Status.JUDGING)
            move(connection, self._model, Happening(Event.JUDGING, SERVICE, datetime.now(UTC), {}), [edit_id])
            return True

    def finish(self, edit_id: str, status: Status, evidence: Evidence, *, detail: Json) -> bool:
        """End an edit that does not go live. False if it was cancelled meanwhile."""
        assert status in _WITHOUT_PATCH, f"{status} is no end without a patch"
        with self._writing() as connection:
            if edit_row(connection, self._model, edit_id).status not in (Status.FITTING, Status.JUDGING):
                return False
            at = datetime.now(UTC)
            values = archive.evidence_values(evidence)
            sealed = {**detail, "evidence": digest(values)}
            happening = Happening(Event(status.value), SERVICE, at, sealed)
            move(connection, self._model, happening, [edit_id], {**values, "finished_at": at})
            return True

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
        with self._reading() as connection:
            return self._count(connection, [Status.QUEUED])

    def _made_by(self, connection: Connection, key: IdempotencyKey) -> str | None:
        made = connection.execute(
            select(idempotency_keys.c.edit_id, idempotency_keys.c.body_hash).where(
                idempotency_keys.c.model_id == self._model.id, idempotency_keys.c.key == key.key
            )
        ).one_or_none()
        if made is None:
            return None
        if made.body_hash != key.body_hash:
            raise IdempotencyKeyReused(
                f"The idempotency key {key.key!r} was used for another request, which made the edit {made.edit_id}."
            )
        return str(made.edit_id)

    def _check(self, connection: Connection, draft: Draft, *, limit: int, if_match: int | None) -> None:
        head = connection.scalar(select(func.max(revisions.c.number)).where(revisions.c.model_id == self._model.id))
        if if_match is not None and if_match != head:
            raise RevisionMoved(f"The revision is {head}, not {if_match}.")
        if draft.supersedes is not None:
            self._check_superseded(connection, draft.supersedes)
        check_conflicts(connection, self._model, draft, besides={draft.supersedes})
        if self._count(connection, sorted(IN_WORK)) >= limit:
            raise QueueFull(
                f"{limit} edits are waiting or in work, and no more are taken.",
                headers={"Retry-After": str(_RETRY_AFTER_SECONDS)},
            )

    def _check_superseded(self, connection: Connection, edit_id: str) -> None:
        row: Row[Any] | None = connection.execute(
            select(edits.c.status).where(edits.c.model_id == self._model.id, edits.c.id == edit_id)
        ).one_or_none()
        if row is None:
            raise UnknownEdit(f"There is no edit {edit_id} to supersede.")
        if row.status != Status.LIVE:
            raise NotLive(f"The edit {edit_id} is {row.status}; only a live edit can be superseded.")

    def _count(self, connection: Connection, statuses: Sequence[Status]) -> int:
        counted = select(func.count()).where(edits.c.model_id == self._model.id, edits.c.status.in_(statuses))
        return connection.scalar(counted) or 0

    def _insert(self, connection: Connection, edit_id: str, draft: Draft, actor: str, at: datetime) -> None:
        last = connection.scalar(select(func.max(edits.c.number)).where(edits.c.model_id == self._model.id))
        connection.execute(
            insert(edits).values(
                id=edit_id,
                model_id=self._model.id,
                number=1 if last is None else last + 1,
                status=Status.QUEUED,
                actor=actor,
                input_digest=input_digest(draft.input_key),
                searchable=archive.searchable(draft),
                created_at=at,
                **archive.draft_values(draft),
            )
        )
