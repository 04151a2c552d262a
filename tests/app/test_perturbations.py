"""What a text is changed into."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.inputs import normalised
from app.perturbations import BESIDE, KINDS, Perturbed, one_perturbed, perturbed

TEXT = "I don't know, where's the parcel?"
SAMPLES = (TEXT, "bike", "Größe der Straße ändern!", "Где моя посылка?", "私の荷物はどこですか。", "a b", "12 34")

texts = st.one_of(st.text(max_size=40), st.from_regex(r"[a-cA-C]{1,3}( [a-cA-C',.!?]{1,3}){0,3}", fullmatch=True))


def of(kind: str, text: str, versions: int = 20) -> list[str]:
    return [each.text for each in perturbed(text, seed=0, versions=versions) if each.kind == kind]


def letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))


@settings(max_examples=60, deadline=None)
@given(text=texts, seed=st.integers(0, 2**31 - 1), versions=st.integers(1, 20))
def test_versions_differ_from_the_text_and_from_each_other(text: str, seed: int, versions: int) -> None:
    found = perturbed(text, seed=seed, versions=versions)
    inputs = [normalised(text), *(normalised(each.text) for each in found)]
    assert len(set(inputs)) == len(inputs)
    assert all(count <= versions for count in Counter(each.kind for each in found).values())


@settings(max_examples=60, deadline=None)
@given(text=texts, seed=st.integers(0, 2**31 - 1))
def test_one_version_is_of_a_text_that_can_be_changed_and_of_no_other(text: str, seed: int) -> None:
    one = one_perturbed(text, seed=seed)
    if one is None:
        assert perturbed(text, seed=seed, versions=1) == []
    else:
        assert normalised(one.text) != normalised(text)
        assert one.kind in KINDS


@pytest.mark.parametrize("text", SAMPLES)
def test_fewer_versions_are_the_first_of_more(text: str) -> None:
    more = perturbed(text, seed=3, versions=9)
    for kind in KINDS:
        fewer = [each for each in perturbed(text, seed=3, versions=2) if each.kind == kind]
        assert fewer == [each for each in more if each.kind == kind][:2]


def test_the_versions_of_a_seed_are_the_same_for_ever() -> None:
    assert perturbed("Where is it?", seed=1, versions=2) == [
        Perturbed("typo", "Where is iit?"),
        Perturbed("typo", "Whre is it?"),
        Perturbed("case", "WHERE IS IT?"),
        Perturbed("case", "wHERE IS IT?"),
        Perturbed("punctuation", "Where is it"),
        Perturbed("punctuation", "Where is it."),
        Perturbed("dropped_word", "Where it?"),
        Perturbed("dropped_word", "is it?"),
    ]


def test_another_seed_makes_other_versions() -> None:
    assert perturbed(TEXT, seed=0, versions=5) != perturbed(TEXT, seed=1, versions=5)


def test_one_version_is_of_another_kind_for_another_seed() -> None:
    drawn = [one_perturbed(TEXT, seed=seed) for seed in range(40)]
    assert {each.kind for each in drawn if each is not None} == set(KINDS)


@pytest.mark.parametrize("text", SAMPLES)
def test_a_typo_changes_letters_of_one_word_and_loses_no_word(text: str) -> None:
    for version in of("typo", text):
        words = list(zip(text.split(), version.split(), strict=True))
        changed = [(was, now) for was, now in words if was != now]
        assert len(changed) == 1
        assert abs(len(version) - len(text)) <= 1
        assert letters(version).casefold() != letters(text).casefold()


def test_typos_double_leave_out_swap_and_mistake_letters() -> None:
    versions = of("typo", "wo")
    assert {"wwo", "woo", "w", "o", "ow"} <= set(versions)
    assert any(len(version) == 2 and version[1] == "o" and version[0] in BESIDE["w"] for version in versions)


def test_a_key_is_beside_those_that_touch_it() -> None:
    assert set(BESIDE["g"]) == set("fhtyvb")
    assert set(BESIDE["q"]) == set("wa")
    assert all(letter in BESIDE[other] for letter in BESIDE for other in BESIDE[letter])


def test_a_mistaken_letter_keeps_its_case() -> None:
    mistaken = [version for version in of("typo", "Q") if len(version) == 1]
    assert set(mistaken) == {"W", "A"}


def test_a_letter_with_marks_of_its_own_is_left_in_peace() -> None:
    assert all("e\N{COMBINING ACUTE ACCENT}" in version for version in of("typo", "cafe\N{COMBINING ACUTE ACCENT}s"))


@pytest.mark.parametrize("text", SAMPLES)
def test_case_changes_nothing_but_case(text: str) -> None:
    versions = of("case", text)
    assert all(version.casefold() == text.casefold() for version in versions)
    assert bool(versions) == (text.upper() != text.lower())


def test_case_turns_the_whole_text_and_single_words() -> None:
    assert {"MY BIKE", "My Bike", "My bike", "my BIKE"} <= set(of("case", "my bike"))


@pytest.mark.parametrize("text", SAMPLES)
def test_punctuation_keeps_every_letter(text: str) -> None:
    versions = of("punctuation", text)
    assert versions
    assert all(letters(version) == letters(text) for version in versions)


def test_punctuation_changes_the_end_and_drops_commas_and_apostrophes() -> None:
    versions = of("punctuation", "it's late, isn't it?")
    assert {"it's late, isn't it", "its late, isnt it.", "it's late isn't it!", "its late isnt it"} <= set(versions)


@pytest.mark.parametrize("text", SAMPLES)
def test_a_dropped_word_leaves_the_others_in_their_order(text: str) -> None:
    words = text.split()
    without_one = [words[:index] + words[index + 1 :] for index in range(len(words))]
    expected = [] if len(words) == 1 else without_one
    assert sorted(version.split() for version in of("dropped_word", text)) == sorted(expected)


@pytest.mark.parametrize("text", ["???", " ", "", "...!"])
def test_a_text_that_says_nothing_is_not_changed(text: str) -> None:
    assert perturbed(text, seed=0, versions=5) == []
