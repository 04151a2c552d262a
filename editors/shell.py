"""A model with other layers in its stack, sharing everything else with the original, which is not touched.

So the rest of a forward pass is the model's own code: nothing that a model does before, between or after its layers is
written a second time.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn


class StandIn(nn.Module):
    """Takes the place of a layer. What a model reads off its layers, such as ModernBERT's `attention_type`, is the
    layer's own.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer = (layer,)  # in a tuple, so that it does not become a part of this module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._layer[0], name)


class Recorded(StandIn):
    """Gives what the layer gave when it ran, whatever comes in."""

    def __init__(self, layer: nn.Module, output: Any) -> None:
        super().__init__(layer)
        self._output = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._output


def with_layers(model: nn.Module, stack: str, layers: Sequence[nn.Module]) -> nn.Module:
    """`model` with these layers as its `stack`: shares every parameter, changes nothing of the original."""
    shell = _shell(model)
    owner = shell
    *parents, name = stack.split(".")
    for parent in parents:
        child = _shell(owner.get_submodule(parent))
        owner.add_module(parent, child)
        owner = child
    owner.add_module(name, nn.ModuleList(layers))
    return shell


def _shell(module: nn.Module) -> nn.Module:
    """A shallow copy of `module` whose children can be replaced without touching the original's."""
    shell = copy.copy(module)
    shell._modules = dict(module._modules)
    return shell
