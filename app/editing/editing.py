"""What callers can do with edits and revisions: report, look, wait, revert, re-apply, restore."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from app.editing.events import Event
from app.editing.outcome import Answers, Encoded
from app.editing.robustness import Robustness, robustness
from app.editing.worker import Worker
from app.editing.workshop import Workshop
from app.engine import Live, View
from app.errors import (
    BaselineEditor,
    Conflict,
    EditRejected,
    NotFound,
    NotLive,
    NotReverted,
    RevisionMoved,
    ServiceError,
    Unavailable,
    UnknownEdit,
    Unprocessable,
)
from app.hits import Hits
from app.inputs import input_key
from app.judge import Exemption, Verdict
from app.store import (
    IN_WORK,
    Accepted,
    Draft,
    EditRecord,
    HeadMoved,
    HistoryRow,
    IdempotencyKey,
    RevisionRecord,
    Status,
)
from editors.errors import EditorError

NAMED = 3
"""Edits named in the sentence of a rejection; the document lists all."""
GUARD_SECONDS = 5
"""How long a re-apply waits for a guard that is being read."""
POLL_SECONDS = 1.0
"""How often somebody who waits looks into the store, for the case that another process does the work."""


@dataclass(frozen=True, slots=True)
class Report:
    """A mistake as a caller reports it; `editor` None means the default."""

    input: str
    target: str
    rephrases: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    editor: str | None = None
    options: Mapping[str, Any] | None = None
    reason: str = ""
    reporter: str = ""
    dry_run: bool = False
    supersedes: str | None = None
    required: Mapping[str, float] | None = None


class Editing:
    """Edits and revisions of one model."""

    def __init__(
        self,
        shop: Workshop,
        worker: Worker,
        hits: Hits,
        *,
        default_editor: str,
        baselines: bool,
        max_queued: int,
        refits: bool,
    ) -> None:
        """baselines: whether edits by baseline editors may go live. refits: whether those that a removal breaks are
        fitted again.
        """
        self._shop = shop
        self._refits = refits
        self._worker = worker
        self._hits = hits
        self._default_editor = default_editor
        self._baselines = baselines
        self._max_queued = max_queued
        self._stopping = False

    def stop_waiting(self) -> None:
        """The service is stopping: whoever waits for an edit is answered within a second with how it stands."""
        self._stopping = True

    async def report(
        self, report: Report, *, actor: str, key: IdempotencyKey | None = None, if_match: int | None = None
    ) -> Accepted:
        """Queue the correction of a mistake. What is returned is stored: it survives any crash."""
        draft = self._draft(report)
        await asyncio.to_thread(Encoded.of, self._shop.engine.model, draft)  # refuses what does not fit the model
        await self._check_supersedes(draft)
        accepted = await asyncio.to_thread(
            self._shop.ledger.accept, draft, actor=actor, limit=self._max_queued, key=key, if_match=if_match
        )
        self._worker.wake()
        return accepted

    async def report_each(self, reports: Sequence[Report], *, actor: str) -> list[str | ServiceError | EditorError]:
        """Queue several corrections, as `report` would one by one: of each its id, or why it is refused.

        Those for which the queue has no room are refused with QueueFull.
        """
        found: list[str | ServiceError | EditorError] = []
        drafts: list[Draft] = []
        for report in reports:
            try:
                draft = self._draft(report)
                await asyncio.to_thread(Encoded.of, self._shop.engine.model, draft)
                await self._check_supersedes(draft)
            except (ServiceError, EditorError) as error:
                found.append(error)
            else:
                found.append("")
                drafts.append(draft)
        accepted = await asyncio.to_thread(self._shop.ledger.accept_each, drafts, actor=actor, limit=self._max_queued)
        self._worker.wake()
        outcomes = iter(accepted)
        return [_named(next(outcomes)) if each == "" else each for each in found]

    async def endings(self, edit_ids: Sequence[str]) -> AsyncIterator[EditRecord]:
        """The records of edits, in this order, each as soon as it and those before it have ended."""
        waiting = list(edit_ids)
        while waiting:
            with self._shop.listeners.listening(waiting[0]) as news:
                while (await self._records(waiting[:1]))[0].status in IN_WORK:
                    await _next_change(news, POLL_SECONDS)
            for record in await self._records(waiting):
                if record.status in IN_WORK:
                    break
                yield record
                waiting.pop(0)

    async def _records(self, edit_ids: Sequence[str]) -> list[EditRecord]:
        """Records without histories, of which none that this process does not serve says that it is live."""
        found = await asyncio.to_thread(self._shop.ledger.records, edit_ids)
        if any((record.revision or 0) > self._shop.engine.live.revision for record in found.values()):
            await self._shop.follower.catch_up()
        return [found[edit_id] for edit_id in edit_ids]

    async def record(self, edit_id: str) -> EditRecord:
        """The audit record. Raises NotFound."""
        await self._hits.write()
        return await asyncio.to_thread(self._shop.ledger.edit, edit_id)

    async def wait(self, edit_id: str, seconds: float) -> EditRecord:
        """The record as soon as the edit has ended, or when the time is over."""
        deadline = time.monotonic() + seconds
        with self._shop.listeners.listening(edit_id) as news:
            while True:
                record = await self.record(edit_id)
                left = deadline - time.monotonic()
                if record.status not in IN_WORK:
                    if record.revision is not None and record.revision > self._shop.engine.live.revision:
                        await self._shop.follower.catch_up()  # who is told that an edit is live can rely on it
                    return record
                if left <= 0 or self._stopping:
                    return record
                await _next_change(news, min(left, POLL_SECONDS))

    async def events(self, edit_id: str, after: int) -> AsyncIterator[Event]:
        """The edit's life from history row `after` on, and the progress of its fit, until it ends."""
        with self._shop.listeners.listening(edit_id) as news:
            while True:
                record = await asyncio.to_thread(self._shop.ledger.edit, edit_id)
                for row in record.history:
                    if row.seq > after:
                        after = row.seq
                        yield Event("status", row.seq, _status(row))
                if record.status not in IN_WORK:
                    if record.verdict is not None:
                        yield Event("verdict", after, {"status": record.status, "verdict": record.verdict})
                    return
                if self._stopping:  # a reader comes back with Last-Event-ID
                    return
                progress = await _next(news, POLL_SECONDS)
                if progress is not None:
                    yield Event("progress", after, progress)

    async def revert(
        self, edit_id: str, *, actor: str, reason: str, if_match: int | None = None
    ) -> tuple[EditRecord, Mapping[str, Any] | None]:
        """Take the edit out of service; returns its record and what the removal did to the others.

        An edit that still waits is cancelled; one that is reverted already is left as it is. Raises NotLive.
        """
        while True:
            record = await self.record(edit_id)
            if record.status in IN_WORK or record.status is Status.CANCELLED:
                try:
                    return await self._cancel(edit_id, actor=actor, reason=reason), None
                except NotLive:
                    raise
                except Conflict:  # it went live meanwhile
                    continue
            if record.status is Status.REVERTED:
                return record, _removal_verdict(record)
            live = self._shop.engine.live  # where other processes have gone on from it, the ledger says so
            if if_match not in (None, live.revision):
                live = await self._caught_up(if_match)
            try:
                record = await self._revert(record, live, actor=actor, reason=reason)
            except HeadMoved:
                await self._shop.follower.catch_up()
                continue
            return record, _removal_verdict(record)

    async def reapply(self, edit_id: str, *, actor: str, if_match: int | None = None) -> EditRecord:
        """Make a reverted edit live again: judged again, not fitted again.

        Raises NotReverted, EditRejected with the failed gates, ConflictingEdit.
        """
        while True:
            record = await self.record(edit_id)
            if record.status is Status.LIVE:
                return record
            if record.status is not Status.REVERTED:
                raise NotReverted(f"Edit {edit_id} is {record.status.value}; only a reverted edit can be re-applied.")
            self._check_baseline(record.draft.editor)
            live = await self._caught_up(if_match)
            try:
                after, verdict = await self._judge_again(record, live)
                if not verdict.passed:
                    raise rejection(edit_id, verdict.as_json())
                await asyncio.to_thread(
                    self._shop.ledger.reapply,
                    edit_id,
                    actor=actor,
                    verdict=verdict.as_json(),
                    after=after.as_json(),
                    expected_head=live.revision,
                )
            except HeadMoved:
                continue
            await self._shop.follower.catch_up()
            return await self.record(edit_id)

    async def robustness(self, edit_id: str, *, seed: int, versions: int, guard: bool) -> Robustness:
        """How the edit, live or not, bears small changes of its input, and the guard the same. Raises NotFound."""
        draft = (await asyncio.to_thread(self._shop.ledger.edit, edit_id)).draft
        return await robustness(self._shop, edit_id, draft, seed=seed, versions=versions, guard=guard)

    async def restore(
        self, number: int, *, actor: str, reason: str = "", if_match: int | None = None
    ) -> RevisionRecord:
        """A new revision with exactly the patches of revision `number`. Raises NotFound."""
        while True:
            live = await self._caught_up(if_match)
            try:
                revision = await asyncio.to_thread(
                    self._shop.ledger.restore, number, actor=actor, reason=reason, expected_head=live.revision
                )
            except HeadMoved:
                continue
            await self._shop.follower.catch_up()
            return revision

    async def _check_supersedes(self, draft: Draft) -> None:
        """An edit replaces what stands at its own input. Raises Unprocessable, UnknownEdit."""
        if draft.supersedes is None:
            return
        try:
            former = (await asyncio.to_thread(self._shop.ledger.edit, draft.supersedes)).draft
        except NotFound as error:
            raise UnknownEdit(error.detail) from error
        if former.input_key != draft.input_key and not await self._read_alike(former.input, draft.input):
            raise Unprocessable(f"supersedes: edit {draft.supersedes} corrects another input: {former.input!r}.")

    async def _read_alike(self, one: str, other: str) -> bool:
        """Whether the model's tokenizer reads two texts as the very same."""
        first, second = await self._shop.engine.encode([one, other])
        return first.input_ids.tolist() == second.input_ids.tolist()

    def _draft(self, report: Report) -> Draft:
        """The report as it is stored. Raises UnknownLabel, UnknownEditor, BaselineEditor, BadOptions, and Unprocessable
        for gates that would be looser than the service's.
        """
        required, given = self._shop.judge.required, dict(report.required or {})
        for name in required.looser(given):
            raise Unprocessable(
                f"required.{name}: {given[name]} is looser than the service's {getattr(required, name)}."
            )
        target = self._shop.engine.model.target(report.target)
        name = self._default_editor if report.editor is None else report.editor
        if not report.dry_run:
            self._check_baseline(name)
        options = self._shop.options(name, report.options or {})
        return Draft(
            input=report.input,
            input_key=input_key(report.input),
            target=target,
            rephrases=report.rephrases,
            keep=report.keep,
            editor=name,
            options=asdict(options),
            reason=report.reason,
            reporter=report.reporter,
            dry_run=report.dry_run,
            supersedes=report.supersedes,
            required=given,
        )

    def _check_baseline(self, editor: str) -> None:
        """Raise BaselineEditor for one whose edits may not go live."""
        if self._shop.editor(editor).baseline and not self._baselines:
            raise BaselineEditor(editor)

    async def _caught_up(self, if_match: int | None) -> Live:
        live = await self._shop.follower.catch_up()
        if if_match is not None and if_match != live.revision:
            raise RevisionMoved(f"The revision is {live.revision}, not {if_match}.")
        return live

    async def _cancel(self, edit_id: str, *, actor: str, reason: str) -> EditRecord:
        record = await asyncio.to_thread(self._shop.ledger.cancel, edit_id, actor=actor, reason=reason)
        self._worker.cancel(edit_id)
        self._shop.listeners.tell(edit_id)
        return record

    async def _revert(self, record: EditRecord, live: Live, *, actor: str, reason: str) -> EditRecord:
        remaining = live.view(exclude=[record.id]).alive
        exempt = Exemption(frozenset({record.id}))
        verdict: Mapping[str, Any] = {}
        broken: tuple[str, ...] = ()
        if record.status is Status.LIVE:
            judging = self._shop.judge.of_alive(live, remaining, exempt=exempt, required=self._shop.judge.required)
            judged = await self._shop.judged(judging)
            verdict, broken = judged.verdict.as_json(), judged.broken

        def write() -> EditRecord:
            self._shop.ledger.revert(
                record.id,
                actor=actor,
                reason=reason,
                verdict=verdict,
                broken=broken,
                refit=self._refits,
                expected_head=live.revision,
            )
            return self._shop.ledger.edit(record.id)

        try:
            reverted = await asyncio.to_thread(write)
        finally:  # also where it is done and could not be read
            await self._shop.follower.catch_up()
        if broken and self._refits:
            self._worker.wake()
        return reverted

    async def _guarded(self) -> None:
        """Return when the newest guard is in use. Raises Unavailable if that takes long."""
        await self._shop.guarding.wait(GUARD_SECONDS)
        if not (await self._shop.guarding.state()).ready:
            raise Unavailable("The model is still reading the guard.", headers={"Retry-After": str(GUARD_SECONDS)})

    async def _judge_again(self, record: EditRecord, live: Live) -> tuple[Answers, Verdict]:
        await self._guarded()
        draft = record.draft
        alive = self._shop.beside(draft.supersedes, live)
        coming = live.patch_of(record.id)
        assert coming is not None, "an edit that was live has a patch"
        alive[coming] = True
        exempt = self._shop.exempt(draft, replaced=draft.supersedes)
        exempt = replace(exempt, edit_ids=exempt.edit_ids | {record.id})
        encoded = Encoded.of(self._shop.engine.model, draft)
        before = await self._shop.answers(encoded, live.view())
        after = await self._shop.answers(encoded, View(live.revision, live.overlay, alive, live.edit_ids))
        required = self._shop.required(draft)
        judging = self._shop.judge.of_alive(live, alive, exempt=exempt, required=required, coming=coming)
        judged = await self._shop.judged(judging)
        gates = self._shop.own_gates(draft, before, after)
        return after, judged.verdict.with_gates(gates)


def _named(accepted: Accepted | ServiceError) -> str | ServiceError:
    return accepted if isinstance(accepted, ServiceError) else accepted.edit_id


def rejection(edit_id: str, verdict: Mapping[str, Any]) -> EditRejected:
    """The error of an edit that did not pass, with every failed gate."""
    gates = [gate for gate in verdict["gates"] if not gate["passed"]]
    named = ", ".join(f"{gate['name']} ({gate['measured']:.4g}, required {gate['required']:.4g})" for gate in gates)
    against = _against(gates, verdict.get("conflicts") or ())
    sentences = [f"Edit {edit_id} did not pass: {named}."]
    if against:
        told = "; ".join(f"{one['edit_id']} wants {one['wanted']!r} for {one['input']!r}" for one in against[:NAMED])
        sentences.append(f"It pulls against other live edits: {told}.")
    conflicts = [one["edit_id"] for one in against]
    return EditRejected(" ".join(sentences), edit_id=edit_id, gates=gates, conflicts=conflicts)


def _against(gates: Sequence[Mapping[str, Any]], near: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The live edits that a rejected one would have broken, then those that are nearly the same and want otherwise."""
    broken = [failure for gate in gates if gate["name"] == "other_edits_hold" for failure in gate["failures"]]
    return list({one["edit_id"]: one for one in (*near, *broken)}.values())


async def _next(news: asyncio.Queue[dict[str, Any] | None], seconds: float) -> dict[str, Any] | None:
    try:
        return await asyncio.wait_for(news.get(), seconds)
    except TimeoutError:
        return None


async def _next_change(news: asyncio.Queue[dict[str, Any] | None], seconds: float) -> None:
    """Return at the next change of the record, past any progress, or when the time is over."""
    deadline = time.monotonic() + seconds
    while await _next(news, max(deadline - time.monotonic(), 0)) is not None:
        pass


def _status(row: HistoryRow) -> dict[str, Any]:
    return {"event": row.event, "at": row.at, "actor": row.actor, "detail": dict(row.detail)}


def _removal_verdict(record: EditRecord) -> Mapping[str, Any] | None:
    """What the last removal of the edit did to the others."""
    reverted = [row for row in record.history if row.event == "reverted"]
    return reverted[-1].detail.get("verdict") if reverted else None
