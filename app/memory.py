"""What must stay as it is: what the model is known to get right, its traffic, and its edits.

What is remembered changes how later edits are fitted and judged, never what is served.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file, save_file

from app.engine.traffic import Reservoir
from app.errors import Unavailable
from app.inputs import input_key
from app.model import Classifier, Encoding
from editors.moments import Moments
from editors.types import Rows

Capture = Callable[[Sequence[Encoding]], Coroutine[Any, Any, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]
"""From encodings to (queries, residuals, logits) of the unedited model, on the CPU."""

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
    rows: Rows
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


async def learn(model: Classifier, inputs: Sequence[KnownInput], *, capture: Capture, cache: Path) -> Known:
    """Run the unedited model over `inputs`, or take its activations from the cache; leave wrong answers out."""
    texts = [each.input for each in inputs]
    name = hashlib.sha256(json.dumps([model.fingerprint, texts]).encode()).hexdigest()
    kept = cache / f"{name}.safetensors"
    if kept.exists():
        tensors = load_file(kept)
    else:
        log.info("reading what the model is known to get right", inputs=len(texts))
        queries, residuals, logits = await capture(model.encode(texts))
        tensors = {"queries": queries, "residuals": residuals, "answers": logits.argmax(-1)}
        _save(tensors, kept)
    answers = tensors["answers"]
    right = [
        index
        for index, (each, answer) in enumerate(zip(inputs, answers.tolist(), strict=True))
        if each.target is None or each.target == model.labels[answer]
    ]
    rows = Rows(tensors["queries"], tensors["residuals"], answers)[torch.tensor(right, dtype=torch.int64)]
    return Known(tuple(texts[index] for index in right), rows.to(model.device), wrong=len(texts) - len(right))


def nothing_known(model: Classifier) -> Known:
    """No inputs at all."""
    nothing = torch.zeros(0, model.hidden_size, dtype=getattr(torch, model.dtype), device=model.device)
    return Known((), Rows(nothing, nothing, torch.zeros(0, dtype=torch.int64, device=model.device)))


class Memory:
    """The rows that fits must leave alone, and those that verdicts are measured on."""

    def __init__(self, known: Known, guard: Known, traffic: Reservoir | None, *, limit: int) -> None:
        self.known = known
        self.guard = guard
        self.traffic = traffic
        self.guard_keys = tuple(input_key(text) for text in guard.texts)
        self._limit = limit
        self._edits: dict[str, Rows] = {}
        self._input_keys: dict[str, str] = {}
        self._moments: tuple[int, Moments] | None = None

    def learn_edit(self, edit_id: str, input_key: str, rows: Rows) -> None:
        """Remember an edit: its input's row first, then its rephrases', labels as wanted, residuals unpatched."""
        self._edits[edit_id] = rows
        self._input_keys[edit_id] = input_key

    def edit(self, edit_id: str) -> Rows:
        """The rows of an edit that is or was live."""
        return self._edits[edit_id]

    def input_keys(self, edit_ids: Iterable[str]) -> frozenset[str]:
        """The inputs of these edits, by `input_key`."""
        return frozenset(self._input_keys[edit_id] for edit_id in edit_ids)

    def __len__(self) -> int:
        """How many rows `base` gives now."""
        return min(len(self.known) + (len(self.traffic) if self.traffic is not None else 0), self._limit)

    def base(self) -> Rows:
        """What the model gets right by itself: the memory file's rows, then traffic, up to the limit."""
        traffic = self.traffic.rows() if self.traffic is not None else None
        if traffic is None:
            return self.known.rows[: self._limit]
        return Rows.join([self.known.rows, traffic.to(self.known.rows.labels.device)])[: self._limit]

    def moments(self, base: Rows) -> Moments:
        """Mean and covariance of what `base` gave; computed anew only when traffic has added a tenth to it."""
        if self._moments is None or len(base) > 1.1 * self._moments[0]:
            self._moments = len(base), Moments.of(base.queries)
        return self._moments[1]

    def of_edits(self, edit_ids: Iterable[str]) -> Rows:
        """All rows of these edits."""
        parts = [self._edits[edit_id] for edit_id in edit_ids]
        return Rows.join(parts) if parts else self.known.rows[:0]


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Written beside its place and moved there whole, so that a reader never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    os.close(handle)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    Path(temporary).replace(path)
