"""What runs often finds its rows by an index, however large the tables grow."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from app.store import Accepted, Draft, Ledger, Status, Store
from app.store.database import Database
from app.store.tables import metadata
from tests.conftest import NewUrl
from tests.store.samples import IDENTITY, accept, broken, claimed, draft, learned, live, refit, revert

HOT: dict[str, Callable[[Ledger], object]] = {
    "claim": lambda ledger: claimed(ledger, "two"),
    "waiting": lambda ledger: ledger.waiting(),
    "accept": lambda ledger: accept(ledger, "two"),
    "commit": lambda ledger: live(ledger, "two", supersedes=ledger.live_edits(1)[0]),
    "revert": lambda ledger: revert(ledger, ledger.live_edits(1)[0]),
    "head": lambda ledger: ledger.head(),
    "changes": lambda ledger: ledger.changes(1),
    "live edits": lambda ledger: ledger.live_edits(1),
    "patch bytes": lambda ledger: ledger.patch_bytes([0]),
    "edit": lambda ledger: ledger.edit(ledger.edits(limit=1).items[0].id),
    "claim refit": lambda ledger: ledger.claim_refit(),
    "refit": lambda ledger: refit(ledger, broken(ledger, "three")[0]),
    "accept each": lambda ledger: ledger.accept_each([draft("two"), draft("three")], actor="ann", limit=9),
    "queued": lambda ledger: ledger.queued(9),
    "commit each": lambda ledger: taken_through(ledger, [draft("two", supersedes=ledger.live_edits(1)[0])]),
    "loaded": lambda ledger: list(ledger.loaded(ledger.changes(-1).patches)),
    "patch of": lambda ledger: ledger.patch_of(ledger.live_edits(1)[0]),
    "guard number": lambda ledger: ledger.guard_number(),
    "guard": lambda ledger: ledger.guard(),
    "page of a status": lambda ledger: ledger.edits(status=Status.LIVE),
}


def taken_through(ledger: Ledger, drafts: Sequence[Draft]) -> list[str]:
    """The edits of these reports, all live, each step of all of them done at once."""
    outcomes = ledger.accept_each(drafts, actor="ann", limit=10**6)
    edit_ids = [outcome.edit_id for outcome in outcomes if isinstance(outcome, Accepted)]
    ledger.claim_these(edit_ids)
    ledger.judging_these(edit_ids)
    learned_each = [(edit_id, learned(edit_id.encode())) for edit_id in edit_ids]
    assert len(ledger.commit_each(learned_each, expected_head=ledger.head())) == len(drafts)
    return edit_ids


@pytest.mark.parametrize("hot", HOT)
def test_a_hot_path_reads_no_table_from_end_to_end(ledger: Ledger, url: str, hot: str) -> None:
    live(ledger)
    database = Database(url)
    run: list[tuple[str, Any]] = []
    listening = Ledger(database, ledger._model)

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.lstrip().startswith(("SELECT", "UPDATE")):
            run.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    HOT[hot](listening)
    event.remove(database.engine, "before_cursor_execute", note)
    scans = {line for statement, parameters in run for line in _scans(database, statement, parameters)}
    database.close()
    assert run
    assert scans == set()


BESIDE_LIVE_EDITS: dict[str, Callable[[Ledger, str], object]] = {
    "one edit": lambda ledger, _: live(ledger, "one more"),
    "one that supersedes": lambda ledger, edit_id: live(ledger, "one more", supersedes=edit_id),
    "many": lambda ledger, _: taken_through(ledger, [draft(f"more {number}") for number in range(64)]),
    "many that supersede": lambda ledger, edit_id: taken_through(
        ledger, [draft(f"more {number}", supersedes=edit_id) for number in range(64)]
    ),
    "a revert": lambda ledger, edit_id: revert(ledger, edit_id, broken=[edit_id], refit=True),
    "what is queued": lambda ledger, _: ledger.queued(64),
    "a record": lambda ledger, edit_id: ledger.edit(edit_id),
    "records": lambda ledger, edit_id: ledger.records([edit_id] * 64),
    "what happened last": lambda ledger, _: ledger.changes(ledger.head() - 1),
    "what a last one holds": lambda ledger, _: list(ledger.loaded(ledger.changes(ledger.head() - 1).patches)),
}


@pytest.mark.parametrize("work", BESIDE_LIVE_EDITS)
def test_beside_many_live_edits_a_database_works_no_harder(ledgers_of: Callable[[int], Ledger], work: str) -> None:
    few, many = (_steps(ledgers_of(live_edits), BESIDE_LIVE_EDITS[work]) for live_edits in (20, 1500))
    assert many <= 1.1 * few + 5


@pytest.fixture(scope="module")
def filled(sqlite_migrated: NewUrl) -> Callable[[int], str]:
    """Gives SQLite files in which so many edits are live."""
    files: dict[int, str] = {}

    def url_of(live_edits: int) -> str:
        if live_edits not in files:
            files[live_edits] = sqlite_migrated()
            store = Store.open(files[live_edits])
            taken_through(store.ledger(IDENTITY), [draft(f"text {number}") for number in range(live_edits)])
            store.close()
        return files[live_edits]

    return url_of


@pytest.fixture
def ledgers_of(filled: Callable[[int], str], tmp_path: Path) -> Iterator[Callable[[int], Ledger]]:
    """Gives ledgers in which so many edits are live."""
    stores: list[Store] = []

    def ledger_of(live_edits: int) -> Ledger:
        copy = tmp_path / f"{live_edits}.db"
        shutil.copy(filled(live_edits).removeprefix("sqlite:///"), copy)
        stores.append(Store.open(f"sqlite:///{copy}"))
        return stores[-1].ledger(IDENTITY)

    yield ledger_of
    for store in stores:
        store.close()


def _steps(ledger: Ledger, work: Callable[[Ledger, str], object]) -> int:
    """How many instructions of SQLite's machine the work takes, in tens; told by itself, unlike time."""
    (edit_id,) = ledger.live_edits(1)
    counted = [0]

    def count() -> int:
        counted[0] += 1
        return 0

    def listen(connection: Any, *_: Any) -> None:
        connection.set_progress_handler(count, 10)

    engine = ledger._database.engine
    event.listen(engine, "checkout", listen)
    work(ledger, edit_id)
    event.remove(engine, "checkout", listen)
    return counted[0]


def _scans(database: Database, statement: str, parameters: Any) -> list[str]:
    with database.engine.connect() as connection:
        if database.is_postgresql:
            connection.execute(text("SET enable_seqscan = off"))  # tables of two rows are read whole otherwise
        explain = "EXPLAIN " if database.is_postgresql else "EXPLAIN QUERY PLAN "
        plan = [str(row[-1]) for row in connection.exec_driver_sql(explain + statement, parameters)]
    tables = "|".join(metadata.tables)
    return [line for line in plan if re.search(rf"Seq Scan on|SCAN ({tables})\b", line)]
