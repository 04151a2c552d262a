"""What enters the last down-projection, as a function of what enters the last feed-forward layer.

A change dW of that projection's weight adds dW a to its output, so its input `a` is all that a patch of the weight
needs to know of a row; and `a` depends on the row's query alone. It is computed by the model's own last layer, run on
a stand-in token for each row, with the row's query in front of the feed-forward layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from editors.errors import UnsupportedModel
from editors.layers import WRITERS, Layer, Sites
from editors.shell import with_layers
from editors.site import kind

ROWS = 4096
"""How many rows pass the layer at once."""
KEPT = 0.5
"""The share of a number's digits in which two ways of computing it must agree."""


class Features:
    """From queries to features, (n, hidden) -> (n, inner); differentiable. Opened, and proved, when it is first needed.

    Belongs to the thread of the device.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sites,
        inputs: Mapping[str, Tensor],
        aside: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """inputs: a batch to prove it on, as `editors.site.find_sites` takes it. aside: makes the forward passes inside
        of it nobody's.
        """
        self._model, self._sites, self._inputs, self._aside = model, sites, inputs, aside
        self._opened: _Opened | None = None

    @property
    def biased(self) -> bool:
        """Whether the down-projection has a bias. Raises UnsupportedModel."""
        return getattr(self._open().down, "bias", None) is not None

    def __call__(self, queries: Tensor) -> Tensor:
        """Raises UnsupportedModel, naming what the model has not."""
        opened = self._open()
        with self._aside():
            return torch.cat([opened.features(some) for some in queries.split(ROWS)])

    def _open(self) -> _Opened:
        if self._opened is None:
            layer = last_layer(self._sites)
            if layer is None:
                raise UnsupportedModel(
                    f"The last layer of {kind(self._model)} has no feed-forward part of a known kind."
                )
            with self._aside(), torch.no_grad():
                opened = _Opened(self._model, self._sites, layer, self._inputs)
                opened.prove(self._inputs)
            self._opened = opened
        return self._opened


def last_layer(sites: Sites) -> Layer | None:
    """The layer in front of the head; None where it is of an unknown kind."""
    layers = sites.answering if sites.family == "encoder-decoder" else sites.layers
    return layers[-1] if layers else None


class _Opened:
    """A model's last layer, and which of its projections read the query."""

    def __init__(self, model: nn.Module, sites: Sites, layer: Layer, inputs: Mapping[str, Tensor]) -> None:
        self._model, self._sites, self._layer = model, sites, layer
        self._two_sided = "decoder_input_ids" in inputs
        stack = model.get_submodule(layer.stack)
        assert isinstance(stack, nn.ModuleList)
        self._last = stack[-1]
        self._tail = with_layers(model, layer.stack, [self._last])
        self.down = model.get_submodule(layer.down)
        self._readers = self._reading(inputs)

    def features(self, queries: Tensor) -> Tensor:
        """(n, hidden) -> (n, inner)."""
        ones = torch.ones(len(queries), 1, dtype=torch.int64, device=queries.device)
        inputs: dict[str, Any] = {"input_ids": torch.zeros_like(ones), "attention_mask": ones}
        if self._two_sided:
            inputs["decoder_input_ids"] = inputs.pop("input_ids")
            inputs["encoder_outputs"] = (torch.zeros_like(queries).unsqueeze(1),)
        if self._sites.family in WRITERS:
            inputs["use_cache"] = False
        with ExitStack() as hooks:
            for reader in self._readers:
                hooks.enter_context(_before(reader, partial(_feed, queries)))
            hooks.enter_context(_before(self.down, _reach))
            try:
                self._tail(**inputs)
            except _Reached as reached:
                return reached.features.reshape(len(queries), -1)
        raise AssertionError("the pass went around the down-projection")

    def prove(self, inputs: Mapping[str, Tensor]) -> None:
        """Raise UnsupportedModel unless features are what the model computes, and what they add reaches the norm."""
        seen = self._seen(inputs)
        queries = _rows(seen[self._layer.up], self._sites.last.hidden)
        features = _rows(seen[self._layer.down], seen[self._layer.down].shape[-1])
        if not _alike(self.features(queries), features, features):
            raise UnsupportedModel(
                f"What {self._layer.down} of {kind(self._model)} receives does not follow from what {self._layer.up} "
                "receives; its weight cannot be tuned at rows alone."
            )
        residuals = _rows(seen[self._sites.last.joins], self._sites.last.hidden)
        drawn = torch.randn(residuals.shape, generator=torch.Generator().manual_seed(0)).to(residuals)
        added = drawn * residuals.float().std().to(residuals)
        changed = _rows(self._seen(inputs, added)[self._sites.last.joins], self._sites.last.hidden)
        if not _alike(changed, residuals + added, residuals):
            raise UnsupportedModel(
                f"{kind(self._model)} does more than add what {self._layer.down} gives to what "
                f"{self._sites.last.joins} receives; a change of that weight is not a sum behind the last layer."
            )

    def _reading(self, inputs: Mapping[str, Tensor]) -> Sequence[nn.Module]:
        """The projections that read the same tensor as the up-projection: gates, and what runs beside the layer."""
        leaves = [module for module in self._last.modules() if any(True for _ in module.parameters(recurse=False))]
        received: dict[nn.Module, Tensor] = {}  # all of them held, so that none takes the place of another
        with ExitStack() as hooks:
            for leaf in leaves:
                hooks.enter_context(_before(leaf, partial(_note, received, leaf)))
            self._model(**inputs)
        query = received[self._model.get_submodule(self._layer.up)]
        return [leaf for leaf, tensor in received.items() if _same(tensor, query)]

    def _seen(self, inputs: Mapping[str, Tensor], added: Tensor | None = None) -> dict[str, Tensor]:
        """What enters up-projection, down-projection and norm. added: to what the down-projection gives."""
        received: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for name in (self._layer.up, self._layer.down, self._sites.last.joins):
                hooks.enter_context(_before(self._model.get_submodule(name), partial(_note, received, name)))
            if added is not None:
                hook = self.down.register_forward_hook(partial(_add, added))
                hooks.callback(hook.remove)
            self._model(**inputs)
        return received


class _Reached(Exception):
    """Ends a pass as soon as its features are known, before it comes to the head, which may be large."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


@contextmanager
def _before(module: nn.Module, hook: Callable[[nn.Module, tuple[Any, ...]], Any]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _feed(queries: Tensor, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (queries.to(args[0].dtype).reshape(args[0].shape), *args[1:])


def _reach(module: nn.Module, args: tuple[Any, ...]) -> None:
    raise _Reached(args[0])


def _add(added: Tensor, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return output + added.reshape(output.shape)


def _note(received: dict[Any, Tensor], name: Any, module: nn.Module, args: tuple[Any, ...]) -> None:
    if args and isinstance(args[0], Tensor):
        received[name] = args[0]


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether these are one tensor, perhaps of two shapes."""
    return one.data_ptr() == other.data_ptr() and one.numel() == other.numel() and one.shape[-1] == other.shape[-1]


def _rows(tensor: Tensor, width: int) -> Tensor:
    return tensor.reshape(-1, width)


def _alike(one: Tensor, other: Tensor, scale: Tensor) -> bool:
    digits = torch.finfo(scale.dtype).eps ** KEPT
    return bool((one - other).abs().max() <= digits * scale.abs().max())
