"""Examples cut into a train, an edit and a test part, by sizes and a seed; no input is in two of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from app.inputs import input_key
from benchmarks.reporting import Entry


@dataclass(frozen=True, slots=True)
class Split:
    """train: what the model is known to get right is found here. edit: its mistakes are reported. test: neither."""

    train: tuple[Entry, ...]
    edit: tuple[Entry, ...]
    test: tuple[Entry, ...]


def split(entries: Sequence[Entry], sizes: tuple[float, float, float], seed: int) -> Split:
    """Shuffle, and cut into train, edit and test. Of inputs that count as the same, the first stays.

    sizes: each below 1 a share of the inputs, from 1 on their number. Raises ValueError for sizes that are not positive
    or that need more inputs than there are.
    """
    first = {input_key(entry.input): entry for entry in reversed(entries)}
    kept = list(reversed(first.values()))
    shares = [size if size < 1 else size / len(kept) for size in sizes]
    if min(shares) <= 0 or sum(shares) > 1 + 1e-9:
        raise ValueError(f"The sizes {sizes} must be positive and need at most the {len(kept)} inputs that there are.")
    random.Random(seed).shuffle(kept)
    train, edit, test = (round(share * len(kept)) for share in shares)
    return Split(*(tuple(kept[start:][:count]) for start, count in ((0, train), (train, edit), (train + edit, test))))
