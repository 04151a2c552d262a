"""What the benchmark needs of the service's inside; the only module of it that knows engine, store and editors.

`Served` answers in this process from a database, without HTTP. `extend` brings more edits into a database the short
way: fitted as the service fits them, each with those before it remembered, but not judged one by one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.engine import Engine, Entry, Live
from app.engine.patched import Patched
from app.engine.reading import reading
from app.follower import Follower
from app.inputs import input_key
from app.memory import Guard, Memory, nothing_known
from app.model import Ask, Decoding, Encoding, Model, Output, load
from app.model.builtin import intents
from app.observe import Metrics
from app.store import Accepted, Draft, Learned, Ledger, ModelIdentity, Store
from benchmarks.slices import finish
from editors import codec
from editors.columns import Columns
from editors.composition import Composition
from editors.moments import Moments
from editors.neuron import TransformerPatcher
from editors.registry import editors, options_of
from editors.types import Fitted, Header, Patch, Problem, Reading, Rows

KNOWN = 2_000
"""Inputs that the model is known to get right: what fits leave alone, and the guard."""
BATCH = 32
BLOCK = 64
"""Edits that are fitted beside one another."""
CHUNK = 8 * BLOCK
"""Texts that are read together, so that those of similar length share a batch."""
SPARE = 8
"""Texts that are read beyond those needed, for fits that do not hold."""
ACTOR = "benchmark"
PATCHER = TransformerPatcher()
VERDICT: Mapping[str, Any] = {"passed": True, "gates": [], "guard": None, "conflicts": []}
"""Of edits that were not judged one by one."""


def known_inputs() -> list[dict[str, str]]:
    """The lines of the memory file: the built-in data set, as far as it is needed."""
    every = [*intents("train"), *intents("heldout")]
    return [{"input": each.text, "target": each.label} for each in every[:KNOWN]]


class Served:
    """The model under the newest revision of a database, in this process."""

    def __init__(self, folder: Path, database: str, device: str) -> None:
        self.model = load(folder, device=device)
        self._store = Store.open(database)
        self._store.migrate()
        nothing = nothing_known(self.model)
        memory = Memory(nothing, Guard.of(nothing), None, limit=0)
        metrics, overlay = Metrics(), Composition(editors(), self.model.sites, self.model.device, self.model.features)
        self._engine = Engine(self.model, Live(0, overlay, ()), metrics, max_batch=BATCH, fit_share=0.3)
        follower = Follower(self._store.ledger(identity(self.model)), self._engine, memory, editors(), metrics)
        self._runner = asyncio.Runner()
        live = self._runner.run(follower.catch_up())
        self._view, self._without = live.view(), live.bare()

    def close(self) -> None:
        """Let go of database and device."""
        self._runner.close()
        self._engine.close()
        self._store.close()

    def asks(self, texts: Sequence[str]) -> list[Ask]:
        """The texts as token ids."""
        return [Ask(encoding) for encoding in self.model.encode(texts)]

    def predict(self, asks: Sequence[Ask], *, edits: bool = True) -> list[int]:
        """The likeliest label of each text, with the edits or without: what the device thread does to a batch."""
        return [output.likeliest[1][0] for _, output in self.run(asks, edits=edits)[0] if output.likeliest is not None]

    def fired(self, asks: Sequence[Ask]) -> list[bool]:
        """Whether any edit takes part in the answer to each text."""
        outputs, patched = self.run(asks)
        return [bool(patched.fired(number, output.positions)) for number, output in outputs]

    def through_queue(self, batches: Sequence[Sequence[Ask]]) -> float:
        """Seconds a batch of answering them one after the other through the queue of the device thread."""
        encodings = [[ask.encoding for ask in asks] for asks in batches]

        async def answer() -> float:
            began = time.perf_counter()
            for batch in encodings:
                await self._engine.answer(batch, self._view)
            return (time.perf_counter() - began) / len(encodings)

        return self._runner.run(answer())

    def run(self, asks: Sequence[Ask], *, edits: bool = True) -> tuple[list[tuple[int, Output]], Patched]:
        """What comes out of one batch, and what was done to it."""
        patched = Patched([self._view if edits else self._without] * len(asks), self.model.device)
        return [each for finished in self.model.run(asks, patched) for each in finished], patched


def timed_stages(served: Served, texts: Sequence[str]) -> dict[str, list[float]]:
    """Seconds of the stages of predictions of one text each."""
    seconds: dict[str, list[float]] = {"tokens": [], "forward pass with overlay": [], "answer from logits": []}
    for text in texts:
        times = [time.perf_counter()]
        asks = served.asks([text])
        times.append(time.perf_counter())
        outputs = served.run(asks)[0]
        times.append(time.perf_counter())
        served.model.decode(asks, [output for _, output in outputs])
        times.append(time.perf_counter())
        for spent, (began, ended) in zip(seconds.values(), pairwise(times), strict=True):
            spent.append(ended - began)
    return seconds


@contextmanager
def served(folder: Path, database: str, device: str) -> Iterator[Served]:
    """Close it at the end."""
    made = Served(folder, database, device)
    try:
        yield made
    finally:
        made.close()


class Writer:
    """A generating model under random patches at its last feed-forward layer, in this process."""

    def __init__(self, folder: Path, device: str, dtype: str, patches: int) -> None:
        self._model = model = load(folder, device=device, dtype=dtype)
        header = Header(PATCHER.name, PATCHER.version, model.fingerprint, model.site.name, model.dtype)
        overlay = Composition(editors(), model.sites, model.device, model.features)
        overlay = overlay.extend([Patch(header, tensors) for tensors in _random(patches, model.hidden_size)])
        entries = tuple(Entry(str(number), None, str(number), "", ((0, None),)) for number in range(patches))
        self._view = Live(0, overlay, entries).view()

    def write(self, text: str, most: int) -> int:
        """Write greedily, as the device thread does; how many tokens."""
        (encoding,) = self._model.encode([text])
        patched = Patched([self._view], self._model.device)
        finished = [output for each in self._model.run([Ask(encoding, Decoding(most))], patched) for _, output in each]
        return len(finished[0].raw)


def _random(patches: int, hidden: int) -> Iterator[dict[str, Tensor]]:
    """Neurons that fire rarely, and add little when they do."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(patches):
        yield {
            "keys": torch.randn(1, hidden, generator=draw) / hidden**0.5,
            "biases": torch.tensor([-4.0]),
            "values": 0.01 * torch.randn(1, hidden, generator=draw),
            "activations": torch.zeros(1, dtype=torch.uint8),
        }


def identity(model: Model) -> ModelIdentity:
    """The model as its ledger knows it."""
    return ModelIdentity(model.fingerprint, model.name, model.task, model.site.name, model.dtype)


def versions(folder: Path, device: str) -> list[str]:
    """All that decides what is in a prepared database beside its texts."""
    return [
        load(folder, device=device).fingerprint,
        codec.FORMAT,
        codec.ROWS_FORMAT,
        f"{PATCHER.name} {PATCHER.version}",
    ]


def extend(
    folder: Path, database: str, texts: Iterator[str], count: int, device: str, done: Callable[[int], None]
) -> None:
    """Make edits of texts that it does not hold yet live in a database, until there are `count`.

    done: told how many there are. Raises RuntimeError if the texts bring no more.
    """
    model = load(folder, device=device)
    store = Store.open(database)
    store.migrate()
    try:
        writer = _Writer(model, store.ledger(identity(model)))
        fresh = (text for text in texts if text not in writer.texts)
        while len(writer) < count:
            before = len(writer)
            chosen = list(islice(fresh, min(CHUNK, count - before + SPARE)))
            if not chosen or writer.write(chosen, at_most=count) == before:
                raise RuntimeError(f"Of {len(chosen)} more texts none could be made an edit; there are {before}.")
            done(len(writer))
    finally:
        store.close()


class _Writer:
    """Fits edits, each beside all before it, and writes them into a ledger; what does not hold is left out."""

    def __init__(self, model: Model, ledger: Ledger) -> None:
        self._model = model
        self._ledger = ledger
        self._options = options_of(PATCHER, {}, model.sites.family)
        self._draw = torch.Generator().manual_seed(ledger.head())
        known = [each["input"] for each in known_inputs()]
        self._known = self._with_labels(self._read(known))
        self._moments = Moments.of(self._known.queries)
        self._overlay = Composition(editors(), model.sites, model.device, model.features)
        self._earlier = Columns(
            {
                "queries": self._known.queries[:0],
                "residuals": self._known.residuals[:0],
                "labels": self._known.labels[:0],
            }
        )
        self._take_up()

    def __len__(self) -> int:
        return len(self._overlay)

    def write(self, texts: Sequence[str], *, at_most: int) -> int:
        """Bring edits of these texts to life until there are `at_most`; returns how many there are."""
        read = self._read(texts)
        for start in range(0, len(texts), BLOCK):
            block = slice(start, start + min(BLOCK, at_most - len(self)))
            if len(self) < at_most:
                self._write_block(texts[block], read[block])
        return len(self)

    def _take_up(self) -> None:
        """What the ledger holds already."""
        changes = self._ledger.changes(-1)
        data = self._ledger.patch_bytes([patch.number for patch in changes.patches])
        edit_ids = [patch.edit_id for patch in changes.patches]
        kept = self._ledger.activations(edit_ids)
        self.texts = frozenset(text for each in self._ledger.texts(edit_ids).values() for text in each)
        self._remember(
            [codec.decode(each) for each in data],
            [codec.decode_rows(kept[patch.edit_id]).rows.to(self._model.device) for patch in changes.patches],
        )

    def _remember(self, patches: Sequence[Patch], rows: Sequence[Rows]) -> None:
        if not patches:
            return
        start, joined = len(self), Rows.join(rows)
        self._overlay = self._overlay.extend(patches)
        self._earlier = self._earlier.reserve(start, len(self))
        self._earlier.write(start, len(self), queries=joined.queries, residuals=joined.residuals, labels=joined.labels)

    def _write_block(self, texts: Sequence[str], rows: Rows) -> None:
        rows = self._wanting_another(rows)
        fitted = self._fit(rows)
        patches = {index: self._patch(each) for index, each in enumerate(fitted) if each is not None}
        chosen = list(patches)
        before = after = self._logits(rows, [])
        while chosen:
            after = self._logits(rows, [patches[index] for index in chosen])
            holding = [index for index in chosen if int(after[index].argmax()) == int(rows.labels[index])]
            if holding == chosen:
                break
            chosen = holding
        learned = [
            self._learned(patches[index], rows[index : index + 1], before[index], after[index]) for index in chosen
        ]
        if chosen:
            _commit(self._ledger, [self._draft(texts[index], rows.labels[index]) for index in chosen], learned)
        self._remember([patches[index] for index in chosen], [rows[index : index + 1] for index in chosen])

    def _read(self, texts: Sequence[str]) -> Rows:
        encodings = self._model.encode(texts)
        any_label = [torch.zeros(1, dtype=torch.int64)] * len(texts)
        return finish(reading(self._model, encodings, any_label, max_batch=BATCH)).reading.rows

    def _with_labels(self, rows: Rows) -> Rows:
        """The rows with what the unedited model says, which counts as right."""
        return Rows(rows.queries, rows.residuals, self._model.readout(rows.residuals).argmax(-1))

    def _wanting_another(self, rows: Rows) -> Rows:
        """The rows with labels drawn among those that the model does not give, neither unedited nor with the edits."""
        scores = torch.rand(len(rows), len(self._model.labels), generator=self._draw).to(self._model.device)
        for logits in (self._model.readout(rows.residuals), self._logits(rows, [])):
            scores.scatter_(1, logits.argmax(-1, keepdim=True), -1.0)
        return Rows(rows.queries, rows.residuals, scores.argmax(-1))

    @torch.no_grad()
    def _logits(self, rows: Rows, patches: Sequence[Patch]) -> Tensor:
        """What the model says with the edits so far and with `patches`: (rows, labels)."""
        return self._model.readout(self._patched(rows, self._overlay.extend(patches)))

    def _patched(self, rows: Rows, overlay: Composition) -> Tensor:
        alive = torch.ones(1, len(overlay), dtype=torch.bool, device=self._model.device)
        return overlay.apply(rows.queries, rows.residuals, alive, torch.zeros_like(rows.labels))[0]

    def _fit(self, rows: Rows) -> list[Fitted | None]:
        """A fit of each row beside the others; None where there is none."""
        patched = Rows(rows.queries, self._patched(rows, self._overlay), rows.labels)
        memory = [self._known, Rows(**self._earlier.upto(len(self)))]
        problems = [self._problem(patched[index : index + 1], memory) for index in range(len(rows))]
        return finish(PATCHER.fit_together(problems, self._options))

    def _problem(self, row: Rows, memory: Sequence[Rows]) -> Problem:
        return Problem(row, torch.zeros_like(row.labels), memory, self._model.readout, moments=self._moments)

    def _patch(self, fitted: Fitted) -> Patch:
        model = self._model
        header = Header(PATCHER.name, PATCHER.version, model.fingerprint, model.site.name, model.dtype)
        return Patch(header, fitted.tensors)

    def _draft(self, text: str, label: Tensor) -> Draft:
        return Draft(
            input=text,
            input_key=input_key(text),
            target=self._model.labels[int(label)],
            rephrases=(),
            keep=(),
            editor=PATCHER.name,
            options=asdict(self._options),
            reason="",
            reporter="",
            dry_run=False,
            supersedes=None,
        )

    def _learned(self, patch: Patch, row: Rows, before: Tensor, after: Tensor) -> Learned:
        data = codec.encode(patch)
        return Learned(
            patch=data,
            sha256=codec.sha256(data),
            format=codec.FORMAT,
            before=self._said(before),
            after=self._said(after),
            verdict=VERDICT,
            fit={"steps": 0, "seconds": 0.0, "loss": 0.0, "parameters": patch.parameters, "seed": 0},
            activations=codec.encode_rows(Reading(row.to(torch.device("cpu")), (1,))),
        )

    def _said(self, logits: Tensor) -> dict[str, Any]:
        output = Output(logits.cpu(), 1)
        (prediction,) = self._model.decode([Ask(Encoding(torch.zeros(0, dtype=torch.int64)))], [output])
        return {"prediction": asdict(prediction), "rephrases": []}


def _commit(ledger: Ledger, drafts: Sequence[Draft], learned: Sequence[Learned]) -> None:
    """Make edits live, in this order."""
    accepted = ledger.accept_each(drafts, actor=ACTOR, limit=len(drafts))
    edit_ids = [each.edit_id for each in accepted if isinstance(each, Accepted)]
    assert len(edit_ids) == len(drafts), "new inputs are accepted"
    ledger.claim_these(edit_ids)
    ledger.judging_these(edit_ids)
    ledger.commit_each(list(zip(edit_ids, learned, strict=True)), expected_head=ledger.head())
