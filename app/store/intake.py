"""The way into the queue: reports are checked against what is live and against the queue's limit, and numbered."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, func, insert, select
from uuid_utils.compat import uuid7

from app.errors import IdempotencyKeyReused, NotLive, QueueFull, RevisionMoved, ServiceError, UnknownEdit
from app.store import archive
from app.store.canonical import digest
from app.store.database import chunks
from app.store.history import Event, Happening, append_each
from app.store.patches import head_of
from app.store.records import IN_WORK, Accepted, Draft, IdempotencyKey, Status
from app.store.scope import Model, Scope
from app.store.succession import Answers, input_digest
from app.store.tables import edits, idempotency_keys

_RETRY_AFTER_SECONDS = 5


class Intake(Scope):
    """Reports on their way into the queue."""

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
            if if_match is not None and if_match != (head := head_of(connection, self._model)):
                raise RevisionMoved(f"The revision is {head}, not {if_match}.")
            (outcome,) = self._admit(connection, [draft], actor=actor, limit=limit)
            if isinstance(outcome, ServiceError):
                raise outcome
            if key is not None:
                self._remember(connection, key, outcome)
            return outcome

    def accept_each(self, drafts: Sequence[Draft], *, actor: str, limit: int) -> list[Accepted | ServiceError]:
        """Put edits into the queue, in this order and in one transaction.

        One that `accept` would refuse leaves nothing behind; its error stands in its place.
        """
        with self._writing() as connection:
            return self._admit(connection, drafts, actor=actor, limit=limit)

    def _admit(
        self, connection: Connection, drafts: Sequence[Draft], *, actor: str, limit: int
    ) -> list[Accepted | ServiceError]:
        if not drafts:
            return []
        gate = _Gate(connection, self._model, drafts, limit)
        outcomes: list[Accepted | ServiceError] = []
        taken: list[tuple[str, Draft]] = []
        for draft in drafts:
            try:
                gate.check(draft, queued=len(taken))
            except ServiceError as refused:
                outcomes.append(refused)
                continue
            taken.append((str(uuid7()), draft))
            outcomes.append(Accepted(taken[-1][0], replayed=False))
        self._insert(connection, taken, actor)
        return outcomes

    def _insert(self, connection: Connection, taken: Sequence[tuple[str, Draft]], actor: str) -> None:
        last = connection.scalar(select(func.max(edits.c.number)).where(edits.c.model_id == self._model.id)) or 0
        at = datetime.now(UTC)
        rows, queued = [], []
        for number, (edit_id, draft) in enumerate(taken, start=last + 1):
            values = archive.draft_values(draft)
            rows.append(
                {
                    "id": edit_id,
                    "model_id": self._model.id,
                    "number": number,
                    "status": Status.QUEUED,
                    "actor": actor,
                    "input_digest": input_digest(draft.input_key),
                    "searchable": archive.searchable(draft),
                    "created_at": at,
                    "required": None,
                    **values,
                }
            )
            queued.append((Happening(Event.QUEUED, actor, at, {"draft": digest(values)}), edit_id))
        for piece in chunks(rows):
            connection.execute(insert(edits), piece)
        append_each(connection, self._model, queued)

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

    def _remember(self, connection: Connection, key: IdempotencyKey, accepted: Accepted) -> None:
        row = {
            "model_id": self._model.id,
            "key": key.key,
            "body_hash": key.body_hash,
            "edit_id": accepted.edit_id,
            "at": datetime.now(UTC),
        }
        connection.execute(insert(idempotency_keys), [row])


class _Gate:
    """What reports are checked against, read once. Nothing that they do themselves changes it but the queue's length:
    only an edit that is live can stand in another's way.
    """

    def __init__(self, connection: Connection, model: Model, drafts: Sequence[Draft], limit: int) -> None:
        self._answers = Answers(connection, model, [draft.input_key for draft in drafts])
        superseded = [draft.supersedes for draft in drafts if draft.supersedes is not None]
        standing = select(edits.c.model_id, edits.c.id, edits.c.status)
        self._status = {row.id: row.status for row in archive.rows_of(connection, model, standing, superseded)}
        self._limit = limit
        waiting = select(func.count()).where(edits.c.model_id == model.id, edits.c.status.in_(sorted(IN_WORK)))
        self._in_work = connection.scalar(waiting) or 0

    def check(self, draft: Draft, *, queued: int) -> None:
        """Raise why the report is not taken. queued: how many were taken since the queue was counted."""
        if draft.supersedes is not None:
            self._check_superseded(draft.supersedes)
        self._answers.check(draft)
        if self._in_work + queued >= self._limit:
            raise QueueFull(
                f"{self._limit} edits are waiting or in work, and no more are taken.",
                headers={"Retry-After": str(_RETRY_AFTER_SECONDS)},
            )

    def _check_superseded(self, edit_id: str) -> None:
        status = self._status.get(edit_id)
        if status is None:
            raise UnknownEdit(f"There is no edit {edit_id} to supersede.")
        if status != Status.LIVE:
            raise NotLive(f"The edit {edit_id} is {status}; only a live edit can be superseded.")
