"""The options of Transformer-Patcher, with their bounds. Some of a generating model's are its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from editors.neuron.activations import Activation
from editors.options import validate


@dataclass(frozen=True, slots=True)
class Options:
    """How a patch is fitted. Raises BadOptions, naming option and value, for what is out of range."""

    fit: Literal["closed-form", "gradient"] = field(
        default="closed-form",
        metadata={"description": "Key and bias computed from the memory's covariance, or the paper's descent."},
    )
    max_neurons: Annotated[int, Ge(1), Le(64)] = field(
        default=16, metadata={"description": "How many neurons a patch may have; an edit that needs more fails."}
    )
    activation: Activation = field(
        default="relu",
        metadata={"description": "ReLU is silent below its threshold; GELU, the paper's on BERT, leaks everywhere."},
    )
    spare_same_label: bool = field(
        default=True,
        metadata={"description": "Whether memory rows that want the edit's own label may be fired on."},
    )
    ridge: Annotated[float, Gt(0), Le(100)] = field(
        default=0.001,
        metadata={"description": "Closed form: what is added to the covariance, in units of its mean eigenvalue."},
    )
    threshold: Annotated[float, Ge(-1), Le(1)] = field(
        default=0.4,
        metadata={
            "description": "Closed form: where the neuron begins to fire, between the nearest memory row that wants "
            "another label (0) and the edit itself (1)."
        },
    )
    held: Annotated[int, Ge(0), Le(1_000)] = field(
        default=0,
        metadata={
            "description": "Closed form: how many rows that want another label, and come too near for a threshold, "
            "the key is constrained to stay away from."
        },
    )
    margin: Annotated[float, Gt(0), Le(100)] = field(
        default=3.0,
        metadata={"description": "Closed form: by how much the wanted logit must lead."},
    )
    value_steps: Annotated[int, Ge(1), Le(10_000)] = field(
        default=50, metadata={"description": "Closed form: the most steps for the value of one neuron."}
    )
    steps: Annotated[int, Ge(1), Le(100_000)] = field(
        default=2_000, metadata={"description": "Gradient: the most steps for one neuron."}
    )
    learning_rate: Annotated[float, Gt(0), Le(10)] = field(
        default=1e-2, metadata={"description": "Gradient: Adam's, halved on plateaus."}
    )
    weight_decay: Annotated[float, Ge(0), Le(1)] = field(default=1e-2, metadata={"description": "Gradient: Adam's."})
    clip: Annotated[float, Gt(0)] = field(
        default=5.0, metadata={"description": "Gradient: the largest norm of a step's gradient."}
    )
    activation_weight: Annotated[float, Ge(0), Le(1_000)] = field(
        default=1.0, metadata={"description": "Gradient: the weight a of the loss that makes the neuron fire."}
    )
    memory_weight: Annotated[float, Ge(0), Le(1_000)] = field(
        default=5.0, metadata={"description": "Gradient: the weight m of the two losses that spare the memory."}
    )
    memory_margin: Annotated[float, Ge(0), Le(100)] = field(
        default=3.0, metadata={"description": "Gradient: how far the memory should stay below edit and threshold."}
    )
    memory_sample: Annotated[int, Ge(0)] = field(
        default=10_000, metadata={"description": "Gradient: how many memory rows take part, drawn by the seed."}
    )
    held_out: Annotated[float, Ge(0), Le(0.9)] = field(
        default=0.2, metadata={"description": "Gradient: the share of these that only decides when to stop."}
    )

    def __post_init__(self) -> None:
        validate(self)


GENERATION: Mapping[str, Any] = MappingProxyType({"threshold": 0.8, "held": 32, "margin": 1.5, "memory_weight": 10.0})
"""Defaults of their own for models that write. The memory's weight is the paper's; the others were measured."""
