"""What the process holds in memory: what it need not look at again, and what goes back to the system.

The C library keeps what was freed for later; after work that needed much for a moment, as the first look at thousands
of live edits does, that is tens of megabytes for good.
"""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress


def keep() -> None:
    """Let the search for unreachable objects pass by all there are now: the imported libraries, the model, the live
    edits. They are half a million and more that stay; to look through them stops everything for a quarter of a second.
    """
    gc.freeze()


def settle() -> None:
    """Keep what has come since, but for what nobody can reach any more."""
    gc.collect()
    keep()


def give_back() -> None:
    """Give back what is free, where the C library can: a few milliseconds. Other C libraries do so by themselves."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
