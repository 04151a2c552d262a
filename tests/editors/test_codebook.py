"""Codebook against a plain computation over all pairs, and the exactness that reverting rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from editors.codebook import Codebook, Grace
from editors.codebook.radii import OFF, SAME
from editors.types import Patch
from editors.visit import Found
from tests.editors.editing import CPU, alive_but, all_alive, header

DIMENSIONS = 3
Point = tuple[float, ...]
Answer = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """What a patch says, in plain values."""

    key: Point
    reach: float
    answer: Answer

    def patch(self, hidden: int = DIMENSIONS) -> Patch:
        key = torch.zeros(hidden)
        key[: len(self.key)] = torch.tensor(self.key)
        tensors = {
            "key": key,
            "values": key.flip(-1) + self.reach + torch.arange(float(len(self.answer))).unsqueeze(-1),
            "reach": torch.tensor(self.reach, dtype=torch.float64),
            "answer": torch.tensor(self.answer),
            "places": torch.tensor(len(self.answer) % 4),
        }
        return Patch(header(Grace()), tensors)


def book_of(entries: Sequence[Entry]) -> Codebook:
    return Codebook.empty(DIMENSIONS, CPU).extend([entry.patch() for entry in entries])


# Keys on a small lattice, so that equal ones, equally far ones and those exactly on a border are common; and moved by
# a little, so that nearly equal ones are, too.
coordinates = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0])
jitter = st.sampled_from([0.0, 0.0, 0.0, 2e-5, 1e-3])


@st.composite
def points(draw: st.DrawFn) -> Point:
    moved = draw(jitter)
    point = [1 + draw(coordinates) + moved, draw(coordinates), 0.25 * draw(st.sampled_from([0.0, 0.0, 1.0]))]
    return tuple(torch.tensor(point).tolist())  # as float32 holds them


entries_ = st.builds(
    Entry,
    points(),
    st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 100.0]),
    st.sampled_from([(1,), (2,), (3, 7), (4, 6)]),
)


def distance(one: Point, other: Point) -> float:
    squares = sum((a - b) * (a - b) for a, b in zip(one, other, strict=True))
    return float(torch.tensor(squares, dtype=torch.float64).sqrt())  # whose last bit is not that of Python's


def radius_by_hand(entries: Sequence[Entry], alive: Sequence[bool], number: int) -> float:
    """Its reach, halved by live entries with another answer; nothing beside a newer one with the same key."""
    entry = entries[number]
    if not alive[number]:
        return OFF
    radius = entry.reach
    for other_number, other in enumerate(entries):
        if other_number == number or not alive[other_number]:
            continue
        far = distance(entry.key, other.key)
        newer = entries[max(number, other_number)]
        if far <= SAME * math.hypot(*newer.key):
            if other_number > number:
                return OFF
        elif other.answer != entry.answer:
            radius = min(radius, far / 2)
    return radius


def found_by_hand(entries: Sequence[Entry], alive: Sequence[bool], query: Point) -> tuple[int, float] | None:
    """The entry that a query finds, and how deep inside its ball it lies."""
    inside = []
    for number, entry in enumerate(entries):
        radius, far = radius_by_hand(entries, alive, number), distance(query, entry.key)
        if far <= radius:
            inside.append((far, -number, 1 - far / radius if radius else 1.0))
    if not inside:
        return None
    _, number, depth = min(inside)
    return -number, depth


def outcome(found: Found | None, queries: int) -> list[tuple[int, float] | None]:
    """What each query found."""
    given: list[tuple[int, float] | None] = [None] * queries
    if found is not None:
        for row, patch, depth in zip(
            found.rows.tolist(), found.patches.tolist(), found.strengths.tolist(), strict=True
        ):
            assert given[row] is None, "one query found two"
            given[row] = (patch, depth)
    return given


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


@given(
    entries=st.lists(entries_, max_size=9),
    queries=st.lists(points(), min_size=1, max_size=9),
    masks=st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=3),
    turns=st.lists(st.integers(0, 2), min_size=9, max_size=9),
)
@settings(max_examples=300, deadline=None)
def test_it_finds_what_a_loop_over_all_pairs_finds_each_row_under_its_own_view(
    entries: list[Entry], queries: list[Point], masks: list[list[bool]], turns: list[int]
) -> None:
    alive = [mask[: len(entries)] for mask in masks]
    view = [turn % len(alive) for turn in turns[: len(queries)]]
    mask = torch.tensor(alive, dtype=torch.bool).reshape(len(alive), len(entries))
    book = book_of(entries)
    found = book.find(torch.tensor(queries), mask, torch.tensor(view))
    expected = [found_by_hand(entries, alive[of], query) for query, of in zip(queries, view, strict=True)]
    given = outcome(found, len(queries))
    assert [one and one[0] for one in given] == [one and one[0] for one in expected]
    for one, other in zip(given, expected, strict=True):
        assert one is None or other is None or one[1] == pytest.approx(other[1], abs=1e-6)
    radii = [[radius_by_hand(entries, mask, number) for number in range(len(entries))] for mask in alive]
    assert book.radii(mask).tolist() == radii


class Ledger:
    """Edits, reverts and re-applies as a service makes them, each on a codebook that grew out of the last one."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.live: list[bool] = []
        self.book = book_of([])

    def edit(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.live.append(True)
        self.book = self.book.extend([entry.patch()])

    def turn(self, place: int) -> None:
        """Revert a live entry, or re-apply one that was reverted."""
        if self.entries:
            self.live[place % len(self.live)] ^= True

    def leave_out(self) -> None:
        """Begin anew with the live entries alone."""
        left = self.survivors
        self.book = self.book.pick(left)
        self.entries, self.live = [self.entries[number] for number in left], [True] * len(left)

    @property
    def survivors(self) -> list[int]:
        return [number for number, live in enumerate(self.live) if live]


@given(
    steps=st.lists(
        st.one_of(entries_, entries_, st.integers(0, 20), st.just("leave out")),
        min_size=1,
        max_size=14,
    ),
    queries=st.lists(points(), min_size=1, max_size=6),
)
@settings(max_examples=300, deadline=None)
def test_after_any_edits_reverts_and_re_applies_it_equals_the_codebook_of_the_survivors_alone_byte_for_byte(
    steps: list[Entry | int | str], queries: list[Point]
) -> None:
    ledger = Ledger()
    for step in steps:
        match step:
            case Entry():
                ledger.edit(step)
            case int():
                ledger.turn(step)
            case _:
                ledger.leave_out()
    survivors = ledger.survivors
    alone = book_of([ledger.entries[number] for number in survivors])
    keys, everything = torch.tensor(queries), all_alive(alone, len(queries))
    alive = torch.tensor([ledger.live], dtype=torch.bool).reshape(1, len(ledger.live))
    assert_same_book(ledger.book.pick(survivors), alone)
    assert bits(ledger.book.radii(alive)[:, survivors]) == bits(alone.radii(everything[0]))
    masked, expected = ledger.book.find(keys, alive, everything[1]), alone.find(keys, *everything)
    assert (masked is None) == (expected is None)
    if masked is not None and expected is not None:
        assert masked.patches.tolist() == [survivors[number] for number in expected.patches.tolist()]
        assert_same_columns(masked, expected)


def assert_same_book(one: Codebook, other: Codebook) -> None:
    assert len(one) == len(other)
    for name in ("keys", "reach", "norm", "bias", "answer", "places", "count"):
        assert bits(one._here(name)) == bits(other._here(name)), name
    assert [bits(values) for values in values_of(one)] == [bits(values) for values in values_of(other)]
    everything = torch.ones(1, len(other), dtype=torch.bool)
    assert bits(one.radii(everything)) == bits(other.radii(everything))


def values_of(book: Codebook) -> list[Tensor]:
    """Those of each entry: (values, hidden)."""
    starts, counts = book._here("first").tolist(), book._here("count").tolist()
    return [book._values["values"][start : start + count] for start, count in zip(starts, counts, strict=True)]


def assert_same_columns(one: Found, other: Found) -> None:
    """Fail unless these found the same, whatever the entries' numbers are."""
    for name in ("rows", "strengths", "values", "counts", "places"):
        assert bits(getattr(one, name)) == bits(getattr(other, name)), name


@given(
    entries=st.lists(entries_, min_size=1, max_size=9),
    queries=st.lists(points(), min_size=1, max_size=9),
    before=st.lists(st.booleans(), min_size=9, max_size=9),
    changed=st.sets(st.integers(0, 8), min_size=1, max_size=3),
)
@settings(max_examples=400, deadline=None)
def test_no_key_outside_of_what_a_change_reaches_finds_anything_else_after_it(
    entries: list[Entry], queries: list[Point], before: list[bool], changed: set[int]
) -> None:
    numbers = sorted(number for number in changed if number < len(entries))
    book, keys = book_of(entries), torch.tensor(queries)
    alive = torch.tensor([before[: len(entries)]] * 2)
    alive[1, numbers] = ~alive[1, numbers]
    reached = set(book.reached_by(keys, *alive).tolist())
    former, later = (
        outcome(book.find(keys, mask.unsqueeze(0), torch.zeros(len(keys)).long()), len(keys)) for mask in alive
    )
    assert {text for text in range(len(keys)) if former[text] != later[text]} <= reached


def test_what_a_change_reaches_is_few_of_many_keys() -> None:
    entries = [Entry((float(10 * number + 1), 0.0, 0.0), 1.0, (number,)) for number in range(50)]
    book = book_of(entries)
    keys = torch.tensor([entry.key for entry in entries])
    assert book.reached_by(keys, *coming(50, [7, 30])).tolist() == [7, 30]


def test_a_change_reaches_the_keys_of_those_that_it_limits() -> None:
    """Entry 0 reaches over entry 1 and far beyond; whether that one is there halves it."""
    entries = [Entry((1.0, 0.0, 0.0), 5.0, (1,)), Entry((2.0, 0.0, 0.0), 0.1, (2,))]
    keys = torch.tensor([[1.0, 4.0, 0.0], [2.0, 0.0, 0.0], [1.0, 6.0, 0.0]])
    assert book_of(entries).reached_by(keys, *coming(2, [1])).tolist() == [0, 1]


def coming(count: int, numbers: Sequence[int]) -> Tensor:
    """All of so many entries alive but these, then all: (2, entries)."""
    alive = torch.ones(2, count, dtype=torch.bool)
    alive[0, list(numbers)] = False
    return alive


@given(
    entries=st.lists(entries_, min_size=1, max_size=9),
    dead=st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=3),
    pieces=st.lists(st.integers(1, 9), max_size=4),
    kept=st.integers(1, 3),
)
@settings(max_examples=300, deadline=None)
def test_radii_are_those_of_all_pairs_however_few_neighbours_are_kept_and_however_entries_came(
    entries: list[Entry], dead: list[list[bool]], pieces: list[int], kept: int
) -> None:
    alive = ~torch.tensor(dead)[:, : len(entries)]
    patches = [entry.patch() for entry in entries]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("editors.codebook.radii.NEAREST", kept)
        patched.setattr("editors.codebook.radii.SPARE", 1)
        book = Codebook.empty(DIMENSIONS, CPU)
        while patches:
            count = pieces.pop() if pieces else len(patches)
            book, patches = book.extend(patches[:count]), patches[count:]
        assert book.radii(alive).tolist() == [
            [radius_by_hand(entries, mask, number) for number in range(len(entries))] for mask in alive.tolist()
        ]


def find(entries: Sequence[Entry], *queries: Point, removed: Sequence[int] = ()) -> list[int | None]:
    """The entry that each query finds."""
    book = book_of(entries)
    found = book.find(torch.tensor(queries), alive_but(book, removed), torch.zeros(len(queries)).long())
    return [one and one[0] for one in outcome(found, len(queries))]


AT, NEAR, FAR = (1.0, 0.0, 0.0), (2.0, 0.0, 0.0), (9.0, 0.0, 0.0)


def test_of_equal_keys_the_newest_wins_and_its_removal_brings_the_former_back() -> None:
    entries = [Entry(AT, 1.0, (1,)), Entry(AT, 1.0, (2,)), Entry(AT, 1.0, (1,))]
    assert find(entries, AT, NEAR) == [2, 2]
    assert find(entries, AT, NEAR, removed=[2]) == [1, 1]
    assert find(entries, AT, NEAR, removed=[1, 2]) == [0, 0]


def test_a_newer_entry_with_the_same_key_hides_the_former_even_where_it_does_not_reach() -> None:
    entries = [Entry(AT, 3.0, (1,)), Entry(AT, 0.5, (2,))]
    assert find(entries, AT, NEAR) == [1, None]
    assert find(entries, AT, NEAR, removed=[1]) == [0, 0]


@pytest.mark.parametrize("apart", [0.5 * SAME, 0.99 * SAME])
def test_keys_that_another_batch_has_moved_in_their_last_bits_are_the_same(apart: float) -> None:
    entries = [Entry(AT, 1.0, (1,)), Entry((1.0, apart, 0.0), 1.0, (2,))]
    assert find(entries, AT) == [1]


def test_keys_further_apart_than_that_keep_half_the_way_each() -> None:
    beside = (1.0, 3 * SAME, 0.0)
    entries = [Entry(AT, 1.0, (1,)), Entry(beside, 1.0, (2,))]
    assert find(entries, AT, beside, NEAR) == [0, 1, None]


def test_two_entries_with_other_answers_get_half_the_way_each() -> None:
    entries = [Entry(AT, 5.0, (1,)), Entry(NEAR, 5.0, (2,))]
    everything = torch.ones(1, 2, dtype=torch.bool)
    assert book_of(entries).radii(everything).tolist() == [[0.5, 0.5]]


def test_entries_with_the_same_answer_do_not_limit_each_other() -> None:
    entries = [Entry(AT, 5.0, (3, 7)), Entry(NEAR, 5.0, (3, 7))]
    everything = torch.ones(1, 2, dtype=torch.bool)
    assert book_of(entries).radii(everything).tolist() == [[5.0, 5.0]]


def test_a_removed_neighbour_leaves_the_radius_that_was_before_it() -> None:
    book = book_of([Entry(AT, 5.0, (1,)), Entry(NEAR, 5.0, (2,)), Entry(FAR, 5.0, (3,))])
    assert book.radii(torch.tensor([[True, True, True]])).tolist() == [[0.5, 0.5, 3.5]]
    assert book.radii(torch.tensor([[True, False, True]])).tolist() == [[4.0, OFF, 4.0]]
    assert book.radii(torch.tensor([[True, False, False]])).tolist() == [[5.0, OFF, OFF]]


@pytest.mark.parametrize(("one", "other"), [((3, 7), (4, 6)), ((3, 7), (7, 3)), ((1, 23), (12, 3)), ((5,), (5, 5))])
def test_answers_are_compared_token_by_token(one: Answer, other: Answer) -> None:
    entries = [Entry(AT, 5.0, one), Entry(NEAR, 5.0, other)]
    everything = torch.ones(1, 2, dtype=torch.bool)
    assert book_of(entries).radii(everything).tolist() == [[0.5, 0.5]]


def test_the_nearest_ball_that_holds_the_key_wins_and_of_equally_near_ones_the_newer() -> None:
    entries = [Entry(AT, 2.0, (1,)), Entry((3.0, 0.0, 0.0), 2.0, (1,))]
    assert find(entries, (2.0, 0.0, 0.0), (1.75, 0.0, 0.0), (2.25, 0.0, 0.0)) == [1, 0, 1]


def test_an_entry_hides_no_other_from_keys_that_it_does_not_cover() -> None:
    entries = [Entry(AT, 2.0, (1,)), Entry((3.0, 0.0, 0.0), 0.1, (1,))]
    assert find(entries, (2.5, 0.0, 0.0)) == [0]


def test_however_many_views_are_asked_for_each_has_its_own_radii() -> None:
    """Of the last few the radii are kept: the first of these views is asked for again when it may be forgotten."""
    entries = [Entry((1.0, 0.0, 0.0), 5.0, (1,)), *(Entry((2.0 + n, 0.0, 0.0), 1.0, (2,)) for n in range(40))]
    book, views = book_of(entries), torch.ones(40, 41, dtype=torch.bool)
    views[torch.arange(40), torch.arange(40) + 1] = False
    want = [[radius_by_hand(entries, view, number) for number in range(41)] for view in views.tolist()]
    assert [book.radii(view.unsqueeze(0))[0].tolist() for view in views] == want
    assert book.radii(views).tolist() == want
    assert book.radii(views[[0, 39]]).tolist() == [want[0], want[39]]


def test_a_key_on_the_border_is_inside_and_the_next_number_is_not() -> None:
    beyond = float(torch.nextafter(torch.tensor(2.0), torch.tensor(3.0)))
    assert find([Entry(AT, 1.0, (1,))], NEAR, (beyond, 0.0, 0.0)) == [0, None]


def test_the_strength_is_how_deep_inside_the_ball_the_key_lies() -> None:
    book = book_of([Entry(AT, 4.0, (1,)), Entry(FAR, 0.0, (1,))])
    found = book.find(torch.tensor([AT, NEAR, FAR]), *all_alive(book, 3))
    assert found is not None
    assert found.strengths.tolist() == [1.0, 0.75, 1.0]


HIDDEN = 48


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def patch(seed: int, *, key: Tensor | None = None, reach: float = 7.0) -> Patch:
    tensors = {
        "key": random(HIDDEN, seed=seed) if key is None else key,
        "values": random(1 + seed % 4, HIDDEN, seed=seed + 1000),
        "reach": torch.tensor(reach, dtype=torch.float64),
        "answer": torch.tensor([seed % 3]),
        "places": torch.tensor(seed % 4),
    }
    return Patch(header(Grace()), tensors)


PATCHES = [patch(seed) for seed in range(9)]


def wide_book(patches: Sequence[Patch]) -> Codebook:
    return Codebook.empty(HIDDEN, CPU).extend(patches)


def near_keys(count: int, seed: int = 77) -> Tensor:
    """Keys around those of the patches, about half of them inside."""
    centres = torch.stack([one.tensors["key"] for one in PATCHES])[torch.arange(count) % len(PATCHES)]
    return centres + 0.6 * random(count, HIDDEN, seed=seed)


def assert_same_found(one: Found | None, other: Found | None) -> None:
    assert one is not None
    assert other is not None
    assert one.patches.tolist() == other.patches.tolist()
    assert_same_columns(one, other)


@given(order=st.permutations(range(12)), cut=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_keys_find_the_same_to_the_last_bit_whatever_else_is_in_the_batch(order: list[int], cut: int) -> None:
    keys, book = near_keys(12), wide_book(PATCHES)
    whole = book.find(keys, *all_alive(book, 12))
    some = book.find(keys[order[:cut]], *all_alive(book, cut))
    assert whole is not None
    assert 0 < len(whole) < 12
    strengths = dict(zip(whole.rows.tolist(), bits_of_each(whole), strict=True))
    given = {} if some is None else dict(zip(some.rows.tolist(), bits_of_each(some), strict=True))
    assert given == {place: strengths[row] for place, row in enumerate(order[:cut]) if row in strengths}


def bits_of_each(found: Found) -> list[tuple[int, bytes, bytes]]:
    return [
        (int(patch_number), bits(depth), bits(values[:count]))
        for patch_number, depth, values, count in zip(
            found.patches, found.strengths, found.values, found.counts, strict=True
        )
    ]


@pytest.mark.parametrize("limit", ["_ROWS_BY_ENTRIES", "_PAIRS_BY_HIDDEN"])
def test_a_search_in_many_pieces_finds_what_one_in_one_piece_does(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, book = near_keys(30), wide_book(PATCHES)
    whole, reached = book.find(keys, *all_alive(book, 30)), book.reached_by(keys, *coming(9, [3]))
    monkeypatch.setattr(f"editors.codebook.book.{limit}", 2 * HIDDEN)
    pieces = wide_book(PATCHES)
    assert_same_book(pieces, book)
    assert_same_found(pieces.find(keys, *all_alive(book, 30)), whole)
    assert torch.equal(pieces.reached_by(keys, *coming(9, [3])), reached)


@pytest.mark.parametrize("length", [1.0, 1e3])
def test_a_key_that_a_product_in_float32_would_lose_is_found(length: float) -> None:
    """Keys that are long beside their radius: |k - c|^2 is what is left of numbers a million times as large."""
    centres = length * random(200, HIDDEN, seed=5)
    book = wide_book([patch(seed, key=key, reach=1e-3) for seed, key in enumerate(centres)])
    away = random(200, HIDDEN, seed=6)
    keys = centres + 0.9e-3 * away / away.norm(dim=-1, keepdim=True)
    far = (keys.double() - centres.double()).norm(dim=-1)
    found = book.find(keys, *all_alive(book, 200))
    assert found is not None
    assert found.rows.tolist() == (far <= 1e-3).nonzero().squeeze(-1).tolist()
    assert torch.equal(found.rows, found.patches)


def test_an_empty_codebook_finds_nothing_and_reaches_nothing() -> None:
    book = wide_book([])
    assert book.find(near_keys(3), *all_alive(book, 3)) is None
    assert book.reached_by(near_keys(3), *coming(0, [])).tolist() == []


def test_no_keys_are_no_trouble() -> None:
    book = wide_book(PATCHES)
    assert book.find(near_keys(0), *all_alive(book, 0)) is None
    assert book.reached_by(near_keys(0), *coming(9, [2])).tolist() == []


def test_where_all_are_removed_nothing_is_found() -> None:
    book = wide_book(PATCHES)
    assert book.find(near_keys(9), alive_but(book, range(9)), torch.zeros(9).long()) is None


@given(sizes=st.lists(st.integers(0, 3), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_a_codebook_grown_by_pieces_equals_one_made_at_once(sizes: list[int]) -> None:
    grown, start = Codebook.empty(HIDDEN, CPU), 0
    for size in sizes:
        grown, start = grown.extend(PATCHES[start : start + size]), min(start + size, len(PATCHES))
    assert_same_book(grown, wide_book(PATCHES[:start]))


def test_two_codebooks_grown_out_of_one_do_not_disturb_each_other() -> None:
    root = wide_book(PATCHES[:2])
    one, other = root.extend(PATCHES[2:3]), root.extend(PATCHES[3:4])
    picked = one.pick([0, 2]).extend(PATCHES[4:6])
    assert_same_book(root, wide_book(PATCHES[:2]))
    assert_same_book(one, wide_book(PATCHES[:3]))
    assert_same_book(other, wide_book([*PATCHES[:2], PATCHES[3]]))
    assert_same_book(picked, wide_book([PATCHES[0], PATCHES[2], *PATCHES[4:6]]))


def test_each_entry_has_its_own_number_of_values_whatever_was_picked_before() -> None:
    book = wide_book(PATCHES).pick([1, 3, 6]).extend(PATCHES[4:6])
    kept = [PATCHES[number].tensors for number in (1, 3, 6, 4, 5)]
    found = book.find(torch.stack([tensors["key"] for tensors in kept]), *all_alive(book, 5))
    assert found is not None
    assert found.counts.tolist() == [len(tensors["values"]) for tensors in kept]
    for values, count, tensors in zip(found.values, found.counts.tolist(), kept, strict=True):
        assert torch.equal(values[:count], tensors["values"])


def test_growing_by_one_copies_the_storage_only_now_and_then() -> None:
    book, storages = Codebook.empty(HIDDEN, CPU), set()
    for seed in range(100):
        book = book.extend([patch(seed)])
        storages.add((book._columns["keys"].data_ptr(), book._values["values"].data_ptr()))
    assert len(storages) <= 10


def test_searching_changes_neither_the_keys_nor_the_codebook() -> None:
    keys, book = near_keys(20), wide_book(PATCHES)
    before, first = keys.clone(), book.find(keys, *all_alive(book, 20))
    book.find(near_keys(40, seed=3), *all_alive(book, 40))
    assert torch.equal(keys, before)
    assert_same_found(book.find(keys, *all_alive(book, 20)), first)
    assert_same_book(book, wide_book(PATCHES))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_what_is_found_on_cuda_equals_what_is_found_on_the_cpu_bit_for_bit() -> None:
    there = Codebook.empty(HIDDEN, torch.device("cuda")).extend(PATCHES)
    here, keys = wide_book(PATCHES), near_keys(64)
    alive, view = all_alive(here, 64)
    on_cuda, on_cpu = there.find(keys.cuda(), alive.cuda(), view.cuda()), here.find(keys, alive, view)
    assert on_cuda is not None
    names = ("rows", "patches", "strengths", "values", "counts", "places")
    assert_same_found(Found(*(getattr(on_cuda, name).cpu() for name in names)), on_cpu)
