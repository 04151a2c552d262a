from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, inspect, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import NullPool

from app.errors import Unavailable
from app.store import Ledger, Span, Status, Store, UnsupportedDatabase
from app.store.database import Database, alembic_config
from app.store.tables import metadata
from tests.store.samples import IDENTITY, broken, live, reapply, refit, rejected, revert, status

ROOT = Path(__file__).parents[2]


def test_migrating_an_empty_database_gives_exactly_the_tables_of_the_code(empty_url: str) -> None:
    database = Database(empty_url)
    database.migrate()
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    database.close()


def test_the_migrations_write_the_very_statements_that_the_code_would(tmp_path: Path) -> None:
    def statements(connection: Connection) -> set[str]:
        found = connection.scalars(
            text("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'alembic%'")
        )
        return {" ".join(statement.split()) for statement in found}

    database = Database(f"sqlite:///{tmp_path / 'migrated.db'}")
    database.migrate()
    with database.reading() as connection:
        migrated = statements(connection)
    database.close()
    engine = create_engine("sqlite://", poolclass=NullPool)
    with engine.begin() as connection:
        metadata.create_all(connection)
        assert {_sorted_clauses(each) for each in migrated} == {
            _sorted_clauses(each) for each in statements(connection)
        }


def _sorted_clauses(statement: str) -> tuple[str, ...]:
    # The order of columns and constraints within a table means nothing, nor do quotes around a plain name.
    head, _, body = statement.replace('"', "").partition("(")
    return head.strip(), *sorted(clause.strip() for clause in re.split(r",\s*(?![^(]*\))", body.rpartition(")")[0]))


def test_a_downgrade_leaves_no_table_of_ours(empty_url: str) -> None:
    database = Database(empty_url)
    database.migrate()
    with database.writing() as connection:
        command.downgrade(alembic_config(connection), "base")
    with database.reading() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]
    database.migrate()
    database.close()


def test_going_back_to_the_first_tables_and_forward_again_keeps_all_that_they_can_hold(
    url: str, store: Store, ledger: Ledger
) -> None:
    first = live(ledger, "one")
    second = live(ledger, "one", "lost_card", supersedes=first)
    revert(ledger, second)
    reapply(ledger, second)
    never = rejected(ledger)
    before = [ledger.edit(edit_id) for edit_id in (first, second, never)]
    database = Database(url)
    with database.writing() as connection:
        command.downgrade(alembic_config(connection), "0001")
    database.close()
    store.migrate()
    assert [ledger.edit(edit_id) for edit_id in (first, second, never)] == before
    assert ledger.changes(-1).spans == (Span(0, 1, 2), Span(0, 3, 4), Span(1, 2, 3), Span(1, 4, None))
    assert ledger.verify() == []
    assert status(ledger, revert(ledger, second).edit_id or "") is Status.REVERTED
    assert ledger.live_edits(5) == (first,)


def test_there_is_no_going_back_to_one_patch_an_edit_once_one_has_two(url: str, ledger: Ledger) -> None:
    (edit_id,) = broken(ledger, "one")
    refit(ledger, edit_id)
    database = Database(url)
    with pytest.raises(IntegrityError), database.writing() as connection:
        command.downgrade(alembic_config(connection), "0001")
    database.close()
    assert ledger.verify() == []
    assert ledger.patch_of(edit_id)[1] == b"another patch"


def test_migrating_again_keeps_what_is_there(store: Store, ledger: Ledger) -> None:
    edit_id = live(ledger)
    store.migrate()
    assert ledger.live_edits(1) == (edit_id,)


def test_two_processes_that_start_at_once_both_find_the_tables(empty_url: str) -> None:
    program = (
        "import sys; from app.store import Store; from tests.store.samples import IDENTITY\n"
        "store = Store.open(sys.argv[1]); store.migrate(); assert store.ledger(IDENTITY).head() == 0"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program, empty_url], cwd=ROOT, stderr=subprocess.PIPE) for _ in range(2)
    ]
    for process in started:
        assert process.communicate(timeout=60)[1] == b""
        assert process.returncode == 0


def test_a_database_of_a_newer_version_is_refused(empty_url: str) -> None:
    store = Store.open(empty_url)
    store.migrate()
    database = Database(empty_url)
    with database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(UnsupportedDatabase, match="9999"):
        store.migrate()
    store.close()


def test_what_is_stored_is_there_when_the_store_is_opened_again(url: str) -> None:
    store = Store.open(url)
    edit_id = live(store.ledger(IDENTITY))
    store.close()
    store = Store.open(url)
    assert store.ledger(IDENTITY).live_edits(1) == (edit_id,)
    store.close()


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("mysql://localhost/errata", "mysql://localhost/errata"),
        ("sqlite+aiosqlite:///errata.db", "aiosqlite"),
        ("postgresql+asyncpg://localhost/errata", "asyncpg"),
        ("sqlite://", "no file"),
        ("sqlite:///:memory:", "no file"),
        ("errata.db", "no database URL"),
    ],
)
def test_a_database_that_cannot_be_used_is_refused_with_a_sentence(url: str, named: str) -> None:
    with pytest.raises(UnsupportedDatabase, match=named):
        Store.open(url)


def test_a_password_is_never_shown() -> None:
    with pytest.raises(UnsupportedDatabase) as refused:
        Store.open("mysql://ann:secret@localhost/errata")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_postgresql_is_spoken_to_through_psycopg_3(scheme: str) -> None:
    assert Database(f"{scheme}://localhost/errata").engine.dialect.driver == "psycopg"


def test_a_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    store = Store.open(f"postgresql://localhost/errata?host={tmp_path}")
    with pytest.raises(Unavailable, match="connection to server on socket"):
        store.migrate()


def test_a_missing_folder_of_the_sqlite_file_is_made(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/new/folder/errata.db")
    store.migrate()
    store.close()
    assert (tmp_path / "new" / "folder" / "errata.db").exists()


def test_sqlite_keeps_what_it_has_acknowledged_through_a_crash(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'errata.db'}")
    with database.reading() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    database.close()
    full = 2
    assert found == {"journal_mode": "wal", "synchronous": full, "foreign_keys": 1}


def test_a_reader_sees_one_snapshot_while_another_writes(url: str, ledger: Ledger) -> None:
    database = Database(url)
    count = text("SELECT count(*) FROM edits")
    with database.reading() as connection:
        before = connection.scalar(count)
        live(ledger)
        assert connection.scalar(count) == before
    database.close()


def test_the_database_itself_refuses_two_children_of_one_revision(url: str, ledger: Ledger) -> None:
    live(ledger)
    database = Database(url)
    second_child = (
        "INSERT INTO revisions SELECT model_id, 2, 0, cause, edit_id, actor, at, hash FROM revisions WHERE number = 1"
    )
    with pytest.raises(Exception, match=r"(?i)constraint"), database.writing() as connection:
        connection.execute(text(second_child))
    database.close()
