"""Canonical JSON: one text for one value, so that a hash of the text is a hash of the value.

Keys are sorted, nothing is padded, floats are written as Python reads them back to the last bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def _plain(value: object) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON value.")


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)
_WRITTEN = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=_plain)


def canonical(value: object) -> str:
    """The canonical text of a JSON value. Raises ValueError for NaN and infinity, which JSON does not have."""
    return _CANONICAL.encode(value)


def digest(value: object) -> str:
    """SHA-256 of the canonical text, in hexadecimal."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def written(value: object) -> str:
    """JSON text for keeping: like the canonical one, but keys stay in the order in which the writer put them."""
    return _WRITTEN.encode(value)
