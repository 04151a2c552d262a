"""GRACE (Hartvigsen et al., NeurIPS 2023): one mistake, one entry of a codebook beside an inner feed-forward layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from editors.codebook import value
from editors.codebook.book import Codebook
from editors.codebook.options import DEFAULTS, Options
from editors.errors import BadOptions, NotFinite
from editors.features import Features
from editors.layers import WRITERS, Family, Layer, LayerSite, Sites
from editors.types import Fit, Problem

__all__ = ["Codebook", "Grace", "Options"]


class Grace:
    """Fits the value of an entry by `value`; serves entries from a `Codebook`."""

    name: ClassVar[str] = "grace"
    version: ClassVar[int] = 1
    baseline: ClassVar[bool] = False
    options: ClassVar[type[Options]] = Options

    def defaults(self, family: Family) -> Mapping[str, Any]:
        """Options that are not the dataclass's own."""
        return DEFAULTS[family]

    def site(self, sites: Sites, options: Options) -> LayerSite:
        """The layer of the options. Of an encoder-decoder values for the answer are put at that layer of the decoder.

        Raises BadOptions for a layer, or for values, that the model does not have.
        """
        if options.values == "each" and sites.family not in WRITERS:
            raise BadOptions("The option 'values' is 'each'; a classifier's answer has one position: it must be 'one'.")
        reads = _layer(sites.layers, options.layer)
        apart = options.replace == "all" and sites.family == "encoder-decoder"
        return sites.at(reads, options.key_token, _layer(sites.answering, options.layer) if apart else reads)

    def fit(self, problem: Problem, options: Options) -> Fit:
        """Learn the entry of one edit. Raises FitFailed, and NotFinite for NaN or infinity in the problem."""
        assert problem.inside is not None, "an edit without the inside of its model"
        if not bool(torch.isfinite(problem.inside.keys).all()):
            raise NotFinite("The keys of the edit hold NaN or infinity.")
        return value.fit(problem, problem.inside, options)

    def overlay(self, hidden: int, device: torch.device, features: Features | None = None) -> Codebook:
        """A codebook without entries."""
        return Codebook.empty(hidden, device)


def _layer(layers: Sequence[Layer], number: int) -> Layer:
    count = len(layers)
    if not count:
        raise BadOptions("A layer of this model has no feed-forward part of a known kind; GRACE cannot edit it.")
    if not -count <= number < count:
        raise BadOptions(f"The option 'layer' is {number}; this model has {count}: {-count} to {count - 1}.")
    return layers[number]
