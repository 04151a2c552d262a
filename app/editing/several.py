"""Independent edits of the queue, learned together: one reading, one fit, one transaction, and a verdict for each.

Every edit is judged by itself, in the order of the queue, against the guard, the edits that are live, and those that
were judged just before it. What is not plainly right at once is left to be worked on alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from app.editing.learning import Attempt, Candidate, learned, others, patch_of, spoilt
from app.editing.outcome import Answers, Encoded
from app.editing.workshop import Workshop
from app.engine import Entry, Live, View
from app.engine.reading import reading
from app.judge import Mark
from app.memory import Shelving
from app.model import Answered, Output
from app.observe import Metrics
from app.store import EditRecord, Evidence, RevisionRecord, Status
from editors.types import Fitted, FittingTogether, Problem, Rows, Step

MOST = 64
"""Edits that are learned together."""
TEXTS_A_SLICE = 8
"""Texts in one forward pass; predictions may run between two of them."""


@dataclass(frozen=True, slots=True)
class _Captured:
    """The attempts at several edits against one revision."""

    live: Live
    attempts: Sequence[Attempt]


@dataclass(frozen=True, slots=True)
class _Fitted:
    """What was learned of one edit. remembered: the rows that the fit stayed clear of."""

    attempt: Attempt
    fitted: Fitted
    remembered: int


@dataclass(frozen=True, slots=True)
class _Judged:
    """The edits that passed at once, in their order; those that need nothing more once these are live; and how the
    judge stood before.
    """

    passed: Sequence[tuple[Attempt, Candidate]]
    needless: Sequence[Attempt]
    mark: Mark


class Several:
    """Learns what can be learned together."""

    def __init__(self, shop: Workshop, metrics: Metrics) -> None:
        self._shop = shop
        self._metrics = metrics

    def chosen(self, waiting: Sequence[EditRecord]) -> list[EditRecord]:
        """The first edits of the queue, as many as can be learned together; no more than one where none can."""
        found: list[EditRecord] = []
        keys: set[str] = set()
        for record in waiting[:MOST]:
            draft = record.draft
            if not self._simple(record) or draft.input_key in keys:
                break
            if found and (draft.editor, draft.options) != (found[0].draft.editor, found[0].draft.options):
                break
            found.append(record)
            keys.add(draft.input_key)
        return found

    async def work(self, records: Sequence[EditRecord]) -> Mapping[str, Status]:
        """Bring claimed edits to their end, as far as that can be done together; says how those ended.

        Raises HeadMoved if something else changed the revision meanwhile.
        """
        captured = await self._capture(records)
        needed, ended = await self._sifted(captured)
        if not needed:
            return ended
        started = time.monotonic()
        fitted = await self._fit(captured.live, needed)
        seconds = (time.monotonic() - started) / len(needed)
        edit_ids = [each.attempt.record.id for each in fitted]
        in_work = await asyncio.to_thread(self._shop.ledger.judging_these, edit_ids)
        for edit_id in in_work:
            self._shop.listeners.tell(edit_id)
        fitted = [each for each in fitted if each.attempt.record.id in in_work]
        judged = await self._shop.judged(self._judge(captured.live, fitted, seconds))
        return {**ended, **await self._commit(captured.live, judged)}

    def _simple(self, record: EditRecord) -> bool:
        """Whether nothing about an edit asks for more than its own rows at the last layer."""
        draft, engine = record.draft, self._shop.engine
        plain = not (draft.dry_run or draft.keep or draft.supersedes) and not engine.model.writes
        together = isinstance(self._shop.editors.get(draft.editor), FittingTogether)
        return plain and together and not engine.live.overlay.visited(engine.live.alive)

    async def _capture(self, records: Sequence[EditRecord]) -> _Captured:
        shop = self._shop
        await shop.guarding.catch_up()
        with self._timed("capture", len(records)):
            live = await shop.follower.catch_up()
            model, base = shop.engine.model, live.view()
            encoded = await asyncio.to_thread(lambda: [Encoded.of(model, record.draft) for record in records])
            texts = [text for each in encoded for text in (each.input, *each.rephrases)]
            wanted = [answer for each in encoded for answer in each.wanted]
            slices = reading(model, texts, wanted, keys_at=live.overlay.layer_sites(), max_batch=TEXTS_A_SLICE)
            read = (await shop.engine.work(slices, lambda done: None)).reading
            said = await shop.engine.call(partial(self._said, read.rows, base))
            attempts, start = [], 0
            for record, each in zip(records, encoded, strict=True):
                end = start + len(each.wanted)
                before = Answers(said[start:end], len(each.rephrases))
                part = read.part(start, end)
                site = shop.site(record.draft)
                attempts.append(Attempt(record, live, base, each, before, site, part, part, None))
                start = end
        return _Captured(live, attempts)

    async def _sifted(self, captured: _Captured) -> tuple[list[Attempt], dict[str, Status]]:
        """The edits that there is something to learn of, and those that ended because there is not. Those that stand
        in conflict with a live one are among neither.
        """
        live = captured.live
        free = [
            each
            for each in captured.attempts
            if not live.conflicting(each.record.draft.input_key, each.record.draft.target, besides=None)
        ]
        right = [each.before.prediction.says(each.record.draft.target) for each in free]
        ended = await self._not_needed([each for each, so in zip(free, right, strict=True) if so])
        return [each for each, so in zip(free, right, strict=True) if not so], ended

    async def _fit(self, live: Live, attempts: Sequence[Attempt]) -> list[_Fitted]:
        """What was learned, of the edits of which something could be."""
        loop, edit_ids = asyncio.get_running_loop(), [each.record.id for each in attempts]

        def on_slice(step: Step | None) -> None:
            if step is not None:
                progress = {"round": 1, "step": step.number, "loss": step.loss, "losses": dict(step.losses)}
                loop.call_soon_threadsafe(self._tell, edit_ids, progress)

        with self._timed("fit", len(attempts)):
            return await self._shop.judged(self._fitting(live, attempts), on_slice)

    def _tell(self, edit_ids: Sequence[str], progress: dict[str, Any]) -> None:
        for edit_id in edit_ids:
            self._shop.listeners.tell(edit_id, progress)

    def _fitting(self, live: Live, attempts: Sequence[Attempt]) -> Generator[Step | None, None, list[_Fitted]]:
        shop, base, draft = self._shop, attempts[0].base, attempts[0].record.draft
        edits = yield from shop.judge.rows_of(live, base.alive)
        memory = shop.memory.base()
        moments = shop.memory.moments(memory)
        joined = Rows.join([each.reading.rows for each in attempts])
        joined = replace(joined, residuals=base.add(joined.queries, joined.residuals))
        problems, start = [], 0
        for each in attempts:
            rows = joined[start : start + len(each.reading.rows)]
            start += len(rows)
            problems.append(
                Problem(
                    rows,
                    torch.zeros_like(rows.labels),
                    [others(part, rows) for part in (*memory, edits)],
                    shop.engine.readout,
                    moments=moments,
                    features=shop.engine.model.features,
                    add=base.add,
                )
            )
        yield None
        editor = shop.editor(draft.editor)
        assert isinstance(editor, FittingTogether)
        found = yield from editor.fit_together(problems, shop.options(draft.editor, draft.options))
        remembered = sum(map(len, (*memory, edits, joined)))
        return [
            _Fitted(attempt, fitted, remembered - len(attempt.reading.rows))
            for attempt, fitted in zip(attempts, found, strict=True)
            if fitted is not None
        ]

    def _judge(self, live: Live, fitted: Sequence[_Fitted], seconds: float) -> Generator[None, None, _Judged]:
        """One after the other, each as if those before it that passed were live."""
        mark = yield from self._shop.judge.mark(live)
        passed, needless = list[tuple[Attempt, Candidate]](), list[Attempt]()
        try:
            for each in fitted:
                attempt = self._as_of(live, each.attempt)
                if attempt.before.prediction.says(attempt.record.draft.target):
                    needless.append(attempt)
                    continue
                with self._timed("judge", 1):
                    following, candidate = yield from self._judge_next(live, attempt, each, seconds)
                if following is not None:
                    live = following
                    passed.append((attempt, candidate))
                yield
        except BaseException:  # also when nobody wants the verdicts any more
            self._shop.judge.back_to(mark)
            raise
        return _Judged(passed, needless, mark)

    def _as_of(self, live: Live, attempt: Attempt) -> Attempt:
        """An attempt with what is said before it, once those are live that were judged before it."""
        said = self._said(attempt.reading.rows, live.view())
        return replace(attempt, before=replace(attempt.before, predictions=said))

    def _judge_next(
        self, live: Live, attempt: Attempt, learned_of: _Fitted, seconds: float
    ) -> Generator[None, None, tuple[Live | None, Candidate]]:
        """What would be served with one edit more, if it passed, and the evidence."""
        shop, draft = self._shop, attempt.record.draft
        patch = patch_of(shop, attempt, learned_of.fitted)
        number, revision = len(live.alive), live.revision + 1
        entry = Entry(attempt.record.id, None, draft.input_key, draft.target)
        following = live.followed(revision, live.overlay.extend([patch]), [entry], [(number, (revision, None))])
        view = following.view()
        after = Answers(self._said(attempt.reading.rows, view), len(draft.rephrases))
        judged = yield from shop.judge.of_patch(
            live,
            view,
            exempt=shop.exempt(draft, replaced=None),
            own=attempt.reading.of_text(0),
            required=shop.required(draft),
            spoilt=spoilt(draft, after),
        )
        verdict = judged.verdict.with_gates(shop.own_gates(draft, attempt.before, after))
        candidate = Candidate(patch, learned_of.fitted, 1, seconds, learned_of.remembered, after, judged, verdict)
        if not verdict.passed or judged.disturbed:
            yield from shop.judge.forget()
            return None, candidate
        texts = (draft.input, *draft.rephrases)
        shop.memory.edits.put([Shelving(attempt.record.id, draft.input_key, texts, attempt.reading)])
        return following, candidate

    async def _commit(self, live: Live, judged: _Judged) -> dict[str, Status]:
        """Make those live that passed; none after one that was cancelled meanwhile, since it was judged beside it."""
        shop = self._shop
        brought = [(attempt.record.id, learned(attempt, candidate)) for attempt, candidate in judged.passed]
        records: Sequence[RevisionRecord] = ()
        try:
            if brought:
                with self._timed("commit", len(brought)):
                    records = await asyncio.to_thread(shop.ledger.commit_each, brought, expected_head=live.revision)
        finally:
            if len(records) < len(brought):
                await shop.judged(self._back_to(judged.mark))
        if records:
            with self._timed("live", len(records)):
                await shop.follower.catch_up()
        ended = {edit_id: Status.LIVE for edit_id, _ in brought[: len(records)]}
        return ended if len(records) < len(brought) else ended | await self._not_needed(judged.needless)

    def _back_to(self, mark: Mark) -> Generator[None, None, None]:
        self._shop.judge.back_to(mark)
        yield

    async def _not_needed(self, attempts: Sequence[Attempt]) -> dict[str, Status]:
        """End the edits that the model answers rightly before anything is learned of them."""
        ended = []
        for attempt in attempts:
            before = attempt.before.as_json()
            ended.append((attempt.record.id, Status.NOT_NEEDED, Evidence(before=before, after=before)))
        done = await asyncio.to_thread(self._shop.ledger.finish_each, ended) if ended else frozenset()
        return {edit_id: Status.NOT_NEEDED if edit_id in done else Status.CANCELLED for edit_id, *_ in ended}

    @torch.no_grad()
    def _said(self, rows: Rows, view: View) -> list[Answered]:
        """What the model says at rows of its own under a view, from norm and head alone."""
        model = self._shop.engine.model
        logits = model.readout(view.add(rows.queries, rows.residuals)).cpu()
        return model.decode([], [Output(each, 1) for each in logits])

    @contextmanager
    def _timed(self, stage: str, edits: int) -> Iterator[None]:
        """Time a stage of several edits, to each its part."""
        started = time.monotonic()
        try:
            yield
        finally:
            seconds = (time.monotonic() - started) / edits
            for _ in range(edits):
                self._metrics.edit_seconds.labels(stage).observe(seconds)
