"""What must stay as it is: what the model is known to get right, its traffic, and its edits.

What is remembered changes how later edits are fitted and judged, never what is served.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Generator, Iterable, Sequence
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
from app.texts import Shown, Texts
from editors.columns import Columns
from editors.layers import LayerSite
from editors.moments import Moments
from editors.types import Reading, Remembered, Rows

log = structlog.get_logger()

KEYS = "keys "
"""What the names of tensors that hold keys begin with; then comes the site's."""


class KnownInput(BaseModel):
    """One line of a memory or guard file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: str = Field(min_length=1)
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """Inputs with the unedited model's activations and answers; `wrong` were left out for a wrong answer."""

    texts: Texts
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


async def learn(
    engine: Engine,
    inputs: Sequence[KnownInput],
    *,
    decoding: Decoding | None,
    cache: Path,
    keys_at: Sequence[LayerSite] = (),
) -> Known:
    """What the unedited model computes for `inputs`, run now or taken from the cache; wrong answers are left out.

    decoding: how a generating model answers the inputs that come without a target. keys_at: where keys are taken in the
    same pass.
    """
    model = engine.model
    sites = [site.name for site in keys_at]
    described = [model.fingerprint, [[each.input, each.target] for each in inputs], repr(decoding), sites]
    kept = cache / f"{hashlib.sha256(json.dumps(described).encode()).hexdigest()}.safetensors"
    if kept.exists():
        tensors = load_file(kept)
    else:
        log.info("reading what the model is known to get right", inputs=len(inputs))
        tensors = await _read_all(engine, inputs, decoding, keys_at)
        _save(tensors, kept)
    texts = tuple(inputs[index].input for index in tensors["right"].tolist())
    rows = Rows(tensors["queries"], tensors["residuals"], tensors["labels"])
    keys = {name.removeprefix(KEYS): tensor for name, tensor in tensors.items() if name.startswith(KEYS)}
    reading = Reading(rows, tuple(tensors["lengths"].tolist()), keys).to(model.device)
    return Known(Texts.of(texts, reading), wrong=len(inputs) - len(texts))


async def _read_all(
    engine: Engine, inputs: Sequence[KnownInput], decoding: Decoding | None, keys_at: Sequence[LayerSite]
) -> dict[str, torch.Tensor]:
    """The rows of the inputs that are answered rightly, and which those are. Fed a target, the unedited model gives it
    exactly when at every position it says the target's own; without one, what it answers is taken for right.
    """
    model = engine.model
    encodings = await engine.encode([each.input for each in inputs])
    wanted = await _wanted(engine, inputs, encodings, decoding)
    fed = [index for index, labels in enumerate(wanted) if labels is not None]
    if not fed:
        return _nothing(model)
    labels_fed = [labels for labels in wanted if labels is not None]
    read = await engine.read([encodings[index] for index in fed], labels_fed, keys_at=keys_at)
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
        **{KEYS + name: keys[~wrong.to(keys.device)] for name, keys in read.reading.keys.items()},
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
    return Known(Texts.of((), Reading(rows.to(model.device), ())))


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
        self.guard_keys = tuple(input_key(guard.texts[text]) for text in range(len(guard)))
        self.edits = Shelf(known.texts.shown.rows)
        self._limit = limit
        self._moments: tuple[int, Moments] | None = None

    def __len__(self) -> int:
        """How many rows `base` gives now."""
        return sum(len(part) for part in self.base())

    def base(self) -> list[Rows]:
        """What the model gets right by itself: the memory file's rows, then traffic, up to the limit, in parts."""
        known = self.known.texts.shown.rows[: self._limit]
        traffic = self.traffic.rows() if self.traffic is not None else None
        if traffic is None:
            return [known]
        return [known, traffic[: self._limit - len(known)].to(known.labels.device)]

    def keys(
        self, site: LayerSite, model: Model, answer: Tensor, edit_ids: Iterable[str]
    ) -> Generator[None, None, list[Remembered]]:
        """The keys of everything remembered at a site; keys that are missing are taken now, on the device thread.

        answer: of the edit at hand, (positions,) int64. edit_ids: the earlier edits that count.
        """
        answer = answer.to(self.known.texts.shown.owners.device)
        parts = []
        for texts in dict.fromkeys((self.known.texts, self.guard.texts)):
            keys = yield from texts.keys(site, model)
            parts.append(Remembered(keys, ~texts.wanting(answer)))
        keys, shelved = (yield from self.edits.texts.keys(site, model)), self.edits.shown
        count = len(keys)
        counted = shelved.flags(edit_ids)[shelved.edits_of_texts[:count]]
        differ = ~self.edits.texts.wanting(answer)[:count]
        return [*parts, Remembered(keys[counted], differ[counted])]

    def moments(self, base: Sequence[Rows]) -> Moments:
        """Mean and covariance of what `base` gave; computed anew only when traffic has added a tenth to it."""
        count = sum(len(part) for part in base)
        if self._moments is None or count > 1.1 * self._moments[0]:
            self._moments = count, Moments.of(Rows.join(base).queries)
        return self._moments[1]


@dataclass(frozen=True, slots=True)
class Shelved:
    """The texts of the first so many edits, in the order in which they were learned. Not a copy, and never changed."""

    shown: Shown
    edits_of_texts: Tensor  # (texts,) int64: the number of the edit that each text is of
    own: Tensor  # (texts,) bool: whether a text is an edit's input, not a rephrase
    edit_ids: Sequence[str]  # by number; may go on
    edits: int

    @property
    def rows(self) -> Rows:
        return self.shown.rows

    @property
    def owners(self) -> Tensor:
        """The number of the edit that each row is of: (rows,) int64."""
        return self.edits_of_texts[self.shown.owners]

    def flags(self, edit_ids: Iterable[str]) -> Tensor:
        """Which edits are among these: (edits,) bool, on the rows' device."""
        wanted = frozenset(edit_ids)
        return torch.tensor([each in wanted for each in self.edit_ids[: self.edits]], dtype=torch.bool).to(
            self.own.device
        )


class Shelf:
    """The texts of every edit that is or was live: put there by one thread, read by others."""

    def __init__(self, like: Rows) -> None:
        """like: rows of the width, dtype and device of those to come."""
        self.texts = Texts(like)
        none = torch.zeros(0, dtype=torch.int64, device=like.labels.device)
        self._of_texts = Columns({"edits": none, "own": none.bool()})
        self._edit_ids: list[str] = []
        self._input_keys: dict[str, str] = {}
        self.shown = self._show()
        """What is there now; replaced whole, so that a reader holds something that fits together."""

    def put(self, edit_id: str, input_key: str, texts: Sequence[str], reading: Reading) -> None:
        """Remember an edit: its input first, then its rephrases; labels as wanted, residuals unpatched."""
        if edit_id in self._input_keys:
            return
        start, end = len(self.texts), len(self.texts) + len(texts)
        self._of_texts = self._of_texts.reserve(start, end)
        self._of_texts.write(start, end, edits=len(self._edit_ids), own=False)
        self._of_texts.write(start, start + 1, own=True)
        self.texts.put(texts, reading)
        self._edit_ids.append(edit_id)
        self._input_keys[edit_id] = input_key
        self.shown = self._show()

    def input_keys(self, edit_ids: Iterable[str]) -> frozenset[str]:
        """The inputs of these edits, by `input_key`."""
        return frozenset(self._input_keys[edit_id] for edit_id in edit_ids)

    def _show(self) -> Shelved:
        of_texts = self._of_texts.upto(len(self.texts))
        return Shelved(self.texts.shown, of_texts["edits"], of_texts["own"], self._edit_ids, len(self._edit_ids))


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Written beside its place and moved there whole, so that a reader never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    os.close(handle)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    Path(temporary).replace(path)
