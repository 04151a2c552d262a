"""An edit that the removal of another has broken waits for another patch, and keeps every one that it had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from app.errors import NotFound
from app.store import Cause, HeadMoved, Ledger, Span, Status, Store
from tests.store.samples import (
    OTHER_IDENTITY,
    UNKNOWN,
    accept,
    broken,
    events,
    learned,
    live,
    reapply,
    refit,
    rejected,
    restore,
    revert,
    status,
)


def due(ledger: Ledger, edit_id: str) -> int | None:
    return ledger.edit(edit_id).refit_due


def test_an_edit_broken_by_a_revert_says_by_which_and_stays_live(ledger: Ledger) -> None:
    first, second = live(ledger, "one"), live(ledger, "two")
    revert(ledger, second, broken=[first])
    record = ledger.edit(first)
    assert (record.status, record.refit_due) == (Status.LIVE, None)
    assert (record.history[-1].event, record.history[-1].detail) == ("broken", {"revision": 3, "by": second})


def test_only_edits_that_are_live_after_the_revert_are_called_broken(ledger: Ledger) -> None:
    never, below = rejected(ledger), live(ledger)
    above = live(ledger, target="lost_card", supersedes=below)
    gone = live(ledger, "gone")
    revert(ledger, gone)
    revert(ledger, above, broken=[gone, below, above, UNKNOWN, never], refit=True)
    assert events(ledger, below)[-2:] == ["returned", "broken"]
    assert (due(ledger, below), due(ledger, gone), due(ledger, above)) == (5, None, None)
    assert "broken" not in events(ledger, gone) + events(ledger, above)


def test_the_oldest_edit_that_waits_is_claimed_and_goes_on_waiting(ledger: Ledger) -> None:
    ids = broken(ledger, "one", "two")
    claims = [ledger.claim_refit() for _ in range(2)]
    assert [claim.id for claim in claims if claim is not None] == [ids[0], ids[0]]
    assert claims[0] == ledger.edit(ids[0])


def test_nothing_waits_where_nothing_was_asked_to_be_fitted_again(ledger: Ledger, store: Store) -> None:
    other = store.ledger(OTHER_IDENTITY)
    broken(ledger, "one")
    edit_id = live(other, "one")
    revert(other, live(other, "two"), broken=[edit_id])
    assert other.claim_refit() is None


def test_an_edit_broken_again_waits_since_it_first_broke(ledger: Ledger) -> None:
    (edit_id,) = broken(ledger, "one")
    revert(ledger, live(ledger, "two"), broken=[edit_id], refit=True)
    revert(ledger, live(ledger, "three"), broken=[edit_id])
    assert due(ledger, edit_id) == 3
    assert events(ledger, edit_id).count("broken") == 3


def test_a_refitted_edit_is_live_with_its_new_patch_and_new_evidence(ledger: Ledger) -> None:
    (edit_id,) = broken(ledger, "one")
    former = ledger.edit(edit_id)
    revision = refit(ledger, edit_id)
    assert revision is not None
    assert (revision.number, revision.cause, revision.edit_id) == (4, Cause.REFIT, edit_id)
    record = ledger.edit(edit_id)
    assert (record.status, record.revision, record.refit_due) == (Status.LIVE, 4, None)
    assert (record.after, record.fit) == ({"refitted": "another patch"}, {"steps": 13})
    assert former.patch is not None
    assert record.patch is not None
    told = record.history[-1]
    assert told.event == "refitted"
    assert told.detail["patch"] == record.patch.sha256 == learned(b"another patch").sha256
    assert (told.detail["replaced"], told.detail["revision"]) == (former.patch.sha256, 4)


def test_a_refit_is_a_new_patch_of_the_ledger_and_ends_the_span_of_the_old_one(ledger: Ledger) -> None:
    (edit_id,) = broken(ledger, "one")
    refit(ledger, edit_id)
    changes = ledger.changes(3)
    assert [(patch.number, patch.edit_id) for patch in changes.patches] == [(2, edit_id)]
    assert changes.spans == (Span(0, 1, 4), Span(2, 4, None))
    assert ledger.live_edits(4) == (edit_id,)


def test_every_patch_of_an_edit_is_found_by_its_sha256(ledger: Ledger) -> None:
    (edit_id,) = broken(ledger, "one")
    former, _ = ledger.patch_of(edit_id)
    refit(ledger, edit_id)
    assert ledger.patch_of(edit_id) == (learned(b"another patch").sha256, b"another patch")
    assert ledger.patch_of(edit_id, former) == (former, edit_id.encode())
    with pytest.raises(NotFound, match=edit_id):
        ledger.patch_of(edit_id, learned(b"of nobody").sha256)


def test_the_activations_of_an_edit_are_kept_once(ledger: Ledger) -> None:
    (edit_id,) = broken(ledger, "one")
    refit(ledger, edit_id)
    assert ledger.activations([edit_id]) == {edit_id: b"rows of " + edit_id.encode()}


def test_a_refit_to_the_very_same_bytes_is_a_second_patch(ledger: Ledger) -> None:
    (edit_id,) = broken(ledger, "one")
    refit(ledger, edit_id, edit_id.encode())
    sha256 = learned(edit_id.encode()).sha256
    assert ledger.patch_of(edit_id, sha256) == ledger.patch_of(edit_id) == (sha256, edit_id.encode())
    assert ledger.patch_bytes([0, 2]) == [edit_id.encode()] * 2
    assert ledger.verify() == []


@pytest.mark.parametrize("make", [accept, rejected, live])
def test_an_edit_that_does_not_wait_is_not_refitted(ledger: Ledger, make: Callable[[Ledger], str]) -> None:
    edit_id = make(ledger)
    head = ledger.head()
    assert refit(ledger, edit_id) is None
    assert not ledger.refit_failed(edit_id, reason="No.", verdict=None)
    assert ledger.head() == head
    assert not {"refitted", "refit_failed"} & {*events(ledger, edit_id)}


def test_an_unknown_edit_is_not_refitted(ledger: Ledger) -> None:
    with pytest.raises(NotFound, match=UNKNOWN):
        refit(ledger, UNKNOWN)


def test_a_refit_on_a_head_that_has_moved_changes_nothing(ledger: Ledger) -> None:
    (edit_id,) = broken(ledger, "one")
    before = ledger.edit(edit_id)
    with pytest.raises(HeadMoved):
        ledger.refit(edit_id, learned(), expected_head=2)
    assert ledger.edit(edit_id) == before
    assert ledger.head() == 3


def test_a_refit_whose_bytes_are_not_what_their_hash_says_changes_nothing(ledger: Ledger) -> None:
    (edit_id,) = broken(ledger, "one")
    with pytest.raises(ValueError, match=edit_id):
        ledger.refit(edit_id, replace(learned(), patch=b"other"), expected_head=3)
    assert (ledger.head(), due(ledger, edit_id)) == (3, 3)


def test_a_refit_that_failed_leaves_the_edit_as_it_is_and_says_why(ledger: Ledger) -> None:
    (edit_id,) = broken(ledger, "one")
    before = ledger.edit(edit_id)
    assert ledger.refit_failed(edit_id, reason="gates", verdict={"passed": False})
    after = ledger.edit(edit_id)
    assert (after.status, after.refit_due, ledger.claim_refit()) == (Status.LIVE, None, None)
    assert (after.patch, after.verdict) == (before.patch, before.verdict)
    assert after.history[-1].event == "refit_failed"
    assert after.history[-1].detail == {"reason": "gates", "verdict": {"passed": False}}


@pytest.mark.parametrize(
    "take_out",
    [
        revert,
        lambda ledger, _: restore(ledger, 0),
        lambda ledger, edit_id: live(ledger, "one", "x", supersedes=edit_id),
    ],
    ids=["revert", "restore", "supersede"],
)
def test_what_is_not_live_any_more_does_not_wait(ledger: Ledger, take_out: Callable[[Ledger, str], object]) -> None:
    (edit_id,) = broken(ledger, "one")
    take_out(ledger, edit_id)
    assert due(ledger, edit_id) is None
    assert ledger.claim_refit() is None
    restore(ledger, 3)
    assert (status(ledger, edit_id), due(ledger, edit_id)) == (Status.LIVE, None)


def test_an_edit_that_stays_live_through_a_restore_goes_on_waiting(ledger: Ledger) -> None:
    (edit_id,) = broken(ledger, "one")
    restore(ledger, 1)
    assert due(ledger, edit_id) == 3


@pytest.mark.parametrize("comes_back", [reapply, lambda ledger, _: restore(ledger, 4)], ids=["reapply", "restore"])
def test_a_refitted_edit_comes_back_with_its_new_patch(
    ledger: Ledger, comes_back: Callable[[Ledger, str], object]
) -> None:
    (edit_id,) = broken(ledger, "one")
    refit(ledger, edit_id)
    revert(ledger, edit_id)
    comes_back(ledger, edit_id)
    assert ledger.patch_of(edit_id)[1] == b"another patch"
    assert ledger.changes(5).spans == (Span(2, 6, None),)


def test_a_superseded_edit_returns_with_the_patch_that_it_had_last(ledger: Ledger) -> None:
    (edit_id,) = broken(ledger, "one")
    refit(ledger, edit_id)
    revert(ledger, live(ledger, "one", "lost_card", supersedes=edit_id))
    assert status(ledger, edit_id) is Status.LIVE
    assert ledger.changes(5).spans[0] == Span(2, 6, None)


@pytest.mark.parametrize("meanwhile", [lambda *_: None, revert], ids=["live", "reverted"])
def test_restoring_a_revision_gives_an_edit_the_patch_it_had_then_and_that_patchs_evidence(
    ledger: Ledger, meanwhile: Callable[[Ledger, str], object]
) -> None:
    (edit_id,) = broken(ledger, "one")
    former = ledger.edit(edit_id)
    refit(ledger, edit_id)
    refitted = ledger.edit(edit_id)
    meanwhile(ledger, edit_id)
    revision = restore(ledger, 1)
    record = ledger.edit(edit_id)
    assert former.patch is not None
    assert (record.status, record.revision, record.patch) == (Status.LIVE, revision.number, former.patch)
    assert (record.before, record.after, record.verdict, record.fit) == (
        former.before,
        former.after,
        former.verdict,
        former.fit,
    )
    assert record.history[-1].event == "restored"
    assert record.history[-1].detail["patch"] == former.patch.sha256
    assert ledger.verify() == []
    restore(ledger, 4)
    again = ledger.edit(edit_id)
    assert (again.patch, again.after, again.fit) == (refitted.patch, refitted.after, refitted.fit)
    assert ledger.verify() == []


def test_a_restored_patch_comes_with_what_was_found_when_it_was_last_judged(ledger: Ledger) -> None:
    edit_id = live(ledger, "one")
    revert(ledger, edit_id)
    reapply(ledger, edit_id)
    revert(ledger, live(ledger, "two"), broken=[edit_id], refit=True)
    refit(ledger, edit_id)
    restore(ledger, 3)
    assert ledger.edit(edit_id).after == {"again": 1}
    assert ledger.verify() == []


def test_an_edit_restored_with_another_patch_does_not_wait(ledger: Ledger) -> None:
    (edit_id,) = broken(ledger, "one")
    refit(ledger, edit_id)
    revert(ledger, live(ledger, "two"), broken=[edit_id], refit=True)
    restore(ledger, 1)
    assert due(ledger, edit_id) is None


def test_a_listing_shows_a_refitted_edit_once(ledger: Ledger) -> None:
    (edit_id,) = broken(ledger, "one")
    refit(ledger, edit_id)
    assert [item.id for item in ledger.edits(status=Status.LIVE).items] == [edit_id]
