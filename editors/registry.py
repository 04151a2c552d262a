"""The editors there are, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from editors.codebook import Grace
from editors.errors import UnknownEditor
from editors.finetuning import FineTuning, FineTuningKL
from editors.layers import Family
from editors.neuron import TransformerPatcher
from editors.options import build
from editors.types import Editor


def editors() -> Mapping[str, Editor]:
    """Every editor of this version, by its name."""
    every: tuple[Editor, ...] = (TransformerPatcher(), Grace(), FineTuning(), FineTuningKL())
    return MappingProxyType({editor.name: editor for editor in every})


def editor_named(name: str, among: Mapping[str, Editor]) -> Editor:
    """The editor of that name. Raises UnknownEditor, naming those there are."""
    try:
        return among[name]
    except KeyError:
        raise UnknownEditor(f"There is no editor {name!r}; there are: {', '.join(sorted(among))}.") from None


def options_of(editor: Editor, given: Mapping[str, Any], family: Family = "encoder") -> Any:
    """The editor's options with the values `given`. Raises BadOptions for unknown names and bad values.

    family: of the model, for which other defaults may be better.
    """
    return build(editor.options, {**editor.defaults(family), **given})
