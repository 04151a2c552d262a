"""A text written a little differently, as people do: a typo, other capitals, other punctuation, a word left out.

A kind changes what the others keep, so that no two kinds make the same of a text: a typo changes the letters of a word,
`case` only their case, `punctuation` only signs, `dropped_word` the number of words. Which texts come is settled by
the seed and the text alone.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from app.inputs import normalised

Rule = Callable[[str, random.Random], str]
"""A text changed in one way that is drawn; the text itself where that way changes nothing."""

ENDINGS = ("", "!", "??", "...", ".")
END_SIGNS = "?!. …。！？"
APOSTROPHES = "'’"
FRUITLESS_DRAWS = 100
"""After so many draws in a row that gave nothing new, a text is taken to have no more versions of a kind."""

ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
"""Letters of a keyboard (QWERTY); each row stands half a key to the right of the one above."""
BESIDE: Mapping[str, str] = {
    letter: "".join(
        other
        for below, others in enumerate(ROWS)
        for at, other in enumerate(others)
        if (below, at) in ((row, place - 1), (row, place + 1), (row - 1, place), (row - 1, place + 1))
        or (below, at) in ((row + 1, place), (row + 1, place - 1))
    )
    for row, letters in enumerate(ROWS)
    for place, letter in enumerate(letters)
}
"""The letters whose keys touch that of each letter."""


@dataclass(frozen=True, slots=True)
class Perturbed:
    """A text changed in one way."""

    kind: str
    text: str


def perturbed(text: str, *, seed: int, versions: int) -> list[Perturbed]:
    """Up to `versions` texts of each kind; no two of them, nor any and `text`, are the same input (`normalised`).

    Fewer versions are the first of more. A kind that cannot change the text gives none.
    """
    seen = {normalised(text)}
    found = []
    for kind in KINDS:
        for version in islice(_versions(text, kind, seed), versions):
            if (key := normalised(version)) not in seen:
                seen.add(key)
                found.append(Perturbed(kind, version))
    return found


def one_perturbed(text: str, *, seed: int) -> Perturbed | None:
    """One changed text, of a kind that is drawn among those that can change it; None if none can."""
    kinds = list(KINDS)
    repeatable(seed, text).shuffle(kinds)
    changed = (Perturbed(kind, version) for kind in kinds for version in islice(_versions(text, kind, seed), 1))
    return next(changed, None)


def repeatable(seed: int, *about: str) -> random.Random:
    """Draws about something, the same whenever the seed is, and whatever else was drawn."""
    return random.Random(":".join([str(seed), *about]))  # noqa: S311 - nothing secret is drawn


def swapped(text: str, at: int) -> str:
    """The character at `at` and the next one in each other's place."""
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def without(text: str, signs: str) -> str:
    """A text without any of these characters."""
    return "".join(character for character in text if character not in signs)


def _versions(text: str, kind: str, seed: int) -> Iterator[str]:
    """Versions of one kind, each another input than `text` and than those before, until there are no more."""
    draw = repeatable(seed, kind, text)
    seen = {normalised(text)}
    fruitless = 0
    while fruitless < FRUITLESS_DRAWS:
        version = KINDS[kind](text, draw)
        key = normalised(version)
        if key in seen:
            fruitless += 1
            continue
        seen.add(key)
        fruitless = 0
        yield version


def _typo(text: str, draw: random.Random) -> str:
    """One letter typed twice, left out, mistaken for its neighbour on the keyboard, or for the next in its word."""
    places = [at for at in range(len(text)) if _is_letter(text, at)]
    way = draw.choice((_doubled, _left_out, _beside, _swapped_with_next))
    return way(text, draw.choice(places), draw) if places else text


def _doubled(text: str, at: int, draw: random.Random) -> str:
    return text[: at + 1] + text[at:]


def _left_out(text: str, at: int, draw: random.Random) -> str:
    """A letter that stands alone stays: without it a word would be missing."""
    alone = not (text[at - 1 : at].isalnum() or text[at + 1 : at + 2].isalnum())
    return text if alone else text[:at] + text[at + 1 :]


def _beside(text: str, at: int, draw: random.Random) -> str:
    letter = text[at]
    if letter.lower() not in BESIDE:
        return text
    other = draw.choice(BESIDE[letter.lower()])
    return text[:at] + (other.upper() if letter.isupper() else other) + text[at + 1 :]


def _swapped_with_next(text: str, at: int, draw: random.Random) -> str:
    """Two that differ in their case alone stay: to swap them would be another kind of change."""
    if not _is_letter(text, at + 1) or text[at].casefold() == text[at + 1].casefold():
        return text
    return swapped(text, at)


def _is_letter(text: str, at: int) -> bool:
    """Whether a letter stands there that carries no marks of its own: one that does is left in peace with them."""
    following = text[at + 1 : at + 2]
    return text[at : at + 1].isalpha() and not (following and unicodedata.category(following).startswith("M"))


def _case(text: str, draw: random.Random) -> str:
    """Capitals, or none, or the other way round, or at the start of words: in all of it, one word, or one letter."""
    way = draw.choice((str.upper, str.lower, str.swapcase, _words_begun))
    start, end = draw.choice(((0, len(text)), (0, 1), draw.choice(_words(text) or [(0, 1)])))
    return text[:start] + way(text[start:end]) + text[end:]


def _words_begun(text: str) -> str:
    return re.sub(r"\S+", lambda word: word[0][0].upper() + word[0][1:], text)


def _punctuation(text: str, draw: random.Random) -> str:
    """Another end, or none; commas and apostrophes there or not."""
    bare = without(text.rstrip(END_SIGNS), draw.choice(("", ",", APOSTROPHES, "," + APOSTROPHES)))
    return bare + draw.choice(ENDINGS) if _words(bare) else text


def _dropped_word(text: str, draw: random.Random) -> str:
    """Any one word of at least two. It may be the one that mattered."""
    words = _words(text)
    if len(words) < 2:
        return text
    start, end = draw.choice(words)
    return (text[:start] + text[end:].lstrip()).rstrip()


def _words(text: str) -> list[tuple[int, int]]:
    """Where the words begin and end: what stands between spaces and has a letter or a digit."""
    return [match.span() for match in re.finditer(r"\S+", text) if any(map(str.isalnum, match[0]))]


KINDS: Mapping[str, Rule] = {
    "typo": _typo,
    "case": _case,
    "punctuation": _punctuation,
    "dropped_word": _dropped_word,
}
"""The ways in which a text is changed, by name."""
