"""The options of GRACE, with their bounds, and their defaults for each family of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from editors.errors import BadOptions
from editors.layers import Family, Token
from editors.options import validate


@dataclass(frozen=True, slots=True)
class Options:
    """How an entry is made. Raises BadOptions, naming option and value, for what is out of range."""

    layer: Annotated[int, Ge(-1_000), Le(1_000)] = field(
        default=-1,
        metadata={"description": "The layer of the stack that reads the input, from 0; below 0 counted from its end."},
    )
    key_token: Token = field(
        default="mean", metadata={"description": "The token of the input that makes the key; or the mean of all."}
    )
    replace: Literal["prompt", "last", "all"] = field(
        default="last",
        metadata={
            "description": "Where the value replaces the layer's output: at every token of the input, at the key's "
            "own (of a mean, where the head reads), or at that one and all after it, generated ones included."
        },
    )
    values: Literal["one", "each"] = field(
        default="one",
        metadata={
            "description": "Where the answer's tokens are replaced, too: one value for all, or each position its own."
        },
    )
    radius: Annotated[float, Ge(0.01), Le(1)] = field(
        default=0.75,
        metadata={"description": "The initial radius, in units of the distance to the nearest remembered input."},
    )
    start: Literal["cold", "warm"] = field(
        default="warm",
        metadata={"description": "What values are at first: nothing, or what the layer gives by itself."},
    )
    steps: Annotated[int, Ge(1), Le(10_000)] = field(
        default=100, metadata={"description": "The most steps for the values."}
    )
    learning_rate: Annotated[float, Ge(1e-4), Le(100)] = field(default=1.0, metadata={"description": "Adam's."})
    margin: Annotated[float, Ge(0), Le(100)] = field(
        default=1.0, metadata={"description": "By how much the wanted logit must lead everywhere, to stop early."}
    )

    def __post_init__(self) -> None:
        validate(self)
        if self.values == "each" and self.replace != "all":
            raise BadOptions(f"The option 'values' is 'each'; so 'replace' must be 'all', not {self.replace!r}.")


_WRITING = MappingProxyType({"replace": "all", "values": "each", "start": "cold", "radius": 0.5})
DEFAULTS: Mapping[Family, Mapping[str, Any]] = MappingProxyType(
    {
        "encoder": MappingProxyType({}),
        "decoder-classifier": MappingProxyType({}),
        "encoder-decoder": _WRITING,
        "decoder": _WRITING,
    }
)
"""What is other than above for a family, from the sweep of `benchmarks.codebook_sweep`."""
