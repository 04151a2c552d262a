"""Which of an edit's patches an answer sees, now, as of a revision, and without some edits."""

from __future__ import annotations

from typing import cast

from app.engine import Entry, Live
from editors.composition import Composition

Spans = tuple[tuple[int, int | None], ...]


def patch(edit_id: str, *spans: tuple[int, int | None], supersedes: str | None = None, target: str = "a") -> Entry:
    return Entry(edit_id, supersedes, "text" if supersedes or edit_id == "former" else edit_id, target, spans)


def served(revision: int, *entries: Entry) -> Live:
    uncompiled = cast(Composition, range(len(entries)))  # of an overlay only the length is asked here
    return Live(revision, uncompiled, entries)


def alive(live: Live, *, as_of: int | None = None, exclude: tuple[str, ...] = ()) -> list[int]:
    numbers: list[int] = live.view(as_of=as_of, exclude=exclude).alive.nonzero().flatten().tolist()
    return numbers


RESTORED = served(6, patch("one", (1, 3), (5, None)), patch("two", (2, None)), patch("one", (3, 5)))
"""`one` was fitted again in revision 3, and got its first patch back in revision 5."""

REPLACED = served(
    6,
    patch("former", (1, 2), (3, 4), (5, 6)),
    patch("newer", (2, 3), (6, None), supersedes="former", target="b"),
    patch("former", (4, 5)),
)
"""`newer` replaced `former`, was reverted, and is back; `former` meanwhile had another patch in revision 4."""


def test_an_edit_is_served_with_the_patch_that_it_had_in_a_revision() -> None:
    assert [alive(RESTORED, as_of=number) for number in range(7)] == [[], [0], [0, 1], [1, 2], [1, 2], [0, 1], [0, 1]]


def test_the_patch_of_an_edit_is_the_one_that_was_live_last_and_not_the_newest() -> None:
    assert RESTORED.patch_of("one") == 0
    assert RESTORED.patches_of("one") == (0, 2)


def test_the_patch_of_an_edit_as_of_a_revision_is_the_one_that_it_had_had_by_then() -> None:
    assert [RESTORED.patch_of("one", as_of=number) for number in range(7)] == [None, 0, 0, 2, 2, 0, 0]


def test_an_edit_that_never_went_live_has_no_patch() -> None:
    assert RESTORED.patch_of("three") is None


def test_leaving_out_an_edit_leaves_out_whichever_patch_it_has() -> None:
    assert alive(RESTORED, exclude=("one",)) == alive(RESTORED, as_of=4, exclude=("one",)) == [1]


def test_what_an_excluded_edit_had_replaced_comes_back_with_the_patch_that_it_had_last() -> None:
    assert alive(REPLACED, exclude=("newer",)) == [0]


def test_what_comes_back_in_a_former_revision_knows_nothing_of_later_patches() -> None:
    later = served(4, *REPLACED.entries[:2], patch("former", (4, None)))
    assert alive(later, as_of=2, exclude=("newer",)) == [0]
