"""Which of an edit's patches an answer sees, now, as of a revision, and without some edits."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from random import Random
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

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


class Chain:
    """A ledger of random changes, as a process follows it: revision after revision, some of them several at a time."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.entries: list[Entry] = []
        self.revision = 0
        self.live = served(0)

    def follow(self, revisions: int) -> None:
        fresh: list[Entry] = []
        changed: dict[tuple[int, int], int | None] = {}
        for _ in range(revisions):
            self.revision += 1
            alive = [number for number, entry in enumerate(self.entries) if entry.spans and entry.spans[-1][1] is None]
            if alive and self.random.random() < 0.4:
                self.close(self.random.choice(alive), changed)
            elif (dead := sorted(set(range(len(self.entries))) - set(alive))) and self.random.random() < 0.4:
                self.open(self.random.choice(dead), changed)
            else:
                edit_id = self.random.choice(["one", "two", "three", f"edit {self.revision}"])
                entry = Entry(edit_id, None, self.random.choice(["a text", "another"]), self.random.choice("ab"))
                self.entries.append(entry)
                fresh.append(entry)
                self.open(len(self.entries) - 1, changed)
        spans = [(number, (since, until)) for (number, since), until in changed.items()]
        overlay = cast(Composition, range(len(self.entries)))
        self.live = self.live.followed(self.revision, overlay, fresh, spans)

    def open(self, number: int, changed: dict[tuple[int, int], int | None]) -> None:
        self.span(number, (*self.entries[number].spans, (self.revision, None)))
        changed[number, self.revision] = None

    def close(self, number: int, changed: dict[tuple[int, int], int | None]) -> None:
        *former, (since, _) = self.entries[number].spans
        self.span(number, (*former, (since, self.revision)))
        changed[number, since] = self.revision

    def span(self, number: int, spans: Spans) -> None:
        self.entries[number] = replace(self.entries[number], spans=tuple(span for span in spans if span[0] != span[1]))


def same(one: Live, other: Live) -> None:
    """Two processes that serve the same, one of which has followed it step by step."""
    assert one.entries == other.entries
    assert one.edit_ids == other.edit_ids
    for revision in range(other.revision + 1):
        assert alive(one, as_of=revision) == alive(other, as_of=revision)
    for edit_id in {*other.edit_ids, "nobody"}:
        assert one.patches_of(edit_id) == other.patches_of(edit_id)
        assert one.patch_of(edit_id) == other.patch_of(edit_id)
    for text, target in product(("a text", "another", "no text"), "ab"):
        found, expected = (live.conflicting(text, target, besides="one") for live in (one, other))
        assert found == expected


@given(seed=st.integers(0, 10_000), steps=st.lists(st.sampled_from([1, 1, 1, 2, 5, 70]), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_what_is_followed_step_by_step_is_what_is_made_at_once(seed: int, steps: list[int]) -> None:
    chain = Chain(seed)
    for revisions in steps:
        chain.follow(revisions)
        same(chain.live, served(chain.revision, *chain.entries))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_a_revision_that_was_only_supposed_leaves_no_trace(seed: int) -> None:
    chain = Chain(seed)
    chain.follow(6)
    former, number, revision = chain.live, len(chain.entries), chain.revision + 1
    for edit_id in ("never", "one"):
        supposed = Entry(edit_id, None, "a text", "c")
        overlay = cast(Composition, range(number + 1))
        tried = former.followed(revision, overlay, [supposed], [(number, (revision, None))])
        assert tried.alive[number]
        assert number in tried.patches_of(edit_id)
    same(former, served(chain.revision, *chain.entries))
    chain.follow(3)
    same(chain.live, served(chain.revision, *chain.entries))


def test_one_revision_is_one_view() -> None:
    assert RESTORED.view(as_of=3) is RESTORED.view(as_of=3)
    assert RESTORED.view() is RESTORED.view(as_of=6)
    assert RESTORED.bare() is RESTORED.bare()
