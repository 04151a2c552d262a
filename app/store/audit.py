"""Does the store say what it said? Every hash computed again, and every fact that is kept twice compared."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, and_, select

from app.store.archive import draft_of, draft_values, evidence_of, evidence_values
from app.store.canonical import digest
from app.store.changes import Change, revision_hash
from app.store.database import chunks
from app.store.guards import told as told_of_guard
from app.store.history import STATUS_AFTER, Event, link
from app.store.patches import placed
from app.store.records import Cause, Flaw, Json, LedgerPatch, Status
from app.store.scope import Model, Scope
from app.store.tables import blobs, edits, guards, history, patches, revisions, spans


class Audit(Scope):
    """The check of all that is kept of a model."""

    def verify(self) -> list[Flaw]:
        """Everything that is not as its hashes or its history say; empty if all is well."""
        with self._reading() as connection:
            told: dict[str, Told] = defaultdict(Told)
            checks = {
                "history": _history(connection, self._model, told),
                "edits": _edits(connection, self._model, told),
                "revisions": _revisions(connection, self._model),
                "patches": _patches(connection, self._model, told),
                "spans": _spans(connection, self._model),
                "standing": _standing(connection, self._model),
                "bytes": _bytes(connection, self._model),
                "guards": _guards(connection, self._model),
            }
            return [flaw for where, check in checks.items() for flaw in _readable(where, check)]


def _readable(where: str, check: Iterator[Flaw]) -> Iterator[Flaw]:
    """What the check finds, until it meets a row that holds no JSON, no time or no known word."""
    try:
        yield from check
    except ValueError as error:
        yield Flaw(where, f"The {where} cannot be read: {error}")


@dataclass(slots=True)
class Told:
    """What the history says of an edit."""

    status: Status | None = None
    patch: str | None = None
    seals: dict[str, str] = field(default_factory=dict)
    """The last digest given for `draft` and for `evidence`."""
    judged: defaultdict[str | None, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Every digest given for `evidence`, by the patch that the edit had."""


def _history(connection: Connection, model: Model, told: dict[str, Told]) -> Iterator[Flaw]:
    """The chain, link by link. Fills `told`."""
    previous = model.fingerprint
    rows = connection.execute(select(history).where(history.c.model_id == model.id).order_by(history.c.seq))
    for expected, mapping in enumerate(rows.mappings(), start=1):
        row: dict[str, Any] = {**mapping}
        where = f"history {row['seq']}"
        if row["seq"] != expected:
            yield Flaw(where, f"The history's row {expected} is missing.")
            return  # every row after a gap would be reported, and say no more
        if row["hash"] != link(previous, row):
            yield Flaw(where, f"Row {row['seq']} of the history is not what its hash says.")
        previous = row["hash"]
        if row["edit_id"] is not None:
            _listen(told[row["edit_id"]], row)


def _listen(told: Told, row: Mapping[str, Any]) -> None:
    told.status = STATUS_AFTER.get(row["event"])
    told.patch = row["detail"].get("patch", told.patch)
    told.seals |= {name: row["detail"][name] for name in ("draft", "evidence") if name in row["detail"]}
    if "evidence" in row["detail"]:
        told.judged[told.patch].add(row["detail"]["evidence"])


def _edits(connection: Connection, model: Model, told: dict[str, Told]) -> Iterator[Flaw]:
    """Each edit's row against its history."""
    rows = connection.execute(
        select(edits, patches.c.sha256)
        .outerjoin(patches, and_(patches.c.model_id == edits.c.model_id, patches.c.number == edits.c.patch))
        .where(edits.c.model_id == model.id)
        .order_by(edits.c.number)
    )
    for row in rows:
        where, said = f"edit {row.id}", told[row.id]
        if row.status != said.status:
            yield Flaw(where, f"The edit {row.id} is {row.status}, but its history ends with {said.status}.")
        if row.sha256 != said.patch:
            yield Flaw(where, f"The edit {row.id} has the patch {row.sha256}, but its history says {said.patch}.")
        if said.seals.get("draft") != digest(draft_values(draft_of(row))):
            yield Flaw(where, f"The edit {row.id} does not read as it was accepted.")
        if "evidence" in said.seals and said.seals["evidence"] != digest(evidence_values(evidence_of(row))):
            yield Flaw(where, f"The evidence of the edit {row.id} is not what its history says.")
        if row.refit_due is not None and row.status != Status.LIVE:
            yield Flaw(where, f"The edit {row.id} is {row.status}, and yet waits to be fitted again.")


def _revisions(connection: Connection, model: Model) -> Iterator[Flaw]:
    """The chain of revisions, each with the spans that it opened and closed."""
    opened, closed = _ends(connection, model)
    previous = model.fingerprint
    rows = connection.execute(
        select(revisions).where(revisions.c.model_id == model.id).order_by(revisions.c.number)
    ).all()
    for expected, row in enumerate(rows):
        where = f"revision {row.number}"
        if row.number != expected:
            yield Flaw(where, f"Revision {expected} is missing.")
            return
        change = Change(
            Cause(row.cause), row.edit_id, row.actor, row.at, tuple(opened[row.number]), tuple(closed[row.number])
        )
        if row.hash != revision_hash(previous, row.number, change):
            yield Flaw(where, f"Revision {row.number} or a span that it opened or closed is not what its hash says.")
        previous = row.hash


def _ends(
    connection: Connection, model: Model
) -> tuple[defaultdict[int, list[LedgerPatch]], defaultdict[int, list[LedgerPatch]]]:
    """The patches that each revision opened, and those that it closed, in ledger order."""
    by_number = {patch.number: patch for patch in placed(connection, model)}
    opened: defaultdict[int, list[LedgerPatch]] = defaultdict(list)
    closed: defaultdict[int, list[LedgerPatch]] = defaultdict(list)
    for row in _span_rows(connection, model):
        opened[row.since].append(by_number[row.patch])
        if row.until is not None:
            closed[row.until].append(by_number[row.patch])
    return opened, closed


def _span_rows(connection: Connection, model: Model) -> list[Row[Any]]:
    ordered = select(spans).where(spans.c.model_id == model.id).order_by(spans.c.patch, spans.c.since)
    return list(connection.execute(ordered))


def _patches(connection: Connection, model: Model, told: Mapping[str, Told]) -> Iterator[Flaw]:
    """Ledger order: numbers without gaps, in the order of first going live; and each patch's evidence."""
    rows = connection.execute(select(patches).where(patches.c.model_id == model.id).order_by(patches.c.number))
    first = {row.patch: row.since for row in reversed(_span_rows(connection, model))}
    last_since = 0
    for expected, row in enumerate(rows):
        where = f"patch number {row.number}"
        if row.number != expected:
            yield Flaw(where, f"The patch number {expected} is missing.")
            return
        if row.since <= last_since or row.since != first.get(row.number):
            yield Flaw(where, f"The patch number {row.number} did not first go live in revision {row.since}.")
        if digest(row.evidence) not in told[row.edit_id].judged[row.sha256]:
            yield Flaw(where, f"The evidence of the patch number {row.number} is not what its edit's history says.")
        last_since = row.since


def _spans(connection: Connection, model: Model) -> Iterator[Flaw]:
    """A patch has one span at a time."""
    ends: dict[int, int | None] = {}
    for row in _span_rows(connection, model):
        if row.patch in ends and ((end := ends[row.patch]) is None or end > row.since):
            yield Flaw(f"span {row.patch} {row.since}", f"The spans of the patch number {row.patch} overlap.")
        ends[row.patch] = row.until


def _standing(connection: Connection, model: Model) -> Iterator[Flaw]:
    """An edit names the patch with which it last went live, and that one has an open span exactly while it is."""
    last = {row.patch: row for row in _span_rows(connection, model)}
    for edit_id, rows in groupby(_patch_rows(connection, model), lambda row: row.id):
        edit = max(rows, key=lambda row: last[row.number].since if row.number in last else 0)
        where, is_open = f"edit {edit_id}", edit.number in last and last[edit.number].until is None
        if edit.number != edit.patch:
            yield Flaw(where, f"The edit {edit_id} names the patch {edit.patch}, but last had the patch {edit.number}.")
        elif is_open != (edit.status == Status.LIVE):
            standing = "open" if is_open else "not open"
            yield Flaw(where, f"The edit {edit_id} is {edit.status}, but its patch's span is {standing}.")


def _patch_rows(connection: Connection, model: Model) -> list[Row[Any]]:
    """The patches of each edit, one after the other, beside how the edit stands."""
    joined = (
        select(edits.c.id, edits.c.status, edits.c.patch, patches.c.number)
        .join(patches, patches.c.edit_id == edits.c.id)
        .where(patches.c.model_id == model.id)
        .order_by(edits.c.number, patches.c.number)
    )
    return list(connection.execute(joined))


def _bytes(connection: Connection, model: Model) -> Iterator[Flaw]:
    """Every patch's SHA-256."""
    wanted = select(patches.c.sha256).where(patches.c.model_id == model.id).distinct().order_by(patches.c.sha256)
    for piece in chunks(connection.scalars(wanted).all()):
        rows = connection.execute(select(blobs).where(blobs.c.sha256.in_(piece)).order_by(blobs.c.sha256))
        for row in rows:
            if hashlib.sha256(row.bytes).hexdigest() != row.sha256 or len(row.bytes) != row.size:
                yield Flaw(f"patch {row.sha256}", f"The bytes of the patch {row.sha256} are not its own.")


def _guards(connection: Connection, model: Model) -> Iterator[Flaw]:
    """Every guard's SHA-256, and the guards against what the history says was put."""
    said = connection.scalars(
        select(history.c.detail)
        .where(history.c.model_id == model.id, history.c.event == Event.GUARD)
        .order_by(history.c.seq)
    ).all()
    kept = select(guards).where(guards.c.model_id == model.id).order_by(guards.c.number)
    found: list[Json] = []
    for row in connection.execute(kept, execution_options={"yield_per": 1}):  # each may be large
        found.append(told_of_guard(row))
        if row.sha256 != (None if row.bytes is None else hashlib.sha256(row.bytes).hexdigest()):
            yield Flaw(f"guard {row.number}", f"The bytes of the guard number {row.number} are not its own.")
    if found != said:
        yield Flaw("guards", "The guards are not those that the history says were put.")
