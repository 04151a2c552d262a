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
from itertools import accumulate, islice
from typing import Any

import torch
from torch import Tensor

from app.editing.learning import Attempt, Candidate, learned, others, patch_of, spoilt
from app.editing.outcome import Answers, Encoded
from app.editing.workshop import Workshop
from app.engine import Entry, Live, View
from app.engine.reading import reading
from app.judge import Coming, Mark
from app.memory import Shelving, said_by
from app.model import Answered, Output
from app.observe import Metrics
from app.store import EditRecord, Evidence, HeadMoved, RevisionRecord, Status
from editors.composition import Composition
from editors.types import Fitted, FittingTogether, Patch, Problem, Rows, Step

MOST = 64
"""Edits that are learned together."""
AHEAD = 32
"""Rows of edits whose answers are computed together, as if all of them passed, before one by one is judged."""
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
class _Foreseen:
    """One of several edits, not judged yet: its patch, and what is said before and after it, if all before it pass."""

    learned_of: _Fitted
    patch: Patch
    before: Answers
    after: Answers

    @property
    def attempt(self) -> Attempt:
        """The attempt with what is said before it."""
        return replace(self.learned_of.attempt, before=self.before)


@dataclass(frozen=True, slots=True)
class _Judged:
    """The edits that passed at once, in their order; those that need nothing more once these are live; and how the
    judge stood before.
    """

    passed: Sequence[tuple[Attempt, Candidate]]
    needless: Sequence[Attempt]
    mark: Mark


@dataclass(frozen=True, slots=True)
class _Run:
    """The first so many of edits that were looked ahead at, up to one that did not pass, and what would be served then.
    passed, needless: as in `_Judged`.
    """

    live: Live
    edits: int
    passed: Sequence[tuple[Attempt, Candidate]]
    needless: Sequence[Attempt] = ()


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
        chosen_at = self._shop.engine.live.revision
        captured = await self._capture(records)
        if captured.live.overlay.visited(captured.live.alive):  # an entry has come since they were chosen
            raise HeadMoved(chosen_at, captured.live.revision)
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
        place, ahead_at_most = 0, AHEAD
        try:
            while place < len(fitted):
                some = _first(fitted[place:], ahead_at_most)
                started = time.monotonic()
                foreseen = yield from self._foresee(live, some)
                ahead = (time.monotonic() - started) / len(some)
                run = yield from self._judge_first(live, foreseen, seconds, ahead)
                live, place = run.live, place + run.edits
                # where one after the other does not pass, little of what is foreseen comes true
                ahead_at_most = AHEAD if run.edits == len(some) else max(1, ahead_at_most // 2)
                passed += run.passed
                needless += run.needless
        except BaseException:  # also when nobody wants the verdicts any more
            self._shop.judge.back_to(mark)
            raise
        self._shop.judge.look_no_further()
        return _Judged(passed, needless, mark)

    def _foresee(self, live: Live, fitted: Sequence[_Fitted]) -> Generator[None, None, list[_Foreseen]]:
        """What is said to the texts of each edit if all before it pass. The judge looks ahead, too."""
        shop = self._shop
        patches = [patch_of(shop, each.attempt, each.fitted) for each in fitted]
        yield
        overlay = live.overlay.extend(patches)
        parts = [each.attempt.reading.rows for each in fitted]
        rows, lengths = Rows.join(parts), [len(part) for part in parts]
        before, after = self._logits_ahead(live, overlay, rows, lengths)
        coming = [Coming(each.attempt.record.id, part) for each, part in zip(fitted, parts, strict=True)]
        yield
        yield from shop.judge.foresee(live, overlay, coming, said_by(after, rows.labels))
        return [
            _Foreseen(each, patch, *(replace(each.attempt.before, predictions=said) for said in ways))
            for each, patch, *ways in zip(
                fitted, patches, self._decoded(before, lengths), self._decoded(after, lengths), strict=True
            )
        ]

    @torch.no_grad()
    def _logits_ahead(
        self, live: Live, overlay: Composition, rows: Rows, lengths: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """The logits of the rows of each edit once those before it are live, and once it is: (rows, labels) each.

        overlay: the live one with the patches of these edits at its end. lengths: how many rows each has.
        """
        device, count = rows.labels.device, len(lengths)
        come = torch.ones(count + 1, count, dtype=torch.bool).tril(-1)
        alive = torch.cat([live.alive.expand(count + 1, -1), come], dim=-1).to(device)
        own = torch.arange(count).repeat_interleave(torch.tensor(lengths)).to(device)
        twice = rows.queries.repeat(2, 1), rows.residuals.repeat(2, 1)
        residuals, _ = overlay.apply(*twice, alive, torch.cat([own, own + 1]))
        before, after = self._shop.engine.readout(residuals).chunk(2)
        return before, after

    def _decoded(self, logits: Tensor, lengths: Sequence[int]) -> list[Sequence[Answered]]:
        """What logits say to the texts of each edit."""
        said = iter(self._shop.engine.model.decode([], [Output(each, 1) for each in logits.cpu()]))
        return [list(islice(said, length)) for length in lengths]

    def _judge_first(
        self, live: Live, foreseen: Sequence[_Foreseen], seconds: float, ahead: float
    ) -> Generator[None, None, _Run]:
        """Judge edits until one does not pass: what was foreseen of those behind it supposes that it would.

        seconds, ahead: that were spent on the fit of each, and on looking ahead.
        """
        passed: list[tuple[Attempt, Candidate]] = []
        for number, each in enumerate(foreseen, 1):
            attempt = each.attempt
            if attempt.before.prediction.says(attempt.record.draft.target):
                return _Run(live, number, passed, [attempt])
            with self._timed("judge", 1, ahead):
                following, candidate = yield from self._judge_next(live, attempt, each, seconds)
            if following is None:
                return _Run(live, number, passed)
            live = following
            passed.append((attempt, candidate))
            yield
        return _Run(live, len(foreseen), passed)

    def _judge_next(
        self, live: Live, attempt: Attempt, foreseen: _Foreseen, seconds: float
    ) -> Generator[None, None, tuple[Live | None, Candidate]]:
        """What would be served with one edit more, if it passed, and the evidence."""
        shop, draft, patch, after = self._shop, attempt.record.draft, foreseen.patch, foreseen.after
        number, revision = len(live.alive), live.revision + 1
        entry = Entry(attempt.record.id, None, draft.input_key, draft.target)
        following = live.followed(revision, live.overlay.extend([patch]), [entry], [(number, (revision, None))])
        judged = yield from shop.judge.of_patch(
            live,
            following.view(),
            exempt=shop.exempt(draft, replaced=None),
            own=attempt.reading.of_text(0),
            required=shop.required(draft),
            spoilt=spoilt(draft, after),
        )
        verdict = judged.verdict.with_gates(shop.own_gates(draft, attempt.before, after))
        learned_of = foreseen.learned_of
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
    def _timed(self, stage: str, edits: int, already: float = 0.0) -> Iterator[None]:
        """Time a stage of several edits, to each its part. already: seconds that each has taken before."""
        started = time.monotonic()
        try:
            yield
        finally:
            seconds = already + (time.monotonic() - started) / edits
            for _ in range(edits):
                self._metrics.edit_seconds.labels(stage).observe(seconds)


def _first(fitted: Sequence[_Fitted], rows: int) -> list[_Fitted]:
    """The first edits with no more than so many rows together; one at least."""
    ends = accumulate(len(each.attempt.reading.rows) for each in fitted)
    return [each for number, (each, end) in enumerate(zip(fitted, ends, strict=True)) if end <= rows or not number]
