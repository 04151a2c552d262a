from __future__ import annotations

import pytest

from app.errors import NotFound
from app.store import Ledger, LedgerPatch, Span
from tests.store.samples import UNKNOWN, accept, claimed, learned, live, reapply, restore, revert


def test_everything_that_ever_happened_comes_as_one_set_of_changes(ledger: Ledger) -> None:
    first = live(ledger, "One", "a")
    second = live(ledger, "two", "b")
    revert(ledger, first)
    reapply(ledger, first)
    changes = ledger.changes(-1)
    assert changes.head == 4
    assert changes.patches == (
        LedgerPatch(0, ledger.patch_of(first)[0], first, None, "a", "one"),
        LedgerPatch(1, ledger.patch_of(second)[0], second, None, "b", "two"),
    )
    assert changes.spans == (Span(0, 1, 3), Span(0, 4, None), Span(1, 2, None))


def test_changes_after_a_revision_are_what_was_opened_or_closed_since(ledger: Ledger) -> None:
    first = live(ledger, "one")
    live(ledger, "two")
    revert(ledger, first)
    changes = ledger.changes(2)
    assert (changes.head, changes.patches, changes.spans) == (3, (), (Span(0, 1, 3),))


def test_a_patch_is_new_only_in_the_revision_in_which_it_first_went_live(ledger: Ledger) -> None:
    edit_id = live(ledger)
    revert(ledger, edit_id)
    reapply(ledger, edit_id)
    assert [len(ledger.changes(after).patches) for after in (0, 1, 2)] == [1, 0, 0]


def test_there_are_no_changes_after_the_head(ledger: Ledger) -> None:
    live(ledger)
    changes = ledger.changes(1)
    assert (changes.head, changes.patches, changes.spans) == (1, (), ())


def test_a_change_names_what_its_patch_supersedes(ledger: Ledger) -> None:
    first = live(ledger)
    live(ledger, target="lost_card", supersedes=first)
    changes = ledger.changes(1)
    assert changes.patches[0].supersedes == first
    assert changes.spans == (Span(0, 1, 2), Span(1, 2, None))


def test_patch_bytes_come_in_the_order_asked_for(ledger: Ledger) -> None:
    ids = [live(ledger, text) for text in ("one", "two", "three")]
    assert ledger.patch_bytes([2, 0, 1]) == [ids[2].encode(), ids[0].encode(), ids[1].encode()]
    assert ledger.patch_bytes([]) == []


def test_the_bytes_of_an_unknown_patch_are_not_found(ledger: Ledger) -> None:
    live(ledger)
    with pytest.raises(NotFound, match="patch number 1"):
        ledger.patch_bytes([0, 1])


def test_patches_of_equal_bytes_are_two_patches(ledger: Ledger) -> None:
    for number, text in enumerate(("one", "two")):
        ledger.commit(claimed(ledger, text), learned(b"same"), expected_head=number)
    assert ledger.patch_bytes([0, 1]) == [b"same", b"same"]
    assert len(ledger.live_edits(2)) == 2


def test_an_edits_patch_is_found_also_after_its_revert(ledger: Ledger) -> None:
    edit_id = claimed(ledger)
    ledger.commit(edit_id, learned(b"\x00\xff"), expected_head=0)
    revert(ledger, edit_id)
    assert ledger.patch_of(edit_id) == (learned(b"\x00\xff").sha256, b"\x00\xff")


def test_an_edit_that_never_went_live_has_no_patch(ledger: Ledger) -> None:
    with pytest.raises(NotFound):
        ledger.patch_of(accept(ledger))
    with pytest.raises(NotFound, match=UNKNOWN):
        ledger.patch_of(UNKNOWN)


def test_the_texts_of_an_edit_are_its_input_and_then_its_rephrases(ledger: Ledger) -> None:
    first, second = live(ledger, "one"), live(ledger, "two")
    rephrase = "my card is not here"
    assert ledger.texts([second, first, UNKNOWN]) == {first: ("one", rephrase), second: ("two", rephrase)}
    assert ledger.texts([]) == {}


def test_activations_are_kept_for_those_that_have_some(ledger: Ledger) -> None:
    first, second = live(ledger, "one"), accept(ledger, "two")
    assert ledger.activations([first, second, UNKNOWN]) == {first: b"rows of " + first.encode()}


def test_the_live_edits_of_a_revision_are_in_the_order_of_first_going_live(ledger: Ledger) -> None:
    first, second = live(ledger, "one"), live(ledger, "two")
    revert(ledger, first)
    reapply(ledger, first)
    assert [ledger.live_edits(number) for number in range(5)] == [
        (),
        (first,),
        (first, second),
        (second,),
        (first, second),
    ]


def test_the_live_edits_of_an_unknown_revision_are_not_found(ledger: Ledger) -> None:
    with pytest.raises(NotFound, match=r"There is no revision 1\."):
        ledger.live_edits(1)


def test_more_patches_than_fit_one_statement_are_read_and_restored(ledger: Ledger) -> None:
    for number in range(3):
        live(ledger, f"text {number}")
    wanted = [0, 1, 2] * 700
    assert len(ledger.patch_bytes(wanted)) == len(wanted)
    restore(ledger, 0)
    assert ledger.live_edits(4) == ()
