"""What a sequence of edits has done so far: the measures of Huang et al. 2023, and how edits and the rest bear changes.

Everything is answered freely, as of the revision that the checkpoint is about. Train and test inputs are drawn by the
seed, once, the same for all editors. Of more edits another sample is drawn, that has as much of the former as it can.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from app.perturbations import one_perturbed, perturbed
from benchmarks.journal import Journal
from benchmarks.reporter import Report
from benchmarks.reporting import INPUTS_A_REQUEST, Entry, Service, mean, said, share
from benchmarks.surface import variants
from editors import measures

CHECKPOINTS = (1, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000)
VARIANTS = 1_000
"""So many surface variants are asked at a checkpoint, at most."""
PERTURBED_EDITS = 100
PERTURBED_RIGHT = 200
TIMED = 100
"""The time of an edit is the median of the last so many."""

Advance = Callable[[int], None]
"""Told how many more texts were answered."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The measures after so many reports; shares between 0 and 1. None: nothing to measure it on."""

    editor: str
    reports: int
    live: int
    not_needed: int
    refused: int
    accepted: float  # of the reports, live or not needed
    success: float  # SR: of the live edits, right directly after their own
    retained: float  # ER: of the live edits, right now
    retained_reports: float  # of all reports, right now
    generalisation: float | None  # GR: surface variants of live edits that get the target
    generalisation_bare: float | None  # the same before any edit
    variants: int
    train_retain: float  # TrainR: accuracy now over before
    test_retain: float  # TestR
    kept: float  # of the test inputs that were right, right now
    unchanged: float  # of all test inputs, answered like the unedited model
    untouched: float  # of all test inputs, nothing fires
    pearson: float | None  # of the guard's scores, unedited and now
    right_to_wrong: int | None
    wrong_to_right: int | None
    wrong_to_other_wrong: int | None
    robust: float | None  # changed versions of live edits' inputs that get the target
    robust_bare: float | None
    robust_texts: int
    robust_test: float | None  # changed versions of test inputs that were right, right now
    robust_test_bare: float | None
    seconds: float | None  # an edit, over HTTP
    fit_seconds: float | None
    bytes: float | None  # of a patch, in the mean


def schedule(reports: int) -> list[int]:
    """After how many reports is measured: at each checkpoint before the last report, and after that."""
    return [*(each for each in CHECKPOINTS if each < reports), reports]


def drawn(entries: Iterable[Entry], count: int, seed: int) -> list[Entry]:
    """At most so many, drawn by the seed; from more entries, those that were drawn before or ones in their place."""

    def lot(entry: Entry) -> bytes:
        return hashlib.sha256(f"{seed}:{entry.input}".encode()).digest()

    return sorted(entries, key=lot)[:count]


def rephrases(text: str, seed: int) -> list[str]:
    """Others that mean the same: surface variants, of one word the same with the case of its first letter turned."""
    if len(text.split()) > 1:
        return variants(text, seed)
    turned = text[0].swapcase() + text[1:]
    return [] if turned == text else [turned]


class Unedited:
    """What the unedited model says. Each text is asked once, by whichever service is there, and kept in a journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._said: dict[str, str] = {row["input"]: row["said"] for row in journal}

    def says(self, service: Service, texts: Sequence[str], advance: Advance = lambda _: None) -> list[str]:
        """The answers to the texts."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._said]
        advance(len(texts) - len(missing))
        for some in _requests(missing):
            answers = dict(zip(some, service.says(some, edited=False), strict=True))
            self._journal.add(*({"input": text, "said": answer} for text, answer in answers.items()))
            self._said.update(answers)
            advance(len(some))
        return [self._said[text] for text in texts]


@dataclass(frozen=True, slots=True)
class Watched:
    """What is asked at every checkpoint, the same for all editors."""

    train: Sequence[Entry]
    test: Sequence[Entry]
    seed: int


class Measuring:
    """Asks one service whatever a checkpoint needs."""

    def __init__(self, service: Service, unedited: Unedited, watched: Watched, advance: Advance) -> None:
        self._service, self._unedited, self._watched, self._advance = service, unedited, watched, advance

    def after(self, editor: str, mistakes: Sequence[Entry], reports: Sequence[Report]) -> Checkpoint:
        """The measures after these reports of the first of the mistakes."""
        revision = reports[-1].revision
        seen = list(zip(mistakes, reports, strict=False))
        live = [entry for entry, report in seen if report.live]
        succeeded = [report.right for report in reports if report.live]
        held = self._right([entry for entry, _ in seen], revision)
        held_live = [right for right, report in zip(held, reports, strict=True) if report.live]
        return Checkpoint(
            editor=editor,
            reports=len(reports),
            live=len(live),
            not_needed=sum(report.status == "not_needed" for report in reports),
            refused=sum(not report.accepted for report in reports),
            accepted=share([report.accepted for report in reports]),
            success=share(succeeded),
            retained=share(held_live),
            retained_reports=share(held),
            **self._generality(live, revision),
            **self._locality(revision),
            **_consistency(reports),
            **self._robustness(live, revision),
            **_costs([report for report in reports if report.live]),
        )

    def _generality(self, live: Sequence[Entry], revision: int) -> dict[str, Any]:
        seed = self._watched.seed
        every = [Entry(text, entry.target) for entry in live for text in rephrases(entry.input, seed)]
        now, bare = self._asked(drawn(every, VARIANTS, seed), revision)
        return {"generalisation": now, "generalisation_bare": bare, "variants": min(len(every), VARIANTS)}

    def _locality(self, revision: int) -> dict[str, Any]:
        before, after, wanted, _ = self._watch(self._watched.train, revision)
        train_retain = measures.retain_rate(before, after, wanted)
        before, after, wanted, untouched = self._watch(self._watched.test, revision)
        return {
            "train_retain": train_retain,
            "test_retain": measures.retain_rate(before, after, wanted),
            "kept": measures.kept(before, after, wanted),
            "unchanged": measures.unchanged(before, after),
            "untouched": share(untouched),
        }

    def _robustness(self, live: Sequence[Entry], revision: int) -> dict[str, Any]:
        seed = self._watched.seed
        edited = drawn(live, PERTURBED_EDITS, seed)
        changed = [
            Entry(each.text, entry.target) for entry in edited for each in perturbed(entry.input, seed=seed, versions=1)
        ]
        robust, robust_bare = self._asked(changed, revision)
        robust_test, robust_test_bare = self._asked(self._changed_right(), revision)
        return {
            "robust": robust,
            "robust_bare": robust_bare,
            "robust_texts": len(changed),
            "robust_test": robust_test,
            "robust_test_bare": robust_test_bare,
        }

    def _changed_right(self) -> list[Entry]:
        """Test inputs that the unedited model gets right, each changed once."""
        test, seed = self._watched.test, self._watched.seed
        bare = self._unedited.says(self._service, [entry.input for entry in test])
        right = [entry for entry, is_right in zip(test, _are_right(test, bare), strict=True) if is_right]
        chosen = [(entry, one_perturbed(entry.input, seed=seed)) for entry in drawn(right, PERTURBED_RIGHT, seed)]
        return [Entry(changed.text, entry.target) for entry, changed in chosen if changed is not None]

    def _asked(self, entries: Sequence[Entry], revision: int) -> tuple[float, float] | tuple[None, None]:
        """The shares that are right now, and by the unedited model."""
        if not entries:
            return None, None
        bare = self._unedited.says(self._service, [entry.input for entry in entries], self._advance)
        return share(self._right(entries, revision)), share(_are_right(entries, bare))

    def _watch(self, entries: Sequence[Entry], revision: int) -> tuple[Tensor, Tensor, Tensor, list[bool]]:
        """Numbers that stand for what was said before and now and for what is wanted, and on which nothing fires."""
        texts = [entry.input for entry in entries]
        answers = self._answers(texts, revision)
        before = self._unedited.says(self._service, texts, self._advance)
        spoken = before, [said(answer) for answer in answers], [entry.target.strip() for entry in entries]
        numbers = {text: number for number, text in enumerate(dict.fromkeys(chain(*spoken)))}
        were, are, wanted = (torch.tensor([numbers[text] for text in column]) for column in spoken)
        return were, are, wanted, [not answer["fired"] for answer in answers]

    def _right(self, entries: Sequence[Entry], revision: int) -> list[bool]:
        return _are_right(entries, [said(each) for each in self._answers([entry.input for entry in entries], revision)])

    def _answers(self, texts: Sequence[str], revision: int) -> list[Mapping[str, Any]]:
        answers = list[Mapping[str, Any]]()
        for some in _requests(texts):
            answers += self._service.predictions(some, as_of=revision)
            self._advance(len(some))
        return answers


def _requests(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    return (texts[start : start + INPUTS_A_REQUEST] for start in range(0, len(texts), INPUTS_A_REQUEST))


def _are_right(entries: Sequence[Entry], answers: Sequence[str]) -> list[bool]:
    return [answer == entry.target.strip() for entry, answer in zip(entries, answers, strict=True)]


def _consistency(reports: Sequence[Report]) -> dict[str, Any]:
    """Of the newest edit, whose verdict compares the guard before any edit with the guard under all."""
    names = [field.name for field in fields(measures.Consistency)]
    newest = next((report.consistency for report in reversed(reports) if report.live), None) or {}
    return {name: newest.get(name) for name in names}


def _costs(live: Sequence[Report]) -> dict[str, Any]:
    last = live[-TIMED:]
    return {
        "seconds": _median([report.seconds for report in last]),
        "fit_seconds": _median([report.fit_seconds for report in last]),
        "bytes": mean([report.bytes for report in live if report.bytes is not None]) if live else None,
    }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
