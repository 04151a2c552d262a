"""Which settings no other one beats."""

from __future__ import annotations

from benchmarks.tradeoff import DEFAULT, Point, choices, front


def point(generalisation: float, kept: float) -> Point:
    return Point(
        threshold=0.4,
        ridge=0.001,
        spare_same_label=True,
        margin=3.0,
        edits=1,
        success=1.0,
        retained=1.0,
        generalisation=generalisation,
        generalisation_differs=generalisation,
        kept=kept,
        unchanged=kept,
        neurons_an_edit=1.0,
    )


def test_the_front_is_what_no_other_point_beats_in_one_without_losing_the_other() -> None:
    general, local, between = point(0.9, 0.97), point(0.7, 1.0), point(0.8, 0.99)
    beaten, beaten_by_an_equal = point(0.75, 0.98), point(0.65, 1.0)
    every = [beaten, general, beaten_by_an_equal, local, between]
    assert front(every, "kept") == [local, between, general]


def test_the_default_is_among_what_is_measured_once() -> None:
    assert choices((0.2, DEFAULT.threshold), (DEFAULT.ridge,)).count(DEFAULT) == 1
