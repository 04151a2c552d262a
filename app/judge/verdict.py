"""What a verdict says, and what it requires."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

LISTED = 100
"""Failures listed of one gate."""

AT_MOST = frozenset({"guard_fires"})
"""Gates whose measure must not be above what is required."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One thing that was measured, what was required, and what failed."""

    name: str
    measured: float
    required: float
    failures: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def share(
        cls,
        name: str,
        of: int,
        *,
        required: float,
        failures: Sequence[Mapping[str, Any]],
        failed: int | None = None,
    ) -> Gate:
        """The share of `of` things that did not fail; 1 where there are none.

        failed: how many did, where not all of them are among the failures.
        """
        failed = len(failures) if failed is None else failed
        return cls(name, (of - failed) / of if of else 1.0, required, failures)

    @property
    def passed(self) -> bool:
        return self.measured <= self.required if self.name in AT_MOST else self.measured >= self.required

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "measured": self.measured,
            "required": self.required,
            "passed": self.passed,
            "failures": list(self.failures[:LISTED]),
        }


@dataclass(frozen=True, slots=True)
class Required:
    """The shares that gates require, by their names."""

    rephrases_hold: float
    guard_unchanged: float
    guard_fires: float
    other_edits_hold: float

    def tightened(self, given: Mapping[str, float]) -> Required:
        """With the values `given` where these are stricter. Raises KeyError for a gate without a threshold."""
        return replace(self, **{name: self._stricter(name, value) for name, value in given.items()})

    def looser(self, given: Mapping[str, float]) -> list[str]:
        """The gates for which less is given than is required."""
        return [name for name, value in given.items() if self._stricter(name, value) != value]

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The gates that have a threshold."""
        return tuple(field.name for field in fields(cls))

    def _stricter(self, name: str, value: float) -> float:
        present: float = getattr(self, name)
        return min(present, value) if name in AT_MOST else max(present, value)


@dataclass(frozen=True, slots=True)
class Conflict:
    """A live edit whose input is nearly the same, and that wants another answer for it."""

    edit_id: str
    input: str
    wanted: str
    similarity: float

    def as_json(self) -> dict[str, Any]:
        return {
            "edit_id": self.edit_id,
            "input": self.input,
            "wanted": self.wanted,
            "similarity": round(self.similarity, 4),
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judged evidence of an edit, or of a removal. guard: what was seen of the guard beyond its gates."""

    gates: tuple[Gate, ...]
    guard: Mapping[str, Any]
    conflicts: tuple[Conflict, ...] = ()

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)

    def failed_gates(self) -> list[Gate]:
        return [gate for gate in self.gates if not gate.passed]

    def with_gates(self, gates: Sequence[Gate]) -> Verdict:
        """The same evidence after further gates."""
        return replace(self, gates=(*gates, *self.gates))

    def as_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "gates": [gate.as_json() for gate in self.gates],
            "guard": dict(self.guard),
            "conflicts": [conflict.as_json() for conflict in self.conflicts],
        }
