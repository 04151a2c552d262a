"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "blobs",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_blobs")),
    )
    op.create_table(
        "models",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.String(length=80), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("dtype", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(length=27), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_models")),
        sa.UniqueConstraint("fingerprint", name=op.f("uq_models_fingerprint")),
    )
    op.create_table(
        "edits",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("input", sa.Text(), nullable=False),
        sa.Column("input_key", sa.Text(), nullable=False),
        sa.Column("input_digest", sa.String(length=64), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("rephrases", sa.Text(), nullable=False),
        sa.Column("keep", sa.Text(), nullable=False),
        sa.Column("editor", sa.Text(), nullable=False),
        sa.Column("options", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("reporter", sa.Text(), nullable=False),
        sa.Column("dry_run", sa.Boolean(), nullable=False),
        sa.Column("supersedes", sa.String(length=36), nullable=True),
        sa.Column("searchable", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(length=27), nullable=False),
        sa.Column("started_at", sa.String(length=27), nullable=True),
        sa.Column("finished_at", sa.String(length=27), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=True),
        sa.Column("reverted_at", sa.String(length=27), nullable=True),
        sa.Column("reverted_revision", sa.Integer(), nullable=True),
        sa.Column("before", sa.Text(), nullable=True),
        sa.Column("after", sa.Text(), nullable=True),
        sa.Column("verdict", sa.Text(), nullable=True),
        sa.Column("fit", sa.Text(), nullable=True),
        sa.Column("failure", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_edits_model_id")),
        sa.ForeignKeyConstraint(["supersedes"], ["edits.id"], name=op.f("fk_edits_supersedes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_edits")),
        sa.UniqueConstraint("model_id", "number", name=op.f("uq_edits_model_id_number")),
    )
    op.create_index(op.f("ix_edits_model_id_input_digest"), "edits", ["model_id", "input_digest"])
    op.create_index(op.f("ix_edits_model_id_status_number"), "edits", ["model_id", "status", "number"])
    op.create_index(op.f("ix_edits_supersedes"), "edits", ["supersedes"])
    op.create_table(
        "activations",
        sa.Column("edit_id", sa.String(length=36), nullable=False),
        sa.Column("bytes", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["edit_id"], ["edits.id"], name=op.f("fk_activations_edit_id")),
        sa.PrimaryKeyConstraint("edit_id", name=op.f("pk_activations")),
    )
    op.create_table(
        "history",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("edit_id", sa.String(length=36), nullable=True),
        sa.Column("at", sa.String(length=27), nullable=False),
        sa.Column("event", sa.String(length=16), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["edit_id"], ["edits.id"], name=op.f("fk_history_edit_id")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_history_model_id")),
        sa.PrimaryKeyConstraint("model_id", "seq", name=op.f("pk_history")),
    )
    op.create_index(op.f("ix_history_edit_id_seq"), "history", ["edit_id", "seq"])
    op.create_table(
        "hits",
        sa.Column("edit_id", sa.String(length=36), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("last_at", sa.String(length=27), nullable=False),
        sa.ForeignKeyConstraint(["edit_id"], ["edits.id"], name=op.f("fk_hits_edit_id")),
        sa.PrimaryKeyConstraint("edit_id", name=op.f("pk_hits")),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("body_hash", sa.Text(), nullable=False),
        sa.Column("edit_id", sa.String(length=36), nullable=False),
        sa.Column("at", sa.String(length=27), nullable=False),
        sa.ForeignKeyConstraint(["edit_id"], ["edits.id"], name=op.f("fk_idempotency_keys_edit_id")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_idempotency_keys_model_id")),
        sa.PrimaryKeyConstraint("model_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_table(
        "revisions",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("parent", sa.Integer(), nullable=True),
        sa.Column("cause", sa.String(length=16), nullable=False),
        sa.Column("edit_id", sa.String(length=36), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("at", sa.String(length=27), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.CheckConstraint(
            "(number = 0 AND parent IS NULL) OR (number > 0 AND parent = number - 1)", name=op.f("ck_revisions_parent")
        ),
        sa.ForeignKeyConstraint(["edit_id"], ["edits.id"], name=op.f("fk_revisions_edit_id")),
        sa.ForeignKeyConstraint(
            ["model_id", "parent"],
            ["revisions.model_id", "revisions.number"],
            name=op.f("fk_revisions_model_id_parent"),
        ),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_revisions_model_id")),
        sa.PrimaryKeyConstraint("model_id", "number", name=op.f("pk_revisions")),
        sa.UniqueConstraint("model_id", "parent", name=op.f("uq_revisions_model_id_parent")),
    )
    op.create_table(
        "patches",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("edit_id", sa.String(length=36), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("since", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["edit_id"], ["edits.id"], name=op.f("fk_patches_edit_id")),
        sa.ForeignKeyConstraint(
            ["model_id", "since"], ["revisions.model_id", "revisions.number"], name=op.f("fk_patches_model_id_since")
        ),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_patches_model_id")),
        sa.ForeignKeyConstraint(["sha256"], ["blobs.sha256"], name=op.f("fk_patches_sha256")),
        sa.PrimaryKeyConstraint("model_id", "number", name=op.f("pk_patches")),
        sa.UniqueConstraint("edit_id", name=op.f("uq_patches_edit_id")),
        sa.UniqueConstraint("model_id", "since", name=op.f("uq_patches_model_id_since")),
    )
    op.create_table(
        "spans",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("patch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("since", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("until", sa.Integer(), nullable=True),
        sa.CheckConstraint("until IS NULL OR until > since", name=op.f("ck_spans_order")),
        sa.ForeignKeyConstraint(
            ["model_id", "patch"], ["patches.model_id", "patches.number"], name=op.f("fk_spans_model_id_patch")
        ),
        sa.ForeignKeyConstraint(
            ["model_id", "since"], ["revisions.model_id", "revisions.number"], name=op.f("fk_spans_model_id_since")
        ),
        sa.ForeignKeyConstraint(
            ["model_id", "until"], ["revisions.model_id", "revisions.number"], name=op.f("fk_spans_model_id_until")
        ),
        sa.PrimaryKeyConstraint("model_id", "patch", "since", name=op.f("pk_spans")),
    )
    op.create_index(op.f("ix_spans_model_id_since"), "spans", ["model_id", "since"])
    op.create_index(op.f("ix_spans_model_id_until"), "spans", ["model_id", "until"])
    op.create_index(
        "uq_spans_open",
        "spans",
        ["model_id", "patch"],
        unique=True,
        sqlite_where=sa.text("until IS NULL"),
        postgresql_where=sa.text("until IS NULL"),
    )


def downgrade() -> None:
    op.drop_table("spans")
    op.drop_table("patches")
    op.drop_table("revisions")
    op.drop_table("idempotency_keys")
    op.drop_table("hits")
    op.drop_table("history")
    op.drop_table("activations")
    op.drop_table("edits")
    op.drop_table("models")
    op.drop_table("blobs")
