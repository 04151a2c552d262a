"""How an edit bears small changes of its input, and what the same changes do to the guard (Brown et al. 2023).

Nothing is stored, and no fit learns of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from app.editing.workshop import Workshop
from app.engine import Answer, Engine, Live, View
from app.errors import Unprocessable
from app.memory import Guard, Known
from app.model import Decoding, Encoding
from app.perturbations import KINDS, Perturbed, one_perturbed, perturbed, repeatable
from app.store import Draft

GUARD_INPUTS = 200
"""How many inputs of the guard are perturbed."""
FAILURES_SHOWN = 100
TEXTS_A_TURN = 64
"""Texts that are answered together; requests that wait get their turn before the next."""


@dataclass(frozen=True, slots=True)
class OfKind:
    """Texts of one kind of change. right: the share that get the target; None where there is no text."""

    texts: int
    right: float | None


@dataclass(frozen=True, slots=True)
class Missed:
    """A changed input that does not get the target."""

    kind: str
    text: str
    now: str


@dataclass(frozen=True, slots=True)
class OfInput:
    """How the changed versions of an edit's input are answered. left_out: those that do not fit the model."""

    texts: int
    right: float | None
    kinds: Mapping[str, OfKind]
    failures: Sequence[Missed]
    left_out: int


@dataclass(frozen=True, slots=True)
class Changed:
    """A changed guard input that the unedited model answers otherwise."""

    input: str
    kind: str
    text: str
    was: str
    now: str


@dataclass(frozen=True, slots=True)
class OfGuard:
    """How changed inputs of the guard are answered; shares of `texts`, None where there are none.

    before, after: the share right by the unedited model and now, where right is what should be given to the input as it
    was. unchanged: the share that the unedited model answers as they are answered now. left_out: inputs that nothing
    changes, and changed ones that do not fit the model.
    """

    inputs: int
    texts: int
    before: float | None
    after: float | None
    unchanged: float | None
    failures: Sequence[Changed]
    left_out: int


@dataclass(frozen=True, slots=True)
class Robustness:
    """What was measured at one revision. guard: None where it was not asked for, or there is no guard."""

    edit_id: str
    revision: int
    seed: int
    versions: int
    input: OfInput
    guard: OfGuard | None


@dataclass(frozen=True, slots=True)
class _Trial:
    """A changed text that fits the model, and what is wanted of it: the answer that `input` should get."""

    input: str
    version: Perturbed
    wanted: str
    encoding: Encoding
    decoding: Decoding | None


async def robustness(
    shop: Workshop, edit_id: str, draft: Draft, *, seed: int, versions: int, guard: bool
) -> Robustness:
    """Measure an edit, live or not, at the revision that is served. versions: of the input, at most, of each kind."""
    live, guarded = shop.engine.live, shop.memory.guard
    changed = await asyncio.to_thread(perturbed, draft.input, seed=seed, versions=versions)
    of_input = await _of_input(shop, draft, changed, live.view())
    of_guard = None
    if guard and len(guarded):
        edited = frozenset(entry.input_key for entry in live.live_entries())
        numbers = await asyncio.to_thread(_sample, guarded, edited, seed)
        of_guard = await _of_guard(shop, guarded.known, numbers, live, seed=seed)
    return Robustness(edit_id, live.revision, seed, versions, of_input, of_guard)


async def _of_input(shop: Workshop, draft: Draft, changed: Sequence[Perturbed], view: View) -> OfInput:
    encodings = await _encoded(shop.engine, [version.text for version in changed])
    trials = await asyncio.to_thread(_trials_of_input, shop, draft, changed, encodings)
    said = shop.engine.decode(await _answers(shop.engine, trials, view))
    right = [answer.says(draft.target) for answer in said]
    missed = [
        Missed(trial.version.kind, trial.version.text, answer.said)
        for trial, answer, holds in zip(trials, said, right, strict=True)
        if not holds
    ]
    by_kind = {
        kind: [holds for trial, holds in zip(trials, right, strict=True) if trial.version.kind == kind]
        for kind in KINDS
    }
    return OfInput(
        texts=len(trials),
        right=_share(right),
        kinds={kind: OfKind(len(of_it), _share(of_it)) for kind, of_it in by_kind.items()},
        failures=missed[:FAILURES_SHOWN],
        left_out=len(changed) - len(trials),
    )


def _trials_of_input(
    shop: Workshop, draft: Draft, changed: Sequence[Perturbed], encodings: Sequence[Encoding | None]
) -> list[_Trial]:
    """The versions that the model can read, and after which it has room for the target."""
    model, trials = shop.engine.model, []
    for version, encoding in zip(changed, encodings, strict=True):
        if encoding is None:
            continue
        with suppress(Unprocessable):
            decoding = model.to_the_end(model.wanted(encoding, draft.target), at_least=shop.new_tokens)
            trials.append(_Trial(draft.input, version, draft.target, encoding, decoding))
    return trials


async def _of_guard(shop: Workshop, known: Known, numbers: Sequence[int], live: Live, *, seed: int) -> OfGuard:
    """numbers: of the guard inputs to change."""
    engine = shop.engine
    trials = await _trials_of_guard(shop, known, numbers, seed=seed)
    answers = await _answers(engine, trials, live.view())
    unedited = await _unedited(engine, trials, answers, live.bare())
    before, now = engine.decode(unedited), engine.decode(answers)
    changed = [
        Changed(trial.input, trial.version.kind, trial.version.text, old.said, new.said)
        for trial, old, new in zip(trials, before, now, strict=True)
        if not new.says(old.said)
    ]
    return OfGuard(
        inputs=len(numbers),
        texts=len(trials),
        before=_share([answer.says(trial.wanted) for trial, answer in zip(trials, before, strict=True)]),
        after=_share([answer.says(trial.wanted) for trial, answer in zip(trials, now, strict=True)]),
        unchanged=_share([new.says(old.said) for old, new in zip(before, now, strict=True)]),
        failures=changed[:FAILURES_SHOWN],
        left_out=len(numbers) - len(trials),
    )


def _sample(guard: Guard, edited: frozenset[str], seed: int) -> list[int]:
    """Some of the inputs that the unedited model gets right, and that no live edit is meant to change."""
    right = (~guard.known.wrong).nonzero().flatten().tolist()
    drawn = repeatable(seed, "guard").sample(right, len(right))
    return list(islice((number for number in drawn if guard.input_keys[number] not in edited), GUARD_INPUTS))


async def _trials_of_guard(shop: Workshop, known: Known, numbers: Sequence[int], *, seed: int) -> list[_Trial]:
    """One change of each input; none of those that nothing changes, or whose version the model cannot read."""
    engine = shop.engine
    versions = [one_perturbed(known.texts[number], seed=seed) for number in numbers]
    changed = [(number, each) for number, each in zip(numbers, versions, strict=True) if each is not None]
    encodings = await _encoded(engine, [version.text for _, version in changed])
    trials = []
    for (number, version), encoding in zip(changed, encodings, strict=True):
        if encoding is not None:
            # as much room as the answer to the input itself had, so that one that was cut off is cut off there again
            room = engine.model.to_the_end(known.texts.wanted(number), at_least=shop.new_tokens)
            wanted = known.said(number, engine.model)
            trials.append(_Trial(known.texts[number], version, wanted, encoding, room))
    return trials


async def _encoded(engine: Engine, texts: Sequence[str]) -> list[Encoding | None]:
    """Each text as token ids; None for one that the model cannot read."""
    if not texts:
        return []
    with suppress(Unprocessable):
        return [*await engine.encode(texts)]
    return [await _encoded_alone(engine, text) for text in texts]


async def _encoded_alone(engine: Engine, text: str) -> Encoding | None:
    with suppress(Unprocessable):
        (encoding,) = await engine.encode([text])
        return encoding
    return None


async def _answers(engine: Engine, trials: Sequence[_Trial], view: View) -> list[Answer]:
    answers: list[Answer] = []
    for start in range(0, len(trials), TEXTS_A_TURN):
        turn = trials[start : start + TEXTS_A_TURN]
        decoding = [trial.decoding for trial in turn]
        answers += await engine.answer([trial.encoding for trial in turn], view, decoding=decoding)
    return answers


async def _unedited(engine: Engine, trials: Sequence[_Trial], answers: Sequence[Answer], bare: View) -> list[Answer]:
    """What the unedited model answers: where no edit fired, the very same."""
    touched = [trial for trial, answer in zip(trials, answers, strict=True) if answer.fired]
    again = iter(await _answers(engine, touched, bare))
    return [next(again) if answer.fired else answer for answer in answers]


def _share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None
