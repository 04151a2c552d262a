"""How one edit is learned against one revision: capture, fit, judge, and again with what was disturbed."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from app.editing.outcome import Answers, Encoded
from app.editing.workshop import Workshop
from app.engine import Live, View
from app.judge import Judged, Verdict
from app.model import Encoding, Prediction
from app.observe import Metrics
from app.store import Draft, EditRecord, Evidence, Learned
from editors import codec
from editors.errors import FitFailed
from editors.inside import Inside
from editors.layers import LayerSite
from editors.site import Site
from editors.types import Fitted, Header, Patch, Problem, Reading, Remembered, Rows, Step

TOKENS_A_SLICE = 512
"""Tokens of an edit's texts that are run, with gradients, in one slice of a fit."""


SCREENED = 2
"""Numbers of a query that are looked at first."""


class Cancelled(Exception):
    """The edit was cancelled while it was worked on."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One edit against one revision."""

    record: EditRecord
    live: Live
    base: View  # what is live, without what the edit replaces
    encoded: Encoded
    before: Answers
    site: Site | LayerSite  # where the patch will meet the model
    reading: Reading  # of the input and the rephrases, unpatched
    under: Reading  # of the same, with the entries of inner layers that are live
    replaced: str | None  # the edit whose patch this one's takes the place of; itself, if it is fitted again


@dataclass(frozen=True, slots=True)
class Candidate:
    """A fitted patch and its evidence."""

    patch: Patch
    fitted: Fitted
    round: int
    seconds: float  # of all rounds so far
    memory_rows: int
    after: Answers
    judged: Judged
    verdict: Verdict

    @property
    def rank(self) -> tuple[bool, int]:
        """The lower, the better: a patch that passes, and of these the one that disturbs least."""
        return not self.verdict.passed, self.judged.disturbed


class Learning:
    """Learns patches, and measures them. Nothing of it goes live."""

    def __init__(self, shop: Workshop, metrics: Metrics, *, rounds: int, cancelled: Callable[[str], bool]) -> None:
        """rounds: how often an edit is fitted at most. cancelled: whether an edit in hand is not wanted any more."""
        self._shop = shop
        self._metrics = metrics
        self._rounds = rounds
        self._cancelled = cancelled

    async def capture(self, record: EditRecord, *, replaced: str | None) -> Attempt:
        """What the editor and the judge need of the edit's texts: one forward pass of each."""
        await self._shop.guarding.catch_up()
        with self._metrics.edit_seconds.labels("capture").time():
            live = await self._shop.follower.catch_up()
            encoded = Encoded.of(self._shop.engine.model, record.draft)
            before = await self._shop.answers(encoded, live.view())
            site = self._shop.site(record.draft)
            texts = [encoded.input, *encoded.rephrases]
            keys_at = {each.name: each for each in (*live.overlay.layer_sites(), site) if isinstance(each, LayerSite)}
            read = await self._shop.engine.read(texts, encoded.wanted, keys_at=list(keys_at.values()))
            base = View(live.revision, live.overlay, self._shop.beside(replaced, live), live.edit_ids)
            under = read
            if live.overlay.visited(base.alive):
                under = await self._shop.engine.read(texts, encoded.wanted, view=base)
        return Attempt(record, live, base, encoded, before, site, read.reading, under.reading, replaced)

    async def fit_and_judge(self, attempt: Attempt) -> Candidate:
        """Fit; where anything is disturbed, remember it and fit again, so many rounds at most. The best is returned."""
        started = time.monotonic()
        problem = await self._problem(attempt)
        best: Candidate | None = None
        for round_number in range(1, self._rounds + 1):
            try:
                with self._metrics.edit_seconds.labels("fit").time():
                    fitted = await self._fit(attempt, problem, round_number)
            except FitFailed:  # with what was disturbed it cannot be learned: what was learned before stands
                if best is None:
                    raise
                break
            patch = patch_of(self._shop, attempt, fitted)
            if best is None and attempt.replaced != attempt.record.id:
                await self._judging(attempt.record.id)
            with self._metrics.edit_seconds.labels("judge").time():
                after, judged, verdict = await self._judged(attempt, patch)
            candidate = Candidate(
                patch,
                fitted,
                round_number,
                time.monotonic() - started,
                _count_remembered(problem),
                after,
                judged,
                verdict,
            )
            if best is None or candidate.rank < best.rank:
                best = candidate
            if not len(judged.rows) or (verdict.passed and not judged.disturbed):
                break
            problem = await self._remembering(problem, judged, attempt.site)
        assert best is not None
        if best is not candidate:
            await self._shop.judged(self._shop.judge.forget())
        return best

    async def _judging(self, edit_id: str) -> None:
        """The fit is over. Raises Cancelled if nobody wants it any more."""
        if not await asyncio.to_thread(self._shop.ledger.judging, edit_id):
            raise Cancelled
        self._shop.listeners.tell(edit_id)

    async def _remembering(self, problem: Problem, judged: Judged, site: Site | LayerSite) -> Problem:
        """The problem with what was disturbed among what is remembered, whatever answer it wants."""
        remembered = list(problem.remembered)
        if isinstance(site, LayerSite):
            remembered += await self._shop.judged(self._disturbed(judged, site))
        return replace(problem, memory=[*problem.memory, judged.rows], remembered=remembered)

    def _disturbed(self, judged: Judged, site: LayerSite) -> Generator[None, None, list[Remembered]]:
        parts = []
        for offended in judged.offended:
            keys = (yield from offended.texts.keys(site, self._shop.engine.model))[offended.numbers]
            parts.append(Remembered(keys, torch.ones_like(offended.numbers).bool()))
        return parts

    async def _problem(self, attempt: Attempt) -> Problem:
        """What the editor is given; all of it is put together on the device thread, where the rows are."""
        return await self._shop.judged(self._put_together(attempt))

    def _put_together(self, attempt: Attempt) -> Generator[None, None, Problem]:
        shop, live, base, draft = self._shop, attempt.live, attempt.base, attempt.record.draft
        rows, positions = attempt.under.rows, attempt.under.positions()
        if attempt.replaced is not None:  # others may have been fitted while what is replaced held them, too
            exempt = shop.exempt(draft, replaced=attempt.replaced)
            leaning = yield from shop.judge.leaning_on(live, base.alive, exempt=exempt)
            rows, positions = Rows.join([rows, leaning]), torch.cat([positions, -1 - torch.arange(len(leaning))])
        edits = yield from shop.judge.rows_of(live, base.alive)
        memory = shop.memory.base()
        insides, remembered = yield from self._insides(attempt)
        return Problem(
            Rows(rows.queries, base.add(rows.queries, rows.residuals), rows.labels),
            positions.to(rows.labels.device),
            [others(part, rows) for part in (*memory, edits)],
            shop.engine.readout,
            moments=shop.memory.moments(memory),
            inside=insides[0]() if insides else None,
            further=insides[1:],
            remembered=remembered,
            features=shop.engine.model.features,
            add=base.add,
        )

    def _insides(self, attempt: Attempt) -> Generator[None, None, tuple[list[Callable[[], Inside]], list[Remembered]]]:
        """The edit's texts at the layer that its editor has chosen, piece by piece, and what is remembered there."""
        model, encoded, site, base = self._shop.engine.model, attempt.encoded, attempt.site, attempt.base
        if not isinstance(site, LayerSite):
            return [], []
        earlier = self._shop.memory.edits.shown.flags_of(attempt.live.edit_ids, base.alive)
        remembered = yield from self._shop.memory.keys(site, model, encoded.wanted[0], earlier)
        pieces = _pieces([encoded.input, *encoded.rephrases], encoded.wanted)
        return [partial(model.inside, *piece, site, base.add) for piece in pieces], remembered

    async def _fit(self, attempt: Attempt, problem: Problem, round_number: int) -> Fitted:
        draft = attempt.record.draft
        editor = self._shop.editor(draft.editor)
        options = self._shop.options(draft.editor, draft.options)
        loop = asyncio.get_running_loop()
        edit_id = attempt.record.id

        def on_slice(step: Step) -> None:
            if self._cancelled(edit_id):
                raise Cancelled
            progress = {"round": round_number, "step": step.number, "loss": step.loss, "losses": dict(step.losses)}
            loop.call_soon_threadsafe(self._shop.listeners.tell, edit_id, progress)

        return await self._shop.engine.work(editor.fit(problem, options), on_slice)

    async def _judged(self, attempt: Attempt, patch: Patch) -> tuple[Answers, Judged, Verdict]:
        draft, live = attempt.record.draft, attempt.live
        exempt = self._shop.exempt(draft, replaced=attempt.replaced)
        view = View(
            live.revision + 1,
            live.overlay.extend([patch]),
            torch.cat([attempt.base.alive, torch.ones(1, dtype=torch.bool)]),
            (*live.edit_ids, attempt.record.id),
        )
        after = await self._shop.answers(attempt.encoded, view)
        judging = self._shop.judge.of_patch(
            live,
            view,
            exempt=exempt,
            own=attempt.reading.of_text(0),
            required=self._shop.required(draft),
            spoilt=spoilt(draft, after),
        )
        judged = await self._shop.judged(judging)
        gates = self._shop.own_gates(draft, attempt.before, after)
        return after, judged, judged.verdict.with_gates(gates)


def patch_of(shop: Workshop, attempt: Attempt, fitted: Fitted) -> Patch:
    """The patch as it will be stored and served: what is judged is what its bytes say."""
    model, editor = shop.engine.model, shop.editor(attempt.record.draft.editor)
    header = Header(editor.name, editor.version, model.fingerprint, attempt.site.name, model.dtype)
    return codec.decode(codec.encode(Patch(header, fitted.tensors)))


def others(memory: Rows, edit: Rows) -> Rows:
    """Memory without the edit's own rows: what was answered to the mistake is nothing to keep."""
    if not len(memory):
        return memory
    near = 1e-4 * edit.queries.float().norm(dim=-1).amax()
    first = slice(SCREENED)  # rows that differ there are told apart without reading all of the memory
    apart = (memory.queries[:, first].unsqueeze(1) - edit.queries[:, first]).float().abs() > near
    close = (~apart.any(-1)).any(-1).nonzero().squeeze(-1)
    if not len(close):
        return memory
    found = memory[close]
    distances = torch.cdist(found.queries.float(), edit.queries.float())
    same = (distances <= near) & (found.labels.unsqueeze(-1) != edit.labels)
    own = torch.zeros_like(memory.labels, dtype=torch.bool)
    own[close] = same.any(-1)
    return memory[~own] if bool(own.any()) else memory


def _pieces(texts: Sequence[Encoding], wanted: Sequence[Tensor]) -> list[tuple[Sequence[Encoding], Sequence[Tensor]]]:
    """Texts in their order, as many together as a slice of a fit should run; one at least."""
    starts, tokens = [0], 0
    for index, (text, answer) in enumerate(zip(texts, wanted, strict=True)):
        tokens += len(text) + len(answer)
        if tokens > TOKENS_A_SLICE and index > starts[-1]:
            starts.append(index)
            tokens = len(text) + len(answer)
    ends = [*starts[1:], len(texts)]
    return [(texts[start:end], wanted[start:end]) for start, end in zip(starts, ends, strict=True)]


def _count_remembered(problem: Problem) -> int:
    """How many rows, or keys, the fit stays clear of."""
    if problem.inside is not None:
        return sum(len(part.keys) for part in problem.remembered)
    return sum(len(part) for part in problem.memory)


def evidence(attempt: Attempt, candidate: Candidate) -> Evidence:
    """What is kept of a candidate that does not go live."""
    return Evidence(
        before=attempt.before.as_json(),
        after=None if spoilt(attempt.record.draft, candidate.after) else candidate.after.as_json(),
        verdict=candidate.verdict.as_json(),
        fit=_fit_record(candidate),
    )


def spoilt(draft: Draft, answers: Answers) -> list[str]:
    """The texts of an edit that a classifier answers with NaN or infinity, which no record can hold."""
    texts = [draft.input, *draft.rephrases, *draft.keep]
    return [
        text
        for text, answer in zip(texts, answers.predictions, strict=True)
        if isinstance(answer, Prediction) and not all(map(math.isfinite, answer.scores.values()))
    ]


def learned(attempt: Attempt, candidate: Candidate) -> Learned:
    """What a candidate brings to its commit."""
    data = codec.encode(candidate.patch)
    return Learned(
        patch=data,
        sha256=codec.sha256(data),
        format=codec.FORMAT,
        before=attempt.before.as_json(),
        after=candidate.after.as_json(),
        verdict=candidate.verdict.as_json(),
        fit=_fit_record(candidate),
        activations=codec.encode_rows(attempt.reading.to(torch.device("cpu"))),
    )


def _fit_record(candidate: Candidate) -> dict[str, Any]:
    return {
        "steps": candidate.fitted.steps,
        "seconds": round(candidate.seconds, 6),
        "loss": candidate.fitted.loss,
        "parameters": candidate.patch.parameters,
        "seed": 0,
        "memory_rows": candidate.memory_rows,
        "rounds": candidate.round,
    }
