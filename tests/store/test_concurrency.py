from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

from app.errors import NotLive, ServiceError
from app.store import HeadMoved, IdempotencyKey, Ledger, Store
from tests.store.samples import OTHER_IDENTITY, accept, claimed, draft, learned, live, revert

Value = TypeVar("Value")


def at_once(count: int, work: Callable[[int], Value]) -> list[Value | Exception]:
    """What `work` gives or raises in `count` threads that start together."""
    start = Barrier(count)

    def run(number: int) -> Value | Exception:
        start.wait()
        try:
            return work(number)
        except (ServiceError, HeadMoved) as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_of_two_commits_on_one_head_one_wins_and_the_other_learns_that_the_head_has_moved(ledger: Ledger) -> None:
    ids = [claimed(ledger, "one"), claimed(ledger, "two")]
    results = at_once(2, lambda number: ledger.commit(ids[number], learned(), expected_head=0))
    assert sorted(type(result).__name__ for result in results) == ["HeadMoved", "RevisionRecord"]
    assert ledger.head() == 1
    assert ledger.verify() == []


def test_of_a_commit_and_a_revert_on_one_head_one_wins(ledger: Ledger) -> None:
    first, second = live(ledger, "one"), claimed(ledger, "two")
    results = at_once(
        2,
        lambda number: (
            ledger.commit(second, learned(), expected_head=1)
            if number
            else ledger.revert(first, actor="bob", reason="", verdict={}, expected_head=1)
        ),
    )
    assert sorted(type(result).__name__ for result in results) == ["HeadMoved", "RevisionRecord"]
    assert ledger.head() == 2


def test_an_edit_reverted_twice_at_once_is_reverted_once(ledger: Ledger) -> None:
    edit_id = live(ledger)
    results = at_once(4, lambda _: revert(ledger, edit_id))
    assert ledger.head() == 2
    assert sum(isinstance(result, NotLive | HeadMoved) for result in results) == 3


def test_reports_with_one_key_sent_at_once_make_one_edit(ledger: Ledger) -> None:
    key = IdempotencyKey("k", "body")
    results = at_once(6, lambda _: ledger.accept(draft(), actor="ann", limit=9, key=key).edit_id)
    assert len(set(map(str, results))) == 1
    assert ledger.waiting() == 1


def test_the_limit_of_the_queue_holds_for_reports_sent_at_once(ledger: Ledger) -> None:
    at_once(6, lambda number: ledger.accept(draft(f"text {number}"), actor="ann", limit=4))
    assert ledger.waiting() == 4


def test_an_edit_is_claimed_by_one_of_many(ledger: Ledger) -> None:
    ids = {accept(ledger, f"text {number}") for number in range(4)}
    records = at_once(6, lambda _: ledger.claim())
    assert sorted(str(getattr(record, "id", None)) for record in records) == sorted([*ids, "None", "None"])


def test_a_ledger_opened_by_many_at_once_is_one_ledger(store: Store) -> None:
    heads = at_once(6, lambda _: store.ledger(OTHER_IDENTITY).head())
    assert heads == [0] * 6
    assert store.ledger(OTHER_IDENTITY).verify() == []


def test_writers_of_every_kind_leave_an_unbroken_chain(ledger: Ledger) -> None:
    at_once(8, lambda number: live_or_lose(ledger, f"text {number}"))
    assert ledger.verify() == []


def live_or_lose(ledger: Ledger, text: str) -> None:
    accept(ledger, text)
    record = ledger.claim()
    assert record is not None
    while True:
        try:
            ledger.commit(record.id, learned(record.id.encode()), expected_head=ledger.head())
        except HeadMoved:
            continue
        return
