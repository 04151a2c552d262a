"""One batch on its way through a model's layers: keys are taken once, values take the place of feed-forward outputs.

The key of a row is always that of the unedited model: layers are asked from the first to the last, and a row that has
found an entry is not asked again. What was found in the first pass holds for every later one of the same batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from editors.layers import LayerSite, Token


class Places(IntEnum):
    """At which tokens values take the place of the layer's output. The numbers are stored in patches."""

    LAST = 0
    """The site's own token."""
    PROMPT = 1
    """Every token of the input."""
    ALL = 2
    """The site's own token and all after it, those of the answer included."""
    EACH = 3
    """At each position that says a token of the answer its own value; none where the answer should have ended."""


@dataclass(frozen=True, slots=True)
class Found:
    """What rows of a batch found at one layer: (found,) each.

    rows: int64, each row once. patches: int64, the overlay's numbers. strengths: float32. values: (found, most,
    hidden). counts: int64, how many of these values are an entry's own. places: int64, of `Places`.
    """

    rows: Tensor
    patches: Tensor
    strengths: Tensor
    values: Tensor
    counts: Tensor
    places: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def positions(self) -> Tensor:
        """In how many positions of an answer values take part at most: (found,) int64. One value takes part in all,
        since all that comes after a token looks back at it.
        """
        return torch.where(self.places == Places.EACH, self.counts, torch.iinfo(torch.int64).max)

    def only(self, chosen: Tensor) -> Found:
        """What some of the rows found: (found,) bool."""
        columns = self.rows, self.patches, self.strengths, self.values, self.counts, self.places
        return Found(*(column[chosen] for column in columns))


@dataclass(frozen=True, slots=True)
class Look:
    """One place where a batch is asked for its keys. find: from keys, (batch, hidden), to what is found by them."""

    site: LayerSite
    find: Callable[[Tensor], Found | None]


class Visit:
    """What happens to one batch at its layers, pass after pass. Every batch begins a new one.

    given: (batch, width) bool, which columns of the first pass of the stack that reads the input are tokens of it.
    """

    def __init__(self, given: Tensor, looks: Sequence[Look] = (), *, placed: Mapping[LayerSite, Found] | None = None):
        """looks: where keys are taken, in the order of asking. placed: what stands from the start."""
        self.given = given
        self._looks = looks
        self._placed = list((placed or {}).items())
        self._found = torch.zeros(len(given), dtype=torch.bool, device=given.device)
        self._read: set[str] = set()  # up-projections that were read
        self._columns: dict[str, int] = {}  # by down-projection, how many columns have passed it
        self.packed = False
        """Whether layers see the tokens of the texts one text behind the other, without padding between them."""
        self.outputs: dict[str, Tensor] = {}
        """By down-projection what it gave in the newest pass, unchanged: (batch, width, hidden)."""

    @property
    def sites(self) -> list[LayerSite]:
        """Where something may happen."""
        return [*(look.site for look in self._looks), *(site for site, _ in self._placed)]

    def read(self, up: str, queries: Tensor) -> None:
        """Take the keys from the queries of a layer, in its first pass: (batch, width, hidden), flattened or packed."""
        if up in self._read:
            return
        self._read.add(up)
        for look in (look for look in self._looks if look.site.reads.up == up):
            keys = key_of(self._shaped(queries), self.given, look.site.token)
            found = look.find(keys)
            if found is not None and len(found := found.only(~self._found[found.rows])):
                self._found[found.rows] = True
                self._placed.append((look.site, found))

    def write(self, down: str, outputs: Tensor) -> Tensor | None:
        """The outputs of a layer, shaped as those of `read`, with values in their places; None: unchanged."""
        shaped = self._shaped(outputs)
        start, end = self._pass(down, shaped.shape[1])
        self.outputs[down] = shaped
        written = None
        for site, found in self._placed:
            if site.writes.down != down:
                continue
            which, columns, values = self._values(site, found, start, end)
            if len(which):
                written = shaped.clone() if written is None else written
                written[found.rows[which], columns] = values.to(written.dtype)
        if written is None:
            return None
        return (written[self.given] if self.packed else written).reshape(outputs.shape)

    def _shaped(self, states: Tensor) -> Tensor:
        """What a layer takes or gives as (batch, width, hidden)."""
        if not self.packed:
            return states.reshape(len(self.given), -1, states.shape[-1])
        shaped = states.new_zeros(*self.given.shape, states.shape[-1])
        shaped[self.given] = states.reshape(-1, states.shape[-1])
        return shaped

    def _pass(self, down: str, width: int) -> tuple[int, int]:
        """The first column of a pass and the one after its last, counted from the first pass on.

        With a cache a later pass is the newest column alone; without one it is all columns again.
        """
        seen = self._columns.get(down, 0)
        start = seen if seen and width == 1 else 0
        self._columns[down] = start + width
        return start, start + width

    def _values(self, site: LayerSite, found: Found, start: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """Which values belong where: of what was found, at which column of the pass, (k,) each, (k, hidden)."""
        given = self.given[found.rows]
        columns = torch.arange(start, end, device=given.device)
        if site.apart:  # the columns of a decoder all say a token of the answer
            said, own = columns.expand(len(found), -1), torch.zeros_like(found.rows).unsqueeze(-1)
            within = torch.zeros_like(said, dtype=torch.bool)
        else:
            said, own = columns - column_of(given, "last").unsqueeze(-1), column_of(given, site.own).unsqueeze(-1)
            within = torch.nn.functional.pad(given, (0, max(end - given.shape[1], 0)))[:, start:end]
        each = (said >= 0) & (said < found.counts.unsqueeze(-1))
        places = torch.stack([columns == own, within, columns >= own, each])  # in the order of Places
        which, where = places[found.places, torch.arange(len(found), device=given.device)].nonzero(as_tuple=True)
        turn = torch.where(found.places[which] == Places.EACH, said[which, where], 0)
        return which, where, found.values[which, turn]


def key_of(queries: Tensor, given: Tensor, token: Token) -> Tensor:
    """The keys of a batch: (batch, width, hidden), (batch, width) bool -> (batch, hidden)."""
    if token == "mean":
        weights = given.to(queries.dtype).unsqueeze(-1)
        return (queries * weights).sum(1) / weights.sum(1)
    return queries[torch.arange(len(given), device=given.device), column_of(given, token)]


def column_of(given: Tensor, token: Literal["first", "last"]) -> Tensor:
    """The column of the first or the last token of each input: (batch, width) bool -> (batch,)."""
    if token == "first":
        return given.int().argmax(-1)
    return given.shape[-1] - 1 - given.flip(-1).int().argmax(-1)


class Layers:
    """The inner layers of a model, each opened when a visit needs it first. Belongs to the thread of the device."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._visit: ContextVar[Visit | None] = ContextVar("visit", default=None)
        self._hooks: dict[str, Any] = {}

    @contextmanager
    def during(self, visit: Visit | None) -> Iterator[None]:
        """Let the forward passes inside the block be this visit."""
        for site in visit.sites if visit is not None else ():
            self._open(site)
        token = self._visit.set(visit)
        try:
            yield
        finally:
            self._visit.reset(token)

    def close(self) -> None:
        """Let go of the model: it runs as if none of its layers had ever been opened."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()

    def _open(self, site: LayerSite) -> None:
        up, down = site.reads.up, site.writes.down
        if up not in self._hooks:
            self._hooks[up] = self._model.get_submodule(up).register_forward_pre_hook(partial(self._read, up))
        if down not in self._hooks:
            self._hooks[down] = self._model.get_submodule(down).register_forward_hook(partial(self._write, down))

    def _read(self, up: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        visit = self._visit.get()
        if visit is not None:
            visit.read(up, args[0])

    def _write(self, down: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        visit = self._visit.get()
        return None if visit is None else visit.write(down, output)
