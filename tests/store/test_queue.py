from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest

from app.errors import (
    Conflict,
    ConflictingEdit,
    IdempotencyKeyReused,
    NotFound,
    NotLive,
    QueueFull,
    RevisionMoved,
    UnknownEdit,
)
from app.store import Evidence, IdempotencyKey, Ledger, Status, Store
from app.store.canonical import digest
from tests.store.samples import (
    OTHER_IDENTITY,
    UNKNOWN,
    accept,
    claimed,
    draft,
    events,
    learned,
    live,
    rejected,
    revert,
    status,
)

KEY = IdempotencyKey("k1", "body 1")


def test_an_accepted_edit_is_queued_as_it_was_reported(ledger: Ledger) -> None:
    report = replace(draft("Où est ma carte ?", supersedes=None), options={"lam": 0.1 + 0.2}, dry_run=True)
    before = datetime.now(UTC)
    accepted = ledger.accept(report, actor="ann", limit=1)
    record = ledger.edit(accepted.edit_id)
    assert not accepted.replayed
    assert (record.draft, record.status) == (report, Status.QUEUED)
    assert before <= record.created_at <= datetime.now(UTC)


def test_what_a_report_requires_is_kept_and_sealed(ledger: Ledger) -> None:
    report = replace(draft(), required={"rephrases_hold": 1.0, "guard_fires": 0.1 + 0.2})
    plain, strict = (ledger.accept(each, actor="ann", limit=2).edit_id for each in (draft(), report))
    assert ledger.edit(strict).draft == report
    assert ledger.edit(plain).draft.required == {}
    assert ledger.history(strict)[0].detail != ledger.history(plain)[0].detail


def test_a_report_that_requires_nothing_is_sealed_by_the_names_it_always_had(ledger: Ledger) -> None:
    report = draft()
    names = ("input", "input_key", "target", "rephrases", "keep", "editor", "options", "reason", "reporter", "dry_run")
    sealed = {name: getattr(report, name) for name in (*names, "supersedes")}
    assert ledger.history(accept(ledger))[0].detail == {"draft": digest(sealed)}


def test_ids_are_version_7_and_sort_as_they_were_accepted(ledger: Ledger) -> None:
    ids = [accept(ledger, f"text {number}") for number in range(5)]
    assert ids == sorted(ids)
    assert {UUID(edit_id).version for edit_id in ids} == {7}


def test_accepting_is_the_first_row_of_the_history_and_names_the_actor(ledger: Ledger) -> None:
    (row,) = ledger.history(accept(ledger))
    assert (row.event, row.actor, row.seq) == ("queued", "ann", 1)


def test_the_same_key_and_body_give_the_same_edit_and_no_second_one(ledger: Ledger) -> None:
    first = ledger.accept(draft(), actor="ann", limit=9, key=KEY)
    again = ledger.accept(draft(), actor="ann", limit=9, key=KEY)
    assert (again.edit_id, again.replayed) == (first.edit_id, True)
    assert ledger.waiting() == 1


def test_a_key_with_another_body_is_refused(ledger: Ledger) -> None:
    ledger.accept(draft(), actor="ann", limit=9, key=KEY)
    with pytest.raises(IdempotencyKeyReused, match="'k1'"):
        ledger.accept(draft("other"), actor="ann", limit=9, key=IdempotencyKey("k1", "body 2"))


def test_a_replayed_key_is_answered_before_anything_else_is_checked(ledger: Ledger) -> None:
    first = ledger.accept(draft(), actor="ann", limit=1, key=KEY)
    again = ledger.accept(draft(supersedes=UNKNOWN), actor="ann", limit=0, key=KEY, if_match=99)
    assert again.edit_id == first.edit_id


def test_a_refused_report_leaves_its_key_unused(ledger: Ledger) -> None:
    with pytest.raises(QueueFull):
        ledger.accept(draft(), actor="ann", limit=0, key=KEY)
    assert not ledger.accept(draft(), actor="ann", limit=1, key=KEY).replayed


def test_if_match_with_the_head_is_accepted(ledger: Ledger) -> None:
    live(ledger)
    ledger.accept(draft("other"), actor="ann", limit=9, if_match=1)


def test_if_match_with_another_revision_is_refused(ledger: Ledger) -> None:
    with pytest.raises(RevisionMoved, match="The revision is 0, not 3"):
        ledger.accept(draft(), actor="ann", limit=9, if_match=3)


def test_a_live_edit_that_wants_another_answer_for_the_same_input_conflicts(ledger: Ledger) -> None:
    first = live(ledger, "Where is my card", "card_arrival")
    with pytest.raises(ConflictingEdit) as refused:
        accept(ledger, "where is my card", "lost_card")
    assert refused.value.members == {"conflicts": [first]}


def test_a_live_edit_with_the_same_answer_is_no_conflict(ledger: Ledger) -> None:
    live(ledger)
    accept(ledger)
    assert ledger.waiting() == 1


def test_a_reverted_edit_is_no_conflict(ledger: Ledger) -> None:
    revert(ledger, live(ledger))
    accept(ledger, target="lost_card")
    assert ledger.waiting() == 1


def test_naming_the_conflicting_edit_as_superseded_is_accepted(ledger: Ledger) -> None:
    first = live(ledger)
    second = accept(ledger, target="lost_card", supersedes=first)
    assert ledger.edit(second).draft.supersedes == first


def test_superseding_what_is_not_live_is_refused(ledger: Ledger) -> None:
    waiting = accept(ledger)
    with pytest.raises(NotLive, match=f"The edit {waiting} is queued"):
        accept(ledger, supersedes=waiting)


def test_superseding_what_does_not_exist_is_refused(ledger: Ledger) -> None:
    with pytest.raises(UnknownEdit, match=UNKNOWN):
        accept(ledger, supersedes=UNKNOWN)


def test_another_models_edit_cannot_be_superseded(ledger: Ledger, store: Store) -> None:
    other = live(store.ledger(OTHER_IDENTITY))
    with pytest.raises(UnknownEdit):
        accept(ledger, supersedes=other)


def test_a_full_queue_says_when_to_come_again(ledger: Ledger) -> None:
    claimed(ledger)
    accept(ledger, "other")
    with pytest.raises(QueueFull) as refused:
        ledger.accept(draft("third"), actor="ann", limit=2)
    assert int(refused.value.headers["Retry-After"]) > 0


def test_edits_that_have_ended_do_not_fill_the_queue(ledger: Ledger) -> None:
    rejected(ledger)
    live(ledger)
    ledger.accept(draft("third"), actor="ann", limit=1)


def test_the_oldest_edit_is_claimed_first(ledger: Ledger) -> None:
    ids = [accept(ledger, f"text {number}") for number in range(3)]
    assert [record.id for record in iter(ledger.claim, None)] == ids


def test_a_claimed_edit_is_fitting_since_then(ledger: Ledger) -> None:
    record = ledger.edit(claimed(ledger))
    assert record.status is Status.FITTING
    assert record.started_at is not None
    assert events(ledger, record.id) == ["queued", "fitting"]


def test_there_is_nothing_to_claim_in_an_empty_queue(ledger: Ledger) -> None:
    assert ledger.claim() is None


def test_judging_follows_fitting(ledger: Ledger) -> None:
    edit_id = claimed(ledger)
    assert ledger.judging(edit_id)
    assert status(ledger, edit_id) is Status.JUDGING


def test_a_cancelled_edit_is_not_judged(ledger: Ledger) -> None:
    edit_id = claimed(ledger)
    ledger.cancel(edit_id, actor="bob", reason="")
    assert not ledger.judging(edit_id)
    assert status(ledger, edit_id) is Status.CANCELLED


@pytest.mark.parametrize("end", [Status.REJECTED, Status.FAILED, Status.NOT_NEEDED, Status.DRY_RUN])
def test_an_edit_that_does_not_go_live_keeps_its_evidence(ledger: Ledger, end: Status) -> None:
    edit_id = claimed(ledger)
    evidence = Evidence(before={"a": 1}, after={"b": 2.5}, verdict={"passed": False}, fit={"steps": 7}, failure="No.")
    assert ledger.finish(edit_id, end, evidence, detail={"why": "gates"})
    record = ledger.edit(edit_id)
    assert (record.status, record.patch, record.revision) == (end, None, None)
    assert Evidence(record.before, record.after, record.verdict, record.fit, record.failure) == evidence
    assert record.finished_at is not None
    assert record.history[-1].event == end
    assert record.history[-1].detail["why"] == "gates"


def test_a_cancelled_edit_is_not_finished(ledger: Ledger) -> None:
    edit_id = claimed(ledger)
    ledger.cancel(edit_id, actor="bob", reason="")
    assert not ledger.finish(edit_id, Status.FAILED, Evidence(failure="No."), detail={})
    assert ledger.edit(edit_id).failure is None


@pytest.mark.parametrize("stage", ["queued", "fitting", "judging"])
def test_an_edit_is_cancelled_at_every_stage_of_the_work(ledger: Ledger, stage: str) -> None:
    edit_id = accept(ledger)
    if stage != "queued":
        ledger.claim()
    if stage == "judging":
        ledger.judging(edit_id)
    record = ledger.cancel(edit_id, actor="bob", reason="changed my mind")
    assert record.status is Status.CANCELLED
    assert (record.history[-1].actor, record.history[-1].detail["reason"]) == ("bob", "changed my mind")


def test_cancelling_twice_is_cancelling_once(ledger: Ledger) -> None:
    edit_id = accept(ledger)
    assert ledger.cancel(edit_id, actor="bob", reason="") == ledger.cancel(edit_id, actor="eve", reason="again")


def test_a_cancelled_edit_is_not_claimed(ledger: Ledger) -> None:
    ledger.cancel(accept(ledger), actor="bob", reason="")
    assert ledger.claim() is None


def test_an_edit_that_never_went_live_cannot_be_cancelled_afterwards(ledger: Ledger) -> None:
    edit_id = rejected(ledger)
    with pytest.raises(NotLive, match="it is rejected"):
        ledger.cancel(edit_id, actor="bob", reason="")


def test_a_live_edit_cannot_be_cancelled(ledger: Ledger) -> None:
    edit_id = live(ledger)
    with pytest.raises(Conflict, match="is live"):
        ledger.cancel(edit_id, actor="bob", reason="")


def test_an_unknown_edit_cannot_be_cancelled(ledger: Ledger) -> None:
    with pytest.raises(NotFound, match=UNKNOWN):
        ledger.cancel(UNKNOWN, actor="bob", reason="")


def test_what_a_dead_worker_had_in_work_is_queued_again_in_its_old_place(ledger: Ledger) -> None:
    ids = [accept(ledger, f"text {number}") for number in range(3)]
    ledger.claim()
    ledger.claim()
    ledger.judging(ids[1])
    assert ledger.requeue_abandoned() == 2
    assert events(ledger, ids[1]) == ["queued", "fitting", "judging", "requeued"]
    assert [record.id for record in iter(ledger.claim, None)] == ids


def test_a_worker_whose_edit_was_queued_again_cannot_bring_it_to_an_end(ledger: Ledger) -> None:
    edit_id = claimed(ledger)
    ledger.requeue_abandoned()
    assert ledger.commit(edit_id, learned(), expected_head=0) is None
    assert not ledger.finish(edit_id, Status.FAILED, Evidence(), detail={})


def test_waiting_counts_what_is_queued_only(ledger: Ledger) -> None:
    claimed(ledger)
    accept(ledger, "one")
    accept(ledger, "two")
    assert ledger.waiting() == 2


def test_each_model_has_a_queue_of_its_own(ledger: Ledger, store: Store) -> None:
    edit_id = accept(ledger)
    other = store.ledger(OTHER_IDENTITY)
    assert other.claim() is None
    with pytest.raises(NotFound):
        other.edit(edit_id)
