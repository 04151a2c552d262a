"""Guards are kept as they were put, one after the other, and the newest counts."""

from __future__ import annotations

import hashlib

import pytest

from app.errors import NotFound
from app.store import GuardRecord, Ledger, Store
from tests.store.conftest import Tamper
from tests.store.samples import OTHER_IDENTITY, live

ONE, TWO = b'{"input": "one"}\n', b'{"input": "two"}\n\xc3\xbc\x00'


def put(ledger: Ledger, content: bytes = ONE) -> GuardRecord:
    return ledger.put_guard(content, inputs=content.count(b"input"), actor="ann")


def test_a_model_has_no_guard_until_one_is_put(ledger: Ledger) -> None:
    assert ledger.guard() is None
    assert ledger.guard_number() == 0
    with pytest.raises(NotFound, match="guard number 0"):
        ledger.guard_bytes(0)


def test_the_guard_is_what_was_put_last(ledger: Ledger) -> None:
    put(ledger, ONE)
    record = put(ledger, TWO)
    assert (record.number, record.sha256, record.inputs, record.actor) == (
        2,
        hashlib.sha256(TWO).hexdigest(),
        1,
        "ann",
    )
    assert ledger.guard() == record
    assert ledger.guard_number() == 2
    assert [ledger.guard_bytes(number) for number in (1, 2)] == [ONE, TWO]


def test_the_guard_that_counts_is_not_written_again(ledger: Ledger) -> None:
    record = put(ledger)
    assert ledger.put_guard(ONE, inputs=1, actor="bob") == record
    assert ledger.guard_number() == 1


def test_a_former_guard_is_put_again_as_a_new_one(ledger: Ledger) -> None:
    assert [put(ledger, content).number for content in (ONE, TWO, ONE)] == [1, 2, 3]


def test_a_withdrawn_guard_counts_no_more_and_is_kept(ledger: Ledger) -> None:
    put(ledger)
    record = ledger.withdraw_guard(actor="bob")
    assert record is not None
    assert (record.number, record.sha256, record.inputs, record.actor) == (2, None, 0, "bob")
    assert ledger.guard() is None
    assert ledger.guard_number() == 2
    assert ledger.guard_bytes(1) == ONE
    with pytest.raises(NotFound, match="guard number 2"):
        ledger.guard_bytes(2)


def test_there_is_nothing_to_withdraw_before_a_guard_is_put_nor_after_it_was_withdrawn(ledger: Ledger) -> None:
    assert ledger.withdraw_guard(actor="bob") is None
    put(ledger)
    ledger.withdraw_guard(actor="bob")
    assert ledger.withdraw_guard(actor="bob") is None
    assert ledger.guard_number() == 2


def test_a_guard_can_be_put_again_after_it_was_withdrawn(ledger: Ledger) -> None:
    put(ledger)
    ledger.withdraw_guard(actor="bob")
    assert put(ledger).number == 3
    assert ledger.guard_bytes(3) == ONE


def test_each_model_has_a_guard_of_its_own(ledger: Ledger, store: Store) -> None:
    put(ledger)
    assert store.ledger(OTHER_IDENTITY).guard() is None
    assert put(store.ledger(OTHER_IDENTITY), TWO).number == 1


def test_guards_are_in_order_beside_edits(ledger: Ledger) -> None:
    put(ledger)
    live(ledger)
    ledger.withdraw_guard(actor="bob")
    put(ledger, TWO)
    assert ledger.verify() == []


@pytest.mark.parametrize(
    ("change", "wheres"),
    [
        ("UPDATE guards SET bytes = :other WHERE number = 1", ["guard 1"]),
        ("UPDATE guards SET bytes = NULL WHERE number = 1", ["guard 1"]),
        ("UPDATE guards SET bytes = :other WHERE number = 2", ["guard 2"]),
        ("UPDATE guards SET bytes = :other, sha256 = :sha256 WHERE number = 1", ["guards"]),
        ("UPDATE guards SET inputs = 2 WHERE number = 1", ["guards"]),
        ("DELETE FROM guards WHERE number = 2", ["guards"]),
        ("UPDATE guards SET number = 3 WHERE number = 2", ["guards"]),
    ],
)
def test_a_changed_guard_is_named(ledger: Ledger, tamper: Tamper, change: str, wheres: list[str]) -> None:
    put(ledger)
    ledger.withdraw_guard(actor="bob")
    values = {"other": TWO, "sha256": hashlib.sha256(TWO).hexdigest()}
    tamper(change, **{name: value for name, value in values.items() if f":{name}" in change})
    assert [flaw.where for flaw in ledger.verify()] == wheres
