"""The judge runs again only what a change can reach; what it keeps is what the whole model computes."""

from __future__ import annotations

from collections.abc import Generator as Slices
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, ClassVar, TypeVar

import pytest
import torch
from torch import Tensor

from app.engine import Entry, Live, View
from app.engine.patched import Patched
from app.judge import Exemption, Judge, Outdated, Required
from app.judge.standing import Outcome, Standing
from app.memory import Guard, Known, Memory, Said, Shelving, nothing_known, said
from app.memory.texts import Shown, Texts
from app.model import Ask, Decoding, Encoding, Model, Read, load
from editors.codebook import Grace
from editors.composition import NOTHING, Composition
from editors.layers import LayerSite
from editors.registry import editors, options_of
from editors.types import Header, Patch, Rows
from editors.visit import Places
from tests.app.conftest import sentence
from tests.app.running import run
from tests.deployed import deploy

T = TypeVar("T")

FAMILIES = ("Bert", "Bart", "Llama")
GUARD = [sentence(number) for number in range(20)]
EDITED = [sentence(number) for number in range(20, 60)]
LENIENT = Required(rephrases_hold=0.0, guard_unchanged=0.0, guard_fires=1.0, other_edits_hold=0.0)


@cache
def folder_of(family: str, parent: Path) -> Path:
    return deploy(parent / family, family=family)


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(folder_of(request.param, tmp_path_factory.getbasetemp()), device="cpu")


def ended(slices: Slices[Any, None, T]) -> T:
    """What a job returns, without anything else between its slices."""
    while True:
        try:
            next(slices)
        except StopIteration as end:
            value: T = end.value
            return value


def known(model: Model, texts: Sequence[str]) -> Known:
    """Texts with what the unedited model answers; no keys are taken yet."""
    encodings = model.encode(texts)
    asks = [Ask(encoding, Decoding(4) if model.writes else None) for encoding in encodings]
    answers = [model.answered(output) for output in run(model, asks)]
    rows = (reading := model.read(encodings, answers).reading).rows
    sure = said(rows.residuals, rows.labels, model.readout)
    return Known(Texts.of(texts, reading), Said(rows.labels, sure.scores, sure.gaps), torch.zeros(len(texts)).bool())


def plainly(model: Model, texts: Texts, shown: Shown, view: View) -> tuple[Read, list[set[str]]]:
    """The whole model on every text, fed what it should say; and the edits that take part in each."""
    patched = Patched([view] * shown.count, model.device, fed=shown.lengths.tolist())
    read = model.read(*texts.batch(torch.arange(shown.count), model), patched)
    return read, [{fired.edit_id for fired in patched.fired(text, 1)} for text in range(shown.count)]


def equal_to_the_whole_model(standing: Standing, outcome: Outcome, view: View, model: Model, texts: Texts) -> None:
    assert len(outcome.entered) == outcome.shown.count
    if not outcome.shown.count:
        return
    read, fired = plainly(model, texts, outcome.shown, view)
    added = {view.edit_ids[number] for number in view.overlay.adding(range(len(view.alive)))}
    entered = [set() if patch == NOTHING else {view.edit_ids[patch]} for patch in outcome.entered.tolist()]
    assert entered == [each - added for each in fired]
    assert torch.equal(outcome.answers, read.answered)
    patched = view.add(read.reading.rows.queries, read.reading.rows.residuals)
    plain = model.readout(patched).log_softmax(-1).gather(-1, outcome.shown.rows.labels.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(outcome.scores, plain, atol=1e-4, rtol=1e-4)
    for number, edit_id in enumerate(view.edit_ids):
        if outcome.alive[number] and not standing.now.alive[number : number + 1].any():  # it would come
            touched = [text for text, each in enumerate(fired) if edit_id in each]
            assert outcome.texts_touched_by(number).tolist() == touched
    rows = standing.rows(outcome, torch.arange(len(outcome.answers)))
    torch.testing.assert_close(rows.queries, read.reading.rows.queries, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rows.residuals, read.reading.rows.residuals, atol=1e-4, rtol=1e-4)
    assert torch.equal(rows.labels, outcome.shown.rows.labels)


@dataclass
class History:
    """Edits of both kinds that come, go and come back on one model, as a service would have them."""

    model: Model
    seed: int
    guard: int = len(GUARD)
    entries: list[Entry] = field(default_factory=list)
    revision: int = 0
    entered: int = 0
    changed: int = 0

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.torch = torch.Generator().manual_seed(self.seed)
        self.overlay = Composition(editors(), self.model.sites, self.model.device)
        self.memory = Memory(nothing_known(self.model), self.guarded(), None, limit=0)
        self.judge = Judge(self.memory, self.model, LENIENT)
        self.sites = [grace_site(self.model), grace_site(self.model, **INNER)]
        texts = [*GUARD, *EDITED]
        encodings = self.model.encode(texts)
        wanted = [self.wanted(encoding) for encoding in encodings]
        self.reading = self.model.read(encodings, wanted, keys_at=self.sites).reading

    def guarded(self) -> Guard:
        return Guard.of(known(self.model, GUARD[: self.guard]))

    @property
    def live(self) -> Live:
        return Live(self.revision, self.overlay, tuple(self.entries))

    def wanted(self, encoding: Encoding) -> Tensor:
        """One of few answers, so that some edits agree."""
        if self.model.writes:
            return self.model.wanted(encoding, self.random.choice(["w9", "w8 w7", "w8 w5"]))
        return torch.tensor([self.random.randrange(2)])

    def patch(self) -> Patch:
        return self.neuron() if self.random.random() < 0.4 else self.entry()

    def entry(self) -> Patch:
        """An entry on or near the key of some text, whose ball holds some other texts."""
        site = self.random.choice(self.sites)
        keys = self.reading.keys[site.name]
        key = keys[self.random.randrange(len(keys))]
        distances = (keys - key).norm(dim=-1).sort().values
        key = key + self.random.choice([0, 0, self.random.uniform(0.2, 0.4)]) * distances[1] * self.direction()
        places = Places[self.random.choice(["LAST", "ALL", "EACH"])]
        answer = self.wanted(self.model.encode(["w1"])[0])
        tensors = {
            "key": key,
            "values": 3 * torch.stack([self.direction() for _ in range(len(answer) if places is Places.EACH else 1)]),
            "reach": 1.01 * distances[self.random.randrange(1, 14)].double(),  # no text lies on the edge
            "answer": answer,
            "places": torch.tensor(int(places)),
        }
        return Patch(self.header("grace", site.name), tensors)

    def neuron(self) -> Patch:
        """A neuron that fires on some of all rows."""
        key, queries = self.direction(), self.reading.rows.queries
        reached = (queries @ key).quantile(self.random.uniform(0.3, 0.9))
        tensors = {
            "keys": key.unsqueeze(0),
            "biases": -reached.unsqueeze(0),
            "values": 8 * self.direction().unsqueeze(0),
            "activations": torch.zeros(1, dtype=torch.uint8),
        }
        return Patch(self.header("transformer-patcher", self.model.site.name), tensors)

    def direction(self) -> Tensor:
        random = torch.randn(self.model.hidden_size, generator=self.torch)
        return random / random.norm() * (self.model.hidden_size**0.5) / 4

    def header(self, editor: str, site: str) -> Header:
        return Header(editor, 1, self.model.fingerprint, site, self.model.dtype)

    def report(self, *, lives: bool | None = None) -> bool:
        """An edit is judged, and goes live, more often than not."""
        live, edit_id = self.live, f"edit {len(self.entries)}"
        overlay = self.overlay.extend([self.patch()])
        view = View(live.revision + 1, overlay, *self.with_one_more(live))
        ended(self.judge.of_patch(live, view, exempt=Exemption(), **self.asked()))
        assert self.judge._judged_last is not None
        _, guard, edits = self.judge._judged_last
        equal_to_the_whole_model(self.judge._guard, guard, view, self.model, self.memory.guard.known.texts)
        equal_to_the_whole_model(self.judge._edits, edits, view, self.model, self.memory.edits.texts)
        if lives is None:
            lives = self.random.random() < 0.7
        if lives:
            self.overlay, self.revision = overlay, self.revision + 1
            self.entries.append(Entry(edit_id, None, edit_id, "w9", ((self.revision, None),)))
            self.shelve(edit_id, keys=self.random.random() < 0.5)
        return lives

    def shelve(self, edit_id: str, *, keys: bool) -> None:
        """Remember the texts of an edit, with the keys that its service took where it knew of a site, or without."""
        texts = self.random.sample(EDITED, self.random.choice([1, 1, 2, 3]))
        encodings = self.model.encode(texts)
        sites = self.overlay.layer_sites() if keys else []
        wanted = [self.wanted(encodings[0])] * len(texts)
        reading = self.model.read(encodings, wanted, keys_at=sites).reading
        self.memory.edits.put([Shelving(edit_id, edit_id, texts, reading)])

    def judging(self, method: str, live: Live | None = None) -> Slices[None, None, Any]:
        """A verdict that has not begun."""
        live, exempt = live or self.live, Exemption()
        if method == "rows_of":
            return self.judge.rows_of(live, live.alive)
        if method == "of_patch":
            view = View(live.revision + 1, self.overlay.extend([self.entry()]), *self.with_one_more(live))
            return self.judge.of_patch(live, view, exempt=exempt, **self.asked())
        removed = live.alive & (torch.arange(len(live.alive)) > 1)
        required = {"required": LENIENT} if method == "of_alive" else {}
        return getattr(self.judge, method)(live, removed, exempt=exempt, **required)  # type: ignore[no-any-return]

    def asked(self) -> dict[str, Any]:
        """What a verdict on an edit asks for besides; which text is its own does not matter here."""
        return {"own": self.reading.of_text(0), "required": LENIENT}

    def with_one_more(self, live: Live) -> tuple[Tensor, tuple[str, ...]]:
        """What is alive, and whose it is, with one more edit."""
        return torch.cat([live.alive, torch.tensor([True])]), (*live.edit_ids, f"edit {len(self.entries)}")

    def turn(self, *, judged: bool | None = None) -> None:
        """Some edits are reverted, or come back, in one revision, as likely as not after a verdict on that."""
        before = self.live
        self.revision += 1
        for number in self.random.sample(range(len(self.entries)), self.random.choice([1, 1, 2])):
            entry = self.entries[number]
            since, until = entry.spans[-1]
            spans = (
                [*entry.spans[:-1], (since, self.revision)] if until is None else [*entry.spans, (self.revision, None)]
            )
            self.entries[number] = Entry(entry.edit_id, None, entry.input_key, entry.target, tuple(spans))
        if judged if judged is not None else self.random.random() < 0.5:
            ended(self.judge.of_alive(before, self.live.alive, exempt=Exemption(), required=LENIENT))

    def step(self) -> None:
        if len(self.entries) < 3 or self.random.random() < 0.5:
            self.report()
        else:
            self.turn()

    def check(self) -> None:
        """What the judge would find, and what it keeps, is what the whole model computes."""
        view = self.live.view()
        for standing, texts in self.kept():
            equal_to_the_whole_model(standing, ended(standing.under(view)), view, self.model, texts)
        ended(self.judge._stand(self.live))
        for standing, texts in self.kept():
            equal_to_the_whole_model(standing, standing.now, view, self.model, texts)
            assert torch.equal(standing.now.alive, self.live.alive)
            self.entered += int((standing.now.entered != NOTHING).sum())
        guard = self.judge._guard.now
        self.changed += int((guard.answers != guard.shown.rows.labels).sum())

    def kept(self) -> list[tuple[Standing, Texts]]:
        return [(self.judge._guard, self.memory.guard.known.texts), (self.judge._edits, self.memory.edits.texts)]


INNER = {"layer": 0, "key_token": "last", "replace": "last", "values": "one"}


def grace_site(model: Model, **options: Any) -> LayerSite:
    grace = Grace()
    return grace.site(model.sites, options_of(grace, options, model.sites.family))


@pytest.mark.parametrize("seed", [0, 4])
def test_what_the_judge_keeps_is_what_the_whole_model_computes_after_any_history(model: Model, seed: int) -> None:
    history = History(model, seed)
    for _ in range(25):
        history.step()
        history.check()
    assert history.entered > 20, "few texts found an entry: this test would show little"
    assert history.changed > 10, "the guard hardly changed: this test would show little"


def test_changes_that_were_not_looked_at_one_by_one_are_caught_up_with(model: Model) -> None:
    history = History(model, seed=5)
    for number in range(24):
        history.step()
        if number % 6 == 5:
            history.check()
    assert history.entered


class Noting(Texts):
    """Knows which texts were run through the model again."""

    run_again: ClassVar[list[int]] = []

    def read_under(self, texts: Tensor, view: View, model: Model) -> Slices[None, None, Rows]:
        self.run_again.extend(texts.tolist())
        return super().read_under(texts, view, model)


def test_only_texts_that_find_another_entry_than_before_are_run_again(model: Model) -> None:
    history = History(model, seed=4)
    while len(history.entries) < 10:
        history.report(lives=True)
    guard, run_again = history.judge._guard, 0
    history.memory.guard.known.texts.__class__ = Noting
    for _ in range(12):
        ended(history.judge._stand(history.live))
        before = guard.now.entered
        history.turn(judged=False)
        Noting.run_again.clear()
        ended(history.judge._stand(history.live))
        finds_another = (guard.now.entered != before) & (guard.now.entered != NOTHING)
        assert Noting.run_again == finds_another.nonzero().flatten().tolist()
        run_again += len(Noting.run_again)
    assert 0 < run_again < 12 * len(GUARD) / 2


def test_texts_that_come_while_a_verdict_is_under_way_wait_for_the_next_one(model: Model) -> None:
    history = History(model, seed=2)
    for _ in range(12):
        history.step()
    late = 0
    for judged in ("of_alive", "leaning_on", "rows_of", "of_patch"):
        history.shelve(f"before {judged}", keys=False)
        for _ in history.judging(judged):
            late += 1
            history.shelve(f"late {late}", keys=False)
        history.check()
    assert late > 3, "nothing came in between: this test would show nothing"


def test_what_was_judged_is_not_adopted_when_texts_have_come_since(model: Model) -> None:
    """Such texts may stand under what was judged otherwise than as if they were new."""
    history = History(model, seed=3)
    for _ in range(12):
        history.step()
    for _ in range(6):
        live = history.live
        assert history.report(lives=True)
        ended(history.judge._stand(live))  # of the revision before, with the texts of the edit that has gone live
        history.check()


def test_how_all_stands_after_a_removal_is_known_from_its_verdict(model: Model) -> None:
    history = History(model, seed=4)
    for _ in range(12):
        history.step()
    for _ in range(6):
        history.turn(judged=True)
        assert history.judge._judged_last is not None
        _, *judged = history.judge._judged_last
        ended(history.judge._stand(history.live))
        for (standing, _), outcome in zip(history.kept(), judged, strict=True):
            assert standing.now.answers is outcome.answers
        history.check()


def test_where_nothing_was_ever_live_a_removal_changes_nothing(model: Model) -> None:
    history = History(model, seed=0)
    judged = ended(history.judge.of_alive(history.live, history.live.alive, exempt=Exemption(), required=LENIENT))
    assert (judged.verdict.passed, judged.broken) == (True, ())


def test_a_revision_that_another_one_has_followed_is_not_judged(model: Model) -> None:
    history = History(model, seed=2)
    for _ in range(4):
        history.step()
    live = history.live
    history.report(lives=True)
    ended(history.judge._stand(history.live))
    for judged in ("of_alive", "leaning_on", "rows_of", "of_patch"):
        with pytest.raises(Outdated):
            ended(history.judging(judged, live))
    history.check()
