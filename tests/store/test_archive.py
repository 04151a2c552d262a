from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from app.errors import NotFound, Unprocessable
from app.store import Ledger, Status
from tests.store.samples import UNKNOWN, accept, live, rejected, revert

NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


def found(ledger: Ledger, q: str) -> list[str]:
    return [item.id for item in ledger.edits(q=q).items]


def test_an_unknown_edit_is_not_found(ledger: Ledger) -> None:
    with pytest.raises(NotFound, match=UNKNOWN):
        ledger.edit(UNKNOWN)


def test_an_edits_history_can_be_read_from_any_row_on(ledger: Ledger) -> None:
    edit_id = live(ledger)
    everything = ledger.history(edit_id)
    assert ledger.edit(edit_id).history == everything
    assert ledger.history(edit_id, everything[0].seq) == everything[1:]
    assert ledger.history(edit_id, 10**30) == ()


def test_edits_are_listed_newest_first_and_new_ones_do_not_shift_the_pages(ledger: Ledger) -> None:
    ids = [accept(ledger, f"text {number}") for number in range(5)]
    first = ledger.edits(limit=2)
    accept(ledger, "meanwhile")
    second = ledger.edits(limit=2, cursor=first.next_cursor)
    third = ledger.edits(limit=2, cursor=second.next_cursor)
    assert [item.id for page in (first, second, third) for item in page.items] == ids[::-1]
    assert third.next_cursor is None


def test_a_page_that_ends_with_the_last_edit_is_the_last_page(ledger: Ledger) -> None:
    accept(ledger, "one")
    accept(ledger, "two")
    assert ledger.edits(limit=2).next_cursor is None


def test_an_edit_of_a_listing_is_the_edit_without_its_history(ledger: Ledger) -> None:
    live(ledger)
    (item,) = ledger.edits().items
    assert item.history == ()
    assert item.patch == ledger.edit(item.id).patch


def test_edits_are_found_by_status_and_by_editor(ledger: Ledger) -> None:
    first = revert_of(ledger)
    second = rejected(ledger)
    third = accept(ledger, editor="grace")
    assert [item.id for item in ledger.edits(status=Status.REVERTED).items] == [first]
    assert [item.id for item in ledger.edits(editor="grace").items] == [third]
    assert [item.id for item in ledger.edits(status=Status.REJECTED, editor="transformer-patcher").items] == [second]


def revert_of(ledger: Ledger) -> str:
    edit_id = live(ledger, "one")
    revert(ledger, edit_id)
    return edit_id


def test_a_search_finds_parts_of_input_target_and_reason_in_any_case(ledger: Ledger) -> None:
    edit_id = accept(ledger, "Die STRASSE ist gesperrt, ÄRGERLICH", "road_closed", reason="Ticket 77")
    accept(ledger, "something else")
    for q in ("straße", "ärgerlich", "ROAD_C", "ticket 7", "e ist g"):
        assert found(ledger, q) == [edit_id], q


def test_a_searchs_wildcards_are_plain_characters(ledger: Ledger) -> None:
    edit_id = accept(ledger, r"100% of my_card \ gone")
    accept(ledger, "100 percent of mycard / gone")
    for q in ("0%", "my_c", "\\", "% of"):
        assert found(ledger, q) == [edit_id], q
    assert found(ledger, "1%0") == []


def test_a_search_does_not_run_from_one_text_into_the_next(ledger: Ledger) -> None:
    accept(ledger, "abc", "def")
    assert found(ledger, "cd") == []


def test_a_search_of_unreasonable_length_is_refused(ledger: Ledger) -> None:
    with pytest.raises(Unprocessable, match="60000"):
        found(ledger, "x" * 60_000)


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1.5", "²", "9" * 5000, "4294967296", "1 "])
def test_a_cursor_that_no_page_gave_is_refused(ledger: Ledger, cursor: str) -> None:
    with pytest.raises(Unprocessable, match="is no cursor"):
        ledger.edits(cursor=cursor)


def test_hits_are_added_up_and_keep_the_latest_time(ledger: Ledger) -> None:
    first, second = live(ledger, "one"), live(ledger, "two")
    ledger.record_hits({first: (2, NOON), second: (1, NOON)})
    ledger.record_hits({first: (3, NOON - timedelta(hours=1))})
    record = ledger.edit(first)
    assert (record.hits, record.last_hit_at) == (5, NOON)
    assert ledger.edit(second).hits == 1


def test_an_edit_without_hits_has_none(ledger: Ledger) -> None:
    ledger.record_hits({})
    record = ledger.edit(live(ledger))
    assert (record.hits, record.last_hit_at) == (0, None)


def test_recording_hits_leaves_the_history_as_it_is(ledger: Ledger) -> None:
    edit_id = live(ledger)
    before = ledger.history(edit_id)
    ledger.record_hits({edit_id: (1, NOON)})
    assert ledger.history(edit_id) == before
