"""An edit may have several patches, each with its evidence; what a report requires; refits that are due; guards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_EVIDENCE = " || ',' || ".join(
    f"""'"{name}":' || COALESCE(edits.{name}, 'null')""" for name in ("before", "after", "verdict", "fit", "failure")
)


def upgrade() -> None:
    op.add_column("edits", sa.Column("required", sa.Text(), nullable=True))
    op.add_column("edits", sa.Column("patch", sa.Integer(), nullable=True))
    op.add_column("edits", sa.Column("refit_due", sa.Integer(), nullable=True))
    op.execute("UPDATE edits SET patch = (SELECT number FROM patches WHERE patches.edit_id = edits.id)")
    op.create_index(
        "ix_edits_refit_due",
        "edits",
        ["model_id", "number"],
        sqlite_where=sa.text("refit_due IS NOT NULL"),
        postgresql_where=sa.text("refit_due IS NOT NULL"),
    )
    op.add_column("patches", sa.Column("evidence", sa.Text(), nullable=True))
    op.execute(
        f"UPDATE patches SET evidence = (SELECT '{{' || {_EVIDENCE} || '}}' FROM edits "  # noqa: S608
        "WHERE edits.id = patches.edit_id)"
    )
    with _spans_aside(), op.batch_alter_table("patches") as batch:
        batch.alter_column("evidence", existing_type=sa.Text(), nullable=False)
        batch.drop_constraint("uq_patches_edit_id", type_="unique")
    op.create_index(op.f("ix_patches_edit_id"), "patches", ["edit_id"])
    op.create_table(
        "guards",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("at", sa.String(length=27), nullable=False),
        sa.Column("inputs", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("bytes", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_guards_model_id")),
        sa.PrimaryKeyConstraint("model_id", "number", name=op.f("pk_guards")),
    )


def downgrade() -> None:
    """The former tables hold one patch an edit: where one has several, the database refuses, and stays as it is."""
    op.drop_table("guards")
    op.drop_index(op.f("ix_patches_edit_id"), "patches")
    with _spans_aside(), op.batch_alter_table("patches") as batch:
        batch.drop_column("evidence")
        batch.create_unique_constraint(op.f("uq_patches_edit_id"), ["edit_id"])
    op.drop_index("ix_edits_refit_due", "edits")
    for name in ("refit_due", "patch", "required"):
        op.drop_column("edits", name)


@contextmanager
def _spans_aside() -> Iterator[None]:
    """SQLite changes a table by writing it anew, and would not let go of one that the rows of another point at."""
    if op.get_bind().dialect.name != "sqlite":
        yield
        return
    op.execute("CREATE TEMPORARY TABLE spans_aside AS SELECT * FROM spans")
    op.execute("DELETE FROM spans")
    yield
    op.execute("INSERT INTO spans SELECT * FROM spans_aside")
    op.execute("DROP TABLE spans_aside")
