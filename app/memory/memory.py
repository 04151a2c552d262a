"""What must stay as it is: what the model is known to get right, its traffic, its edits; and the guard.

What is remembered changes how later edits are fitted and judged, never what is served.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.engine.traffic import Reservoir
from app.inputs import input_key
from app.memory.known import Known
from app.memory.texts import Shown, Texts
from app.model import Model
from editors.columns import Columns
from editors.layers import LayerSite
from editors.moments import Moments
from editors.types import Reading, Remembered, Rows

NEAR_BOUNDARY = 0.05
"""Inputs whose likeliest answer leads the second by less than this probability, at some position, move first."""


@dataclass(frozen=True, slots=True, eq=False)
class Guard:
    """Inputs whose answers must not change. number: of the guard in the ledger; 0 for one that came from a file."""

    known: Known
    number: int
    input_keys: tuple[str, ...]

    @classmethod
    def of(cls, known: Known, number: int = 0) -> Guard:
        """Raises nothing; names every input, which takes a moment for many."""
        return cls(known, number, tuple(input_key(known.texts[text]) for text in range(len(known))))

    def __len__(self) -> int:
        return len(self.known)

    @property
    def near_boundary(self) -> Tensor:
        """Which inputs that are right the model may soon answer otherwise: (texts,) bool."""
        return self.known.texts.shown.flags(self.known.base.gaps < NEAR_BOUNDARY) & ~self.known.wrong


class Memory:
    """The rows that fits must leave alone, and those that verdicts are measured on."""

    def __init__(self, known: Known, guard: Guard, traffic: Reservoir | None, *, limit: int) -> None:
        self.known = known
        self.guard = guard
        """Replaced whole when there is another one."""
        self.traffic = traffic
        self.edits = Shelf(known.texts.shown.rows)
        self._right = known.right_rows()[:limit]
        self._limit = limit
        self._moments: tuple[int, Moments] | None = None

    def __len__(self) -> int:
        """How many rows `base` gives now."""
        return sum(len(part) for part in self.base())

    def base(self) -> list[Rows]:
        """What the model gets right by itself: rows of the memory file, then traffic, up to the limit, in parts."""
        traffic = self.traffic.rows() if self.traffic is not None else None
        if traffic is None:
            return [self._right]
        return [self._right, traffic[: self._limit - len(self._right)].to(self._right.labels.device)]

    def keys(
        self, site: LayerSite, model: Model, answer: Tensor, edit_ids: Iterable[str]
    ) -> Generator[None, None, list[Remembered]]:
        """The keys of everything remembered at a site; keys that are missing are taken now, on the device thread.

        answer: of the edit at hand, (positions,) int64. edit_ids: the earlier edits that count.
        """
        answer = answer.to(self.known.texts.shown.owners.device)
        parts = []
        for known in {id(each.texts): each for each in (self.known, self.guard.known)}.values():
            keys = yield from known.texts.keys(site, model)
            part = Remembered(keys, ~known.texts.wanting(answer))
            parts.append(part if not known.missed else Remembered(part.keys[~known.wrong], part.differ[~known.wrong]))
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
