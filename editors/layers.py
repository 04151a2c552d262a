"""Where overlays of inner layers meet a model: the feed-forward layers of the stack that reads the input.

A key is the input of a feed-forward layer at one token of the request; a value takes the place of that layer's output.
The layers are found from what the model executes, never from their names; `editors.visit` opens them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

from torch import Tensor, nn

from editors.site import Call, Site, trace

Token = Literal["first", "last", "mean"]
"""Which token of the input makes the key: one, or the mean of all."""
TOKENS: tuple[Token, ...] = ("first", "last", "mean")

Family = Literal["encoder", "decoder-classifier", "encoder-decoder", "decoder"]
"""Classifiers that read their first or their last token, and the two kinds of models that write."""
WRITERS: tuple[Family, ...] = ("encoder-decoder", "decoder")


@dataclass(frozen=True, slots=True)
class Layer:
    """The feed-forward part of one layer: its up- and its down-projection, as `nn.Module.get_submodule` takes them.

    number: the layer's place in its stack.
    """

    stack: str
    number: int
    up: str
    down: str


@dataclass(frozen=True, slots=True)
class LayerSite:
    """Where keys are taken, and where values are put: at one layer, or, to put them where an encoder-decoder writes
    its answer, at one of the encoder and one of the decoder.

    The key is the input of the up-projection of `reads` at the token; a value takes the place of what the
    down-projection of `writes` gives. own: the token of the input whose place a value takes first.
    """

    reads: Layer
    token: Token
    writes: Layer
    own: Literal["first", "last"]

    @property
    def name(self) -> str:
        """What patches record of the site."""
        return f"{self.reads.up}@{self.token} -> {self.writes.down}"

    @property
    def apart(self) -> bool:
        """Whether values are put where the answer is written, while the key is taken where the input is read."""
        return self.reads.stack != self.writes.stack


@dataclass(frozen=True, slots=True)
class Sites:
    """Every place where patches can meet one model.

    last: the join behind the last feed-forward layer. layers: of the stack that reads the input, the first first; none
    where a layer has no feed-forward part of a known kind. answering: of an encoder-decoder the layers of its decoder.
    """

    last: Site
    layers: tuple[Layer, ...]
    answering: tuple[Layer, ...]
    family: Family
    _named: Mapping[str, LayerSite] = field(init=False, repr=False, compare=False)  # every patch is looked up at start

    def __post_init__(self) -> None:
        object.__setattr__(self, "_named", {site.name: site for site in self._of_layers()})

    def layer_named(self, name: str) -> LayerSite | None:
        """The layer site that patches record by that name."""
        return self._named.get(name)

    def __contains__(self, name: object) -> bool:
        return name == self.last.name or name in self._named

    def at(self, reads: Layer, token: Token, writes: Layer) -> LayerSite:
        """The site there. Where the key is a mean, a value takes the place of the token that a classifier's head reads,
        or of the last.
        """
        mean: Literal["first", "last"] = "first" if self.family == "encoder" else "last"
        return LayerSite(reads, token, writes, mean if token == "mean" else token)

    def _of_layers(self) -> Iterator[LayerSite]:
        for reads, token in product(self.layers, TOKENS):
            for writes in (reads, *self.answering):
                yield self.at(reads, token, writes)


def find_sites_of_layers(model: nn.Module, inputs: Mapping[str, Tensor], last: Site) -> Sites:
    """Every site of `model` whose join is `last`, by running it once on `inputs` and watching what it executes.

    inputs: as `editors.site.find_sites` takes them.
    """
    calls = trace(model, inputs)
    family = _family(last, two_sided="decoder_input_ids" in inputs)
    if family != "encoder-decoder":
        return Sites(last, _layers(model, calls, last.stack), (), family)
    encoder = _first_stack(model, calls)
    if encoder in (None, last.stack):
        return Sites(last, (), (), family)
    return Sites(last, _layers(model, calls, str(encoder)), _layers(model, calls, last.stack), family)


def _layers(model: nn.Module, calls: Sequence[Call], stack: str) -> tuple[Layer, ...]:
    """The layers of a stack; none if one of them is of an unknown kind."""
    modules = model.get_submodule(stack)
    assert isinstance(modules, nn.ModuleList)
    pairs = [_feed_forward(calls, f"{stack}.{number}.") for number in range(len(modules))]
    layers = tuple(Layer(stack, number, *pair) for number, pair in enumerate(pairs) if pair is not None)
    return layers if len(layers) == len(pairs) else ()


def _family(last: Site, *, two_sided: bool) -> Family:
    if last.position == "every":
        return "encoder-decoder" if two_sided else "decoder"
    return "encoder" if last.position == "first" else "decoder-classifier"


def _first_stack(model: nn.Module, calls: Sequence[Call]) -> str | None:
    """The list of layers that is executed first: an encoder-decoder's encoder."""
    for call in calls:
        parts = call.name.split(".")
        for depth in range(1, len(parts)):
            path = ".".join(parts[:depth])
            if isinstance(model.get_submodule(path), nn.ModuleList):
                return path
    return None


def _feed_forward(calls: Sequence[Call], layer: str) -> tuple[str, str] | None:
    """The up- and the down-projection among the calls of one layer, whose names begin with `layer`; None if unclear."""
    own = [call for call in calls if call.name.startswith(layer)]
    down = next((call for call in reversed(own) if call.width_in != call.width_out), None)
    if down is None:
        return None
    before = own[: own.index(down)]
    up = next(
        (call for call in reversed(before) if call.width_in == down.width_out and call.width_out % down.width_in == 0),
        None,
    )
    return None if up is None else (up.name, down.name)
