"""What every editor's options have in common: they say their bounds, and refuse what is outside of them.

Options are frozen dataclasses; a field is a Literal, or a number Annotated with its bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from editors.errors import BadOptions

T = TypeVar("T")


def validate(options: Any) -> None:
    """Raise BadOptions, naming the first option of the dataclass `options` that is of a wrong type or out of range."""
    hints = _hints(type(options))  # type: ignore[arg-type]
    for field in fields(options):
        flaw = _flaw(hints[field.name], getattr(options, field.name))
        if flaw:
            raise BadOptions(f"The option {field.name!r} is {getattr(options, field.name)!r}; it must be {flaw}.")


@cache
def _hints(options: type[Any]) -> Mapping[str, Any]:
    """The fields' types with their bounds; working them out takes longer than all the rest."""
    return get_type_hints(options, include_extras=True)


def build(options: type[T], given: Mapping[str, Any]) -> T:
    """The options dataclass with the values `given`. Raises BadOptions for one that it does not have."""
    known = [field.name for field in fields(options)]  # type: ignore[arg-type]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise BadOptions(f"There is no option {unknown[0]!r}; there are: {', '.join(known)}.")
    return options(**given)


def _flaw(hint: Any, value: Any) -> str | None:
    """What the value should have been, or None if it is that."""
    bounds: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *bounds = get_args(hint)  # type: ignore[assignment]
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        matches = any(value == choice and type(value) is type(choice) for choice in choices)
        return None if matches else f"one of {', '.join(map(repr, choices))}"
    if not _is_of(hint, value):
        return "true or false" if hint is bool else "a whole number" if hint is int else "a finite number"
    return next((str(words) for bound in bounds if (words := _outside(bound, value))), None)


def _is_of(kind: type, value: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is kind


def _outside(bound: Any, value: float) -> str | None:
    match bound:
        case Ge(ge=limit) if value < limit:  # type: ignore[operator]
            return f"at least {limit}"
        case Gt(gt=limit) if value <= limit:  # type: ignore[operator]
            return f"more than {limit}"
        case Le(le=limit) if value > limit:  # type: ignore[operator]
            return f"at most {limit}"
        case Lt(lt=limit) if value >= limit:  # type: ignore[operator]
            return f"less than {limit}"
    return None
