"""Both databases behind one fixture: every claim about the store is proved on SQLite and on PostgreSQL."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.store import Ledger, Store
from app.store.database import Database
from app.store.tables import metadata
from tests.conftest import NewUrl
from tests.store.samples import IDENTITY

Tamper = Callable[..., None]


@pytest.fixture(scope="session")
def postgresql_migrated(postgresql: NewUrl) -> NewUrl:
    """Gives one migrated database again and again, emptied each time: a new one costs as much as ten tests."""
    url = _migrated(postgresql())
    everything = ", ".join(table.name for table in metadata.sorted_tables)

    def emptied() -> str:
        database = Database(url)
        with database.writing() as connection:
            connection.execute(text(f"TRUNCATE {everything} RESTART IDENTITY"))
        database.close()
        return url

    return emptied


@pytest.fixture(scope="session")
def sqlite_migrated(tmp_path_factory: pytest.TempPathFactory) -> NewUrl:
    """Gives copies of a migrated file."""
    folder = tmp_path_factory.mktemp("sqlite")
    original = folder / "original.db"
    _migrated(f"sqlite:///{original}")
    numbers = count()

    def new_url() -> str:
        copy = folder / f"{next(numbers)}.db"
        shutil.copy(original, copy)
        return f"sqlite:///{copy}"

    return new_url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without a table."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'errata.db'}"
    return str(request.getfixturevalue("postgresql")())


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """A migrated database without a model."""
    return str(request.getfixturevalue(f"{request.param}_migrated")())


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = Store.open(url)
    yield store
    store.close()


@pytest.fixture
def ledger(store: Store) -> Ledger:
    return store.ledger(IDENTITY)


@pytest.fixture
def tamper(url: str, ledger: Ledger) -> Iterator[Tamper]:
    """Changes the database behind the store's back."""
    database = Database(url)

    def run(statement: str, **values: Any) -> None:
        with database.writing() as connection:
            assert connection.execute(text(statement), values).rowcount == 1

    yield run
    database.close()


def _migrated(url: str) -> str:
    store = Store.open(url)
    store.migrate()
    store.close()
    return url
