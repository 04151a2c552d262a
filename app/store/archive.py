"""The records: every edit with its evidence, one by one and page by page, and how often each took part in an answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, bindparam, case, select

from app.errors import NotFound, Unprocessable
from app.store import history
from app.store.database import chunks, dialect_insert
from app.store.records import Draft, EditRecord, Evidence, HistoryRow, Page, PatchSummary, Status
from app.store.scope import Model, Scope
from app.store.tables import blobs, edits, hits, patches

_LONGEST_SEARCH = 1000
_LARGEST_NUMBER = 2**31 - 1

RECORDS = (
    select(
        edits,
        patches.c.sha256.label("patch_sha256"),
        blobs.c.size.label("patch_size"),
        blobs.c.format.label("patch_format"),
        hits.c.count.label("hit_count"),
        hits.c.last_at.label("last_hit_at"),
    )
    .outerjoin(patches, and_(patches.c.model_id == edits.c.model_id, patches.c.number == edits.c.patch))
    .outerjoin(blobs, blobs.c.sha256 == patches.c.sha256)
    .outerjoin(hits, hits.c.edit_id == edits.c.id)
)


_ONE = RECORDS.where(edits.c.model_id == bindparam("model_id"), edits.c.id == bindparam("edit_id"))


class Archive(Scope):
    """Edits as they were and are."""

    def edit(self, edit_id: str) -> EditRecord:
        """The edit with its history. Raises NotFound."""
        with self._reading() as connection:
            return read(connection, self._model, edit_id)

    def edits(
        self,
        *,
        status: Status | None = None,
        editor: str | None = None,
        q: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """A page of edits, newest first, without their histories.

        q: is found in input, target or reason, whatever the case. cursor: from the page before; edits
        accepted since do not shift what follows it. Raises Unprocessable for a cursor that no page gave.
        """
        wanted = RECORDS.where(edits.c.model_id == self._model.id)
        if status is not None:
            wanted = wanted.where(edits.c.status == status)
        if editor is not None:
            wanted = wanted.where(edits.c.editor == editor)
        if q:
            wanted = wanted.where(edits.c.searchable.contains(_folded(q), autoescape=True))
        if cursor is not None:
            wanted = wanted.where(edits.c.number < cursor_number(cursor))
        with self._reading() as connection:
            rows = connection.execute(wanted.order_by(edits.c.number.desc()).limit(limit + 1)).all()
        shown = rows[:limit]
        return Page(
            items=tuple(_record(row) for row in shown),
            next_cursor=str(shown[-1].number) if len(rows) > limit else None,
        )

    def records(self, edit_ids: Sequence[str]) -> dict[str, EditRecord]:
        """Those of the edits that there are, by id, without their histories."""
        with self._reading() as connection:
            return {record.id: record for record in read_each(connection, self._model, edit_ids)}

    def history(self, edit_id: str, after: int = 0) -> tuple[HistoryRow, ...]:
        """What happened to the edit since the row numbered `after`, oldest first."""
        with self._reading() as connection:
            return history.of_edit(connection, self._model, edit_id, after=min(after, _LARGEST_NUMBER))

    def record_hits(self, hits_of: Mapping[str, tuple[int, datetime]]) -> None:
        """Add to the counts of answers that edits took part in, and keep each one's latest time."""
        if not hits_of:
            return
        with self._database.writing() as connection:
            adding = dialect_insert(connection, hits)
            added = adding.excluded
            latest = case((added.last_at > hits.c.last_at, added.last_at), else_=hits.c.last_at)
            statement = adding.on_conflict_do_update(
                index_elements=[hits.c.edit_id], set_={"count": hits.c.count + added.count, "last_at": latest}
            )
            # In one order everywhere, so that two processes never wait for each other's rows.
            values = [
                {"edit_id": edit_id, "count": count, "last_at": last} for edit_id, (count, last) in hits_of.items()
            ]
            connection.execute(statement, sorted(values, key=lambda value: str(value["edit_id"])))


def read_all(connection: Connection, wanted: Select[Any]) -> list[EditRecord]:
    """The edits that a selection from RECORDS gives, in its order, without their histories."""
    return [_record(row) for row in connection.execute(wanted)]


def read_each(connection: Connection, model: Model, edit_ids: Sequence[str]) -> list[EditRecord]:
    """Those of the edits that there are, oldest first, without their histories."""
    found = rows_of(connection, model, RECORDS, edit_ids)
    return [_record(row) for row in sorted(found, key=lambda row: row.number)]


def rows_of(connection: Connection, model: Model, wanted: Select[Any], edit_ids: Sequence[str]) -> list[Row[Any]]:
    """What `wanted`, a selection of edits with their `model_id`, gives of those of these edits that there are."""
    return [
        row
        for piece in chunks(edit_ids)
        for row in connection.execute(wanted.where(edits.c.id.in_(piece)))
        # Asked for the model too, or for anything else, SQLite would go through all edits of the model for many ids.
        if row.model_id == model.id
    ]


def read(connection: Connection, model: Model, edit_id: str) -> EditRecord:
    """The edit with its history, inside a transaction. Raises NotFound."""
    row = connection.execute(_ONE, {"model_id": model.id, "edit_id": edit_id}).one_or_none()
    if row is None:
        raise NotFound(f"There is no edit {edit_id}.")
    return replace(_record(row), history=history.of_edit(connection, model, edit_id, after=0))


def draft_values(draft: Draft) -> dict[str, Any]:
    """The columns that hold a draft; what is not required is left out, so that nothing is hashed for it."""
    values = {
        "input": draft.input,
        "input_key": draft.input_key,
        "target": draft.target,
        "rephrases": list(draft.rephrases),
        "keep": list(draft.keep),
        "editor": draft.editor,
        "options": draft.options,
        "reason": draft.reason,
        "reporter": draft.reporter,
        "dry_run": draft.dry_run,
        "supersedes": draft.supersedes,
    }
    return {**values, "required": draft.required} if draft.required else values


def evidence_values(evidence: Evidence) -> dict[str, Any]:
    """The columns that hold evidence."""
    return {
        "before": evidence.before,
        "after": evidence.after,
        "verdict": evidence.verdict,
        "fit": evidence.fit,
        "failure": evidence.failure,
    }


def evidence_of(row: Row[Any]) -> Evidence:
    """The evidence that the columns of an edit hold."""
    return Evidence(before=row.before, after=row.after, verdict=row.verdict, fit=row.fit, failure=row.failure)


def draft_of(row: Row[Any]) -> Draft:
    """The draft that the columns of an edit hold."""
    return Draft(
        input=row.input,
        input_key=row.input_key,
        target=row.target,
        rephrases=tuple(row.rephrases),
        keep=tuple(row.keep),
        editor=row.editor,
        options=row.options,
        reason=row.reason,
        reporter=row.reporter,
        dry_run=row.dry_run,
        supersedes=row.supersedes,
        required=row.required or {},
    )


def searchable(draft: Draft) -> str:
    """What a search looks through, the parts kept from running into each other."""
    return "\x1f".join([draft.input, draft.target, draft.reason]).casefold()


def cursor_number(cursor: str) -> int:
    """The number that a cursor stands for. Raises Unprocessable for what no page gave."""
    if not re.fullmatch("[0-9]{1,10}", cursor) or int(cursor) > _LARGEST_NUMBER:
        raise Unprocessable(f"{cursor[:100]!r} is no cursor that a listing gave.")
    return int(cursor)


def _folded(q: str) -> str:
    if len(q) > _LONGEST_SEARCH:
        raise Unprocessable(f"The search text has {len(q)} characters; {_LONGEST_SEARCH} are the most.")
    if "\0" in q:
        raise Unprocessable("The search text holds a NUL character.")
    return q.casefold()


def _record(row: Row[Any]) -> EditRecord:
    return EditRecord(
        id=row.id,
        status=Status(row.status),
        draft=draft_of(row),
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        revision=row.revision,
        reverted_at=row.reverted_at,
        reverted_revision=row.reverted_revision,
        refit_due=row.refit_due,
        before=row.before,
        after=row.after,
        verdict=row.verdict,
        fit=row.fit,
        failure=row.failure,
        patch=None if row.patch_sha256 is None else PatchSummary(row.patch_sha256, row.patch_size, row.patch_format),
        hits=row.hit_count or 0,
        last_hit_at=row.last_hit_at,
    )
