"""What must stay as it is: what the model is known to get right, its traffic, and its edits.

What is remembered changes how later edits are fitted and judged, never what is served.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.engine import Engine
from app.engine.traffic import Reservoir
from app.errors import Unavailable, Unprocessable
from app.inputs import input_key
from app.model import Decoding, Encoding, Model
from editors.moments import Moments
from editors.types import Reading, Rows

log = structlog.get_logger()


class KnownInput(BaseModel):
    """One line of a memory or guard file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: str = Field(min_length=1)
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """Inputs with the unedited model's activations and answers; `wrong` were left out for a wrong answer."""

    texts: tuple[str, ...]
    reading: Reading
    wrong: int = 0

    def __len__(self) -> int:
        return len(self.texts)


def read_inputs(path: Path, *, limit: int) -> list[KnownInput]:
    """The lines of a memory or guard file. Raises Unavailable naming the file and the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Unavailable(f"{path} cannot be read: {error}.") from error
    inputs: list[KnownInput] = []
    for number, line in enumerate(lines, start=1):
        try:
            inputs.append(KnownInput.model_validate_json(line))
        except ValidationError as error:
            problem = error.errors()[0]
            raise Unavailable(
                f"{path}, line {number}: {problem['msg']} ({'.'.join(map(str, problem['loc']))})."
            ) from None
    if len(inputs) > limit:
        raise Unavailable(f"{path} has {len(inputs)} lines; at most {limit} are taken.")
    return inputs


async def learn(engine: Engine, inputs: Sequence[KnownInput], *, decoding: Decoding | None, cache: Path) -> Known:
    """What the unedited model computes for `inputs`, run now or taken from the cache; wrong answers are left out.

    decoding: how a generating model answers the inputs that come without a target.
    """
    model = engine.model
    described = [model.fingerprint, [[each.input, each.target] for each in inputs], repr(decoding)]
    kept = cache / f"{hashlib.sha256(json.dumps(described).encode()).hexdigest()}.safetensors"
    if kept.exists():
        tensors = load_file(kept)
    else:
        log.info("reading what the model is known to get right", inputs=len(inputs))
        tensors = await _read_all(engine, inputs, decoding)
        _save(tensors, kept)
    texts = tuple(inputs[index].input for index in tensors["right"].tolist())
    rows = Rows(tensors["queries"], tensors["residuals"], tensors["labels"])
    reading = Reading(rows, tuple(tensors["lengths"].tolist())).to(model.device)
    return Known(texts, reading, wrong=len(inputs) - len(texts))


async def _read_all(engine: Engine, inputs: Sequence[KnownInput], decoding: Decoding | None) -> dict[str, torch.Tensor]:
    """The rows of the inputs that are answered rightly, and which those are. Fed a target, the unedited model gives it
    exactly when at every position it says the target's own; without one, what it answers is taken for right.
    """
    model = engine.model
    encodings = await engine.encode([each.input for each in inputs])
    wanted = await _wanted(engine, inputs, encodings, decoding)
    fed = [index for index, labels in enumerate(wanted) if labels is not None]
    if not fed:
        return _nothing(model)
    read = await engine.read([encodings[index] for index in fed], [labels for labels in wanted if labels is not None])
    labels = read.reading.rows.labels
    given = torch.tensor([inputs[index].target is not None for index in fed])
    owners = read.reading.owners()
    missed = (read.answered != labels).cpu()
    wrong = torch.zeros(len(fed), dtype=torch.bool).index_put((owners[missed],), torch.tensor(True)) & given
    lengths = torch.tensor(read.reading.lengths)
    kept = (~wrong)[owners].to(labels.device)
    return {
        "queries": read.reading.rows.queries[kept],
        "residuals": read.reading.rows.residuals[kept],
        "labels": read.answered[kept],
        "lengths": lengths[~wrong],
        "right": torch.tensor(fed)[~wrong],
    }


async def _wanted(
    engine: Engine, inputs: Sequence[KnownInput], encodings: Sequence[Encoding], decoding: Decoding | None
) -> list[Tensor | None]:
    """What each input should be fed: its target, or what is answered; None for a target that cannot be an answer."""
    wanted: list[Tensor | None] = [None] * len(inputs)
    unsaid = [index for index, each in enumerate(inputs) if each.target is None]
    answers = await engine.answer([encodings[index] for index in unsaid], engine.live.bare(), decoding=decoding)
    for index, answer in zip(unsaid, answers, strict=True):
        wanted[index] = engine.model.answered(answer.output)
    for index, each in enumerate(inputs):
        if each.target is not None:
            with suppress(Unprocessable):
                wanted[index] = engine.model.wanted(encodings[index], each.target)
    return wanted


def nothing_known(model: Model) -> Known:
    """No inputs at all."""
    nothing = _nothing(model)
    rows = Rows(nothing["queries"], nothing["residuals"], nothing["labels"])
    return Known((), Reading(rows.to(model.device), ()))


def _nothing(model: Model) -> dict[str, torch.Tensor]:
    rows = torch.zeros(0, model.hidden_size, dtype=getattr(torch, model.dtype))
    none = torch.zeros(0, dtype=torch.int64)
    return {"queries": rows, "residuals": rows.clone(), "labels": none, "lengths": none.clone(), "right": none.clone()}


class Memory:
    """The rows that fits must leave alone, and those that verdicts are measured on."""

    def __init__(self, known: Known, guard: Known, traffic: Reservoir | None, *, limit: int) -> None:
        self.known = known
        self.guard = guard
        self.traffic = traffic
        self.guard_keys = tuple(input_key(text) for text in guard.texts)
        self.edits = Shelf(known.reading.rows)
        self._limit = limit
        self._moments: tuple[int, Moments] | None = None

    def __len__(self) -> int:
        """How many rows `base` gives now."""
        return sum(len(part) for part in self.base())

    def base(self) -> list[Rows]:
        """What the model gets right by itself: the memory file's rows, then traffic, up to the limit, in parts."""
        known = self.known.reading.rows[: self._limit]
        traffic = self.traffic.rows() if self.traffic is not None else None
        if traffic is None:
            return [known]
        return [known, traffic[: self._limit - len(known)].to(known.labels.device)]

    def moments(self, base: Sequence[Rows]) -> Moments:
        """Mean and covariance of what `base` gave; computed anew only when traffic has added a tenth to it."""
        count = sum(len(part) for part in base)
        if self._moments is None or count > 1.1 * self._moments[0]:
            self._moments = count, Moments.of(Rows.join(base).queries)
        return self._moments[1]


@dataclass(frozen=True, slots=True)
class Shelved:
    """The rows of the first so many edits, in the order in which they were learned. Not a copy, and never changed."""

    rows: Rows
    owners: Tensor  # (rows,) int64: the number of the edit that each row is of
    own: Tensor  # (rows,) bool: whether a row is of the edit's input, not of a rephrase
    edit_ids: Sequence[str]  # by number; may go on
    edits: int

    def flags(self, edit_ids: Iterable[str]) -> Tensor:
        """Which edits are among these: (edits,) bool, on the rows' device."""
        wanted = frozenset(edit_ids)
        return torch.tensor([each in wanted for each in self.edit_ids[: self.edits]], dtype=torch.bool).to(
            self.owners.device
        )

    def of(self, edit_ids: Iterable[str]) -> Rows:
        """All rows of these edits; not a copy when these are all there are."""
        flags = self.flags(edit_ids)
        return self.rows if bool(flags.all()) else self.rows[flags[self.owners]]


class Shelf:
    """The rows of every edit that is or was live, in one growing place: put there by one thread, read by others."""

    def __init__(self, like: Rows) -> None:
        """like: rows of the width, dtype and device of those to come."""
        none = torch.zeros(0, dtype=torch.int64, device=like.labels.device)
        self._rows, self._owners, self._own = like[:0], none, none.bool()
        self._edit_ids: list[str] = []
        self._input_keys: dict[str, str] = {}
        self.shown = Shelved(self._rows, self._owners, self._own, self._edit_ids, 0)
        """What is there now; replaced whole, so that a reader holds something that fits together."""

    def put(self, edit_id: str, input_key: str, reading: Reading) -> None:
        """Remember an edit: its input's rows first, then its rephrases', labels as wanted, residuals unpatched."""
        if edit_id in self._input_keys:
            return
        number, start = len(self._edit_ids), len(self.shown.rows)
        end = start + len(reading.rows)
        self._reserve(end)
        for column, fresh in zip(_columns(self._rows), _columns(reading.rows), strict=True):
            column[start:end] = fresh
        self._owners[start:end] = number
        self._own[start : start + reading.lengths[0]] = True
        self._edit_ids.append(edit_id)
        self._input_keys[edit_id] = input_key
        self.shown = Shelved(self._rows[:end], self._owners[:end], self._own[:end], self._edit_ids, number + 1)

    def input_keys(self, edit_ids: Iterable[str]) -> frozenset[str]:
        """The inputs of these edits, by `input_key`."""
        return frozenset(self._input_keys[edit_id] for edit_id in edit_ids)

    def _reserve(self, end: int) -> None:
        """Make room for `end` rows, doubling, so that what is there is copied seldom. Readers keep what they have."""
        if end <= len(self._rows):
            return
        capacity = max(end, 2 * len(self._rows), 256)
        self._rows = Rows(*(_grown(column, capacity) for column in _columns(self._rows)))
        self._owners, self._own = _grown(self._owners, capacity), _grown(self._own, capacity)


def _columns(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    return rows.queries, rows.residuals, rows.labels


def _grown(column: Tensor, capacity: int) -> Tensor:
    grown = column.new_zeros((capacity, *column.shape[1:]))
    grown[: len(column)] = column
    return grown


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Written beside its place and moved there whole, so that a reader never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    os.close(handle)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    Path(temporary).replace(path)
