"""What alembic runs: the migrations, on the connection that the service hands it.

For writing a new one, against a scratch database that stands at the newest:

    alembic -c migrations/alembic.ini -x database=sqlite:///scratch.db revision --autogenerate --rev-id 0002 -m "..."
"""

from __future__ import annotations

from typing import Literal

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.types import TypeDecorator

from app.store.database import Database
from app.store.tables import metadata


def render(kind: str, item: object, _autogen: object) -> str | Literal[False]:
    """A type of ours is written as what it is in the database: a migration does not change with the code."""
    return f"sa.{item.impl_instance!r}" if kind == "type" and isinstance(item, TypeDecorator) else False


def run(connection: Connection) -> None:
    # SQLite changes a table by writing it anew; its constraints are kept by their names.
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, render_item=render)
    with context.begin_transaction():
        context.run_migrations()


handed: Connection | None = context.config.attributes.get("connection")
if handed is not None:
    run(handed)
else:
    with Database(context.get_x_argument(as_dictionary=True)["database"]).writing() as own:
        run(own)
