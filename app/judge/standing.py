"""How remembered texts stand under a revision, computed anew only where a change of the live patches can reach.

The queries and residuals of a text at the last norm do not depend on any patch behind the last feed-forward layer: such
a patch is one product with the rows, and those on which it fires are read out again. An entry of an inner layer acts
on the texts in its ball alone, and on the radii of the entries near it (`Codebook.reached_by`); a text that finds
another entry than before is run through the model again, and no other.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.engine import View
from app.memory import CHUNK, Said, Shown, Texts, said
from app.model import Model
from editors.columns import Columns
from editors.composition import NOTHING, Composition
from editors.types import Rows

ROWS_BY_PATCHES = 2**20
"""How many rows are looked at under how many patches in one slice of the device's time, multiplied."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """How texts stand when some patches are alive: what differs from how they stand now, and the answers of all.

    alive: (patches,) bool. entered: (texts,) int64, the patch that each text finds. answers: (rows,) int64. scores:
    (rows,) float32, log-probabilities of what should be answered.
    moved, moved_rows: rows whose text finds another patch than now, with the entries of inner layers in place and
    without what is added behind the last. fired: by patch that came or went, the rows on which it fires.
    """

    alive: Tensor
    shown: Shown
    entered: Tensor
    answers: Tensor
    scores: Tensor
    moved: Tensor
    moved_rows: Rows
    fired: Mapping[int, Tensor]

    def texts_touched_by(self, patch: int) -> Tensor:
        """The texts in whose answers a patch that came takes part: (k,) int64, ascending."""
        found = (self.entered == patch).nonzero().squeeze(-1)
        fired = self.fired.get(patch, found[:0])
        touched: Tensor = torch.cat([found, self.shown.owners[fired]]).unique()
        return touched


Looked = tuple[Tensor, int]
"""The rows on which a patch fires, ascending, and among how many, the first, it was looked for them."""


@dataclass(frozen=True, slots=True, eq=False)
class Ahead:
    """What is known of patches behind the last layer that come one after the other, and of rows that come with them.

    fired: by patch the rows on which it fires, ascending, of those that are there and of those that come. start: the
    number of the first row that comes. said: at those rows, each as soon as the patch that it comes with is live.
    """

    fired: Mapping[int, Tensor]
    start: int
    said: Said

    @property
    def end(self) -> int:
        """The number behind that of the last row that comes."""
        return self.start + len(self.said.answers)

    def looked(self, patch: int, count: int) -> Looked | None:
        """Where a patch fires while there are so many rows, if that is known."""
        if patch not in self.fired:
            return None
        rows, end = self.fired[patch], min(count, self.end)
        return rows[rows < end], end

    def tell(self, outcome: Outcome, coming: Tensor) -> Tensor:
        """Note in an outcome what is known of rows that come with it: (k,) int64. Returns the others of them."""
        known = (coming >= self.start) & (coming < self.end)
        rows = coming[known]
        outcome.answers[rows] = self.said.answers[rows - self.start]
        outcome.scores[rows] = self.said.scores[rows - self.start]
        return coming[~known]


@dataclass(frozen=True, slots=True)
class Stood:
    """How texts stood, and on which rows each patch fired."""

    now: Outcome
    fired: Mapping[int, Looked]


class Standing:
    """Texts, and how they stand under the live revision. Belongs to the thread of the device."""

    def __init__(self, texts: Texts, model: Model, *, fixed: Said | None = None) -> None:
        """fixed: what the unedited model says to the texts, if no text will come, so that this is known."""
        self.texts = texts
        self._model = model
        self.ahead: Ahead | None = None
        self._fired: dict[int, Looked] = {}
        """Of patches behind the last layer the rows on which they fire, as the rows stand now."""
        self._moved: Columns | None = None
        """Queries and residuals as they stand now; none as long as no text has found an entry."""
        self._count = 0  # of the rows in these
        shown = texts.shown.none() if fixed is None else texts.shown
        nothing = shown.rows.labels[:0]
        base = Said(nothing, nothing.float(), nothing.float()) if fixed is None else fixed
        nobody = torch.zeros(0, dtype=torch.bool)
        found = torch.full_like(shown.starts, NOTHING)
        self.now = Outcome(nobody, shown, found, base.answers, base.scores, nothing, shown.rows[:0], {})

    def rows(self, outcome: Outcome, which: Tensor) -> Rows:
        """Some rows as they stand in an outcome: (k,) int64 or (rows,) bool."""
        which = which.nonzero().squeeze(-1) if which.dtype == torch.bool else which
        picked = self._standing(outcome.shown)[which]
        place = torch.full_like(outcome.answers, NOTHING)
        place[outcome.moved] = torch.arange(len(outcome.moved), device=place.device)
        other = place[which] != NOTHING
        if not bool(other.any()):
            return picked
        moved = outcome.moved_rows[place[which][other]]
        queries, residuals = picked.queries.clone(), picked.residuals.clone()
        queries[other], residuals[other] = moved.queries, moved.residuals
        return Rows(queries, residuals, picked.labels)

    @property
    def moved(self) -> bool:
        """Whether a text has ever found an entry, so that rows may change."""
        return self._moved is not None

    def all_rows(self) -> Rows:
        """All rows as they stand now; not a copy."""
        return self._standing(self.now.shown)

    def stand(self, view: View, shown: Shown) -> Generator[None, None, None]:
        """Make `now` what it is under a view, with the texts that have come since: those that are shown."""
        if shown.count != self.now.shown.count or not torch.equal(view.alive, self.now.alive):
            self.adopt((yield from self._under(view, shown)))

    def adopt(self, outcome: Outcome) -> None:
        """Make `now` this, which was computed from it."""
        if len(outcome.moved):
            self._fired.clear()
            self._move(outcome)
        count = len(outcome.shown.rows)
        self._fired.update((patch, (rows, count)) for patch, rows in outcome.fired.items())
        self.now = replace(outcome, moved=outcome.moved[:0], moved_rows=outcome.moved_rows[:0], fired={})

    def mark(self) -> Stood:
        """How the texts stand now, to come back to."""
        return Stood(self.now, dict(self._fired))

    def back_to(self, stood: Stood) -> None:
        """Let the texts stand as they did; none may have been moved by an entry of an inner layer since."""
        self.now, self._fired = stood.now, dict(stood.fired)

    def foresee(
        self, overlay: Composition, patches: Sequence[int], coming: Rows, said: Said
    ) -> Generator[None, None, None]:
        """Look at once for where patches fire that come one after the other, each with some of the rows `coming`.

        said: at these, each as soon as its patch is live. Holds until `ahead` is taken back.
        """
        rows = self._standing(self.now.shown)
        here = yield from _by_patch(overlay, patches, rows)
        there = yield from _by_patch(overlay, patches, coming)
        fired = {patch: torch.cat([here[patch], there[patch] + len(rows)]) for patch in patches}
        self.ahead = Ahead(fired, len(rows), said)

    def under(self, view: View) -> Generator[None, None, Outcome]:
        """How the texts would stand under a view whose overlay has grown from that of the present one."""
        return self._under(view, self.now.shown)

    def _under(self, view: View, shown: Shown) -> Generator[None, None, Outcome]:
        overlay = view.overlay
        before = torch.zeros_like(view.alive)
        before[: len(self.now.alive)] = self.now.alive
        changed = [int(number) for number in (before != view.alive).nonzero().flatten()]
        fresh = torch.arange(len(self.now.entered), shown.count, device=shown.owners.device)
        entered = torch.cat([self.now.entered, torch.full_like(fresh, NOTHING)])
        moving = yield from self._found_anew(view, before, changed, fresh, entered)
        moved = shown.rows_of(moving)
        moved_rows = yield from self._moved_rows(shown, moving, moved, entered, view)
        fired = yield from self._fired_on(overlay, overlay.adding(changed), shown, moved, moved_rows)
        answers = torch.cat([self.now.answers, shown.rows.labels[len(self.now.answers) :]])
        scores = torch.cat([self.now.scores, torch.zeros_like(answers[len(self.now.scores) :]).float()])
        outcome = Outcome(view.alive, shown, entered, answers, scores, moved, moved_rows, fired)
        coming = shown.rows_of(fresh)
        untold = coming if self.ahead is None else self.ahead.tell(outcome, coming)
        which = torch.cat([moved, untold, *fired.values()]).unique()
        yield from self._answer(outcome, which, view)
        return outcome

    def _found_anew(
        self, view: View, before: Tensor, changed: Sequence[int], fresh: Tensor, entered: Tensor
    ) -> Generator[None, None, Tensor]:
        """The texts that find another patch than is noted in `entered`, which is set right: (k,) int64, ascending."""
        overlay = view.overlay
        sites = {site.name: site for site in (*overlay.visited(before), *overlay.visited(view.alive))}
        if not sites or not (changed or len(fresh)):
            return fresh[:0]
        keys = {}
        for name, site in sites.items():
            keys[name] = (yield from self.texts.keys(site, self._model))[: len(entered)]
        reached = torch.cat([overlay.reached_by(keys, before, view.alive), fresh]).unique()
        found = overlay.found(keys, view.alive, reached)
        moving: Tensor = reached[found != entered[reached]]
        entered[reached] = found
        return moving

    def _moved_rows(
        self, shown: Shown, texts: Tensor, moved: Tensor, entered: Tensor, view: View
    ) -> Generator[None, None, Rows]:
        """The rows of texts that find another patch than now: those that find one are run through the model."""
        rows = shown.rows[moved]
        finding = texts[entered[texts] != NOTHING]
        if not len(finding):
            return rows
        read = yield from self.texts.read_under(finding, view, self._model)
        queries, residuals = rows.queries.clone(), rows.residuals.clone()
        place = torch.isin(moved, shown.rows_of(finding))
        queries[place], residuals[place] = read.queries, read.residuals
        return Rows(queries, residuals, rows.labels)

    def _fired_on(
        self, overlay: Composition, patches: Sequence[int], shown: Shown, moved: Tensor, moved_rows: Rows
    ) -> Generator[None, None, dict[int, Tensor]]:
        """On which rows each of these patches fires, as the rows would stand."""
        rows = self._standing(shown)
        looked = {number: self._looked(number, len(rows)) or (moved[:0], 0) for number in patches}
        behind = [number for number, (_, count) in looked.items() if count < len(rows)]
        start = min((looked[number][1] for number in behind), default=0)
        fired = {number: there for number, (there, _) in looked.items()}
        later = yield from _by_patch(overlay, behind, rows[start:])
        if not start:  # of thousands of patches, after a start, there is nothing to put together
            fired |= later
        else:
            for number, found in later.items():
                fired[number] = torch.cat([fired[number][fired[number] < start], found + start])
        if not len(moved):
            return fired
        again = yield from _by_patch(overlay, patches, moved_rows)
        return {
            number: torch.cat([rows[~torch.isin(rows, moved)], moved[again[number]]]).unique()
            for number, rows in fired.items()
        }

    def _looked(self, patch: int, count: int) -> Looked | None:
        if patch in self._fired or self.ahead is None:
            return self._fired.get(patch)
        return self.ahead.looked(patch, count)

    def _answer(self, outcome: Outcome, which: Tensor, view: View) -> Generator[None, None, None]:
        """Set the answers and the scores of some rows right."""
        if not len(which):
            return
        alive = view.alive.unsqueeze(0).to(which.device)
        for number, some in enumerate(which.split(CHUNK)):
            if number:
                yield
            rows = self.rows(outcome, some)
            residuals, _ = view.overlay.apply(rows.queries, rows.residuals, alive, torch.zeros_like(some))
            each = said(residuals, rows.labels, self._model.readout)
            outcome.answers[some], outcome.scores[some] = each.answers, each.scores

    def _standing(self, shown: Shown) -> Rows:
        if self._moved is None:
            return shown.rows
        if (end := len(shown.rows)) > self._count:
            here = slice(self._count, end)
            self._moved = self._moved.reserve(self._count, end)
            fresh = {"queries": shown.rows.queries[here], "residuals": shown.rows.residuals[here]}
            self._moved.write(self._count, end, **fresh)
            self._count = end
        return Rows(**self._moved.upto(end), labels=shown.rows.labels)

    def _move(self, outcome: Outcome) -> None:
        if self._moved is None:
            rows = outcome.shown.rows
            self._moved = Columns.of({"queries": rows.queries.clone(), "residuals": rows.residuals.clone()})
            self._count = len(rows)
        self._standing(outcome.shown)
        self._moved["queries"][outcome.moved] = outcome.moved_rows.queries
        self._moved["residuals"][outcome.moved] = outcome.moved_rows.residuals


def _by_patch(overlay: Composition, patches: Sequence[int], rows: Rows) -> Generator[None, None, dict[int, Tensor]]:
    """On which rows each of these patches fires; others may use the device between parts of the rows."""
    if not patches:
        return {}
    picked, nothing = overlay.pick(patches), rows.labels[:0]
    alive = torch.ones(1, len(patches), dtype=torch.bool, device=rows.labels.device)
    found = [(nothing, nothing)]
    size = max(CHUNK, ROWS_BY_PATCHES // len(patches))
    for start in range(0, len(rows), size):
        if start:
            yield
        some = rows[start : start + size]
        firing = picked.apply(some.queries, some.residuals, alive, torch.zeros_like(some.labels))[1]
        found.append((firing.patches, firing.rows + start))
    which, where = (torch.cat(column) for column in zip(*found, strict=True))
    order = which.argsort(stable=True)
    counts = which.bincount(minlength=len(patches)).tolist()
    each = where[order].split([count for count in counts if count])
    some_of = iter(each)
    return {patch: next(some_of) if count else nothing for patch, count in zip(patches, counts, strict=True)}
