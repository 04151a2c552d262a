"""Memory that the process has freed, given back to the system.

The C library keeps what was freed for later; after work that needed much for a moment, as the first look at thousands
of live edits does, that is tens of megabytes for good.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Give back what is free, where the C library can: a few milliseconds. Other C libraries do so by themselves."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
