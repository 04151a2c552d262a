"""What belongs to one model: its row, and the transactions in which its rooms read and write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, select

from app.store.database import Database
from app.store.tables import models

SERVICE = "errata"
"""The actor of what the service does by itself."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model's row. Its chains of hashes start from the fingerprint, so that no chain fits another model."""

    id: int
    fingerprint: str


class HeadMoved(Exception):
    """Another writer has made a revision since the caller looked; nothing was changed. Look again, and try again."""

    def __init__(self, expected: int, head: int) -> None:
        super().__init__(f"The head is revision {head}, not {expected}.")
        self.expected = expected
        self.head = head


class Scope:
    """The part of a database that is one model's."""

    def __init__(self, database: Database, model: Model) -> None:
        self._database = database
        self._model = model

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._database.reading() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """The model's only writer: numbers and hashes that follow from the last ones need no further care."""
        with self._database.writing() as connection:
            if self._database.is_postgresql:  # on SQLite the transaction itself is the only writer
                connection.execute(select(models.c.id).where(models.c.id == self._model.id).with_for_update())
            yield connection
