from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from app.errors import ConflictingEdit, NotFound, NotLive, NotReverted, Unprocessable
from app.store import Cause, HeadMoved, Ledger, Status, Store
from tests.store.samples import (
    IDENTITY,
    OTHER_IDENTITY,
    UNKNOWN,
    accept,
    claimed,
    events,
    learned,
    live,
    reapply,
    rejected,
    restore,
    revert,
    status,
)


def test_a_new_ledger_stands_at_revision_0_the_unedited_model(ledger: Ledger) -> None:
    assert ledger.head() == 0
    assert ledger.revision(0).cause is Cause.BASE
    assert ledger.live_edits(0) == ()


def test_a_ledger_is_found_again_by_the_fingerprint(ledger: Ledger, store: Store) -> None:
    live(ledger)
    assert store.ledger(replace(IDENTITY, name="moved to another folder")).head() == 1


def test_each_model_has_a_ledger_of_its_own(ledger: Ledger, store: Store) -> None:
    live(ledger)
    assert store.ledger(OTHER_IDENTITY).head() == 0


def test_a_committed_edit_is_live_with_all_its_evidence(ledger: Ledger) -> None:
    edit_id = claimed(ledger)
    ledger.judging(edit_id)
    revision = ledger.commit(edit_id, learned(), expected_head=0)
    assert revision is not None
    assert (revision.number, revision.cause, revision.edit_id, revision.actor) == (1, Cause.EDIT, edit_id, "ann")
    record = ledger.edit(edit_id)
    assert (record.status, record.revision) == (Status.LIVE, 1)
    brought = learned()
    assert (record.before, record.after, record.verdict, record.fit) == (
        brought.before,
        brought.after,
        brought.verdict,
        brought.fit,
    )
    assert record.patch is not None
    assert (record.patch.sha256, record.patch.bytes, record.patch.format) == (brought.sha256, 5, "safetensors/1")
    assert record.history[-1].detail["revision"] == 1


def test_a_commit_on_a_head_that_has_moved_changes_nothing(ledger: Ledger) -> None:
    live(ledger, "first")
    edit_id = claimed(ledger, "second")
    with pytest.raises(HeadMoved) as refused:
        ledger.commit(edit_id, learned(), expected_head=0)
    assert (refused.value.expected, refused.value.head) == (0, 1)
    assert (status(ledger, edit_id), ledger.head()) == (Status.FITTING, 1)


def test_a_cancelled_edit_is_not_committed(ledger: Ledger) -> None:
    edit_id = claimed(ledger)
    ledger.cancel(edit_id, actor="bob", reason="")
    assert ledger.commit(edit_id, learned(), expected_head=0) is None
    assert ledger.head() == 0


def test_a_commit_is_refused_if_another_answer_for_its_input_went_live_meanwhile(ledger: Ledger) -> None:
    first = claimed(ledger, target="card_arrival")
    second = claimed(ledger, target="lost_card")
    ledger.commit(first, learned(), expected_head=0)
    with pytest.raises(ConflictingEdit) as refused:
        ledger.commit(second, learned(), expected_head=1)
    assert refused.value.members == {"conflicts": [first]}


def test_a_patch_that_is_not_what_its_hash_says_is_not_committed(ledger: Ledger) -> None:
    edit_id = claimed(ledger)
    with pytest.raises(ValueError, match=edit_id):
        ledger.commit(edit_id, replace(learned(), patch=b"other"), expected_head=0)
    assert (ledger.head(), status(ledger, edit_id)) == (0, Status.FITTING)


def test_an_edit_that_supersedes_another_takes_its_place(ledger: Ledger) -> None:
    first = live(ledger)
    second = live(ledger, target="lost_card", supersedes=first)
    assert ledger.live_edits(2) == (second,)
    assert status(ledger, first) is Status.SUPERSEDED
    assert events(ledger, first)[-1] == "superseded"


def test_an_edit_goes_live_although_what_it_superseded_was_reverted_meanwhile(ledger: Ledger) -> None:
    first = live(ledger)
    second = claimed(ledger, target="lost_card", supersedes=first)
    revert(ledger, first)
    ledger.commit(second, learned(), expected_head=2)
    assert ledger.live_edits(3) == (second,)
    assert status(ledger, first) is Status.REVERTED


def test_a_reverted_edit_is_out_of_the_next_revision_and_stays_in_the_former(ledger: Ledger) -> None:
    first, second = live(ledger, "one"), live(ledger, "two")
    revision = revert(ledger, first)
    assert (revision.number, revision.cause, revision.actor) == (3, Cause.REVERT, "bob")
    assert ledger.live_edits(3) == (second,)
    assert ledger.live_edits(2) == (first, second)
    record = ledger.edit(first)
    assert (record.status, record.reverted_revision, record.reverted_at) == (Status.REVERTED, 3, revision.at)


def test_a_reverts_reason_and_verdict_are_in_the_history_and_the_edits_own_verdict_stays(ledger: Ledger) -> None:
    edit_id = live(ledger)
    ledger.revert(edit_id, actor="bob", reason="wrong", verdict={"passed": False}, expected_head=1)
    record = ledger.edit(edit_id)
    assert record.history[-1].detail == {"reason": "wrong", "revision": 2, "verdict": {"passed": False}}
    assert record.verdict == learned().verdict


def test_reverting_brings_back_what_the_edit_had_superseded(ledger: Ledger) -> None:
    first = live(ledger)
    second = live(ledger, target="lost_card", supersedes=first)
    assert ledger.returning(second) == first
    revert(ledger, second)
    assert ledger.live_edits(3) == (first,)
    record = ledger.edit(first)
    assert (record.status, record.revision, record.history[-1].event) == (Status.LIVE, 3, "returned")


def test_reverting_one_of_a_chain_brings_back_only_the_next(ledger: Ledger) -> None:
    first = live(ledger, target="a")
    second = live(ledger, target="b", supersedes=first)
    third = live(ledger, target="c", supersedes=second)
    revert(ledger, third)
    assert ledger.live_edits(4) == (second,)
    assert status(ledger, first) is Status.SUPERSEDED


def test_a_superseded_edit_does_not_come_back_against_another_live_answer(ledger: Ledger) -> None:
    first = live(ledger, target="a")
    second = live(ledger, target="b", supersedes=first)
    third = live(ledger, target="b")
    assert ledger.returning(second) is None
    revert(ledger, second)
    assert ledger.live_edits(4) == (third,)
    assert status(ledger, first) is Status.REVERTED  # and so it can be applied again once the way is free


def test_a_superseded_edit_does_not_come_back_while_a_second_one_supersedes_it(ledger: Ledger) -> None:
    first = live(ledger, target="a")
    second = accept(ledger, target="b", supersedes=first)
    third = accept(ledger, target="b", supersedes=first)
    for edit_id in (second, third):
        ledger.claim()
        ledger.commit(edit_id, learned(edit_id.encode()), expected_head=ledger.head())
    revert(ledger, second)
    assert ledger.live_edits(4) == (third,)
    assert status(ledger, first) is Status.SUPERSEDED


def test_a_superseded_edit_cannot_be_reverted_and_names_its_successor(ledger: Ledger) -> None:
    first = live(ledger)
    second = live(ledger, target="lost_card", supersedes=first)
    with pytest.raises(NotLive, match=f"the edit {second} superseded it"):
        revert(ledger, first)


def test_a_reverted_edit_cannot_be_reverted_again(ledger: Ledger) -> None:
    edit_id = live(ledger)
    revert(ledger, edit_id)
    with pytest.raises(NotLive, match="reverted in revision 2"):
        revert(ledger, edit_id)
    assert ledger.head() == 2


def test_an_edit_that_never_went_live_cannot_be_reverted(ledger: Ledger) -> None:
    with pytest.raises(NotLive, match="it is rejected"):
        revert(ledger, rejected(ledger))


def test_an_unknown_edit_cannot_be_reverted(ledger: Ledger) -> None:
    with pytest.raises(NotFound, match=UNKNOWN):
        revert(ledger, UNKNOWN)


def test_a_revert_on_a_head_that_has_moved_changes_nothing(ledger: Ledger) -> None:
    edit_id = live(ledger)
    with pytest.raises(HeadMoved):
        ledger.revert(edit_id, actor="bob", reason="", verdict={}, expected_head=0)
    assert status(ledger, edit_id) is Status.LIVE


def test_a_reapplied_edit_is_live_again_in_its_old_place_with_its_new_evidence(ledger: Ledger) -> None:
    first, second = live(ledger, "one"), live(ledger, "two")
    revert(ledger, first)
    revision = reapply(ledger, first)
    assert revision.cause is Cause.REAPPLY
    assert ledger.live_edits(4) == (first, second)
    record = ledger.edit(first)
    assert (record.status, record.revision, record.reverted_at) == (Status.LIVE, 4, None)
    assert (record.verdict, record.after) == ({"passed": True, "again": 1}, {"again": 1})
    assert record.before == learned().before
    assert record.history[-1].event == "reapplied"


def test_reapplying_supersedes_again(ledger: Ledger) -> None:
    first = live(ledger)
    second = live(ledger, target="lost_card", supersedes=first)
    revert(ledger, second)
    reapply(ledger, second)
    assert ledger.live_edits(4) == (second,)
    assert status(ledger, first) is Status.SUPERSEDED


def test_reapplying_against_another_live_answer_is_refused(ledger: Ledger) -> None:
    first = live(ledger)
    revert(ledger, first)
    second = live(ledger, target="lost_card")
    with pytest.raises(ConflictingEdit) as refused:
        reapply(ledger, first)
    assert refused.value.members == {"conflicts": [second]}


@pytest.mark.parametrize("make", [accept, live, rejected])
def test_only_a_reverted_edit_is_reapplied(ledger: Ledger, make: Callable[[Ledger], str]) -> None:
    edit_id = make(ledger)
    with pytest.raises(NotReverted, match=edit_id):
        reapply(ledger, edit_id)


def test_a_reapply_on_a_head_that_has_moved_changes_nothing(ledger: Ledger) -> None:
    edit_id = live(ledger)
    revert(ledger, edit_id)
    with pytest.raises(HeadMoved):
        ledger.reapply(edit_id, actor="bob", verdict={}, after={}, expected_head=1)
    assert status(ledger, edit_id) is Status.REVERTED


def test_a_restored_revision_has_the_patches_of_the_old_one_in_the_same_order(ledger: Ledger) -> None:
    first, second, third = (live(ledger, text) for text in ("one", "two", "three"))
    revert(ledger, first)
    revision = restore(ledger, 3)
    assert (revision.number, revision.cause, revision.edit_id) == (5, Cause.RESTORE, None)
    assert ledger.live_edits(5) == (first, second, third)


def test_restoring_revision_0_reverts_everything(ledger: Ledger) -> None:
    ids = [live(ledger, text) for text in ("one", "two")]
    restore(ledger, 0)
    assert ledger.live_edits(3) == ()
    records = [ledger.edit(edit_id) for edit_id in ids]
    assert {(record.status, record.reverted_revision) for record in records} == {(Status.REVERTED, 3)}


def test_restoring_the_head_makes_a_revision_and_changes_no_edit(ledger: Ledger) -> None:
    edit_id = live(ledger)
    before = ledger.edit(edit_id)
    assert restore(ledger, 1).number == 2
    assert ledger.edit(edit_id) == before


def test_restoring_tells_every_edit_that_it_changes(ledger: Ledger) -> None:
    first = live(ledger, "one")
    second = live(ledger, "two")
    revert(ledger, first)
    restore(ledger, 1)
    assert events(ledger, first)[-1] == "restored"
    assert events(ledger, second)[-1] == "reverted"
    assert ledger.history(second)[-1].detail == {"revision": 4, "restored": 1}


def test_what_a_restored_edit_supersedes_is_superseded_again(ledger: Ledger) -> None:
    first = live(ledger)
    second = live(ledger, target="lost_card", supersedes=first)
    revert(ledger, second)
    restore(ledger, 2)
    assert ledger.live_edits(4) == (second,)
    assert status(ledger, first) is Status.SUPERSEDED
    revert(ledger, second)
    assert ledger.live_edits(5) == (first,)


def test_what_is_superseded_through_others_is_superseded_again_after_a_restore(ledger: Ledger) -> None:
    first = live(ledger, target="a")
    second = live(ledger, target="b", supersedes=first)
    third = live(ledger, target="c", supersedes=second)
    restore(ledger, 0)
    restore(ledger, 3)
    assert [status(ledger, edit_id) for edit_id in (first, second, third)] == [
        Status.SUPERSEDED,
        Status.SUPERSEDED,
        Status.LIVE,
    ]


def test_a_superseded_edit_can_be_applied_again_once_a_restore_has_taken_its_successor_away(ledger: Ledger) -> None:
    first = live(ledger)
    second = live(ledger, target="lost_card", supersedes=first)
    restore(ledger, 0)
    assert (status(ledger, first), status(ledger, second)) == (Status.REVERTED, Status.REVERTED)
    reapply(ledger, first)
    assert ledger.live_edits(4) == (first,)


def test_there_is_no_restoring_a_revision_that_does_not_exist(ledger: Ledger) -> None:
    with pytest.raises(NotFound, match=r"There is no revision 9\."):
        restore(ledger, 9)


def test_a_restore_on_a_head_that_has_moved_changes_nothing(ledger: Ledger) -> None:
    live(ledger)
    with pytest.raises(HeadMoved):
        ledger.restore(0, actor="bob", reason="", expected_head=0)
    assert ledger.head() == 1


@pytest.mark.parametrize("number", [-1, 1, 2**31, 10**40])
def test_a_revision_that_does_not_exist_is_not_found(ledger: Ledger, number: int) -> None:
    with pytest.raises(NotFound, match=f"There is no revision {number}"):
        ledger.revision(number)


def test_revisions_are_listed_newest_first_page_by_page(ledger: Ledger) -> None:
    for text in ("one", "two", "three"):
        live(ledger, text)
    first = ledger.revisions(limit=3)
    live(ledger, "meanwhile")
    second = ledger.revisions(limit=3, cursor=first.next_cursor)
    assert [item.number for item in first.items + second.items] == [3, 2, 1, 0]
    assert second.next_cursor is None


def test_a_revision_of_the_listing_is_the_revision_itself(ledger: Ledger) -> None:
    live(ledger)
    assert ledger.revisions().items == (ledger.revision(1), ledger.revision(0))


def test_revisions_refuse_a_cursor_that_no_page_gave(ledger: Ledger) -> None:
    with pytest.raises(Unprocessable, match="'no cursor'"):
        ledger.revisions(cursor="no cursor")


def test_an_edit_below_a_live_one_cannot_be_reapplied(ledger: Ledger) -> None:
    first = live(ledger, target="a")
    second = live(ledger, target="b", supersedes=first)
    third = live(ledger, text="another input", target="c", supersedes=second)
    for edit_id in (third, second):
        revert(ledger, edit_id)
    reapply(ledger, third)
    revert(ledger, first)
    with pytest.raises(ConflictingEdit, match=third):
        reapply(ledger, second)


def test_a_superseded_edit_does_not_come_back_below_one_that_supersedes_it_through_others(ledger: Ledger) -> None:
    first = live(ledger, target="a")
    second = live(ledger, target="b", supersedes=first)
    third = live(ledger, text="another input", target="c", supersedes=second)
    restore(ledger, 2)
    restore(ledger, 3)
    assert status(ledger, first) is Status.SUPERSEDED
    assert ledger.live_edits(ledger.head()) == (third,)


def test_an_edit_that_is_judged_again_is_still_in_work(ledger: Ledger) -> None:
    edit_id = claimed(ledger)
    assert ledger.judging(edit_id)
    assert ledger.judging(edit_id)
    assert events(ledger, edit_id).count("judging") == 1
