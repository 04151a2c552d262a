"""Works on the queued edits of one model, one after the other: capture, fit, judge, commit, live.

Whatever goes wrong, an edit ends in the store: live, rejected, failed, not needed, cancelled, or queued still.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog

from app import heap
from app.editing.learning import Attempt, Cancelled, Candidate, Learning, evidence, learned
from app.editing.several import MOST, Several
from app.editing.workshop import Workshop
from app.engine import Live
from app.errors import ConflictingEdit, Unavailable
from app.observe import Metrics
from app.store import IN_WORK, EditRecord, Evidence, HeadMoved, QueueLock, Status
from editors.errors import EditorError

IDLE_SECONDS = 1.0
"""How long the worker rests between two looks at an empty queue that nobody told it of."""

NO_CONFLICT = "no_conflict"
"""The gate of an edit whose input got another answer, by an edit that went live first."""
MOST_ATTEMPTS = 20
"""How often an edit is begun anew because something else changed the revision while it was worked on."""

log = structlog.get_logger()


class Worker:
    """The life of each edit between `queued` and its end."""

    def __init__(self, shop: Workshop, metrics: Metrics, *, rounds: int) -> None:
        self._shop = shop
        self._metrics = metrics
        self._wake = asyncio.Event()
        self._stopping = False
        self._abandoned = False  # whether an edit was left in work here because its end could not be recorded
        self._seen: Live | None = None  # what the judge was told to look at last
        self._in_hand: frozenset[str] = frozenset()
        self._cancelled: set[str] = set()  # of the edits in hand
        self._learning = Learning(shop, metrics, rounds=rounds, cancelled=self._cancelled.__contains__)
        self._several = Several(shop, metrics)

    def wake(self) -> None:
        """There is an edit in the queue."""
        self._wake.set()

    def cancel(self, edit_id: str) -> None:
        """Stop fitting this edit, if it is in hand here."""
        if edit_id in self._in_hand:
            self._cancelled.add(edit_id)

    def stop(self) -> None:
        """Finish the edit in hand, leave the rest queued."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Work until stopped. Of all processes on one model, one at a time works its queue."""
        lock = self._shop.ledger.queue_lock()
        looking = asyncio.create_task(self._look_first())
        try:
            while not self._stopping:
                if await self._holds(lock) and await self._work_on_next():
                    continue
                if looking.done():
                    await self._look()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), IDLE_SECONDS)
                self._wake.clear()
        finally:
            looking.cancel()
            lock.release()

    async def _look_first(self) -> None:
        """Look at all that is live when the process starts: of many edits that takes a while, and much memory."""
        await self._look()
        await asyncio.to_thread(heap.give_back)

    async def _look(self) -> None:
        """Let the judge see what is live before there is anything to judge, which then need not wait for that."""
        live = self._shop.engine.live
        if live is self._seen:
            return
        self._seen = live
        try:
            await self._shop.judged(self._shop.judge.look(live))
        except HeadMoved:  # somebody was faster
            return
        except Exception:  # the job boundary: it is seen with the first verdict
            log.exception("cannot see how the live edits stand")

    async def _holds(self, lock: QueueLock) -> bool:
        """Whether this process may work the queue; takes up what a dead process left when it comes to it."""
        try:
            held = await asyncio.to_thread(lock.held)
            if held and not self._abandoned:
                return True
            if not held and not await asyncio.to_thread(lock.try_acquire):
                return False
            self._abandoned = True  # until it is known that nothing is
            requeued = await asyncio.to_thread(self._shop.ledger.requeue_abandoned)
            self._abandoned = False
        except Exception:  # the job boundary: the database may be away for a while
            log.exception("cannot look after the queue")
            return False
        log.info("working the queue", taken_up_again=requeued)
        return True

    async def _work_on_next(self) -> bool:
        """The oldest edits of the queue, as many as can be learned together; else one that is to be fitted again."""
        try:
            waiting = await asyncio.to_thread(self._shop.ledger.queued, MOST)
            records = await self._claimed(self._several.chosen(waiting)) if waiting else []
        except Exception:  # the job boundary: the database may be away for a while
            log.exception("cannot claim an edit")
            return False
        if not records:
            return await self._refit_next()
        for record in records:
            self._shop.listeners.tell(record.id)
        self._in_hand = frozenset(record.id for record in records)
        self._cancelled.clear()
        try:
            left = await self._worked_on_together(records) if len(records) > 1 else records
            for record in left:
                if self._stopping and record is not left[0]:  # it is queued again at the next start
                    break
                self._ended(record.id, await self._work_on_or_fail(record))
        except Unavailable as error:  # what is left is queued again as soon as the database answers
            log.warning("edits are left in work", edit_ids=[record.id for record in records], reason=str(error))
            self._abandoned = True
            return False
        return True

    async def _claimed(self, chosen: Sequence[EditRecord]) -> list[EditRecord]:
        if len(chosen) > 1:
            return await asyncio.to_thread(self._shop.ledger.claim_these, [record.id for record in chosen])
        record = await asyncio.to_thread(self._shop.ledger.claim)
        return [] if record is None else [record]

    async def _worked_on_together(self, records: Sequence[EditRecord]) -> list[EditRecord]:
        """The edits that are still to be worked on, each by itself."""
        ended: Mapping[str, Status] = {}
        try:
            ended = await self._several.work(records)
        except Unavailable:
            raise
        except HeadMoved:
            log.info("the revision moved on, working on each edit by itself", edits=len(records))
        except Exception:  # the job boundary: if it comes from one of them, it fails alone
            log.exception("edits could not be learned together", edits=len(records))
        for edit_id, status in ended.items():
            self._ended(edit_id, status)
        unsettled = [record.id for record in records if record.id not in ended]
        now = await asyncio.to_thread(self._shop.ledger.records, unsettled)
        for edit_id, record in now.items():
            if record.status not in IN_WORK:
                self._ended(edit_id, record.status)
        return [now[edit_id] for edit_id in unsettled if now[edit_id].status in IN_WORK]

    def _ended(self, edit_id: str, status: Status) -> None:
        self._metrics.edits.labels(status.value).inc()
        self._shop.listeners.tell(edit_id)
        log.info("edit done", edit_id=edit_id, status=status.value)

    async def _work_on_or_fail(self, record: EditRecord) -> Status:
        try:
            return await self._work_on(record)
        except Unavailable:
            raise
        except Exception as error:  # the job boundary: recorded, and the next edit is taken
            log.exception("an edit failed", edit_id=record.id)
            return await self._fail(record, f"The service failed: {type(error).__name__}: {error}")

    async def _work_on(self, record: EditRecord) -> Status:
        for _ in range(MOST_ATTEMPTS):
            try:
                return await self._attempt(record)
            except HeadMoved:
                log.info("the revision moved on, fitting and judging again", edit_id=record.id)
            except Cancelled:
                return Status.CANCELLED
            except ConflictingEdit as error:
                return await self._finish(record, Status.REJECTED, Evidence(verdict=_conflict_verdict(error)))
            except EditorError as error:
                return await self._fail(record, str(error))
        return await self._fail(record, f"The revision moved on during each of {MOST_ATTEMPTS} attempts.")

    async def _refit_next(self) -> bool:
        """Fit an edit again that a removal broke; whatever comes of it, the edit stays live."""
        try:
            record = await asyncio.to_thread(self._shop.ledger.claim_refit)
            if record is None:
                return False
            self._in_hand = frozenset()
            refused, verdict = await self._refitted_or_not(record)
            if refused is not None:
                ledger = self._shop.ledger
                await asyncio.to_thread(ledger.refit_failed, record.id, reason=refused, verdict=verdict)
        except Unavailable as error:
            log.warning("an edit is still to be fitted again", reason=str(error))
            return False
        except Exception:  # the job boundary: what is due stays due
            log.exception("cannot fit an edit again")
            return False
        self._shop.listeners.tell(record.id)
        log.info("edit fitted again", edit_id=record.id, refused=refused)
        return True

    async def _refitted_or_not(self, record: EditRecord) -> tuple[str | None, Mapping[str, Any] | None]:
        try:
            return await self._refitted(record)
        except Unavailable:
            raise
        except Exception as error:  # the job boundary: recorded, and not tried for ever
            log.exception("an edit could not be fitted again", edit_id=record.id)
            return f"The service failed: {type(error).__name__}: {error}", None

    async def _refitted(self, record: EditRecord) -> tuple[str | None, Mapping[str, Any] | None]:
        """Why an edit could not be fitted again, and the verdict on what was tried; None if it was, or has left."""
        for _ in range(MOST_ATTEMPTS):
            try:
                attempt = await self._learning.capture(record, replaced=record.id)
                if attempt.before.prediction.says(record.draft.target):
                    return "It holds again; there was nothing to fit.", None
                candidate = await self._learning.fit_and_judge(attempt)
                if not candidate.verdict.passed:
                    named = ", ".join(gate.name for gate in candidate.verdict.failed_gates())
                    return f"It did not pass: {named}.", candidate.verdict.as_json()
                patch, head = learned(attempt, candidate), attempt.live.revision
                await asyncio.to_thread(self._shop.ledger.refit, record.id, patch, expected_head=head)
                await self._shop.follower.catch_up()
            except HeadMoved:
                record = await asyncio.to_thread(self._shop.ledger.edit, record.id)
                if record.refit_due is None:
                    return None, None
            except EditorError as error:
                return str(error), None
            else:
                return None, None
        return f"The revision moved on during each of {MOST_ATTEMPTS} attempts.", None

    async def _attempt(self, record: EditRecord) -> Status:
        attempt = await self._learning.capture(record, replaced=record.draft.supersedes)
        _check_conflicts(attempt)
        if attempt.before.prediction.says(record.draft.target):
            before = attempt.before.as_json()
            return await self._finish(record, Status.NOT_NEEDED, Evidence(before=before, after=before))
        candidate = await self._learning.fit_and_judge(attempt)
        if not candidate.verdict.passed:
            return await self._finish(record, Status.REJECTED, evidence(attempt, candidate))
        if record.draft.dry_run:
            return await self._finish(record, Status.DRY_RUN, evidence(attempt, candidate))
        return await self._commit(attempt, candidate)

    async def _commit(self, attempt: Attempt, candidate: Candidate) -> Status:
        with self._metrics.edit_seconds.labels("commit").time():
            patch, head = learned(attempt, candidate), attempt.live.revision
            revision = await asyncio.to_thread(self._shop.ledger.commit, attempt.record.id, patch, expected_head=head)
            if revision is None:
                return Status.CANCELLED
            await self._shop.follower.catch_up()
        return Status.LIVE

    async def _finish(self, record: EditRecord, status: Status, found: Evidence) -> Status:
        detail = {"reason": found.failure} if found.failure else {}
        done = await asyncio.to_thread(self._shop.ledger.finish, record.id, status, found, detail=detail)
        return status if done else Status.CANCELLED

    async def _fail(self, record: EditRecord, reason: str) -> Status:
        return await self._finish(record, Status.FAILED, Evidence(failure=reason))


def _check_conflicts(attempt: Attempt) -> None:
    """Raise ConflictingEdit if an edit that wants another answer for the same input went live since the report."""
    draft = attempt.record.draft
    found = attempt.live.conflicting(draft.input_key, draft.target, besides=attempt.replaced)
    if found:
        raise ConflictingEdit(f"Another answer for this input is live: {', '.join(found)}.", found)


def _conflict_verdict(error: ConflictingEdit) -> dict[str, Any]:
    failures = [{"edit_id": edit_id} for edit_id in error.members["conflicts"]]
    gate = {"name": NO_CONFLICT, "measured": 0.0, "required": 1.0, "passed": False, "failures": failures}
    return {"passed": False, "gates": [gate], "guard": None, "conflicts": []}
