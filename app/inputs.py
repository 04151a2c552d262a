"""When two inputs are the same."""

from __future__ import annotations

import hashlib
import unicodedata


def normalised(text: str) -> str:
    """The text in Unicode's compatibility form (NFKC), runs of white space as one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def input_key(text: str) -> str:
    """A name for a text; two texts that differ in nothing that counts have the same."""
    return hashlib.sha256(normalised(text).encode()).hexdigest()
