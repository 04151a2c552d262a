"""Fine-tuning of the last layer, the baseline of editing in sequence (Huang et al. 2023, section 5; FT and FT+KL).

What is tuned is the down-projection of the last feed-forward layer, weight and bias. A patch is the change of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from editors.errors import BadOptions
from editors.features import Features, last_layer
from editors.finetuning import descent
from editors.finetuning.options import KLOptions, Options
from editors.finetuning.spared import Spared
from editors.finetuning.tuned import Tuned
from editors.layers import Family, Sites
from editors.site import Site
from editors.types import Fit, Problem

__all__ = ["FineTuning", "FineTuningKL", "KLOptions", "Options", "Tuned"]


class FineTuning:
    """Descends on the edit alone."""

    name: ClassVar[str] = "ft"
    version: ClassVar[int] = 1
    baseline: ClassVar[bool] = True
    options: ClassVar[type[Options]] = Options

    def defaults(self, family: Family) -> Mapping[str, Any]:
        """Options that are not the dataclass's own."""
        return {}

    def site(self, sites: Sites, options: Options) -> Site:
        """Behind the last feed-forward layer. Raises BadOptions for a model that has none of a known kind."""
        if last_layer(sites) is None:
            unknown = "A layer of this model has no feed-forward part of a known kind"
            raise BadOptions(f"{unknown}; the editor {self.name!r} cannot tune it.")
        return sites.last

    def fit(self, problem: Problem, options: Options) -> Fit:
        """Learn the change. Raises FitFailed, UnsupportedModel, and NotFinite for NaN or infinity in the problem."""
        return descent.fit(problem, options)

    def overlay(self, hidden: int, device: torch.device, features: Features | None = None) -> Tuned:
        """The model's own weights."""
        assert features is not None, "fine-tuning needs the features of the model"
        return Tuned.nothing(device, features)


class FineTuningKL(FineTuning):
    """Descends on the edit, and holds what the model says to a sample of the memory in place."""

    name: ClassVar[str] = "ft-kl"
    options: ClassVar[type[Options]] = KLOptions

    def fit(self, problem: Problem, options: Options) -> Fit:
        """Learn the change. Raises as `FineTuning.fit`, and NotFinite for NaN or infinity in the memory."""
        assert isinstance(options, KLOptions)
        return descent.fit(problem, options, Spared.drawn(problem, options.memory_sample), options.divergence_weight)
