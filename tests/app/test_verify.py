"""`errata verify` finds what is not as it was recorded, and makes nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from app.audit import Finding
from app.main import verify
from app.settings import Settings
from tests.app.conftest import Caller, sentence, settings_in, started
from tests.deployed import deploy


@pytest.fixture
def edited(settings: Settings) -> Settings:
    """A database with three edits, one of them reverted."""
    with started(settings) as client:
        edits = [Caller(client).edit(sentence(number)) for number in (1, 2, 3)]
        client.delete(f"/edits/{edits[1]['id']}")
    return settings


def tamper(settings: Settings, statement: str) -> None:
    with sqlite3.connect(settings.database_url.removeprefix("sqlite:///")) as database:
        assert database.execute(statement).rowcount > 0


def broken(settings: Settings) -> list[Finding]:
    return [finding for finding in verify(settings) if not finding.ok]


def test_what_was_not_touched_is_in_order(edited: Settings) -> None:
    findings = verify(edited)
    assert all(finding.ok for finding in findings)
    assert [finding.checked.split()[0] for finding in findings] == ["ledger", "edit", "edit"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE history SET actor = 'nobody' WHERE seq = 2",
        "UPDATE blobs SET bytes = zeroblob(length(bytes))",
        "UPDATE spans SET until = NULL",
        "UPDATE edits SET target = 'yellow'",
        "DELETE FROM history WHERE seq = 3",
    ],
)
def test_what_was_changed_behind_the_service_is_found(edited: Settings, statement: str) -> None:
    tamper(edited, statement)
    assert broken(edited)


def test_a_database_without_this_model_is_said_to_be_so(edited: Settings, tmp_path: Path) -> None:
    other = edited.model_copy(update={"model": str(deploy(tmp_path / "other", seed=5))})
    (finding,) = broken(other)
    assert "holds no edits of" in finding.detail


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path, tiny_model: Path) -> None:
    assert broken(settings_in(tmp_path, tiny_model))
    assert not (tmp_path / "errata.db").exists()


def test_an_edit_that_a_restore_brought_back_beside_another_is_in_order(settings: Settings) -> None:
    with started(settings) as client:
        caller = Caller(client)
        first = caller.edit(sentence(1))
        client.delete(f"/edits/{first['id']}")
        second = caller.edit(sentence(1), first["target"])
        both = client.post(f"/edits/{first['id']}/reapply").json()["revision"]
        client.delete(f"/edits/{second['id']}")
        assert client.post(f"/revisions/{both}/restore").status_code == 201
    assert broken(settings) == []
