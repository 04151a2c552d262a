"""`errata verify` finds what is not as it was recorded, and makes nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from app.audit import Finding
from app.main import verify
from app.settings import Settings
from app.store import Learned, Ledger, ModelIdentity, Store
from tests.app.conftest import Caller, sentence, settings_in, started
from tests.deployed import LABELS, deploy


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


def test_an_edit_that_was_fitted_again_answers_as_was_recorded_for_each_of_its_patches(settings: Settings) -> None:
    with started(settings) as client:
        caller = Caller(client)
        unedited = caller.label(sentence(1))
        one, other = [label for label in LABELS if label != unedited][:2]
        first, second = caller.edit(sentence(1), one)["id"], caller.edit(sentence(2))["id"]
        client.delete(f"/edits/{first}")
        client.delete(f"/edits/{second}")
        lending = caller.edit(sentence(1), other)["id"]
        client.delete(f"/edits/{lending}")
        for each in (first, second):
            assert client.post(f"/edits/{each}/reapply").status_code == 200
        fingerprint = client.post("/predict", json={"inputs": ["w1"]}).json()["model"]
    store = Store.open(settings.database_url)
    ledger = store.ledger(ModelIdentity(fingerprint, "", "", "", ""))
    fit_again(ledger, first, second, lending)
    assert broken(settings) == []
    ledger.restore(1, actor="ann", reason="", expected_head=ledger.head())
    after = ledger.edit(first).after
    assert after is not None
    assert after["prediction"]["label"] == one
    assert broken(settings) == []
    store.close()


def fit_again(ledger: Ledger, edit_id: str, removed: str, lending: str) -> None:
    """As if the removal of one edit had broken another, which then learned what the lending one had."""
    head = ledger.head()
    ledger.revert(removed, actor="ann", reason="", verdict={}, expected_head=head, broken=[edit_id], refit=True)
    lent, (sha256, data) = ledger.edit(lending), ledger.patch_of(lending)
    evidence = (lent.before or {}, lent.after or {}, lent.verdict or {}, lent.fit or {})
    learned = Learned(data, sha256, "safetensors/1", *evidence, ledger.activations([edit_id])[edit_id])
    assert ledger.refit(edit_id, learned, expected_head=head + 1) is not None
