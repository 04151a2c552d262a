"""Edits made in sequence on tiny models, the way a service would make them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from editors import codec
from editors.codebook import Grace
from editors.composition import Composition
from editors.finetuning import FineTuning, FineTuningKL
from editors.inside import Inside
from editors.join import Pass
from editors.layers import WRITERS, Family, LayerSite
from editors.neuron import TransformerPatcher
from editors.registry import editors, options_of
from editors.site import Site
from editors.types import Editor, Firing, Fit, Fitted, Header, Patch, Problem, Reading, Remembered, Rows
from editors.visit import Found, Look, Places, Visit
from tests.editors.generating import TinyGenerator
from tests.editors.tiny import END, GENERATORS, Answers, Served, Tiny, TinyClassifier, build, texts

CPU = torch.device("cpu")


CLOSE = 1e-4
"""How far logits of one text may differ between two batches, in units of the largest one: the last bits of a random
model, magnified by its sharp attention and by patches that begin to fire close to their edit."""
DRAWS, FURTHEST = 100, 4.0
"""How many values are tried for an answer that one can teach, and how far they go, in units of what the layer gives."""


@dataclass(frozen=True, slots=True)
class Method:
    """An editor, and the options that are given to it. families: those that are given for one kind of model."""

    editor: Editor
    given: Mapping[str, Any] = field(default_factory=dict)
    families: Mapping[Family, Mapping[str, Any]] = field(default_factory=dict)

    def options(self, model: Tiny) -> Any:
        """The options, with the editor's own defaults for that kind of model."""
        family = model.join.sites.family
        return options_of(self.editor, {**self.given, **self.families.get(family, {})}, family)

    def site(self, model: Tiny) -> Site | LayerSite:
        """Where a patch meets the model."""
        return self.editor.site(model.join.sites, self.options(model))


PATCHER, GRACE = Method(TransformerPatcher()), Method(Grace())
QUICKLY = {"learning_rate": 0.01, "steps": 1_000}
"""A random model is further from any answer than a trained one."""
TUNING, SPARING = Method(FineTuning(), QUICKLY), Method(FineTuningKL(), {**QUICKLY, "divergence_weight": 1.0})
INNER = Method(
    Grace(),
    {"layer": 0, "values": "one"},
    {
        "encoder": {"key_token": "mean", "replace": "prompt"},
        "decoder-classifier": {"key_token": "mean", "replace": "all"},
        "encoder-decoder": {"key_token": "first", "replace": "prompt"},
        "decoder": {"key_token": "last", "replace": "all"},
    },
)
"""Another layer, another token, and one value an entry."""
CASES: Mapping[str, Sequence[Method]] = {
    "closed-form": [PATCHER],
    "gradient": [Method(TransformerPatcher(), {"fit": "gradient", "steps": 400})],
    "grace": [GRACE],
    "grace-inner": [INNER],
    "both": [PATCHER, GRACE],
    "ft": [TUNING],
    "ft-kl": [SPARING],
    "all": [PATCHER, GRACE, SPARING],
}
"""Every editor, present and future, enters here and so passes the whole battery. Of several methods the edits of one
model take one after the other."""


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


def header(editor: Editor, site: str = "norm@first") -> Header:
    return Header(editor.name, editor.version, base="sha256:base", site=site, dtype="float32")


def empty(model: Tiny) -> Composition:
    """The model's composition without patches."""
    return Composition(editors(), model.join.sites, CPU, model.join.features)


def all_alive(overlay: Any, rows: int) -> tuple[Tensor, Tensor]:
    """`alive` and `view` for one view that sees every patch."""
    return torch.ones(1, len(overlay), dtype=torch.bool), torch.zeros(rows, dtype=torch.int64)


def alive_but(overlay: Any, removed: Iterable[int]) -> Tensor:
    """One view without the removed patches."""
    alive = torch.ones(1, len(overlay), dtype=torch.bool)
    alive[0, list(removed)] = False
    return alive


def acting(overlay: Composition, alive: Tensor | None = None) -> Served:
    """What passes under the overlay do; every patch takes part unless told otherwise."""
    return Served(overlay, all_alive(overlay, 0)[0] if alive is None else alive)


def answers(model: Tiny, overlay: Composition, inputs: Sequence[Sequence[int]], alive: Tensor | None = None) -> Answers:
    """What the full model says under the overlay, by itself."""
    return model.answer(inputs, acting(overlay, alive))


def serve(model: Tiny, overlay: Composition, inputs: Sequence[Sequence[int]], alive: Tensor | None = None) -> Tensor:
    """The logits of these answers: one row a text of a classifier, one row a generated token otherwise."""
    return answers(model, overlay, inputs, alive).logits


def assert_close(one: Tensor, other: Tensor) -> None:
    """Fail unless these are the same but for what another batch may change."""
    torch.testing.assert_close(one, other, rtol=0, atol=CLOSE * max(1.0, float(other.abs().max())))


def read(
    model: Tiny,
    inputs: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]] | None = None,
    overlay: Composition | None = None,
) -> Reading:
    """The texts' rows when the targets are fed, or else what the model says; those are the labels.

    overlay: what acts at inner layers meanwhile; what acts behind the last is not in the rows.
    """
    fed = model.answer(inputs).tokens if targets is None else targets
    seen = model.forward(inputs, fed, None if overlay is None else acting(overlay))
    labels = torch.tensor([token for target in fed for token in target])
    return Reading(Rows(seen.queries, seen.residuals, labels), seen.lengths)


def apply(overlay: Composition, rows: Rows) -> tuple[Rows, Firing]:
    """The rows with every patch behind the last layer applied."""
    residuals, firing = overlay.apply(rows.queries, rows.residuals, *all_alive(overlay, len(rows)))
    return Rows(rows.queries, residuals, rows.labels), firing


def keys_of(model: Tiny, site: LayerSite, inputs: Sequence[Sequence[int]]) -> Tensor:
    """The keys of the texts at a layer site: (texts, hidden)."""
    seen: list[Tensor] = []

    def take(keys: Tensor) -> Found | None:
        seen.append(keys)
        return None

    fed = model.fed(inputs, [[END]] * len(inputs))
    with torch.no_grad(), model.join.during(Pass(fed.rows, fed.columns), Visit(fed.given, [Look(site, take)])):
        model.model(**fed.inputs)
    return seen[0]


def fired(model: Tiny, overlay: Composition, inputs: list[list[int]], targets: list[list[int]]) -> set[tuple[int, int]]:
    """Which patches take part in the answers to which texts, when these are fed: (text, patch)."""
    alive = torch.ones(len(overlay), dtype=torch.bool)
    keys = {site.name: keys_of(model, site, inputs) for site in overlay.visited(alive)}
    entered = overlay.found(keys, alive, torch.arange(len(inputs))).tolist()
    reading = read(model, inputs, targets, overlay)
    _, firing = apply(overlay, reading.rows)
    added = zip(reading.owners()[firing.rows].tolist(), firing.patches.tolist(), strict=True)
    return {*added, *((text, patch) for text, patch in enumerate(entered) if patch >= 0)}


@dataclass(frozen=True, slots=True)
class Known:
    """Texts that must stay as they are, the answers that they shall get, and their rows."""

    texts: list[list[int]]
    answers: list[list[int]]
    rows: Rows

    def remembered(self, model: Tiny, site: LayerSite, target: list[int]) -> Remembered:
        """Their keys at the site."""
        differ = torch.tensor([answer != target for answer in self.answers], dtype=torch.bool)
        return Remembered(keys_of(model, site, self.texts), differ)


def known(model: Tiny, inputs: list[list[int]]) -> Known:
    """What the model says by itself."""
    said = model.answer(inputs).tokens
    return Known(inputs, said, read(model, inputs, said).rows)


@dataclass(frozen=True, slots=True)
class History:
    """Edits learned one after the other on one model."""

    methods: Sequence[Method]
    model: Tiny
    inputs: list[list[int]]
    targets: list[list[int]]
    patches: list[Patch]
    overlay: Composition
    memory: list[Known]
    """What the model gets right by itself, then each edit."""


def problem(
    method: Method, model: Tiny, overlay: Composition, text: list[int], target: list[int], memory: Sequence[Known]
) -> Problem:
    """The edit that shall make the model under the overlay answer the text by the target."""
    reading = read(model, [text], [target], overlay)
    rows = [part.rows for part in memory]
    one = Problem(
        apply(overlay, reading.rows)[0],
        reading.positions(),
        rows,
        model.join.readout,
        features=model.join.features,
        add=acting(overlay),
    )
    site = method.site(model)
    if isinstance(site, Site):
        return one
    inside = Inside(model.join, model.fed([text], [target]), site, acting(overlay))
    return replace(one, inside=inside, remembered=[part.remembered(model, site, target) for part in memory])


def learn(method: Method, model: Tiny, one: Problem) -> Patch:
    """The patch that the editor learns, as it comes back from where it is stored."""
    tensors = finish(method.editor.fit(one, method.options(model))).tensors
    return codec.decode(codec.encode(Patch(header(method.editor, method.site(model).name), tensors)))


def mistake(method: Method, model: Tiny, overlay: Composition, text: list[int]) -> list[int]:
    """An answer that the model under the overlay does not give: what a report of a mistake would want.

    It is one that the method can teach. Where each position of an answer has its own neuron or value, a tiny random
    model can be taught any. One value alone has its few numbers for the answer as a whole, the same ones at every
    position, and most answers are beyond it; so of those that the model gives under some value it is given the
    clearest.
    """
    said, site, options = answers(model, overlay, [text]).tokens[0], method.site(model), method.options(model)
    if isinstance(site, Site) or options.values == "each" or model.join.sites.family not in WRITERS:
        return model.another(text, said)
    given = model.answer([text] * DRAWS, Strayed(model, overlay, site, Places[options.replace.upper()], text))
    first, second = given.logits.topk(2).values.unbind(-1)
    leads = (first - second).split(list(map(len, given.tokens)))
    return max((float(lead.min()), tokens) for lead, tokens in zip(leads, given.tokens, strict=True) if tokens != said)[
        1
    ]


class Strayed:
    """The overlay, and in each row of a batch of one text another value, each further from what the layer gives."""

    def __init__(self, model: Tiny, overlay: Composition, site: LayerSite, reach: Places, text: list[int]) -> None:
        self._acting, self._site, self._reach = acting(overlay), site, reach
        self._own = Inside(model.join, model.fed([text], [[END]]), site).own(reach)

    def visit(self, given: Tensor) -> Visit:
        drawn = torch.randn(len(given), *self._own.shape, generator=torch.Generator().manual_seed(len(given)))
        far = torch.linspace(0.1, FURTHEST, len(given)).reshape(-1, 1, 1)
        values = self._own + far * self._own.square().mean().sqrt() * drawn
        return Visit(given, placed={self._site: placed(values, self._reach)})

    def __call__(self, queries: Tensor, residuals: Tensor) -> Tensor:
        return self._acting(queries, residuals)


def placed(values: Tensor, reach: Places) -> Found:
    """Values in each row of a batch, whatever its key: (batch, values, hidden)."""
    rows, count = torch.arange(len(values)), values.shape[1]
    nobody = torch.zeros_like(rows)
    return Found(rows, nobody, nobody.float(), values, nobody + count, nobody + int(reach))


@cache
def history(case: str, family: str, edits: int = 4) -> History:
    """That many edits by the case's methods on the family's tiny model; shared, nothing may change it."""
    methods, model = CASES[case], tiny(family)
    memory = [known(model, texts(80, seed=1))]
    overlay = empty(model)
    inputs, targets, patches = texts(edits, seed=2), [], []
    for number, text in enumerate(inputs):
        method = methods[number % len(methods)]
        target = mistake(method, model, overlay, text)
        patch = learn(method, model, problem(method, model, overlay, text, target, memory))
        overlay = overlay.extend([patch])
        memory = [*memory, Known([text], [target], read(model, [text], [target], overlay).rows)]
        targets.append(target)
        patches.append(patch)
    return History(methods, model, inputs, targets, patches, overlay, memory)
