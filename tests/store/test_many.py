"""What is done to many edits in one transaction is what would be done to one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event, select
from sqlalchemy.exc import StatementError

from app.errors import ConflictingEdit, NotFound, NotLive, QueueFull, ServiceError, UnknownEdit
from app.store import Accepted, Cause, Draft, Evidence, HeadMoved, Learned, Ledger, Status, Store
from app.store.tables import UtcTime, edits, history, metadata, patches, revisions, spans
from tests.store.samples import IDENTITY, OTHER_IDENTITY, UNKNOWN, accept, draft, events, learned, live, revert, status
from tests.store.test_concurrency import at_once

NAN = float("nan")
ENDED = [(Status.REJECTED, Evidence(verdict={"passed": False})), (Status.FAILED, Evidence(failure="No."))]


def ids_of(outcomes: Sequence[Accepted | ServiceError]) -> list[str]:
    return [outcome.edit_id for outcome in outcomes if isinstance(outcome, Accepted)]


def claimed(ledger: Ledger, *drafts: Draft) -> list[str]:
    edit_ids = ids_of(ledger.accept_each(drafts, actor="ann", limit=10**6))
    assert [record.id for record in ledger.claim_these(edit_ids)] == edit_ids
    return edit_ids


def brought(edit_ids: Sequence[str]) -> list[tuple[str, Learned]]:
    """A patch for each, the same whichever ids they have."""
    return [(edit_id, learned(f"patch {number}".encode())) for number, edit_id in enumerate(edit_ids)]


def commit_each(ledger: Ledger, edit_ids: Sequence[str]) -> list[int]:
    return [record.number for record in ledger.commit_each(brought(edit_ids), expected_head=ledger.head())]


def kept(ledger: Ledger) -> dict[str, list[Any]]:
    """All rows of the ledger, edits by their numbers; without times and hashes, which no two ledgers share."""
    with ledger._database.reading() as connection:
        of_model = edits.c.model_id == ledger._model.id
        named = connection.execute(select(edits.c.id, edits.c.number).where(of_model)).all()
        names = {edit_id: f"edit {number}" for edit_id, number in named}
        found = {}
        for table in (edits, history, patches, revisions, spans):
            shown = [column for column in table.c if not _differs(column)]
            mine = select(*shown).where(table.c.model_id == ledger._model.id)
            rows = connection.execute(mine.order_by(*table.primary_key.columns)).all()
            found[table.name] = [[_named(value, names) for value in row] for row in rows]
        found["edits"].sort(key=str)
        return found


def _differs(column: Any) -> bool:
    return isinstance(column.type, UtcTime) or column.name in ("model_id", "hash")


def _named(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _named(each, names) for key, each in value.items() if key != "draft"}  # a digest with ids in it
    return names.get(value, value) if isinstance(value, str) else value


def everything(store: Store) -> dict[str, list[Any]]:
    with store._database.reading() as connection:
        return {table.name: sorted(map(repr, connection.execute(select(table)))) for table in metadata.sorted_tables}


def two_live(ledger: Ledger) -> list[str]:
    """Two live edits, with the same patches whichever ids they have."""
    edit_ids = claimed(ledger, draft("first"), draft("second"))
    for edit_id, patch in brought(edit_ids):
        ledger.commit(edit_id, patch, expected_head=ledger.head())
    return edit_ids


def reports(first: str, second: str) -> list[Draft]:
    """Of all kinds, beside two live edits; the queue that takes eleven is full before the last one."""
    plain = [draft(f"text {number}") for number in range(6)]
    replacing = [
        draft("first", "another", supersedes=first),
        draft("elsewhere", "another", supersedes=first),
        draft("text 0", "yet another"),
    ]
    refused = [draft("second", "another"), draft("x", supersedes=UNKNOWN)]
    strict = replace(draft("strict", supersedes=second), required={"rephrases_hold": 1.0})
    return [*plain, *refused, *replacing, strict, draft("eleventh"), draft("too many")]


def one_by_one(ledger: Ledger) -> list[type]:
    outcomes: list[Any] = []
    for report in reports(*two_live(ledger)):
        try:
            outcomes.append(ledger.accept(report, actor="bob", limit=11))
        except ServiceError as error:
            outcomes.append(error)
    edit_ids = [record.id for record in iter(ledger.claim, None)]
    ledger.cancel(edit_ids[7], actor="bob", reason="")
    for edit_id in edit_ids:
        ledger.judging(edit_id)
    for edit_id, (end, evidence) in zip(edit_ids, ENDED, strict=False):
        ledger.finish(edit_id, end, evidence, detail={"reason": evidence.failure} if evidence.failure else {})
    for edit_id, patch in brought(edit_ids[2:7]) + brought(edit_ids[9:]):
        ledger.commit(edit_id, patch, expected_head=ledger.head())
    return [type(outcome) for outcome in outcomes]


def together(ledger: Ledger) -> list[type]:
    outcomes = ledger.accept_each(reports(*two_live(ledger)), actor="bob", limit=11)
    edit_ids = [record.id for record in ledger.queued(100)]
    ledger.claim_these(edit_ids)
    ledger.cancel(edit_ids[7], actor="bob", reason="")
    ledger.judging_these(edit_ids)
    ledger.finish_each([(edit_id, *end) for edit_id, end in zip(edit_ids, ENDED, strict=False)])
    ledger.commit_each(brought(edit_ids[2:7]) + brought(edit_ids[9:]), expected_head=ledger.head())
    return [type(outcome) for outcome in outcomes]


def test_many_edits_taken_through_together_leave_what_they_leave_one_by_one(store: Store) -> None:
    alone, many = store.ledger(IDENTITY), store.ledger(OTHER_IDENTITY)
    outcomes = one_by_one(alone)
    assert together(many) == outcomes
    assert {ConflictingEdit, UnknownEdit, QueueFull, Accepted} == set(outcomes)
    assert kept(many) == kept(alone)
    assert many.head() == 9
    assert alone.verify() == many.verify() == []


def test_a_follower_sees_of_many_what_it_would_see_of_each(store: Store) -> None:
    alone, many = store.ledger(IDENTITY), store.ledger(OTHER_IDENTITY)
    one_by_one(alone)
    together(many)
    for after in range(-1, alone.head() + 1):
        expected, found = alone.changes(after), many.changes(after)
        assert (found.head, found.spans) == (expected.head, expected.spans)
        assert [(patch.number, patch.sha256, patch.target, patch.input_key) for patch in found.patches] == [
            (patch.number, patch.sha256, patch.target, patch.input_key) for patch in expected.patches
        ]


def test_a_refused_report_stands_in_its_place_and_leaves_nothing_behind(ledger: Ledger) -> None:
    live(ledger, "first", "a")
    waiting = accept(ledger, "waiting")
    refused = [draft("first", "b"), draft("x", supersedes=UNKNOWN), draft("x", supersedes=waiting)]
    outcomes = ledger.accept_each([draft("one"), *refused, draft("two")], actor="ann", limit=9)
    assert [type(outcome) for outcome in outcomes] == [Accepted, ConflictingEdit, UnknownEdit, NotLive, Accepted]
    assert [record.id for record in ledger.queued(9)] == [waiting, *ids_of(outcomes)]
    assert ledger.verify() == []


def test_the_limit_of_the_queue_counts_those_accepted_just_before(ledger: Ledger) -> None:
    accept(ledger)
    outcomes = ledger.accept_each([draft(f"text {number}") for number in range(4)], actor="ann", limit=3)
    assert [type(outcome) for outcome in outcomes] == [Accepted, Accepted, QueueFull, QueueFull]


def test_ids_accepted_together_sort_as_they_were_given(ledger: Ledger) -> None:
    edit_ids = ids_of(ledger.accept_each([draft(f"text {number}") for number in range(9)], actor="ann", limit=9))
    assert edit_ids == sorted(edit_ids)
    assert [record.draft.input for record in ledger.queued(9)] == [f"text {number}" for number in range(9)]


def test_the_oldest_queued_edits_are_shown_and_stay_queued(ledger: Ledger) -> None:
    claimed(ledger, draft("in work"))
    edit_ids = [accept(ledger, f"text {number}") for number in range(3)]
    shown = ledger.queued(2)
    assert [record.id for record in shown] == edit_ids[:2]
    assert [replace(ledger.edit(record.id), history=()) for record in shown] == shown
    assert ledger.waiting() == 3


def test_only_what_is_still_queued_is_claimed_and_the_oldest_comes_first(ledger: Ledger, store: Store) -> None:
    edit_ids = [accept(ledger, f"text {number}") for number in range(4)]
    elsewhere = accept(store.ledger(OTHER_IDENTITY))
    ledger.cancel(edit_ids[1], actor="bob", reason="")
    ledger.claim_these(edit_ids[:1])
    found = ledger.claim_these([edit_ids[3], UNKNOWN, elsewhere, *edit_ids[:3]])
    assert [record.id for record in found] == edit_ids[2:]
    assert [replace(ledger.edit(record.id), history=()) for record in found] == found
    assert events(ledger, edit_ids[0]) == ["queued", "fitting"]


def test_those_still_in_work_are_judged(ledger: Ledger) -> None:
    edit_ids = claimed(ledger, *(draft(f"text {number}") for number in range(3)))
    ledger.cancel(edit_ids[1], actor="bob", reason="")
    ledger.judging(edit_ids[2])
    assert ledger.judging_these(edit_ids) == {edit_ids[0], edit_ids[2]}
    assert [events(ledger, edit_id).count("judging") for edit_id in edit_ids] == [1, 0, 1]


def test_those_still_in_work_are_finished_once_each(ledger: Ledger) -> None:
    edit_ids = claimed(ledger, draft("one"), draft("two"))
    ledger.cancel(edit_ids[0], actor="bob", reason="")
    failed = (Status.FAILED, Evidence(failure="No."))
    ended = [(edit_ids[0], *failed), (edit_ids[1], *failed), (edit_ids[1], Status.NOT_NEEDED, Evidence())]
    assert ledger.finish_each(ended) == {edit_ids[1]}
    record = ledger.edit(edit_ids[1])
    assert (record.status, record.failure, record.history[-1].detail["reason"]) == (Status.FAILED, "No.", "No.")
    assert status(ledger, edit_ids[0]) is Status.CANCELLED
    assert ledger.verify() == []


def test_each_of_many_edits_has_a_revision_of_its_own(ledger: Ledger) -> None:
    edit_ids = claimed(ledger, *(draft(f"text {number}") for number in range(3)))
    records = ledger.commit_each(brought(edit_ids), expected_head=0)
    assert [(record.number, record.cause, record.edit_id) for record in records] == [
        (number, Cause.EDIT, edit_id) for number, edit_id in enumerate(edit_ids, start=1)
    ]
    assert records == [ledger.revision(number) for number in (1, 2, 3)]
    assert ledger.live_edits(2) == tuple(edit_ids[:2])


def test_edits_go_live_in_the_order_given(ledger: Ledger) -> None:
    first, second = claimed(ledger, draft("one"), draft("two"))
    commit_each(ledger, [second, first])
    assert ledger.live_edits(2) == (second, first)


def test_many_go_live_up_to_the_first_that_was_cancelled(ledger: Ledger) -> None:
    edit_ids = claimed(ledger, *(draft(f"text {number}") for number in range(3)))
    ledger.cancel(edit_ids[1], actor="bob", reason="")
    assert commit_each(ledger, edit_ids) == [1]
    assert commit_each(ledger, edit_ids[1:]) == []
    assert status(ledger, edit_ids[2]) is Status.FITTING


def test_many_go_live_up_to_the_first_that_another_answer_stands_against(ledger: Ledger) -> None:
    edit_ids = claimed(ledger, draft("one", "a"), draft("two", "a"), draft("one", "b"), draft("three", "a"))
    assert commit_each(ledger, edit_ids) == [1, 2]
    assert commit_each(ledger, edit_ids[2:]) == []
    assert [status(ledger, edit_id) for edit_id in edit_ids[2:]] == [Status.FITTING, Status.FITTING]


def test_what_one_of_many_supersedes_stands_in_no_later_ones_way(ledger: Ledger) -> None:
    waiting = claimed(ledger, draft("one", "b"))
    first = live(ledger, "one", "a")
    edit_ids = claimed(ledger, draft("two", "c", supersedes=first)) + waiting
    assert commit_each(ledger, edit_ids) == [2, 3]
    assert status(ledger, first) is Status.SUPERSEDED


def test_what_two_of_many_supersede_is_superseded_once(ledger: Ledger) -> None:
    first = live(ledger, "one", "a")
    edit_ids = claimed(ledger, draft("one", "b", supersedes=first), draft("one", "b", supersedes=first))
    assert commit_each(ledger, edit_ids) == [2, 3]
    assert events(ledger, first).count("superseded") == 1
    assert ledger.verify() == []


def test_an_edit_given_twice_goes_live_once(ledger: Ledger) -> None:
    (edit_id,) = claimed(ledger, draft())
    assert commit_each(ledger, [edit_id, edit_id]) == [1]


def test_many_on_a_head_that_has_moved_change_nothing(ledger: Ledger, store: Store) -> None:
    live(ledger)
    edit_ids = claimed(ledger, draft("one"))
    before = everything(store)
    for pairs in (brought(edit_ids), []):
        with pytest.raises(HeadMoved):
            ledger.commit_each(pairs, expected_head=0)
    assert everything(store) == before


def test_nothing_at_all_is_done_to_no_edits(ledger: Ledger, store: Store) -> None:
    before = everything(store)
    assert ledger.accept_each([], actor="ann", limit=0) == []
    assert ledger.claim_these([]) == []
    assert ledger.judging_these([]) == ledger.finish_each([]) == frozenset()
    assert ledger.commit_each([], expected_head=0) == []
    assert everything(store) == before


def test_an_edit_that_does_not_exist_stops_all_of_them(ledger: Ledger, store: Store) -> None:
    (edit_id,) = claimed(ledger, draft())
    before = everything(store)
    with pytest.raises(NotFound, match=UNKNOWN):
        ledger.judging_these([edit_id, UNKNOWN])
    with pytest.raises(NotFound, match=UNKNOWN):
        ledger.finish_each([(edit_id, *ENDED[0]), (UNKNOWN, *ENDED[0])])
    with pytest.raises(NotFound, match=UNKNOWN):
        commit_each(ledger, [edit_id, UNKNOWN])
    assert everything(store) == before


def test_reports_that_break_off_in_the_middle_leave_nothing(ledger: Ledger, store: Store) -> None:
    before = everything(store)
    with pytest.raises(ValueError, match="not JSON compliant"):
        ledger.accept_each([draft("one"), replace(draft("two"), options={"lam": NAN})], actor="ann", limit=9)
    assert everything(store) == before


@pytest.mark.parametrize("broken", [{"patch": b"other"}, {"fit": {"loss": NAN}}])
def test_commits_that_break_off_in_the_middle_leave_nothing(ledger: Ledger, store: Store, broken: Any) -> None:
    edit_ids = claimed(ledger, draft("one"), draft("two"), draft("three"))
    pairs = brought(edit_ids)
    before = everything(store)
    with pytest.raises((ValueError, StatementError), match=r"SHA-256|not JSON compliant"):
        ledger.commit_each([pairs[0], (edit_ids[1], replace(pairs[1][1], **broken)), pairs[2]], expected_head=0)
    assert everything(store) == before


def test_ends_that_break_off_in_the_middle_leave_nothing(ledger: Ledger, store: Store) -> None:
    edit_ids = claimed(ledger, draft("one"), draft("two"))
    before = everything(store)
    with pytest.raises(ValueError, match="not JSON compliant"):
        ledger.finish_each([(edit_ids[0], *ENDED[0]), (edit_ids[1], Status.REJECTED, Evidence(fit={"loss": NAN}))])
    assert everything(store) == before


def test_a_database_that_fails_at_the_last_statement_keeps_nothing(ledger: Ledger, store: Store) -> None:
    edit_ids = claimed(ledger, draft("one"), draft("two"))
    before = everything(store)

    def fail(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO history"):
            raise OSError("The disk is full.")

    event.listen(store._database.engine, "before_cursor_execute", fail)
    with pytest.raises(OSError, match="disk is full"):
        commit_each(ledger, edit_ids)
    event.remove(store._database.engine, "before_cursor_execute", fail)
    assert everything(store) == before


def test_records_are_given_by_id_without_their_histories(ledger: Ledger, store: Store) -> None:
    first, second = live(ledger, "one"), accept(ledger, "two")
    elsewhere = accept(store.ledger(OTHER_IDENTITY))
    found = ledger.records([second, UNKNOWN, first, elsewhere])
    assert found == {edit_id: replace(ledger.edit(edit_id), history=()) for edit_id in (first, second)}


def test_of_many_and_many_on_one_head_one_wins(ledger: Ledger) -> None:
    ours, theirs = claimed(ledger, draft("one"), draft("two")), claimed(ledger, draft("three"), draft("four"))
    results = at_once(2, lambda number: ledger.commit_each(brought((ours, theirs)[number]), expected_head=0))
    assert sorted(type(result).__name__ for result in results) == ["HeadMoved", "list"]
    assert ledger.head() == 2
    assert ledger.verify() == []


def test_patches_are_loaded_with_all_that_belongs_to_them_in_ledger_order(ledger: Ledger) -> None:
    edit_ids = claimed(ledger, *(draft(f"text {number}") for number in range(600)))
    commit_each(ledger, edit_ids)
    revert(ledger, edit_ids[1])
    placed = ledger.changes(-1).patches
    loaded = list(ledger.loaded(placed))
    assert [each.patch for each in loaded] == list(placed)
    assert [each.content for each in loaded] == ledger.patch_bytes([patch.number for patch in placed])
    assert {each.patch.edit_id: each.activations for each in loaded} == ledger.activations(edit_ids)
    assert {each.patch.edit_id: each.texts for each in loaded} == ledger.texts(edit_ids)
    assert list(ledger.loaded(placed[598:])) == loaded[598:]
    assert list(ledger.loaded([])) == []


def test_a_patch_that_does_not_exist_is_not_loaded(ledger: Ledger) -> None:
    live(ledger)
    (patch,) = ledger.changes(-1).patches
    with pytest.raises(NotFound, match="patch number 1"):
        list(ledger.loaded([patch, replace(patch, number=1)]))
