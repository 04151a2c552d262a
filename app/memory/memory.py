"""What must stay as it is: what the model is known to get right, its traffic, its edits; and the guard.

What is remembered changes how later edits are fitted and judged, never what is served.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

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
        self, site: LayerSite, model: Model, answer: Tensor, counted: Tensor
    ) -> Generator[None, None, list[Remembered]]:
        """The keys of everything remembered at a site; keys that are missing are taken now, on the device thread.

        answer: of the edit at hand, (positions,) int64. counted: (edits,) bool, the shelved ones that count.
        """
        answer = answer.to(self.known.texts.shown.owners.device)
        parts = []
        for known in {id(each.texts): each for each in (self.known, self.guard.known)}.values():
            keys = yield from known.texts.keys(site, model)
            part = Remembered(keys, ~known.texts.wanting(answer))
            parts.append(part if not known.missed else Remembered(part.keys[~known.wrong], part.differ[~known.wrong]))
        keys, edits_of_texts = (yield from self.edits.texts.keys(site, model)), self.edits.shown.edits_of_texts
        count = int((edits_of_texts[: len(keys)] < len(counted)).sum())  # numbers ascend
        chosen = counted[edits_of_texts[:count]]
        differ = ~self.edits.texts.wanting(answer)[:count]
        return [*parts, Remembered(keys[:count][chosen], differ[chosen])]

    def mean(self) -> Tensor | None:
        """The mean of the queries of what `base` gives, as fits use it: (hidden,); None while that is nothing."""
        if self._moments is None:
            base = self.base()
            return self.moments(base).mean if sum(map(len, base)) else None
        return self._moments[1].mean if self._moments[0] else None

    def moments(self, base: Sequence[Rows]) -> Moments:
        """Mean and covariance of what `base` gave; computed anew only when traffic has added a tenth to it."""
        count = sum(len(part) for part in base)
        if self._moments is None or count > 1.1 * self._moments[0]:
            self._moments = count, Moments.of(Rows.join(base).queries)
        return self._moments[1]


class _Numbers:
    """Which of the shelved edits each patch of a ledger is of."""

    def __init__(self) -> None:
        self.by_edit: dict[str, int] = {}
        self._known: tuple[tuple[str, ...], Tensor] = (), torch.zeros(0, dtype=torch.int64)

    def of(self, edit_ids: tuple[str, ...]) -> Tensor:
        """(patches,) int64, on the CPU. edit_ids: of the patches, all of edits on the shelf."""
        known, numbers = self._known
        if edit_ids is known:
            return numbers
        if edit_ids[: len(known)] != known:
            known, numbers = (), numbers[:0]
        if fresh := edit_ids[len(known) :]:
            numbers = torch.cat([numbers, torch.tensor([self.by_edit[edit_id] for edit_id in fresh])])
            self._known = edit_ids, numbers
        return numbers


@dataclass(frozen=True, slots=True)
class Shelved:
    """The texts of the first so many edits, in the order in which they were learned. Not a copy, and never changed."""

    shown: Shown
    edits_of_texts: Tensor  # (texts,) int64: the number of the edit that each text is of
    own: Tensor  # (texts,) bool: whether a text is an edit's input, not a rephrase
    squares: Tensor  # (texts,) float32: the squared length of the query of its first row
    edit_ids: Sequence[str]  # by number; may go on
    input_keys: Sequence[str]  # by number; may go on
    edits: int
    _numbers: _Numbers

    @property
    def rows(self) -> Rows:
        return self.shown.rows

    @property
    def owners(self) -> Tensor:
        """The number of the edit that each row is of: (rows,) int64."""
        return self.edits_of_texts[self.shown.owners]

    def flags(self, edit_ids: Iterable[str]) -> Tensor:
        """Which edits are among these: (edits,) bool, on the rows' device."""
        found = (self._numbers.by_edit.get(edit_id, self.edits) for edit_id in edit_ids)
        return self._flags(torch.tensor([number for number in found if number < self.edits], dtype=torch.int64))

    def flags_of(self, edit_ids: tuple[str, ...], alive: Tensor) -> Tensor:
        """Which edits have a patch that is alive: (edits,) bool, on the rows' device.

        edit_ids: of the patches of a ledger. alive: (patches,) bool, on the CPU.
        """
        numbers = self._numbers.of(edit_ids)[alive]
        return self._flags(numbers[numbers < self.edits])

    def _flags(self, numbers: Tensor) -> Tensor:
        flags = torch.zeros(self.edits, dtype=torch.bool)
        flags[numbers] = True
        return flags.to(self.own.device)


class Shelf:
    """The texts of every edit that is or was live, or is about to be: put there by one thread at a time."""

    def __init__(self, like: Rows) -> None:
        """like: rows of the width, dtype and device of those to come."""
        self.texts = Texts(like)
        none = torch.zeros(0, dtype=torch.int64, device=like.labels.device)
        self._of_texts = Columns({"edits": none, "own": none.bool(), "squares": none.float()})
        self._edit_ids: list[str] = []
        self._input_keys: list[str] = []
        self._numbers = _Numbers()
        self._lock = threading.Lock()
        self.shown = self._show()
        """What is there now; replaced whole, so that a reader holds something that fits together."""

    def put(self, edits: Sequence[Shelving]) -> None:
        """Remember edits; those that are there already are left as they are."""
        with self._lock:
            known = self._numbers.by_edit
            fresh = {each.edit_id: each for each in edits if each.edit_id not in known}.values()
            for _, alike in groupby(fresh, key=lambda each: each.reading.keys.keys()):
                self._put(list(alike))
            if fresh:
                self.shown = self._show()

    def _put(self, fresh: Sequence[Shelving]) -> None:
        """Edits that are not there yet, with keys at the same sites."""
        reading = Reading.join([each.reading for each in fresh])
        counts = torch.tensor([len(each.texts) for each in fresh])
        lengths = torch.tensor(reading.lengths)
        own = torch.zeros(len(lengths), dtype=torch.bool)
        own[counts.cumsum(0) - counts] = True
        firsts = (lengths.cumsum(0) - lengths).to(reading.rows.queries.device)
        columns = {
            "edits": (torch.arange(len(fresh)) + len(self._edit_ids)).repeat_interleave(counts),
            "own": own,
            "squares": reading.rows.queries[firsts].float().square().sum(-1),
        }
        start, end = len(self.texts), len(self.texts) + len(lengths)
        self._of_texts = self._of_texts.reserve(start, end)
        self._of_texts.write(start, end, **columns)
        self.texts.put([text for each in fresh for text in each.texts], reading)
        for each in fresh:
            self._numbers.by_edit[each.edit_id] = len(self._edit_ids)
            self._edit_ids.append(each.edit_id)
            self._input_keys.append(each.input_key)

    def _show(self) -> Shelved:
        of_texts = self._of_texts.upto(len(self.texts))
        return Shelved(
            self.texts.shown,
            of_texts["edits"],
            of_texts["own"],
            of_texts["squares"],
            self._edit_ids,
            self._input_keys,
            len(self._edit_ids),
            self._numbers,
        )


@dataclass(frozen=True, slots=True)
class Shelving:
    """One edit as it is put on the shelf: its input first, then its rephrases.

    reading: of these texts, labels as wanted, residuals unpatched.
    """

    edit_id: str
    input_key: str
    texts: Sequence[str]
    reading: Reading
