from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from app.store import Evidence, IdempotencyKey, Ledger, Status, Store
from tests.store.conftest import Tamper
from tests.store.samples import (
    OTHER_IDENTITY,
    accept,
    broken,
    claimed,
    draft,
    live,
    reapply,
    refit,
    rejected,
    restore,
    revert,
)


def wheres(ledger: Ledger) -> list[str]:
    return [flaw.where for flaw in ledger.verify()]


def test_a_ledger_in_which_everything_has_happened_has_no_flaw(ledger: Ledger, store: Store) -> None:
    assert ledger.verify() == []
    first = live(ledger)
    second = live(ledger, target="lost_card", supersedes=first)
    revert(ledger, second)
    reapply(ledger, second)
    restore(ledger, 1)
    restore(ledger, 0)
    (third,) = broken(ledger, "three")
    refit(ledger, third)
    revert(ledger, live(ledger, "four"), broken=[third], refit=True)
    ledger.refit_failed(third, reason="No.", verdict=None)
    restore(ledger, ledger.head() - 4)
    rejected(ledger)
    ledger.cancel(accept(ledger), actor="bob", reason="")
    ledger.finish(claimed(ledger), Status.FAILED, Evidence(failure="No."), detail={"steps": 0.1})
    claimed(ledger)
    ledger.requeue_abandoned()
    ledger.accept(draft("ümlaut \u2028"), actor="ann", limit=99, key=IdempotencyKey("k", "b"))
    ledger.record_hits({first: (1, datetime.now(UTC))})
    live(store.ledger(OTHER_IDENTITY))
    ledger.put_guard(b"one", inputs=1, actor="ann")
    ledger.withdraw_guard(actor="ann")
    assert ledger.verify() == []


@pytest.mark.parametrize(
    "change",
    [
        "detail = '{\"forged\": 1}'",
        "actor = 'eve'",
        "at = '2020-01-01T00:00:00.000000Z'",
        "edit_id = NULL",
        "event = 'judging'",
    ],
)
def test_a_changed_row_of_the_history_is_named(ledger: Ledger, tamper: Tamper, change: str) -> None:
    live(ledger)
    tamper(f"UPDATE history SET {change} WHERE seq = 2")
    assert wheres(ledger)[0] == "history 2"


def test_a_row_changed_together_with_its_hash_breaks_the_next_link(ledger: Ledger, tamper: Tamper) -> None:
    live(ledger)
    tamper("UPDATE history SET hash = :hash WHERE seq = 2", hash="0" * 64)
    assert wheres(ledger) == ["history 2", "history 3"]


def test_a_row_missing_from_the_history_is_named(ledger: Ledger, tamper: Tamper) -> None:
    live(ledger)
    tamper("DELETE FROM history WHERE seq = 2")
    assert ledger.verify()[0].what == "The history's row 2 is missing."


def test_a_history_cut_short_at_its_end_is_noticed(ledger: Ledger, tamper: Tamper) -> None:
    edit_id = live(ledger)
    tamper("DELETE FROM history WHERE seq = 3")
    assert f"edit {edit_id}" in wheres(ledger)


def test_a_changed_byte_of_a_patch_is_named(ledger: Ledger, tamper: Tamper) -> None:
    sha256, data = ledger.patch_of(live(ledger))
    tamper("UPDATE blobs SET bytes = :data", data=b"x" + data[1:])
    assert wheres(ledger) == [f"patch {sha256}"]


def test_a_patch_exchanged_for_another_is_named(ledger: Ledger, tamper: Tamper) -> None:
    first, second = live(ledger, "one"), live(ledger, "two")
    tamper("UPDATE patches SET sha256 = :sha256 WHERE edit_id = :first", sha256=ledger.patch_of(second)[0], first=first)
    assert wheres(ledger) == [f"edit {first}", "revision 1", "patch number 0"]


@pytest.mark.parametrize("change", ["until = 2", "until = 3", "since = 2"])
def test_a_changed_span_is_named_by_the_revision_that_it_belongs_to(
    ledger: Ledger, tamper: Tamper, change: str
) -> None:
    for text in ("one", "two", "three"):
        live(ledger, text)
    tamper(f"UPDATE spans SET {change} WHERE patch = 0")
    assert f"revision {change[-1]}" in wheres(ledger)


def test_a_span_put_in_is_noticed(ledger: Ledger, tamper: Tamper) -> None:
    edit_id = live(ledger)
    revert(ledger, edit_id)
    tamper("INSERT INTO spans (model_id, patch, since) VALUES (1, 0, 2)")
    assert wheres(ledger) == ["revision 2", f"edit {edit_id}"]


def test_spans_that_overlap_are_noticed(ledger: Ledger, tamper: Tamper) -> None:
    first = live(ledger)
    revert(ledger, first)
    live(ledger, "two")
    tamper("UPDATE spans SET until = 3 WHERE patch = 0")
    tamper("INSERT INTO spans (model_id, patch, since, until) VALUES (1, 0, 2, 3)")
    assert "span 0 2" in wheres(ledger)


@pytest.mark.parametrize("change", ["actor = 'eve'", "cause = 'restore'", "edit_id = NULL", "hash = 'x'"])
def test_a_changed_revision_is_named(ledger: Ledger, tamper: Tamper, change: str) -> None:
    live(ledger)
    tamper(f"UPDATE revisions SET {change} WHERE number = 1")
    assert wheres(ledger) == ["revision 1"]


def test_a_changed_ledger_order_is_noticed(ledger: Ledger, tamper: Tamper) -> None:
    live(ledger, "one")
    revert(ledger, live(ledger, "two"))
    tamper("UPDATE patches SET since = 3 WHERE number = 0")
    assert "patch number 0" in wheres(ledger)


@pytest.mark.parametrize(
    "change",
    [
        "target = 'other'",
        "input = 'other'",
        "reporter = 'eve'",
        "options = '{}'",
        """required = '{"guard_fires": 0.0}'""",
    ],
)
def test_a_changed_report_is_named(ledger: Ledger, tamper: Tamper, change: str) -> None:
    edit_id = live(ledger)
    tamper(f"UPDATE edits SET {change}")
    assert wheres(ledger) == [f"edit {edit_id}"]


def test_the_changed_evidence_of_a_former_patch_is_named(ledger: Ledger, tamper: Tamper) -> None:
    refit(ledger, broken(ledger, "one")[0])
    tamper("UPDATE patches SET evidence = REPLACE(evidence, 'lost_card', 'other') WHERE number = 0")
    assert wheres(ledger) == ["patch number 0"]


def test_an_edit_that_names_another_of_its_patches_is_noticed(ledger: Ledger, tamper: Tamper) -> None:
    (edit_id,) = broken(ledger, "one")
    refit(ledger, edit_id, edit_id.encode())  # the same bytes, so that only the number tells them apart
    tamper("UPDATE edits SET patch = 0 WHERE id = :edit_id", edit_id=edit_id)
    assert wheres(ledger) == [f"edit {edit_id}"]


def test_an_edit_that_waits_for_a_patch_although_it_is_not_live_is_noticed(ledger: Ledger, tamper: Tamper) -> None:
    edit_id = rejected(ledger)
    tamper("UPDATE edits SET refit_due = 1")
    assert wheres(ledger) == [f"edit {edit_id}"]


@pytest.mark.parametrize("change", ["verdict = '{}'", "after = NULL", "failure = ''", "fit = '{\"steps\": 4}'"])
@pytest.mark.parametrize("make", [live, rejected])
def test_changed_evidence_is_named(ledger: Ledger, tamper: Tamper, make: Callable[[Ledger], str], change: str) -> None:
    edit_id = make(ledger)
    if change == "after = NULL" and make is rejected:
        change = "after = '{}'"  # it has none
    tamper(f"UPDATE edits SET {change}")
    assert wheres(ledger) == [f"edit {edit_id}"]


def test_a_status_that_the_history_does_not_tell_is_named(ledger: Ledger, tamper: Tamper) -> None:
    edit_id = rejected(ledger)
    tamper("UPDATE edits SET status = 'failed'")
    (flaw,) = ledger.verify()
    assert flaw.what == f"The edit {edit_id} is failed, but its history ends with rejected."


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ("history SET detail = '{'", "history"),
        ("history SET event = 'forged'", "history 1"),
        ("edits SET options = '{'", "edits"),
        ("revisions SET cause = 'forged'", "revisions"),
        ("revisions SET at = 'noon'", "revisions"),
    ],
)
def test_what_cannot_even_be_read_is_a_flaw_among_others(
    ledger: Ledger, tamper: Tamper, change: str, where: str
) -> None:
    edit_id = live(ledger)
    first = "number = 1" if change.startswith(("edits", "revisions")) else "seq = 1"
    tamper(f"UPDATE {change} WHERE {first}")
    sha256, data = ledger.patch_of(edit_id)
    tamper("UPDATE blobs SET bytes = :data", data=b"x" + data[1:])
    found = wheres(ledger)
    assert where in found
    assert f"patch {sha256}" in found
