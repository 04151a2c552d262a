"""Edits made in sequence on tiny classifiers, the way a service would make them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from editors.neuron import TransformerPatcher
from editors.types import Editor, Firing, Fit, Fitted, Header, Overlay, Patch, Problem, Rows
from tests.editors.tiny import LABELS, Seen, TinyClassifier, texts, tiny

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Case:
    """An editor with options, as the battery is run over."""

    editor: Editor
    options: Any


CASES = {
    "closed-form": Case(TransformerPatcher(), TransformerPatcher.options()),
    "gradient": Case(TransformerPatcher(), TransformerPatcher.options(fit="gradient", steps=150)),
}
"""Every editor, present and future, enters here and so passes the whole battery."""


def finish(fit: Fit) -> Fitted:
    """Run a fit to its end."""
    while True:
        try:
            next(fit)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def header(editor: Editor) -> Header:
    return Header(editor.name, editor.version, base="sha256:base", site="norm@first", dtype="float32")


def all_alive(overlay: Overlay, rows: int) -> tuple[Tensor, Tensor]:
    """`alive` and `view` for one view that sees every patch."""
    return torch.ones(1, len(overlay), dtype=torch.bool), torch.zeros(rows, dtype=torch.int64)


def alive_but(overlay: Overlay, removed: Iterable[int]) -> Tensor:
    """One view without the removed patches."""
    alive = torch.ones(1, len(overlay), dtype=torch.bool)
    alive[0, list(removed)] = False
    return alive


def serve(
    classifier: TinyClassifier, overlay: Overlay, inputs: Sequence[Sequence[int]], alive: Tensor | None = None
) -> Tensor:
    """Logits of the full model under the overlay."""
    everything, view = all_alive(overlay, len(inputs))
    mask = everything if alive is None else alive
    seen: Seen = classifier.forward(inputs, lambda queries, sums: overlay.apply(queries, sums, mask, view)[0])
    return seen.logits


def apply(overlay: Overlay, rows: Rows) -> tuple[Rows, Firing]:
    """The rows with every patch of the overlay applied."""
    residuals, firing = overlay.apply(rows.queries, rows.residuals, *all_alive(overlay, len(rows)))
    return Rows(rows.queries, residuals, rows.labels), firing


@dataclass(frozen=True, slots=True)
class History:
    """Edits learned one after the other on one classifier."""

    classifier: TinyClassifier
    inputs: list[list[int]]
    targets: list[int]
    patches: list[Patch]
    overlay: Overlay
    memory: Rows


def problem(classifier: TinyClassifier, overlay: Overlay, text: list[int], target: int, memory: Rows) -> Problem:
    rows = classifier.rows([text], torch.tensor([target]))
    return Problem(apply(overlay, rows)[0], memory, classifier.readout)


def learn(case: Case, one: Problem) -> Patch:
    return Patch(header(case.editor), finish(case.editor.fit(one, case.options)).tensors)


def other_label(classifier: TinyClassifier, overlay: Overlay, text: list[int]) -> int:
    """A label that the model under the overlay does not give: a mistake to report."""
    return (int(serve(classifier, overlay, [text]).argmax()) + 1) % LABELS


@cache
def history(name: str, family: str, edits: int = 4) -> History:
    """That many edits by the case's editor on the family's tiny classifier; shared, nothing may change it."""
    case, classifier = CASES[name], tiny(family)
    memory = classifier.rows(texts(80, seed=1))
    overlay = case.editor.overlay(classifier.hidden, CPU)
    inputs, targets, patches = texts(edits, seed=2), [], []
    for text in inputs:
        target = other_label(classifier, overlay, text)
        patch = learn(case, problem(classifier, overlay, text, target, memory))
        memory = Rows.join([memory, classifier.rows([text], torch.tensor([target]))])
        overlay = overlay.extend([patch])
        targets.append(target)
        patches.append(patch)
    return History(classifier, inputs, targets, patches, overlay, memory)
