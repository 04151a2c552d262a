"""What every deployed model can do, whatever its task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from app.model.answers import Answered, Ask, Decoding, Encoding, Finished, Output, Read
from editors.features import Features
from editors.inside import Inside
from editors.join import Transform
from editors.layers import LayerSite, Sites
from editors.site import Site
from editors.types import Acting


class Model(Protocol):
    """A frozen Hugging Face model with its tokenizer, its task and its site.

    `encode`, `wanted` and `decode` may run in any thread; `run`, `read` and `readout` belong to the one that owns the
    device. Knows nothing of edits: what happens at its sites is decided by what acts on each run.
    """

    task: str
    name: str
    labels: tuple[str, ...]
    """What a classifier can answer; none of a generating model."""
    dtype: str
    device: torch.device
    fingerprint: str
    max_tokens: int
    """The most tokens of an input."""
    mixes_lengths: bool
    """Whether inputs of different lengths may share a batch."""

    @property
    def pads(self) -> bool:
        """Whether inputs that share a batch are padded to the longest."""

    @property
    def writes(self) -> bool:
        """Whether answers are texts."""

    @property
    def decoding_settings(self) -> Mapping[str, Any]:
        """Settings of the model's own that shape its answers; a target that they do not let through is not written."""

    @property
    def end_tokens(self) -> tuple[str, ...]:
        """What ends an answer; none of a classifier."""

    @property
    def site(self) -> Site:
        """Where overlays of the last feed-forward layer meet this model."""

    @property
    def sites(self) -> Sites:
        """Every place where overlays can meet this model."""

    @property
    def features(self) -> Features:
        """What enters the last down-projection, from queries; see `editors.features`."""

    @property
    def hidden_size(self) -> int:
        """The width of queries and residuals."""

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Token ids of each text. Raises InputTooLong for a text of more tokens than the model reads."""

    def target(self, text: str) -> str:
        """A wanted answer as it is kept: without what makes no difference to this model. Raises UnknownLabel."""

    def wanted(self, encoding: Encoding, target: str) -> Tensor:
        """What the head should say at each position of the answer: (positions,) int64.

        Raises UnknownLabel; for generating models InputTooLong for an answer of more tokens than there is room for, and
        UnwritableTarget for one that the tokenizer cannot write.
        """

    def run(self, asks: Sequence[Ask], acting: Acting | None) -> Iterator[Finished]:
        """Answer one batch, yielding wherever other work may run what has been finished since, each ask once.

        acting: sees one row an ask, in their order, at every pass; None is the unedited model.
        """

    def read(
        self,
        encodings: Sequence[Encoding],
        wanted: Sequence[Tensor],
        acting: Acting | None = None,
        *,
        keys_at: Sequence[LayerSite] = (),
    ) -> Read:
        """What the model computes when it is fed the wanted answers: one row a position.

        acting: whose entries of inner layers the rows are computed under; what it adds behind the last layer is in the
        answers alone. keys_at: where the unedited model's keys are taken; not of a model on which something acts.
        """

    def inside(
        self, encodings: Sequence[Encoding], wanted: Sequence[Tensor], site: LayerSite, transform: Transform
    ) -> Inside:
        """The texts at an inner layer, fed the wanted answers. transform: what acts at the join meanwhile."""

    def readout(self, residuals: Tensor) -> Tensor:
        """Logits from residuals by norm and head alone: (n, hidden) -> (n, labels). Differentiable."""

    def decode(self, asks: Sequence[Ask], outputs: Sequence[Output]) -> list[Answered]:
        """Answers from what was asked and what came out."""

    def answered(self, output: Output) -> Tensor:
        """What the head said at each position of an answer, as `wanted` gives it: (positions,) int64."""

    def to_the_end(self, wanted: Tensor, *, at_least: int) -> Decoding | None:
        """Greedy decoding with room for the answer `wanted`, and for so many tokens; None for a classifier."""

    def show(self, answered: Tensor, upto: int) -> str:
        """The answer that positions 0 to `upto` say, for people: (positions,) int64 -> text."""
