"""A library's loop in slices: others use the thread in between, and nothing of theirs leaks in or out."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

import pytest
import torch

from app.model.slices import Pause, in_slices

MARK: ContextVar[str] = ContextVar("mark", default="outside")


def counting(count: int, seen: list[int]) -> Callable[[Pause[int]], None]:
    def work(pause: Pause[int]) -> None:
        for number in range(count):
            seen.append(number)
            pause(number * number)

    return work


def test_work_stops_at_each_pause_and_yields_what_it_says() -> None:
    seen: list[int] = []
    slices = in_slices(counting(3, seen))
    assert seen == []
    assert next(slices) == 0
    assert seen == [0]
    assert list(slices) == [1, 4]
    assert seen == [0, 1, 2]


def test_two_works_take_turns() -> None:
    seen: list[int] = []
    one, other = in_slices(counting(2, seen)), in_slices(counting(2, seen))
    for slices in (one, other, one, other):
        next(slices)
    assert seen == [0, 0, 1, 1]


def test_grad_mode_is_each_sides_own() -> None:
    inside: list[bool] = []

    def work(pause: Pause[None]) -> None:
        with torch.no_grad():
            pause(None)
            inside.append(torch.is_grad_enabled())
        inside.append(torch.is_grad_enabled())

    slices = in_slices(work)
    next(slices)
    assert torch.is_grad_enabled()
    with torch.no_grad():
        list(slices)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert inside == [False, True]


def test_context_variables_are_each_sides_own() -> None:
    inside: list[str] = []

    def work(pause: Pause[None]) -> None:
        MARK.set("inside")
        pause(None)
        inside.append(MARK.get())

    slices = in_slices(work)
    next(slices)
    assert MARK.get() == "outside"
    list(slices)
    assert inside == ["inside"]


def test_an_error_comes_out_where_the_slice_was_asked_for() -> None:
    def work(pause: Pause[None]) -> None:
        pause(None)
        raise ValueError("broken")

    slices = in_slices(work)
    next(slices)
    with pytest.raises(ValueError, match="broken"):
        next(slices)


def test_closing_ends_the_work_where_it_pauses_and_cleans_up() -> None:
    left: list[str] = []

    def work(pause: Pause[None]) -> None:
        try:
            with torch.no_grad():
                pause(None)
        finally:
            left.append("cleaned")

    slices = in_slices(work)
    next(slices)
    slices.close()
    assert left == ["cleaned"]
    assert torch.is_grad_enabled()
