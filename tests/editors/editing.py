"""Edits made in sequence on tiny models, the way a service would make them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from editors import codec
from editors.join import Transform
from editors.neuron import TransformerPatcher
from editors.registry import options_of
from editors.types import Editor, Firing, Fit, Fitted, Header, Overlay, Patch, Problem, Reading, Rows
from tests.editors.generating import TinyGenerator
from tests.editors.tiny import GENERATORS, Answers, Tiny, TinyClassifier, build, texts

CPU = torch.device("cpu")


CLOSE = 1e-4
"""How far logits of one text may differ between two batches, in units of the largest one: the last bits of a random
model, magnified by its sharp attention and by patches that begin to fire close to their edit."""


@dataclass(frozen=True, slots=True)
class Case:
    """An editor with options, as the battery is run over."""

    editor: Editor
    given: Mapping[str, Any]

    def options(self, *, generation: bool) -> Any:
        """The options, with the editor's own defaults for that kind of model."""
        return options_of(self.editor, self.given, generation=generation)


CASES = {
    "closed-form": Case(TransformerPatcher(), {}),
    "gradient": Case(TransformerPatcher(), {"fit": "gradient", "steps": 400}),
}
"""Every editor, present and future, enters here and so passes the whole battery."""


def anew(family: str, seed: int = 0) -> Tiny:
    """A tiny model of the family that nobody else has."""
    model = build(family, seed)
    return TinyGenerator(model) if family in GENERATORS else TinyClassifier(model)


@cache
def tiny(family: str) -> Tiny:
    """The family's tiny model, shared by tests: nothing may change it."""
    return anew(family)


def finish(fit: Fit) -> Fitted:
    """Run a fit to its end."""
    while True:
        try:
            next(fit)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def header(editor: Editor) -> Header:
    return Header(editor.name, editor.version, base="sha256:base", site="norm@first", dtype="float32")


def empty(case: Case, model: Tiny) -> Overlay:
    """The case's overlay for the model, without patches."""
    return case.editor.overlay(model.join.site.hidden, CPU)


def all_alive(overlay: Overlay, rows: int) -> tuple[Tensor, Tensor]:
    """`alive` and `view` for one view that sees every patch."""
    return torch.ones(1, len(overlay), dtype=torch.bool), torch.zeros(rows, dtype=torch.int64)


def alive_but(overlay: Overlay, removed: Iterable[int]) -> Tensor:
    """One view without the removed patches."""
    alive = torch.ones(1, len(overlay), dtype=torch.bool)
    alive[0, list(removed)] = False
    return alive


def acting(overlay: Overlay, alive: Tensor | None = None) -> Transform:
    """What a pass under the overlay does at the site; every patch takes part unless told otherwise."""

    def transform(queries: Tensor, residuals: Tensor) -> Tensor:
        everything, view = all_alive(overlay, len(queries))
        return overlay.apply(queries, residuals, everything if alive is None else alive, view)[0]

    return transform


def answers(model: Tiny, overlay: Overlay, inputs: Sequence[Sequence[int]], alive: Tensor | None = None) -> Answers:
    """What the full model says under the overlay, by itself."""
    return model.answer(inputs, acting(overlay, alive))


def serve(model: Tiny, overlay: Overlay, inputs: Sequence[Sequence[int]], alive: Tensor | None = None) -> Tensor:
    """The logits of these answers: one row a text of a classifier, one row a generated token otherwise."""
    return answers(model, overlay, inputs, alive).logits


def assert_close(one: Tensor, other: Tensor) -> None:
    """Fail unless these are the same but for what another batch may change."""
    torch.testing.assert_close(one, other, rtol=0, atol=CLOSE * max(1.0, float(other.abs().max())))


def read(model: Tiny, inputs: Sequence[Sequence[int]], targets: Sequence[Sequence[int]] | None = None) -> Reading:
    """The texts' rows when the targets are fed, or else what the model says; those are the labels."""
    fed = model.answer(inputs).tokens if targets is None else targets
    seen = model.forward(inputs, fed)
    labels = torch.tensor([token for target in fed for token in target])
    return Reading(Rows(seen.queries, seen.residuals, labels), seen.lengths)


def apply(overlay: Overlay, rows: Rows) -> tuple[Rows, Firing]:
    """The rows with every patch of the overlay applied."""
    residuals, firing = overlay.apply(rows.queries, rows.residuals, *all_alive(overlay, len(rows)))
    return Rows(rows.queries, residuals, rows.labels), firing


@dataclass(frozen=True, slots=True)
class History:
    """Edits learned one after the other on one model."""

    model: Tiny
    inputs: list[list[int]]
    targets: list[list[int]]
    patches: list[Patch]
    overlay: Overlay
    memory: list[Rows]
    """What the model gets right by itself, then the rows of each edit."""


def problem(model: Tiny, overlay: Overlay, text: list[int], target: list[int], memory: Sequence[Rows]) -> Problem:
    reading = read(model, [text], [target])
    return Problem(apply(overlay, reading.rows)[0], reading.positions(), memory, model.join.readout)


def learn(case: Case, one: Problem) -> Patch:
    """The patch that the editor learns, as it comes back from where it is stored."""
    return codec.decode(
        codec.encode(
            Patch(
                header(case.editor),
                finish(case.editor.fit(one, case.options(generation=len(one.positions.unique()) > 1))).tensors,
            )
        )
    )


def mistake(model: Tiny, overlay: Overlay, text: list[int]) -> list[int]:
    """An answer that the model under the overlay does not give: what a report of a mistake would want."""
    return model.another(text, answers(model, overlay, [text]).tokens[0])


@cache
def history(name: str, family: str, edits: int = 4) -> History:
    """That many edits by the case's editor on the family's tiny model; shared, nothing may change it."""
    case, model = CASES[name], tiny(family)
    memory = [read(model, texts(80, seed=1)).rows]
    overlay = empty(case, model)
    inputs, targets, patches = texts(edits, seed=2), [], []
    for text in inputs:
        target = mistake(model, overlay, text)
        patch = learn(case, problem(model, overlay, text, target, memory))
        memory = [*memory, read(model, [text], [target]).rows]
        overlay = overlay.extend([patch])
        targets.append(target)
        patches.append(patch)
    return History(model, inputs, targets, patches, overlay, memory)
