"""Inputs whose answers are known: the lines of a memory or guard file, and what the unedited model makes of them.

Read once a model, and kept on disk under the fingerprint of the model and the lines.
"""

from __future__ import annotations

import asyncio
import codecs
import hashlib
import json
import os
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.engine import Engine
from app.errors import Unavailable, Unprocessable
from app.memory.saying import CHUNK, Said, said
from app.memory.texts import Texts
from app.model import Decoding, Encoding, Model
from editors.layers import LayerSite
from editors.types import Reading, Readout, Rows

log = structlog.get_logger()

KEYS = "keys "
"""What the names of tensors that hold keys begin with; then comes the site's."""
TEXTS_A_TURN = 64
"""Texts that are answered at a time; requests that came meanwhile are answered before the next."""
FORMAT = 2
"""Of the files in the cache."""


class KnownInput(BaseModel):
    """One line of a memory or guard file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: str = Field(pattern=r"^[^\x00]*[^\s\x00][^\x00]*$")
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """Inputs, what each should get (the known-good target, or else what the unedited model says), and what the
    unedited model says to it.

    base: what the unedited model says, fed what each should get. wrong: (texts,) bool, where the unedited
    model does not say the target. left_out: lines whose target the model cannot say at all.
    """

    texts: Texts
    base: Said
    wrong: Tensor
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def missed(self) -> int:
        """How many inputs the unedited model gets wrong."""
        return int(self.wrong.sum())

    def right_rows(self) -> Rows:
        """The rows of the inputs that the unedited model gets right."""
        shown = self.texts.shown
        return shown.rows if not self.missed else shown.rows[(~self.wrong)[shown.owners]]

    def said(self, text: int, model: Model) -> str:
        """The answer that an input should get, as a text."""
        wanted = self.texts.wanted(text)
        return model.show(wanted, len(wanted) - 1)


def read_inputs(path: Path, *, limit: int) -> list[KnownInput]:
    """The lines of a memory or guard file. Raises Unavailable naming the file and the line."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {error}.") from error
    try:
        return parse(content, limit=limit)
    except Unprocessable as error:
        raise Unavailable(f"{path}, {error.detail}") from None


def parse(content: bytes, *, limit: int) -> list[KnownInput]:
    """JSON Lines as inputs; empty lines are skipped. Raises Unprocessable naming the line."""
    return list(numbered(content, limit=limit).values())


def numbered(content: bytes, *, limit: int) -> dict[int, KnownInput]:
    """JSON Lines as inputs by the numbers of their lines, from 1. Raises Unprocessable naming the line."""
    inputs: dict[int, KnownInput] = {}
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            inputs[number] = KnownInput.model_validate_json(line)
        except ValidationError as error:
            problem = error.errors()[0]
            place = f" ({'.'.join(map(str, problem['loc']))})" if problem["loc"] else ""
            raise Unprocessable(f"line {number}: {problem['msg']}{place}.") from None
    if len(inputs) > limit:
        raise Unprocessable(f"there are {len(inputs)} inputs; at most {limit} are taken.")
    return inputs


def check(model: Model, inputs: Mapping[int, KnownInput]) -> None:
    """Raise Unprocessable, naming the line, for an input that is too long, or a target that is no answer."""
    for number, each in inputs.items():
        try:
            (encoding,) = model.encode([each.input])
            if each.target is not None:
                model.wanted(encoding, each.target)
        except Unprocessable as error:
            raise type(error)(f"line {number} ({each.input[:100]!r}): {error.detail}") from None


async def learn(
    engine: Engine,
    inputs: Sequence[KnownInput],
    *,
    decoding: Decoding | None,
    cache: Path,
    keys_at: Sequence[LayerSite] = (),
) -> Known:
    """What the unedited model computes for `inputs`, run now or taken from the cache.

    decoding: how a generating model answers the inputs that come without a target. keys_at: where keys are taken in the
    same pass. Raises InputTooLong.
    """
    if not inputs:
        return nothing_known(engine.model)
    sites = [site.name for site in keys_at]
    lines = [[each.input, each.target] for each in inputs]
    described = [FORMAT, engine.model.fingerprint, lines, repr(decoding), sites]
    kept = cache / f"{hashlib.sha256(json.dumps(described).encode()).hexdigest()}.safetensors"
    if kept.exists():
        tensors = await asyncio.to_thread(load_file, kept)
    else:
        log.info("reading inputs whose answers are known", inputs=len(inputs))
        tensors = await _read_all(engine, inputs, decoding, keys_at)
        await asyncio.to_thread(_save, tensors, kept)
    return await asyncio.to_thread(_known, [each.input for each in inputs], tensors, engine.model)


async def _read_all(
    engine: Engine, inputs: Sequence[KnownInput], decoding: Decoding | None, keys_at: Sequence[LayerSite]
) -> dict[str, Tensor]:
    """The rows of the inputs, fed what each should get. Fed a target, the unedited model gives it exactly when at every
    position it says the target's own; without one, what it answers is taken for right.
    """
    encodings = await engine.encode([each.input for each in inputs])
    wanted = await _wanted(engine, inputs, encodings, decoding)
    fed = [index for index, labels in enumerate(wanted) if labels is not None]
    if not fed:
        return _nothing(engine.model)
    labels_fed = [labels for labels in wanted if labels is not None]
    read = await engine.read([encodings[index] for index in fed], labels_fed, keys_at=keys_at)
    rows = read.reading.rows
    given = torch.tensor([inputs[index].target is not None for index in fed]).to(rows.labels.device)
    sure = await engine.work(sureness(rows, engine.readout), lambda done: None)
    # Without a target the answer is right by definition, also where a batch of others would tip the balance.
    answered = torch.where(given[read.reading.owners().to(given.device)], read.answered, rows.labels)
    return {
        "queries": rows.queries,
        "residuals": rows.residuals,
        "labels": rows.labels,
        "answered": answered,
        **sure,
        "lengths": torch.tensor(read.reading.lengths),
        "fed": torch.tensor(fed),
        **{KEYS + name: keys for name, keys in read.reading.keys.items()},
    }


async def _wanted(
    engine: Engine, inputs: Sequence[KnownInput], encodings: Sequence[Encoding], decoding: Decoding | None
) -> list[Tensor | None]:
    """What each input should be fed: its target, or what is answered; None for a target that cannot be an answer."""
    wanted: list[Tensor | None] = [None] * len(inputs)
    unsaid = [index for index, each in enumerate(inputs) if each.target is None]
    for start in range(0, len(unsaid), TEXTS_A_TURN):
        turn = unsaid[start : start + TEXTS_A_TURN]
        answers = await engine.answer([encodings[index] for index in turn], engine.live.bare(), decoding=decoding)
        for index, answer in zip(turn, answers, strict=True):
            wanted[index] = engine.model.answered(answer.output)
    await asyncio.to_thread(_fill, wanted, inputs, encodings, engine.model)
    return wanted


def _fill(
    wanted: list[Tensor | None], inputs: Sequence[KnownInput], encodings: Sequence[Encoding], model: Model
) -> None:
    """Set the targets that are given and can be an answer."""
    for index, each in enumerate(inputs):
        if each.target is not None:
            with suppress(Unprocessable):
                wanted[index] = model.wanted(encodings[index], each.target)


def sureness(rows: Rows, readout: Readout) -> Generator[None, None, dict[str, Tensor]]:
    """`scores` and `gaps` of rows of the unedited model, in slices for the device thread."""
    scores, gaps = rows.labels.new_zeros(0, dtype=torch.float32), rows.labels.new_zeros(0, dtype=torch.float32)
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        each = said(some.residuals, some.labels, readout)
        scores, gaps = torch.cat([scores, each.scores]), torch.cat([gaps, each.gaps])
        yield
    return {"scores": scores, "gaps": gaps}


def nothing_known(model: Model) -> Known:
    """No inputs at all."""
    return _known((), _nothing(model), model)


def _known(inputs: Sequence[str], tensors: dict[str, Tensor], model: Model) -> Known:
    rows = Rows(tensors["queries"], tensors["residuals"], tensors["labels"])
    keys = {name.removeprefix(KEYS): tensor for name, tensor in tensors.items() if name.startswith(KEYS)}
    reading = Reading(rows, tuple(tensors["lengths"].tolist()), keys).to(model.device)
    texts = Texts.of([inputs[index] for index in tensors["fed"].tolist()], reading)
    base = Said(*(tensors[name].to(model.device) for name in ("answered", "scores", "gaps")))
    wrong = texts.shown.flags(base.answers != reading.rows.labels)
    return Known(texts, base, wrong, left_out=len(inputs) - len(texts))


def _nothing(model: Model) -> dict[str, Tensor]:
    rows = torch.zeros(0, model.hidden_size, dtype=getattr(torch, model.dtype))
    none = torch.zeros(0, dtype=torch.int64)
    numbers = {name: none.clone() for name in ("labels", "answered", "lengths", "fed")}
    shares = {name: none.float() for name in ("scores", "gaps")}
    return {"queries": rows, "residuals": rows.clone(), **numbers, **shares}


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Written beside its place and moved there whole, so that a reader never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    os.close(handle)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    Path(temporary).replace(path)
