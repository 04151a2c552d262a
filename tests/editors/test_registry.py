"""Editors by name, and options that are refused before anything is fitted."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

import pytest

from editors.codebook.options import DEFAULTS
from editors.codebook.options import Options as CodebookOptions
from editors.errors import BadOptions, UnknownEditor
from editors.layers import WRITERS, Family
from editors.neuron import Options
from editors.neuron.options import GENERATION
from editors.registry import editor_named, editors, options_of


def test_an_editor_is_found_by_its_name() -> None:
    assert editor_named("transformer-patcher", editors()).name == "transformer-patcher"


def test_an_unknown_editor_is_refused_naming_those_there_are() -> None:
    with pytest.raises(UnknownEditor, match=r"no editor 'magic'.*transformer-patcher"):
        editor_named("magic", editors())


def test_options_not_given_have_their_defaults() -> None:
    assert options_of(editor_named("transformer-patcher", editors()), {}) == Options()


def test_models_that_write_have_defaults_of_their_own_and_what_is_given_counts() -> None:
    editor = editor_named("transformer-patcher", editors())
    for family in WRITERS:
        assert options_of(editor, {"held": 3}, family) == Options(**{**GENERATION, "held": 3})
        assert options_of(editor, {}, family) != Options()


def test_the_codebook_has_defaults_for_every_family_and_what_is_given_counts() -> None:
    editor = editor_named("grace", editors())
    for family in get_args(Family):
        assert options_of(editor, {}, family) == CodebookOptions(**DEFAULTS[family])
        given = {"radius": 0.1, "margin": 2.0}
        assert options_of(editor, given, family) == CodebookOptions(**{**DEFAULTS[family], **given})


def test_an_unknown_option_is_refused_naming_those_there_are() -> None:
    with pytest.raises(BadOptions, match=r"no option 'colour'.*max_neurons"):
        options_of(editor_named("transformer-patcher", editors()), {"colour": "red"})


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("max_neurons", 0, "must be at least 1"),
        ("max_neurons", 65, "must be at most 64"),
        ("max_neurons", 2.5, "must be a whole number"),
        ("max_neurons", True, "must be a whole number"),
        ("max_neurons", "3", "must be a whole number"),
        ("fit", "magic", "must be one of 'closed-form', 'gradient'"),
        ("fit", None, "must be one of"),
        ("ridge", 0, "must be more than 0"),
        ("ridge", float("nan"), "must be a finite number"),
        ("clip", float("inf"), "must be a finite number"),
        ("margin", [1], "must be a finite number"),
        ("spare_same_label", 1, "must be true or false"),
    ],
)
def test_a_bad_value_is_refused_naming_option_and_value(name: str, value: object, sentence: str) -> None:
    with pytest.raises(BadOptions) as refusal:
        Options(**{name: value})  # type: ignore[arg-type]
    assert sentence in str(refusal.value)
    assert repr(name) in str(refusal.value)
    assert repr(value) in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("layer", 1.0, "must be a whole number"),
        ("layer", 1001, "must be at most 1000"),
        ("key_token", "third", "must be one of 'first', 'last', 'mean'"),
        ("replace", "everything", "must be one of 'prompt', 'last', 'all'"),
        ("radius", 0, "must be at least 0.01"),
        ("radius", 1.5, "must be at most 1"),
        ("start", "hot", "must be one of 'cold', 'warm'"),
        ("steps", 0, "must be at least 1"),
        ("learning_rate", float("nan"), "must be a finite number"),
        ("margin", -1, "must be at least 0"),
    ],
)
def test_a_bad_value_of_the_codebook_is_refused_naming_option_and_value(
    name: str, value: object, sentence: str
) -> None:
    with pytest.raises(BadOptions) as refusal:
        CodebookOptions(**{name: value})  # type: ignore[arg-type]
    assert sentence in str(refusal.value)
    assert repr(name) in str(refusal.value)
    assert repr(value) in str(refusal.value)


def test_a_whole_number_is_taken_where_a_number_is_asked_for() -> None:
    assert Options(margin=2).margin == 2


def test_every_option_of_every_editor_has_a_default_and_a_description() -> None:
    for editor in editors().values():
        editor.options()
        assert all(field.metadata["description"].endswith(".") for field in fields(editor.options))
