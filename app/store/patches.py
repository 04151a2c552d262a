"""The ledger's patches: what is live in a revision, what changed since one, and the bytes, which are opaque here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import starmap
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, bindparam, func, insert, or_, select, update

from app.errors import NotFound
from app.store.archive import evidence_values
from app.store.database import chunks, dialect_insert
from app.store.records import Changes, Json, Learned, LedgerPatch, LoadedPatch, Span, Status
from app.store.scope import HeadMoved, Model, Scope
from app.store.tables import activations, blobs, edits, patches, revisions, spans

_LOADED_AT_ONCE = 256  # patches, each of which may be large

_HEAD = select(func.max(revisions.c.number)).where(revisions.c.model_id == bindparam("model_id"))
_SPANS = select(spans.c.patch, spans.c.since, spans.c.until).where(spans.c.model_id == bindparam("model_id"))
_OPENED = _SPANS.where(spans.c.since > bindparam("after"))
_CLOSED = _SPANS.where(spans.c.until > bindparam("after"))
_PLACED = (
    select(
        patches.c.number,
        patches.c.sha256,
        patches.c.edit_id,
        edits.c.supersedes,
        edits.c.target,
        edits.c.input_key,
    )
    .join(edits, edits.c.id == patches.c.edit_id)
    .order_by(patches.c.number)
)
# Edits named by their ids are sought by these alone: asked for the model too, SQLite would go through all of its
# patches for many ids.
_OF_EDITS = _PLACED.where(edits.c.id.in_(bindparam("edit_ids", expanding=True)), patches.c.number == edits.c.patch)
_LIVE_OF = _OF_EDITS.where(edits.c.status == Status.LIVE)
_FRESH = _PLACED.where(patches.c.model_id == bindparam("model_id"), patches.c.since > bindparam("after"))


class Patches(Scope):
    """What a follower reads to make live equal head."""

    def live_edits(self, number: int) -> tuple[str, ...]:
        """The edits that are live in that revision, in ledger order. Raises NotFound."""
        with self._reading() as connection:
            check_revision(connection, self._model, number)
            return tuple(patch.edit_id for patch in live_in(connection, self._model, number))

    def changes(self, after: int) -> Changes:
        """What happened to the ledger after that revision, as one snapshot; -1 gives all there is."""
        with self._reading() as connection:
            head = head_of(connection, self._model)
            if head <= after:
                return Changes(head, (), ())
            since = {"model_id": self._model.id, "after": after}
            fresh = tuple(starmap(LedgerPatch, connection.execute(_FRESH, since)))
            # Two searches by index rather than one OR, which either database may answer by reading everything.
            opened, closed = (starmap(Span, connection.execute(each, since)) for each in (_OPENED, _CLOSED))
            changed = [*opened, *(span for span in closed if span.since <= after)]
            return Changes(head, fresh, tuple(sorted(changed, key=lambda span: (span.patch, span.since))))

    def loaded(self, wanted: Sequence[LedgerPatch]) -> Iterator[LoadedPatch]:
        """These patches, which follow each other in ledger order as in Changes, with their contents, a few at a time.

        Nothing of it ever changes, so no snapshot is held meanwhile. Raises NotFound.
        """
        for start in range(0, len(wanted), _LOADED_AT_ONCE):
            piece = wanted[start : start + _LOADED_AT_ONCE]
            contents = self._contents(piece[0].number, piece[-1].number)
            for patch in piece:
                if patch.number not in contents:
                    raise NotFound(f"There is no patch number {patch.number}.")
                yield LoadedPatch(patch, *contents[patch.number])

    def patch_bytes(self, numbers: Sequence[int]) -> list[bytes]:
        """The bytes of the patches of these numbers, in that order. Raises NotFound."""
        found: dict[int, bytes] = {}
        with self._reading() as connection:
            for piece in chunks(numbers):
                rows = connection.execute(
                    select(patches.c.number, blobs.c.bytes)
                    .join(blobs, blobs.c.sha256 == patches.c.sha256)
                    .where(patches.c.model_id == self._model.id, patches.c.number.in_(piece))
                )
                found.update((row.number, row.bytes) for row in rows)
        missing = [number for number in numbers if number not in found]
        if missing:
            raise NotFound(f"There is no patch number {missing[0]}.")
        return [found[number] for number in numbers]

    def patch_of(self, edit_id: str, sha256: str | None = None) -> tuple[str, bytes]:
        """The SHA-256 and the bytes of the edit's patch: of that name, or with which it is, or was last, live.

        Raises NotFound.
        """
        wanted = patches.c.number == edits.c.patch if sha256 is None else patches.c.sha256 == sha256
        with self._reading() as connection:
            row = connection.execute(
                select(blobs.c.sha256, blobs.c.bytes)
                .join(patches, patches.c.sha256 == blobs.c.sha256)
                .join(edits, edits.c.id == patches.c.edit_id)
                .where(patches.c.model_id == self._model.id, patches.c.edit_id == edit_id, wanted)
                .limit(1)  # an edit that was fitted to the same bytes twice has two patches of one name
            ).one_or_none()
        if row is None:
            named = "patch" if sha256 is None else f"patch {sha256[:64]}"
            raise NotFound(f"There is no {named} of an edit {edit_id}.")
        return row.sha256, row.bytes

    def activations(self, edit_ids: Sequence[str]) -> dict[str, bytes]:
        """The activations kept for these edits; those without any are left out."""
        found: dict[str, bytes] = {}
        with self._reading() as connection:
            for piece in chunks(edit_ids):
                rows = connection.execute(select(activations).where(activations.c.edit_id.in_(piece)))
                found.update((row.edit_id, row.bytes) for row in rows)
        return found

    def texts(self, edit_ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The input of each of these edits, and its rephrases."""
        found: dict[str, tuple[str, ...]] = {}
        with self._reading() as connection:
            for piece in chunks(edit_ids):
                rows = connection.execute(
                    select(edits.c.id, edits.c.input, edits.c.rephrases).where(edits.c.id.in_(piece))
                )
                found.update((row.id, (row.input, *row.rephrases)) for row in rows)
        return found

    def _contents(self, first: int, last: int) -> dict[int, tuple[bytes, bytes, tuple[str, ...]]]:
        """Bytes, activations and texts of the patches from the number `first` to `last`, by number."""
        with self._reading() as connection:
            rows = connection.execute(
                select(patches.c.number, blobs.c.bytes, activations.c.bytes, edits.c.input, edits.c.rephrases)
                .join(blobs, blobs.c.sha256 == patches.c.sha256)
                .join(activations, activations.c.edit_id == patches.c.edit_id)
                .join(edits, edits.c.id == patches.c.edit_id)
                .where(patches.c.model_id == self._model.id, patches.c.number.between(first, last))
            ).all()
        return {number: (data, read, (text, *rephrases)) for number, data, read, text, rephrases in rows}


def head_of(connection: Connection, model: Model) -> int:
    """The number of the model's newest revision."""
    head: int | None = connection.scalar(_HEAD, {"model_id": model.id})
    assert head is not None, "a model has revision 0 from the start"
    return head


def check_revision(connection: Connection, model: Model, number: int) -> None:
    """Raise NotFound if the model has no revision of that number."""
    # Revisions are numbered without gaps; a number too large for the column never reaches the database.
    if not 0 <= number <= head_of(connection, model):
        raise NotFound(f"There is no revision {number}.")


def check_head(connection: Connection, model: Model, expected: int) -> None:
    """Raise HeadMoved if another revision than that is the newest."""
    head = head_of(connection, model)
    if head != expected:
        raise HeadMoved(expected, head)


def placed(connection: Connection, model: Model, *where: ColumnElement[bool]) -> tuple[LedgerPatch, ...]:
    """The model's patches that fulfil these conditions, in ledger order."""
    rows = connection.execute(_PLACED.where(patches.c.model_id == model.id, *where))
    return tuple(starmap(LedgerPatch, rows))


def live_in(connection: Connection, model: Model, number: int) -> tuple[LedgerPatch, ...]:
    """The patches that are live in that revision, in ledger order."""
    live = select(spans.c.patch).where(
        spans.c.model_id == model.id,
        spans.c.since <= number,
        or_(spans.c.until.is_(None), spans.c.until > number),
    )
    return placed(connection, model, patches.c.number.in_(live))


def of_edits(connection: Connection, edit_ids: Sequence[str]) -> tuple[LedgerPatch, ...]:
    """The patches with which these edits are, or were last, live, in ledger order."""
    return tuple(starmap(LedgerPatch, connection.execute(_OF_EDITS, {"edit_ids": edit_ids})))


def live_of(connection: Connection, edit_ids: Sequence[str | None]) -> dict[str, LedgerPatch]:
    """The patches of those of these edits that are live, by edit. None stands for no edit."""
    found: dict[str, LedgerPatch] = {}
    for piece in chunks([edit_id for edit_id in edit_ids if edit_id is not None]):
        live = starmap(LedgerPatch, connection.execute(_LIVE_OF, {"edit_ids": piece}))
        found.update((patch.edit_id, patch) for patch in live)
    return found


def replaced(connection: Connection, model: Model) -> tuple[LedgerPatch, ...]:
    """The patches whose edits are, or were last, live with another one, in ledger order."""
    return placed(connection, model, patches.c.number != edits.c.patch)


def next_patches(
    connection: Connection, model: Model, brought: Sequence[tuple[Row[Any], Learned]]
) -> list[LedgerPatch]:
    """What was learned for each edit, as the next patches that go live for the first time."""
    last = connection.scalar(select(func.max(patches.c.number)).where(patches.c.model_id == model.id))
    return [
        LedgerPatch(number, learned.sha256, edit.id, edit.supersedes, edit.target, edit.input_key)
        for number, (edit, learned) in enumerate(brought, start=0 if last is None else last + 1)
    ]


def keep(connection: Connection, model: Model, fresh: Sequence[tuple[LedgerPatch, Learned, int]]) -> None:
    """Keep patches that go live for the first time, in the revision beside each; equal bytes are kept once.

    Raises ValueError if the bytes of one are not what their SHA-256 says.
    """
    for patch, learned, _ in fresh:
        if hashlib.sha256(learned.patch).hexdigest() != learned.sha256:
            raise ValueError(f"The patch of the edit {patch.edit_id} does not have the SHA-256 {learned.sha256}.")
    keeping = dialect_insert(connection, blobs).on_conflict_do_nothing(index_elements=[blobs.c.sha256])
    # They are the edit's, whatever its patch.
    remembering = dialect_insert(connection, activations).on_conflict_do_nothing(index_elements=[activations.c.edit_id])
    for piece in chunks(fresh):
        connection.execute(keeping, [_blob(learned) for _, learned, _ in piece])
        connection.execute(insert(patches), [_row(model, patch, learned, since) for patch, learned, since in piece])
        rows = [{"edit_id": patch.edit_id, "bytes": learned.activations} for patch, learned, _ in piece]
        connection.execute(remembering, rows)


def _blob(learned: Learned) -> dict[str, Any]:
    return {
        "sha256": learned.sha256,
        "format": learned.format,
        "size": len(learned.patch),
        "bytes": learned.patch,
    }


def _row(model: Model, patch: LedgerPatch, learned: Learned, since: int) -> dict[str, Any]:
    return {
        "model_id": model.id,
        "number": patch.number,
        "edit_id": patch.edit_id,
        "sha256": patch.sha256,
        "since": since,
        "evidence": evidence_values(learned.evidence),
    }


def evidence_with(connection: Connection, model: Model, number: int) -> Json:
    """The columns of an edit as it was last judged with the patch of that number."""
    found: Json = connection.scalars(
        select(patches.c.evidence).where(patches.c.model_id == model.id, patches.c.number == number)
    ).one()
    return found


def judged_again(connection: Connection, model: Model, number: int, evidence: Json) -> None:
    """Keep what was found with a patch that goes live again; `evidence` are the edit's columns."""
    connection.execute(
        update(patches).where(patches.c.model_id == model.id, patches.c.number == number).values(evidence=evidence)
    )
