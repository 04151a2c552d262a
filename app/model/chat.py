"""Chat templates: how a conversation becomes a prompt, and how such a prompt is told from any other text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

REFUSALS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
"""What a template may raise over messages that it does not take."""

_FIRST_ROLES = ("user", "system")


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]) -> str:
    """The prompt of a conversation. Raises one of REFUSALS."""
    turns = [dict(message) for message in messages]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def openings(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The texts with which the template begins every prompt, with and without a system message; none where it begins
    with the first message itself.

    A template writes the special tokens that it wants, so a text that begins like this is to get no others.
    """
    if not tokenizer.chat_template:
        return ()
    found = []
    for role in _FIRST_ROLES:
        with suppress(*REFUSALS):
            one, other = (render(tokenizer, _conversation(role, content)) for content in ("a", "b"))
            alike = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
            found.append("".join(character for character, _ in alike))
    return tuple(dict.fromkeys(opening for opening in found if opening.strip()))


def _conversation(first_role: str, content: str) -> list[dict[str, str]]:
    first = {"role": first_role, "content": content}
    return [first] if first_role == "user" else [first, {"role": "user", "content": "a"}]
