"""The tables. Nothing is ever deleted; what may change is an edit's standing, the evidence of the patch with which it
is judged again, the end of a span, and the hit counts.

    models            the deployed models; the row is what a writer locks
    edits             reported mistakes, numbered as accepted: the queue and the record
    blobs             patch bytes, addressed by SHA-256
    patches           the ledger's patches, numbered in the order of first going live; an edit fitted again has several
    activations       bytes that spare computing an edit's rows again
    revisions         numbered sets of live patches; the parent is unique, so a revision has one child
    spans             a patch is live in revisions since <= n < until
    history           what happened, each row chained to the one before it by hash
    idempotency_keys  which edit a caller's key has made
    hits              how often an edit took part in an answer
    guards            the inputs that no edit may change, as they were put; the newest row counts

Times and JSON are text, so that both databases give back exactly what was hashed.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeDecorator

from app.store.canonical import written


def time_text(at: datetime) -> str:
    """A time as it is stored and hashed: UTC to the microsecond, of fixed width, so that text sorts as time."""
    if at.tzinfo is None:
        raise ValueError(f"The time {at} has no zone.")
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


class UtcTime(TypeDecorator[datetime]):
    """A time with its zone, as the text that `time_text` gives."""

    impl = String(27)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:
        return None if value is None else time_text(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> datetime | None:
        return None if value is None else datetime.fromisoformat(value)


class JsonText(TypeDecorator[Any]):
    """JSON as text: a database's own JSON type would round floats or order keys its own way."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else written(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

models = Table(
    "models",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("fingerprint", String(80), nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("site", Text, nullable=False),
    Column("dtype", Text, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

edits = Table(
    "edits",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("model_id", ForeignKey("models.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("status", String(16), nullable=False),
    Column("actor", Text, nullable=False),
    Column("input", Text, nullable=False),
    Column("input_key", Text, nullable=False),
    Column("input_digest", String(64), nullable=False),  # of input_key, which may be too long for an index
    Column("target", Text, nullable=False),
    Column("rephrases", JsonText, nullable=False),
    Column("keep", JsonText, nullable=False),
    Column("editor", Text, nullable=False),
    Column("options", JsonText, nullable=False),
    Column("reason", Text, nullable=False),
    Column("reporter", Text, nullable=False),
    Column("dry_run", Boolean, nullable=False),
    Column("supersedes", ForeignKey("edits.id")),
    Column("searchable", Text, nullable=False),  # case-folded here: the databases disagree on what case is
    Column("created_at", UtcTime, nullable=False),
    Column("started_at", UtcTime),
    Column("finished_at", UtcTime),
    Column("revision", Integer),
    Column("reverted_at", UtcTime),
    Column("reverted_revision", Integer),
    Column("before", JsonText),
    Column("after", JsonText),
    Column("verdict", JsonText),
    Column("fit", JsonText),
    Column("failure", Text),
    Column("required", JsonText),  # none: nothing beyond what the service requires
    Column("patch", Integer),  # the number of the patch with which the edit is, or was last, live
    Column("refit_due", Integer),  # the revision that broke the edit, while it waits to be fitted again
    UniqueConstraint("model_id", "number"),
    Index(None, "model_id", "status", "number"),
    Index(None, "model_id", "input_digest"),
    Index(None, "supersedes"),
)

Index(
    "ix_edits_refit_due",
    edits.c.model_id,
    edits.c.number,
    sqlite_where=text("refit_due IS NOT NULL"),
    postgresql_where=text("refit_due IS NOT NULL"),
)

blobs = Table(
    "blobs",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("format", Text, nullable=False),
    Column("size", Integer, nullable=False),
    Column("bytes", LargeBinary, nullable=False),
)

patches = Table(
    "patches",
    metadata,
    Column("model_id", ForeignKey("models.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("edit_id", ForeignKey("edits.id"), nullable=False),
    Column("sha256", ForeignKey("blobs.sha256"), nullable=False),
    Column("since", Integer, nullable=False),  # the revision in which it first went live
    Column("evidence", JsonText, nullable=False),  # the edit's, as it was last judged with this patch
    ForeignKeyConstraint(["model_id", "since"], ["revisions.model_id", "revisions.number"]),
    UniqueConstraint("model_id", "since"),
    Index(None, "edit_id"),
)

activations = Table(
    "activations",
    metadata,
    Column("edit_id", ForeignKey("edits.id"), primary_key=True),
    Column("bytes", LargeBinary, nullable=False),
)

revisions = Table(
    "revisions",
    metadata,
    Column("model_id", ForeignKey("models.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("parent", Integer),
    Column("cause", String(16), nullable=False),
    Column("edit_id", ForeignKey("edits.id")),
    Column("actor", Text, nullable=False),
    Column("at", UtcTime, nullable=False),
    Column("hash", String(64), nullable=False),
    ForeignKeyConstraint(["model_id", "parent"], ["revisions.model_id", "revisions.number"]),
    UniqueConstraint("model_id", "parent"),
    CheckConstraint("(number = 0 AND parent IS NULL) OR (number > 0 AND parent = number - 1)", name="parent"),
)

spans = Table(
    "spans",
    metadata,
    Column("model_id", Integer, primary_key=True),
    Column("patch", Integer, primary_key=True, autoincrement=False),
    Column("since", Integer, primary_key=True, autoincrement=False),
    Column("until", Integer),
    ForeignKeyConstraint(["model_id", "patch"], ["patches.model_id", "patches.number"]),
    ForeignKeyConstraint(["model_id", "since"], ["revisions.model_id", "revisions.number"]),
    ForeignKeyConstraint(["model_id", "until"], ["revisions.model_id", "revisions.number"]),
    CheckConstraint("until IS NULL OR until > since", name="order"),
    Index(None, "model_id", "since"),
    Index(None, "model_id", "until"),
)

Index(
    "uq_spans_open",
    spans.c.model_id,
    spans.c.patch,
    unique=True,
    sqlite_where=text("until IS NULL"),
    postgresql_where=text("until IS NULL"),
)

history = Table(
    "history",
    metadata,
    Column("model_id", ForeignKey("models.id"), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("edit_id", ForeignKey("edits.id")),
    Column("at", UtcTime, nullable=False),
    Column("event", String(16), nullable=False),
    Column("actor", Text, nullable=False),
    Column("detail", JsonText, nullable=False),
    Column("hash", String(64), nullable=False),
    Index(None, "edit_id", "seq"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("model_id", ForeignKey("models.id"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("body_hash", Text, nullable=False),
    Column("edit_id", ForeignKey("edits.id"), nullable=False),
    Column("at", UtcTime, nullable=False),
)

hits = Table(
    "hits",
    metadata,
    Column("edit_id", ForeignKey("edits.id"), primary_key=True),
    Column("count", Integer, nullable=False),
    Column("last_at", UtcTime, nullable=False),
)

guards = Table(
    "guards",
    metadata,
    Column("model_id", ForeignKey("models.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("actor", Text, nullable=False),
    Column("at", UtcTime, nullable=False),
    Column("inputs", Integer, nullable=False),
    Column("sha256", String(64)),  # none: what was put before is withdrawn
    Column("bytes", LargeBinary),
)
