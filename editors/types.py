"""The words that editors share: patch, rows, problem, step, overlay, editor.

Nothing here knows how the service stores, queues or transports; tensors and plain values only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from editors.errors import NotFinite
from editors.features import Features
from editors.inside import Inside
from editors.join import Transform
from editors.layers import Family, LayerSite, Sites
from editors.moments import Moments
from editors.site import Site
from editors.visit import Found, Visit

Readout = Callable[[Tensor], Tensor]
"""From the input of the last norm, at positions the head reads, to logits: (n, hidden) -> (n, labels).

The labels of a generating model are the tokens of its vocabulary.
"""


@dataclass(frozen=True, slots=True)
class Header:
    """What a patch says about itself; stored with its bytes and checked before it is put on a model.

    `base` is the fingerprint of the weights it was made for, `site` the name of the place where it
    meets them, `dtype` the dtype in which the base computes.
    """

    editor: str
    editor_version: int
    base: str
    site: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Patch:
    """What was learned from one edit: named tensors and a header. Inert.

    finite: that the tensors hold neither NaN nor infinity is known already.
    """

    header: Header
    tensors: Mapping[str, Tensor]
    finite: InitVar[bool] = field(default=False, kw_only=True)

    def __post_init__(self, finite: bool) -> None:
        if not finite:
            _check_finite(self.tensors)

    @staticmethod
    def each(header: Header, columns: Mapping[str, Tensor]) -> list[Patch]:
        """The patches whose tensors lie stacked in these, of which there is one at least: (patches, ...) each."""
        _check_finite(columns)
        unbound = zip(*(column.unbind() for column in columns.values()), strict=True)
        return [Patch(header, dict(zip(columns, tensors, strict=True)), finite=True) for tensors in unbound]

    @property
    def parameters(self) -> int:
        """How many numbers the patch holds."""
        return sum(tensor.numel() for tensor in self.tensors.values())


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise NotFinite for a tensor that holds NaN or infinity."""
    for name, tensor in tensors.items():
        # NaN or infinity among the terms makes any sum NaN or infinite: one operation where two are needed else.
        if not math.isfinite(tensor.sum().item()) and not torch.isfinite(tensor).all():
            raise NotFinite(f"The patch's tensor {name!r} holds NaN or infinity.")


@dataclass(frozen=True, slots=True)
class Rows:
    """Activations at positions the head reads: of a classifier one row a text, of a generating model one row for each
    position of the answer, end token included.

    queries: (n, hidden) inputs `q` of the last feed-forward layer. No patch of that layer changes them.
    residuals: (n, hidden) inputs `s` of the norm after it, with the patches of the revision at hand added.
    labels: (n,) int64, the label, or the next token, each row should get.
    """

    queries: Tensor
    residuals: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        # Of thousands of rows shapes are asked for in a quarter of the time that len takes.
        assert self.queries.shape[0] == self.residuals.shape[0] == self.labels.shape[0], "rows of unequal number"

    def __len__(self) -> int:
        return self.labels.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Rows:
        return Rows(self.queries[index], self.residuals[index], self.labels[index])

    def to(self, device: torch.device) -> Rows:
        """The same rows on `device`."""
        if self.queries.device == self.residuals.device == self.labels.device == device:
            return self
        return Rows(self.queries.to(device), self.residuals.to(device), self.labels.to(device))

    @staticmethod
    def join(parts: Sequence[Rows]) -> Rows:
        """All rows of `parts`, in order."""
        return Rows(
            torch.cat([part.queries for part in parts]),
            torch.cat([part.residuals for part in parts]),
            torch.cat([part.labels for part in parts]),
        )


@dataclass(frozen=True, slots=True)
class Reading:
    """The rows of several texts, one text after the other."""

    rows: Rows
    lengths: tuple[int, ...]
    """How many rows each text has: 1 each for a classifier."""
    keys: Mapping[str, Tensor] = field(default_factory=dict)
    """By name of a layer site the keys of the texts there, (texts, hidden); of the sites that they were taken at."""

    def __post_init__(self) -> None:
        assert sum(self.lengths) == len(self.rows), "lengths that do not add up"
        assert all(keys.shape[0] == len(self.lengths) for keys in self.keys.values()), "keys of other texts"

    def __len__(self) -> int:
        """The number of texts."""
        return len(self.lengths)

    def of_text(self, index: int) -> Rows:
        """The rows of one text."""
        start = sum(self.lengths[:index])
        return self.rows[start : start + self.lengths[index]]

    def part(self, start: int, end: int) -> Reading:
        """Some texts, in their order."""
        first, count = sum(self.lengths[:start]), sum(self.lengths[start:end])
        keys = {name: keys[start:end] for name, keys in self.keys.items()}
        return Reading(self.rows[first : first + count], self.lengths[start:end], keys)

    def positions(self) -> Tensor:
        """Which position of its text each row is: (n,) int64."""
        return torch.cat([torch.arange(0), *(torch.arange(length) for length in self.lengths)])

    def owners(self) -> Tensor:
        """Which text each row is of: (n,) int64."""
        return torch.arange(len(self.lengths)).repeat_interleave(torch.tensor(self.lengths, dtype=torch.int64))

    @staticmethod
    def join(parts: Sequence[Reading]) -> Reading:
        """The texts of all parts, in order, all with keys at the same sites."""
        if len(parts) == 1:
            return parts[0]
        keys = {name: torch.cat([part.keys[name] for part in parts]) for name in parts[0].keys}
        lengths = tuple(length for part in parts for length in part.lengths)
        return Reading(Rows.join([part.rows for part in parts]), lengths, keys)

    def to(self, device: torch.device) -> Reading:
        """The same on `device`."""
        rows = self.rows.to(device)
        if rows is self.rows and not self.keys:
            return self
        return Reading(rows, self.lengths, {name: keys.to(device) for name, keys in self.keys.items()})


@dataclass(frozen=True, slots=True)
class Remembered:
    """Keys of texts that must stay as they are. differ: (n,) bool, which of them want another answer than the edit."""

    keys: Tensor  # (n, hidden)
    differ: Tensor


@dataclass(frozen=True, slots=True)
class Problem:
    """One edit as an editor sees it.

    edit: the rows of the reported input first, then those of its rephrases; `labels` is what each should get. Rows of
        the answer that are right already are among them: they must stay right.
    positions: (n,) int64, which position of the answer each row of the edit is; rows of the same one want the same
        label, and one neuron may serve them all. Below zero, all different: rows of other edits that this one shall
        mend as well, because what it replaces had held them.
    memory: rows that must stay as they are, in parts, so that nobody needs to copy them: what the model is known to
        get right, then the rows of earlier edits (with the label that the edit wanted). May be empty.
    moments: of the memory, or of the part of it that does not change from edit to edit; computed from
        the memory when None, which for 40,000 rows takes longer than the fit.
    readout: from residuals to logits. seed: makes the fit repeatable.
    features: of rows of the same model, what enters the last down-projection; None where no editor shall tune it.
    add: what the other live patches add behind the last layer, which is in the residuals of the edit, and not in those
        of the memory; None: nothing.
    inside: the input, and rephrases, at the layer site that the editor has chosen; none for an editor whose site is the
        last feed-forward layer. further: more rephrases there, in pieces, each a forward pass when it is called for.
        remembered: keys of other texts there, in parts.
    """

    edit: Rows
    positions: Tensor
    memory: Sequence[Rows]
    readout: Readout
    seed: int = 0
    moments: Moments | None = None
    inside: Inside | None = None
    further: Sequence[Callable[[], Inside]] = ()
    remembered: Sequence[Remembered] = ()
    features: Features | None = None
    add: Transform | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a fit. A fit yields after every step, so that predictions can run in between."""

    number: int
    loss: float
    losses: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a fit returns: the tensors of the patch, and how it went."""

    tensors: Mapping[str, Tensor]
    steps: int
    loss: float


Fit = Generator[Step, None, Fitted]


@dataclass(frozen=True, slots=True)
class Firing:
    """Which patches took part in which rows: pair i says that patch `patches[i]` fired on row `rows[i]`.

    Sorted by row, then by ledger order; `strengths` is the largest activation among the patch's neurons.
    """

    rows: Tensor  # (pairs,) int64
    patches: Tensor  # (pairs,) int64, index into the overlay
    strengths: Tensor  # (pairs,) float32


@runtime_checkable
class Adding(Protocol):
    """Patches compiled into something that adds to the residuals behind the last feed-forward layer.

    Immutable for its readers. Patches are numbered from 0 in ledger order, whether they are live or not; which of them
    apply to a row belongs to the call.
    """

    def __len__(self) -> int:
        """The number of patches."""

    def extend(self, patches: Sequence[Patch]) -> Adding:
        """An overlay with `patches` after the present ones. This one goes on serving unchanged."""

    def pick(self, numbers: Sequence[int]) -> Adding:
        """An overlay of these patches alone, ascending, numbered anew from 0."""

    def apply(self, queries: Tensor, residuals: Tensor, alive: Tensor, view: Tensor) -> tuple[Tensor, Firing]:
        """Residuals with the values of the patches that fire added in ledger order, and what fired.

        queries, residuals: (n, hidden). alive: (views, patches) bool, which patches each view sees.
        view: (n,) int64, the view of each row. A row on which nothing fires is returned bit for bit.
        """


@runtime_checkable
class Replacing(Protocol):
    """Patches compiled into something that replaces what an inner layer gives, where the key of a request finds one.

    Immutable and numbered as `Adding` is. Which patch a key finds depends on the patches that are alive alone.
    """

    def __len__(self) -> int:
        """The number of patches."""

    def extend(self, patches: Sequence[Patch]) -> Replacing:
        """An overlay with `patches` after the present ones. This one goes on serving unchanged."""

    def pick(self, numbers: Sequence[int]) -> Replacing:
        """An overlay of these patches alone, ascending, numbered anew from 0."""

    def find(self, keys: Tensor, alive: Tensor, view: Tensor) -> Found | None:
        """What each key finds, at most one patch each: (n, hidden). alive and view as for `Adding`. None: nothing."""

    def reached_by(self, keys: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """The keys that may find something else when other patches are alive: (n, hidden) -> (k,) int64, ascending.

        before, after: (patches,) bool. No other key finds anything else.
        """


class Acting(Protocol):
    """What overlays do to one batch, in every pass that it takes."""

    def visit(self, given: Tensor) -> Visit | None:
        """What happens at inner layers; None if nothing can. given: (batch, width) bool, the tokens of the input."""

    def __call__(self, queries: Tensor, residuals: Tensor) -> Tensor:
        """The residuals that the last norm receives: (n, hidden) each."""


class Editor(Protocol):
    """A method that fits a patch to an edit."""

    name: ClassVar[str]
    version: ClassVar[int]
    baseline: ClassVar[bool]
    """Whether it is there to be measured against: its patches act everywhere, and later ones undo earlier ones."""
    options: ClassVar[type[Any]]
    """A frozen dataclass of the editor's options, every one with a default and Annotated bounds."""

    def defaults(self, family: Family) -> Mapping[str, Any]:
        """Defaults that are other than the dataclass's, for a family of models."""

    def site(self, sites: Sites, options: Any) -> Site | LayerSite:
        """Where a patch made with these options meets a model. Raises BadOptions for a place that it does not have."""

    def fit(self, problem: Problem, options: Any) -> Fit:
        """Learn the patch's tensors, one step at a time. Raises FitFailed with the reason."""

    def overlay(self, hidden: int, device: torch.device, features: Features | None = None) -> Adding | Replacing:
        """An overlay without patches, for a model of that width on that device. features: of the model, see Problem."""


@runtime_checkable
class FittingTogether(Protocol):
    """An editor that can fit many independent edits at once, for less than they would cost one after the other."""

    def fit_together(self, problems: Sequence[Problem], options: Any) -> Generator[Step, None, list[Fitted | None]]:
        """Of each problem what `fit` would give it, had it the rows of the others' edits in its memory, too.

        To rounding. The problems should share memory (the same parts), moments and readout. None: to be fitted by
        itself; for NaN, for what does not share these, and for whatever cannot be done at once. Never raises FitFailed.
        Yields when others may use the device; a step's loss is that of all problems.
        """
