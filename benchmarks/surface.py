"""Surface variants of a text: the same wish, written a little differently. They stand in for rephrases.

The draws are those that recorded figures were measured with. `app.perturbations` makes more of each kind.
"""

from __future__ import annotations

import random

from app.perturbations import ENDINGS, Rule, swapped, without

ARTICLES = frozenset({"a", "an", "the", "this", "that", "it"})
PREPOSITIONS = frozenset({"to", "of", "for", "on", "in", "at"})
AUXILIARIES = frozenset({"is", "are", "was", "do", "does", "did", "can"})
FUNCTION_WORDS = ARTICLES | PREPOSITIONS | AUXILIARIES | {"i", "my", "me", "please"}
GREETINGS = ("Hi, ", "Hello, ", "Hey there, ", "Good morning. ", "Sorry to bother you. ")


def variants(text: str, seed: int) -> list[str]:
    """Up to five variants, one a rule, repeatable by the seed; those equal to the text are left out."""
    draw = random.Random(f"{seed}:{text}")
    rules: tuple[Rule, ...] = (_case, _punctuation, _greeting, _typo, _dropped_word)
    return [changed for rule in rules if (changed := rule(text, draw)) != text]


def _case(text: str, draw: random.Random) -> str:
    """Capitals throughout or not at all. An uncased model reads the same; a cased one does not."""
    return draw.choice((str.upper, str.lower))(text)


def _punctuation(text: str, draw: random.Random) -> str:
    bare = without(text.rstrip("?!. "), ",'")
    return bare + draw.choice([ending for ending in ENDINGS if bare + ending != text])


def _greeting(text: str, draw: random.Random) -> str:
    return draw.choice(GREETINGS) + text[:1].lower() + text[1:]


def _typo(text: str, draw: random.Random) -> str:
    """Two neighbouring letters of one longer word change places."""
    words = text.split(" ")
    long = [index for index, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not long:
        return text
    index = draw.choice(long)
    words[index] = swapped(words[index], draw.randrange(1, len(words[index]) - 2))
    return " ".join(words)


def _dropped_word(text: str, draw: random.Random) -> str:
    words = text.split(" ")
    short = [index for index, word in enumerate(words) if word.lower() in FUNCTION_WORDS]
    if not short or len(words) < 4:
        return text
    del words[draw.choice(short)]
    return " ".join(words)
