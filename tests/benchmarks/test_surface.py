"""Recorded figures were measured on these very variants."""

from __future__ import annotations

import pytest

from benchmarks.surface import variants

LONG = "I don't know where my parcel is, can you help me?"


@pytest.mark.parametrize(
    ("text", "seed", "expected"),
    [
        (
            LONG,
            0,
            [
                "I DON'T KNOW WHERE MY PARCEL IS, CAN YOU HELP ME?",
                "I dont know where my parcel is can you help me...",
                "Good morning. i don't know where my parcel is, can you help me?",
                "I don't know where my pracel is, can you help me?",
                "don't know where my parcel is, can you help me?",
            ],
        ),
        (
            LONG,
            1,
            [
                "I DON'T KNOW WHERE MY PARCEL IS, CAN YOU HELP ME?",
                "I dont know where my parcel is can you help me",
                "Hello, i don't know where my parcel is, can you help me?",
                "I don't know where my parecl is, can you help me?",
                "I don't know where parcel is, can you help me?",
            ],
        ),
        ("bike", 3, ["bike.", "Hello, bike"]),
        (
            "Größe der Straße ändern!",
            7,
            [
                "GRÖSSE DER STRASSE ÄNDERN!",
                "Größe der Straße ändern",
                "Hello, größe der Straße ändern!",
                "Größe der Starße ändern!",
            ],
        ),
    ],
)
def test_the_variants_of_a_text_are_those_of_the_recorded_figures(text: str, seed: int, expected: list[str]) -> None:
    assert variants(text, seed) == expected
