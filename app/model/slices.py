"""A library's loop, run in slices: transformers' `generate` is one long call, but others want the device in between.

The call runs in a greenlet of the same thread. Wherever it calls `pause`, the generator yields, and goes on from there
when it is advanced. Context variables belong to each greenlet; torch's grad mode belongs to the thread, so it is put
back at each change of hands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from greenlet import greenlet

T = TypeVar("T")
Pause = Callable[[T], None]


def in_slices(work: Callable[[Pause[T]], None]) -> Iterator[T]:
    """Run `work(pause)`; every `pause(item)` yields the item. Closing the iterator ends the work where it pauses."""
    running = greenlet(work)
    grad_mode = torch.is_grad_enabled()

    def pause(item: T) -> None:
        assert running.parent is not None
        running.parent.switch(item)

    def hand_over(hand: Callable[[], T]) -> T:
        nonlocal grad_mode
        outside = torch.is_grad_enabled()
        torch.set_grad_enabled(grad_mode)
        try:
            return hand()
        finally:
            grad_mode = torch.is_grad_enabled()
            torch.set_grad_enabled(outside)

    try:
        item: T = hand_over(lambda: running.switch(pause))
        while not running.dead:
            yield item
            item = hand_over(running.switch)
    finally:
        if running and not running.dead:
            hand_over(running.throw)
