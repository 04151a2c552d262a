"""Sentences that nobody wrote: words of the built-in training texts, as often as they are used there."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from app.model.builtin import intents

SHORTEST, LONGEST = 6, 24
"""Words of a sentence."""
PREPARED, ASKED, REPORTED = 0, 1, 2
"""Seeds of the sentences that prepared databases hold, that are asked, and that are reported as mistakes."""


@dataclass(frozen=True, slots=True)
class Report:
    """A sentence, and an answer for it that the unedited model does not give."""

    input: str
    target: str


def sentences(seed: int) -> Iterator[str]:
    """Distinct sentences without end; the same seed gives the same."""
    draw = random.Random(seed)
    words = [word for each in intents("train") for word in each.text.split()]
    given: set[str] = set()
    while True:
        text = " ".join(draw.choices(words, k=draw.randint(SHORTEST, LONGEST)))
        if text not in given:
            given.add(text)
            yield text


def some(seed: int, count: int) -> list[str]:
    """The first so many sentences."""
    return list(islice(sentences(seed), count))
