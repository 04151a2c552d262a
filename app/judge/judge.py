"""Every edit is a regression test for all later ones: gates, measured before anything goes live.

The guard and all live edits are judged on stored activations (`app.judge.standing`). A text that is written is
unchanged exactly when at every one of its positions the same token leads. Runs on the device thread, in slices.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.engine import Live, View
from app.judge.chosen import Chosen
from app.judge.standing import Outcome, Standing, Stood
from app.judge.verdict import LISTED, Conflict, Gate, Required, Verdict
from app.judge.watch import Watch, told
from app.memory import Guard, Memory, Said, Shelved, Texts
from app.model import Model
from editors.composition import Composition
from editors.types import Rows

NEAR = 0.9
"""From this similarity on two inputs are named as near-duplicates: the cosine of what neurons read of them, both less
the memory's mean."""
ROUGHLY = 0.05
"""By how much the roundings of that similarity may be off at most, where it is first looked at."""
MOST_NEAR = 10
"""Near-duplicates named in one verdict, the nearest first."""


@dataclass(frozen=True, slots=True)
class Exemption:
    """Rows that a change is meant to change: those of these edits, and guard inputs with these keys. Guard inputs equal
    to that of a live edit are exempt in any case.
    """

    edit_ids: frozenset[str] = frozenset()
    input_keys: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class _Change:
    """What would be served, how everything would stand then, and what is asked of that.

    live, would: (edits,) bool, the shelved edits that are live, and those that would be. coming: the patch that comes,
    or comes back. spoilt: texts of an edit that would be answered with NaN or infinity.
    """

    live: Tensor
    would: Tensor
    guard: Outcome
    edits: Outcome
    exempt: Exemption
    required: Required
    coming: int | None = None
    spoilt: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Offended:
    """Texts that would be answered wrongly."""

    texts: Texts
    numbers: Tensor  # (k,) int64


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict, what a next round of the fit should remember, and the other live edits that would not hold.

    rows: those that would be wrong. offended: the texts that these are of. disturbed: how many texts that are right now
    would be wrong.
    """

    verdict: Verdict
    rows: Rows
    offended: tuple[Offended, ...]
    broken: tuple[str, ...]
    disturbed: int


@dataclass(frozen=True, slots=True)
class Mark:
    """How the judge stands at one revision."""

    revision: int
    standing: Standing
    guard: Stood
    edits: Stood


@dataclass(frozen=True, slots=True)
class Coming:
    """An edit that may be put on the shelf. rows: of its texts, labels as wanted, unpatched."""

    edit_id: str
    rows: Rows


@dataclass(frozen=True, slots=True, eq=False)
class _Foreseen:
    """What had come when it was looked ahead, and the edits that are to come, in their order."""

    alive: Tensor
    edits: int
    edit_ids: Sequence[str]

    def holds(self, live: Live, shelved: Shelved) -> bool:
        """Whether nothing has happened since but that the first so many edits have passed and were put on the shelf."""
        first, come = len(self.alive), shelved.edits - self.edits
        as_before = len(live.alive) == first + come and torch.equal(live.alive[:first], self.alive)
        in_order = list(shelved.edit_ids[self.edits : shelved.edits]) == list(self.edit_ids[:come])
        return as_before and in_order and bool(live.alive[first:].all())


class Outdated(Exception):
    """A revision shall be judged that another one has followed, which was judged already."""


class Judge:
    """Measures what a change of the live patches does to the guard and to every live edit.

    Every method is a generator that runs on the device thread; one at a time may be under way. Each raises Outdated for
    a `live` that is older than one that was judged before.
    """

    def __init__(self, memory: Memory, model: Model, required: Required) -> None:
        self.required = required
        self._memory = memory
        self._model = model
        self._edits = Standing(memory.edits.texts, model)
        self._chosen = Chosen()
        self._revision = 0
        self._judged_last: tuple[tuple[str, ...], Outcome, Outcome] | None = None
        """What may be served next, and whose the newest patch is."""
        self._foreseen: _Foreseen | None = None
        self._take_up(memory.guard)

    def of_patch(
        self,
        live: Live,
        view: View,
        *,
        exempt: Exemption,
        own: Rows,
        required: Required,
        spoilt: Sequence[str] = (),
    ) -> Generator[None, None, Judged]:
        """What one more patch does, the last of the view that would be served.

        own: the rows of the edit's input, unpatched. spoilt: those of its own texts that would be answered with NaN or
        infinity.
        """
        shelved = yield from self._stand(live)
        number = len(live.alive)
        guard, edits = yield from self._under(view)
        here, would = (shelved.flags_of(live.edit_ids, mask) for mask in (live.alive, view.alive[:number]))
        judged = self._judged(shelved, _Change(here, would, guard, edits, exempt, required, number, spoilt))
        near = self._near_duplicates(shelved, here & ~shelved.flags(exempt.edit_ids), own)
        return replace(judged, verdict=replace(judged.verdict, conflicts=near))

    def of_alive(
        self, live: Live, alive: Tensor, *, exempt: Exemption, required: Required, coming: int | None = None
    ) -> Generator[None, None, Judged]:
        """What it does to serve the patches `alive` (a mask over the overlay) instead of the live ones.

        coming: the patch that comes back.
        """
        shelved = yield from self._stand(live)
        guard, edits = yield from self._under(View(live.revision, live.overlay, alive, live.edit_ids))
        here, would = (shelved.flags_of(live.edit_ids, mask) for mask in (live.alive, alive))
        return self._judged(shelved, _Change(here, would, guard, edits, exempt, required, coming))

    def look(self, live: Live) -> Generator[None, None, None]:
        """See how everything stands, so that the first verdict after a start need not."""
        yield from self._stand(live)

    def mark(self, live: Live) -> Generator[None, None, Mark]:
        """How the judge stands at `live`, so that it can come back from revisions that are only supposed."""
        yield from self._stand(live)
        return Mark(self._revision, self._guard, self._guard.mark(), self._edits.mark())

    def back_to(self, mark: Mark) -> None:
        """Forget all that was judged since; no entry of an inner layer may have come or gone. On the device thread."""
        self._revision, self._judged_last = mark.revision, None
        self.look_no_further()
        self._edits.back_to(mark.edits)
        if self._guard is mark.standing:
            self._guard.back_to(mark.guard)
        else:
            self._take_up(self._memory.guard)

    def forget(self) -> Generator[None, None, None]:
        """The patch that was judged last will not go live."""
        self._judged_last = None
        self.look_no_further()
        yield

    def foresee(
        self, live: Live, overlay: Composition, coming: Sequence[Coming], said: Said
    ) -> Generator[None, None, None]:
        """Look at once for what several verdicts ask: where each of the patches fires with which an overlay has grown.

        coming: the edits of these patches, each of which is put on the shelf when its patch has passed. said: at their
        rows, one edit after the other, each as soon as its patch is live, with those before it and no others. Holds as
        long as all that happens is that one after the other passes.
        """
        shelved = yield from self._stand(live)
        first = len(live.alive)
        patches = range(first, len(overlay))
        assert len(patches) == len(coming) == len(overlay.adding(patches)), "one patch behind the last layer for each"
        rows = Rows.join([each.rows for each in coming])
        nothing = Said(said.answers[:0], said.scores[:0], said.gaps[:0])
        yield from self._guard.foresee(overlay, patches, rows[:0], nothing)
        yield from self._edits.foresee(overlay, patches, rows, said)
        self._foreseen = _Foreseen(live.alive, shelved.edits, [each.edit_id for each in coming])

    def look_no_further(self) -> None:
        """Forget what was foreseen: what comes next is something else. On the device thread."""
        self._foreseen = self._guard.ahead = self._edits.ahead = None

    def leaning_on(self, live: Live, alive: Tensor, *, exempt: Exemption) -> Generator[None, None, Rows]:
        """The rows that are right now and would be wrong if just `alive` were served: labels as wanted, with the
        entries of `alive` at inner layers, without what is added behind the last.
        """
        shelved = yield from self._stand(live)
        view = View(live.revision, live.overlay, alive, live.edit_ids)
        judged = shelved.flags_of(live.edit_ids, live.alive) & ~shelved.flags(exempt.edit_ids)
        rows = []
        for part, counts in ((self._guard, self._watch.rights), (self._edits, judged[shelved.owners])):
            would = yield from part.under(view)
            labels = would.shown.rows.labels
            lost = (part.now.answers == labels) & (would.answers != labels)
            rows.append(part.rows(would, lost & counts))
        return Rows.join(rows)

    def rows_of(self, live: Live, alive: Tensor) -> Generator[None, None, Rows]:
        """The rows of the edits of these patches as they are served, without what is added behind the last layer.

        alive: (patches,) bool.
        """
        shelved = yield from self._stand(live)
        flags = shelved.flags_of(live.edit_ids, alive)
        rows = self._edits.all_rows()
        every = bool(flags.all())
        if every or self._edits.moved:
            self._chosen = Chosen()  # what it has copied is not asked for again
        if every:
            return rows
        chosen = flags[shelved.owners]
        return rows[chosen] if self._edits.moved else self._chosen.of(rows, chosen)

    def _judged(self, shelved: Shelved, change: _Change) -> Judged:
        """The gates of what would be answered, and what would be wrong."""
        counted = self._watch.counted(change.exempt.input_keys, shelved, change.live)
        watched, now = (self._watch.watched(guard, counted) for guard in (change.guard, self._guard.now))
        others, broken, wrong = self._others_hold(shelved, change)
        gates = [self._finite(change), others, watched.gate(change.required, now)]
        if change.coming is not None:
            touched = self._watch.share_touched(change.guard, change.coming, counted)
            gates.append(Gate("guard_fires", touched, change.required.guard_fires))
        parts = ((self._guard, change.guard, watched.wrong_rows), (self._edits, change.edits, wrong))
        offended = tuple(
            Offended(part.texts, would.shown.flags(rows).nonzero().squeeze(-1)) for part, would, rows in parts
        )
        disturbed = sum(_newly(part, would, rows) for part, would, rows in parts)
        rows = Rows.join([part.rows(would, rows) for part, would, rows in parts])
        return Judged(Verdict(tuple(gates), guard=watched.as_json()), rows, offended, broken, disturbed)

    def _others_hold(self, shelved: Shelved, change: _Change) -> tuple[Gate, tuple[str, ...], Tensor]:
        """Every other edit that would be live holds, unless it is live now and does not hold already.

        Also those that do not, and which rows of them all would be wrong: (rows,) bool.
        """
        answers = change.edits.answers
        judged = change.would & ~shelved.flags(change.exempt.edit_ids)
        wrong = (answers != shelved.rows.labels) & judged[shelved.owners]
        own = shelved.own[shelved.shown.owners]
        failed_before, fail_now = (
            _flags(shelved.owners[(said != shelved.rows.labels) & own], shelved.edits)
            for said in (self._edits.now.answers, answers)
        )
        judged &= ~(failed_before & change.live)
        broken = (judged & fail_now).nonzero().flatten().tolist()
        failures = [self._broken(shelved, number, answers) for number in broken[:LISTED]]
        required, count = change.required.other_edits_hold, int(judged.sum())
        gate = Gate.share("other_edits_hold", count, required=required, failures=failures, failed=len(broken))
        return gate, tuple(shelved.edit_ids[number] for number in broken), wrong

    def _broken(self, shelved: Shelved, number: int, answers: Tensor) -> dict[str, str]:
        """How an edit that would not hold is listed."""
        text = int(((shelved.edits_of_texts == number) & shelved.own).nonzero()[0])
        rows = shelved.shown.slice_of(text)
        said = told(self._model, shelved.rows.labels[rows], answers[rows], wanted="wanted")
        return {"edit_id": shelved.edit_ids[number], "input": self._memory.edits.texts[text], **said}

    def _near_duplicates(self, shelved: Shelved, others: Tensor, own: Rows) -> tuple[Conflict, ...]:
        """The other live edits whose input is nearly this one, and that want another answer for it.

        others: (edits,) bool.
        """
        differ = ~self._memory.edits.texts.wanting(own.labels)[: shelved.shown.count]
        texts = (shelved.own & others[shelved.edits_of_texts] & differ).nonzero().squeeze(-1)
        known = self._memory.mean()
        mean = torch.zeros_like(own.queries[0]).float() if known is None else known.float()
        alike = _cosines(shelved, texts, own.queries[0].float() - mean, mean)
        near = (alike >= NEAR).nonzero().squeeze(-1)
        nearest = near[alike[near].argsort(descending=True, stable=True)][:MOST_NEAR].tolist()
        return tuple(self._conflict(shelved, int(texts[place]), float(alike[place])) for place in nearest)

    def _conflict(self, shelved: Shelved, text: int, similarity: float) -> Conflict:
        wanted = self._memory.edits.texts.wanted(text)
        edit_id = shelved.edit_ids[int(shelved.edits_of_texts[text])]
        shown = self._model.show(wanted, len(wanted) - 1)
        return Conflict(edit_id, self._memory.edits.texts[text], shown, similarity)

    def _finite(self, change: _Change) -> Gate:
        """No text would be answered with NaN or infinity."""
        failures: list[Mapping[str, str]] = [{"input": text} for text in change.spoilt]
        for standing, outcome in ((self._guard, change.guard), (self._edits, change.edits)):
            spoilt = outcome.shown.flags(~torch.isfinite(outcome.scores)).nonzero().flatten().tolist()
            failures += [{"input": standing.texts[text]} for text in spoilt]
        count = change.guard.shown.count + change.edits.shown.count + len(change.spoilt)
        return Gate.share("finite", count, required=1.0, failures=failures)

    def _stand(self, live: Live) -> Generator[None, None, Shelved]:
        """Make the standings those of `live`, computing only what the last change of revision could have changed.

        Returns the edits that are judged: edits that are put on the shelf meanwhile wait for the next time.
        """
        if live.revision < self._revision:
            raise Outdated
        self._revision = live.revision
        if self._memory.guard is not self._watch.guard:
            self._take_up(self._memory.guard)
        shelved = self._memory.edits.shown
        if self._foreseen is not None and not self._foreseen.holds(live, shelved):
            self.look_no_further()
        if not torch.equal(self._guard.now.alive, live.alive):
            self._adopt_judged_last(live)
        yield from self._guard.stand(live.view(), self._watch.guard.known.texts.shown)
        yield from self._edits.stand(live.view(), shelved.shown)
        return shelved

    def _under(self, view: View) -> Generator[None, None, tuple[Outcome, Outcome]]:
        """How the guard and the edits would stand under a view, which may be what is served next."""
        guard = yield from self._guard.under(view)
        edits = yield from self._edits.under(view)
        self._judged_last = tuple(view.edit_ids[len(view.alive) - 1 :]), guard, edits
        return guard, edits

    def _take_up(self, guard: Guard) -> None:
        """Measure on this guard from now on."""
        self._watch = Watch(guard, self._model)
        self._guard = Standing(guard.known.texts, self._model, fixed=guard.known.base)
        self._judged_last = None

    def _adopt_judged_last(self, live: Live) -> None:
        """Spare what was computed for the last verdict, if just what it was on is served now."""
        judged, self._judged_last = self._judged_last, None
        if judged is None:
            return
        newest, guard, edits = judged
        unmoved = edits.shown.count == self._edits.now.shown.count
        if unmoved and live.edit_ids[-1:] == newest and torch.equal(guard.alive, live.alive):
            self._guard.adopt(guard)
            self._edits.adopt(edits)


def _cosines(shelved: Shelved, texts: Tensor, query: Tensor, mean: Tensor) -> Tensor:
    """How alike the queries of some texts, less a mean, are to one that is less it already: (k,) int64 -> (k,).

    Those that are told to be alike are looked at in all digits; the others only by products with all queries, so that
    nothing that grows with the texts is copied.
    """
    rows = shelved.shown.starts[texts]
    # Stacked as rows and turned: laid out as columns, the same product takes six times as long.
    products = (shelved.rows.queries @ torch.stack([query, mean]).to(shelved.rows.queries.dtype).T)[rows].float()
    squares = (shelved.squares[texts] - 2 * products[:, 1] + mean @ mean).clamp(min=torch.finfo(torch.float32).tiny)
    alike: Tensor = (products[:, 0] - mean @ query) / (squares.sqrt() * query.norm()).clamp(
        min=torch.finfo(torch.float32).tiny
    )
    close = (alike >= NEAR - ROUGHLY).nonzero().squeeze(-1)
    alike[close] = torch.cosine_similarity(shelved.rows.queries[rows[close]].float() - mean, query.unsqueeze(0))
    return alike


def _newly(standing: Standing, would: Outcome, wrong: Tensor) -> int:
    """How many texts would be wrong at these rows, (rows,) bool, that are right at all of them now."""
    labels = would.shown.rows.labels
    already = would.shown.flags(wrong & (standing.now.answers != labels))
    return int((would.shown.flags(wrong) & ~already).sum())


def _flags(numbers: Tensor, count: int) -> Tensor:
    """Which of `count` things are named: (count,) bool."""
    flags = torch.zeros(count, dtype=torch.bool, device=numbers.device)
    flags[numbers] = True
    return flags
