"""Texts that are remembered: their rows, which need no model any more, and their keys, taken when first needed.

Rows and keys are the unedited model's, so they never change. Put there by one thread, read by others; keys are taken by
the thread of the device.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.engine import View
from app.engine.reading import reading
from app.model import Encoding, Model
from editors.columns import Columns
from editors.layers import LayerSite
from editors.types import Reading, Rows

BATCH = 32
"""Texts in one forward pass; predictions may run between two of them."""


@dataclass(frozen=True, slots=True)
class Shown:
    """The first so many texts. Not a copy, and never changed."""

    rows: Rows
    owners: Tensor  # (rows,) int64: the text that each row is of
    starts: Tensor  # (texts,) int64: the first row of each
    lengths: Tensor  # (texts,) int64: how many rows each has

    @property
    def count(self) -> int:
        return len(self.starts)

    def none(self) -> Shown:
        """No text at all."""
        return Shown(self.rows[:0], self.owners[:0], self.starts[:0], self.lengths[:0])

    def slice_of(self, text: int) -> slice:
        """The rows of one text."""
        start = int(self.starts[text])
        return slice(start, start + int(self.lengths[text]))

    def flags(self, rows: Tensor) -> Tensor:
        """Which texts have any of these rows: (rows,) bool -> (texts,) bool."""
        flags = torch.zeros(self.count, dtype=torch.bool, device=self.owners.device)
        flags[self.owners[rows]] = True
        return flags

    def rows_of(self, texts: Tensor) -> Tensor:
        """The rows of some texts: (k,) int64 -> ascending."""
        if not len(texts):
            return texts
        chosen = torch.zeros(self.count, dtype=torch.bool, device=self.owners.device)
        chosen[texts] = True
        rows: Tensor = chosen[self.owners].nonzero().squeeze(-1)
        return rows


class Texts:
    """A growing list of texts with the answers that they should get."""

    def __init__(self, like: Rows) -> None:
        """like: rows of the width, dtype and device of those to come."""
        self._begin((), Columns(_columns(like, like.labels)), 0)

    @classmethod
    def of(cls, texts: Sequence[str], reading: Reading) -> Texts:
        """These texts, read already; their rows are not copied."""
        made = cls(reading.rows)
        owners = reading.owners().to(reading.rows.labels.device)
        made._begin((), Columns.of(_columns(reading.rows, owners)), len(owners))
        made._note(texts, reading)
        return made

    def _begin(self, texts: Sequence[str], rows: Columns, used: int) -> None:
        none = torch.zeros(0, dtype=torch.int64, device=rows["owners"].device)
        self._texts, self._rows = list(texts), rows
        self._used = used
        self._spans = Columns({"starts": none, "lengths": none})
        self._keys: dict[str, Columns] = {}  # by site the keys, and of which texts they are there
        self._lock = threading.Lock()
        self.shown = self._show()
        """What is there now; replaced whole, so that a reader holds something that fits together."""

    def __len__(self) -> int:
        return self.shown.count

    def __getitem__(self, text: int) -> str:
        return self._texts[text]

    def put(self, texts: Sequence[str], reading: Reading) -> None:
        """Remember texts: labels as wanted, residuals and keys of the unedited model."""
        start, end = self._used, self._used + len(reading.rows)
        self._rows = self._rows.reserve(start, end)
        self._rows.write(start, end, **_columns(reading.rows, reading.owners() + len(self._texts)))
        self._used = end
        self._note(texts, reading)

    def wanted(self, text: int) -> Tensor:
        """What a text should get at each of its positions: (positions,) int64."""
        return self.shown.rows.labels[self.shown.slice_of(text)]

    def wanting(self, answer: Tensor) -> Tensor:
        """Which texts should get this very answer: (positions,) int64 -> (texts,) bool."""
        shown = self.shown
        positions = torch.arange(len(shown.rows), device=answer.device) - shown.starts[shown.owners]
        differs = answer[positions.clamp(max=len(answer) - 1)] != shown.rows.labels
        same = shown.lengths == len(answer)
        same[shown.owners[differs]] = False
        return same

    def keys(self, site: LayerSite, model: Model) -> Generator[None, None, Tensor]:
        """The keys of the texts that are shown, (texts, hidden); those that are missing are taken now."""
        count = self.shown.count
        missing = self._missing(site, count)
        for start in range(0, len(missing), BATCH):
            chosen = missing[start : start + BATCH]
            batch = self.batch(chosen, model)
            read = yield from reading(model, *batch, keys_at=[site], max_batch=BATCH)
            self._fill(site.name, chosen, read.reading.keys[site.name])
            yield
        if not count:
            return self.shown.rows.queries
        with self._lock:
            return self._keys[site.name]["keys"][:count]

    def read_under(self, texts: Tensor, view: View, model: Model) -> Generator[None, None, Rows]:
        """The rows of some texts with the entries of inner layers that are alive in a view: (k,) int64, k > 0."""
        read = yield from reading(model, *self.batch(texts, model), view=view, max_batch=BATCH)
        return read.reading.rows

    def batch(self, texts: Tensor, model: Model) -> tuple[list[Encoding], list[Tensor]]:
        """Some texts as token ids, and what they should get."""
        numbers = texts.tolist()
        return model.encode([self._texts[number] for number in numbers]), [self.wanted(number) for number in numbers]

    def _note(self, texts: Sequence[str], reading: Reading) -> None:
        assert len(texts) == len(reading), "a text without rows"
        first, end = len(self._texts), len(self._texts) + len(texts)
        lengths = torch.tensor(reading.lengths, dtype=torch.int64)
        self._spans = self._spans.reserve(first, end)
        self._spans.write(first, end, lengths=lengths, starts=lengths.cumsum(0) - lengths + self._used - lengths.sum())
        places = torch.arange(first, end, device=self._spans["starts"].device)
        for name, keys in reading.keys.items():
            self._fill(name, places, keys)
        self._texts.extend(texts)
        self.shown = self._show()

    def _show(self) -> Shown:
        rows = self._rows.upto(self._used)
        owners = rows.pop("owners")
        return Shown(Rows(**rows), owners, **self._spans.upto(len(self._texts)))

    def _missing(self, site: LayerSite, count: int) -> Tensor:
        with self._lock:
            missing = torch.ones(count, dtype=torch.bool, device=self.shown.owners.device)
            if site.name in self._keys:
                there = self._keys[site.name]["there"][:count]
                missing[: len(there)] = ~there
            return missing.nonzero().squeeze(-1)

    def _fill(self, name: str, places: Tensor, keys: Tensor) -> None:
        if not len(places):
            return
        with self._lock:
            columns = self._keys.get(name, Columns({"keys": keys, "there": torch.zeros(0).bool().to(keys.device)}))
            if (end := int(places.max()) + 1) > (start := len(columns["there"])):
                columns = columns.reserve(start, end)
                columns["there"][start:] = False
            columns["keys"][places], columns["there"][places] = keys, True
            self._keys[name] = columns


def _columns(rows: Rows, owners: Tensor) -> dict[str, Tensor]:
    return {"queries": rows.queries, "residuals": rows.residuals, "labels": rows.labels, "owners": owners}
