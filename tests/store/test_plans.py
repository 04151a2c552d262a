"""What runs often finds its rows by an index, however large the tables grow."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, text

from app.store import Ledger, Status
from app.store.database import Database
from app.store.tables import metadata
from tests.store.samples import accept, broken, claimed, live, refit, revert

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
    "patch of": lambda ledger: ledger.patch_of(ledger.live_edits(1)[0]),
    "guard number": lambda ledger: ledger.guard_number(),
    "guard": lambda ledger: ledger.guard(),
    "page of a status": lambda ledger: ledger.edits(status=Status.LIVE),
}


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


def _scans(database: Database, statement: str, parameters: Any) -> list[str]:
    with database.engine.connect() as connection:
        if database.is_postgresql:
            connection.execute(text("SET enable_seqscan = off"))  # tables of two rows are read whole otherwise
        explain = "EXPLAIN " if database.is_postgresql else "EXPLAIN QUERY PLAN "
        plan = [str(row[-1]) for row in connection.exec_driver_sql(explain + statement, parameters)]
    tables = "|".join(metadata.tables)
    return [line for line in plan if re.search(rf"Seq Scan on|SCAN ({tables})\b", line)]
