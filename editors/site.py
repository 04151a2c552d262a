"""Where an overlay of the last feed-forward layer meets a model.

The last feed-forward layer is followed by no other mixing of positions. So its input `q`, and the sum `s`
that enters the norm after it, do not depend on any patch of that layer; a patch adds to `s`, at positions
that the head reads, and everything behind is the norm and the head. One mechanism serves post-norm models
(BERT, BART: the layer's own output norm) and pre-norm models (GPT-2, LLaMA, T5: the final norm of the stack).
A classifier's head reads one position of a text; a language model's reads every position, each by itself.

The site is found from what the model executes, never from its name; `editors.join` opens it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from editors.errors import UnsupportedModel

Position = Literal["first", "last", "every"]


@dataclass(frozen=True, slots=True)
class Site:
    """Names of modules inside one model, as `nn.Module.get_submodule` takes them.

    reads: the module whose input is `q` (the up-projection of the last feed-forward layer).
    joins: the norm whose input is `s`.  stack: the list of layers.  position: which tokens the head reads.
    """

    reads: str
    joins: str
    stack: str
    position: Position
    hidden: int
    layer_returns: int = 0
    """How many things a layer returns in a tuple; 0 where it returns the hidden states themselves."""

    @property
    def name(self) -> str:
        """What patches record of the site."""
        return f"{self.joins}@{self.position}"

    @property
    def post_norm(self) -> bool:
        """Whether the norm belongs to the last layer itself."""
        return self.joins.startswith(self.stack + ".")


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    module: nn.Module
    width_in: int
    width_out: int
    dimensions: int
    """Of the input: 3 as long as there are positions."""


def find_sites(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[Site]:
    """The sites that `model` may have, by running it once on `inputs` and watching what it executes.

    Each norm after the last feed-forward layer is a candidate, in the order of execution: where a layer norms its own
    output before the sum (Gemma 2), it is not the first. Which one it is shows when the short computation is proved.

    inputs: a right-padded batch of at least two rows of different lengths, with `attention_mask`; for an
    encoder-decoder also `decoder_input_ids`. Raises UnsupportedModel with what is missing.
    """
    calls = trace(model, inputs)
    down = _last(calls, lambda call: _layer_list(model, call.name) is not None and call.width_in != call.width_out)
    if down is None:
        raise UnsupportedModel(f"{kind(model)} has no list of layers with a feed-forward layer in them.")
    hidden = calls[down].width_out
    stack = _layer_list(model, calls[down].name)
    assert stack is not None
    up = _last(
        calls[:down],
        lambda call: (
            _layer_list(model, call.name) == stack
            and call.width_in == hidden
            and call.width_out % calls[down].width_in == 0
        ),  # gate and up projection may be one matrix
    )
    if up is None:
        raise UnsupportedModel(
            f"{kind(model)}: {calls[down].name} maps {calls[down].width_in} to {hidden} features, "
            "but no layer before it maps them up; its last feed-forward layer is of an unknown kind."
        )
    norms = [call for call in calls[down + 1 :] if _is_norm(call, hidden)]
    if not norms:
        raise UnsupportedModel(
            f"{kind(model)} has no normalisation layer after its last feed-forward layer {calls[down].name}."
        )
    times = Counter(call.name for call in calls)
    shared = next((norm.name for norm in norms if times[norm.name] > 1), None)
    if shared is not None:
        raise UnsupportedModel(f"{kind(model)} uses {shared} more than once in one pass: its layers are shared.")
    position = _position_read(model, norms[0].module, inputs)
    returns = _layer_returns(model, stack, inputs)
    return [Site(calls[up].name, norm.name, stack, position, hidden, returns) for norm in norms]


def kind(model: nn.Module) -> str:
    """The model's class, for messages."""
    return type(model).__name__


def trace(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[Call]:
    """Every parameterised leaf that maps (..., in) to (..., out), in the order of execution."""
    calls: list[Call] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor) and args[0].is_floating_point():
                calls.append(Call(name, module, args[0].shape[-1], output.shape[-1], args[0].dim()))

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if any(True for _ in module.parameters(False))]
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def modules_after(model: nn.Module, inputs: Mapping[str, Tensor], name: str) -> list[nn.Module]:
    """The modules that begin after the module `name` has ended, in their order, without what runs inside of them."""
    begun: list[str] = []
    ended = False

    def end(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal ended
        ended = True

    def watch(other: str) -> Callable[..., None]:
        def begin(module: nn.Module, args: Any) -> None:
            if ended and not any(other.startswith(f"{outer}.") for outer in begun):
                begun.append(other)

        return begin

    handles = [module.register_forward_pre_hook(watch(other)) for other, module in model.named_modules()]
    handles.append(model.get_submodule(name).register_forward_hook(end))
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [model.get_submodule(other) for other in begun]


def _last(calls: list[Call], wanted: Callable[[Call], bool]) -> int | None:
    return next((index for index in reversed(range(len(calls))) if wanted(calls[index])), None)


def _layer_list(model: nn.Module, name: str) -> str | None:
    """The outermost list of layers whose last layer holds the module `name`."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        path = ".".join(parts[:depth])
        owner = model.get_submodule(path)
        if isinstance(owner, nn.ModuleList):
            return path if parts[depth] == str(len(owner) - 1) else None
    return None


def _is_norm(call: Call, hidden: int) -> bool:
    shapes = {tuple(parameter.shape) for parameter in call.module.parameters(recurse=False)}
    return call.dimensions == 3 and call.width_in == call.width_out == hidden and shapes == {(hidden,)}


def _position_read(model: nn.Module, norm: nn.Module, inputs: Mapping[str, Tensor]) -> Position:
    """Which positions of the norm's input the logits depend on, by their gradient."""
    entering: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        entering.append(args[0].detach().requires_grad_())
        return (entering[0], *args[1:])

    handle = norm.register_forward_pre_hook(hook)
    try:
        with torch.enable_grad():
            logits = model(**inputs).logits
            tokens = logits.dim() == 3
            chosen = logits[:, 1] if tokens else logits  # of a language model one position, to see whether it is alone
            (slope,) = torch.autograd.grad(chosen.float().pow(2).sum(), entering[0])
    finally:
        handle.remove()
    read = slope.abs().sum(-1) > 0  # (batch, positions)
    lengths = inputs["attention_mask"].sum(-1)
    if bool((read.sum(-1) == 1).all()):
        where = read.int().argmax(-1)
        if tokens and bool((where == 1).all()):
            return "every"
        if not tokens and bool((where == 0).all()):
            return "first"
        if not tokens and bool((where == lengths - 1).all()):
            return "last"
    raise UnsupportedModel(
        f"The head of {kind(model)} reads {int(read.sum(-1).max())} positions for one answer; "
        "Errata needs a head that reads one: the first or the last token, or of a language model each by itself."
    )


def _layer_returns(model: nn.Module, stack: str, inputs: Mapping[str, Tensor]) -> int:
    lengths: list[int] = []

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        lengths.append(len(output) if isinstance(output, tuple) else 0)

    layers = model.get_submodule(stack)
    assert isinstance(layers, nn.ModuleList)
    handle = layers[-1].register_forward_hook(hook)
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        handle.remove()
    return lengths[0]
