"""What goes through a deployed model: encodings and how to decode on the way in, outputs and answers on the way out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from editors.types import Reading, Rows


@dataclass(frozen=True, slots=True)
class Encoding:
    """One text as token ids."""

    input_ids: Tensor  # (tokens,) int64, on the CPU

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw a token instead of taking the likeliest; the same seed draws the same tokens, in any batch."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Decoding:
    """How an answer is written: greedily, unless `sampling` is given. `stop`: texts before which it ends."""

    max_new_tokens: int
    sampling: Sampling | None = None
    stop: tuple[str, ...] = ()


@dataclass(slots=True)
class Ask:
    """One row of a batch: an encoding, and for generating models how to decode and who is told of each token."""

    encoding: Encoding
    decoding: Decoding | None = None
    on_token: Callable[[int], None] | None = None
    remember: bool = False
    """Whether what was seen at the site is wanted."""
    cancelled: bool = False
    """Set by whoever does not want the answer any more."""


Likeliest = tuple[Sequence[float], Sequence[int]]
"""Probabilities of labels, the highest first, and the indices of these labels."""


@dataclass(frozen=True, slots=True)
class Output:
    """What the model computed for one row, on the CPU."""

    raw: Tensor
    """A classifier's logits, (labels,); of a generating model the answer's tokens without its end, (tokens,)."""
    positions: int
    """In how many positions, from the first, the overlay took part in this row."""
    finish_reason: str | None = None
    end: int | None = None
    """The end token that the model said, if it did."""
    seen: Rows | None = None
    """Queries, unpatched residuals and what was answered, one row a position; if it was to be remembered."""
    confidence: float = 0.0
    """The least probability that a position gave to what was answered; if it was to be remembered."""
    likeliest: Likeliest | None = None
    """Of a classifier's batch, where it was found for all rows at once; it follows from `raw` otherwise."""


Finished = Sequence[tuple[int, Output]]
"""Outputs with the numbers of their rows in the batch."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A classifier's answer to one input. `scores` holds every label up to 20 labels, else the 5 best."""

    label: str
    score: float
    scores: Mapping[str, float]

    @property
    def said(self) -> str:
        """The answer itself."""
        return self.label

    def says(self, target: str) -> bool:
        """Whether this is the wanted answer."""
        return self.label == target


@dataclass(frozen=True, slots=True)
class Generation:
    """A generating model's answer to one input; `finish_reason` is `stop` or `length`."""

    text: str
    finish_reason: str

    @property
    def said(self) -> str:
        """The answer itself, without white space at its ends."""
        return self.text.strip()

    def says(self, target: str) -> bool:
        """Whether this is the wanted answer, white space at the ends aside."""
        return self.said == target.strip()


Answered = Prediction | Generation


@dataclass(frozen=True, slots=True)
class Read:
    """Texts with the answers they should get, at the site: the unedited model's rows, and what it says at each."""

    reading: Reading  # labels as wanted
    answered: Tensor  # (rows,) int64
