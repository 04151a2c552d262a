"""Transformer-Patcher (Huang et al., ICLR 2023): one mistake, one neuron beside the last feed-forward layer."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, ClassVar

import torch

from editors.errors import NotFinite
from editors.features import Features
from editors.layers import WRITERS, Family, Sites
from editors.neuron import closed_form, gradient, together
from editors.neuron.bank import NeuronBank
from editors.neuron.options import GENERATION, Options
from editors.site import Site
from editors.types import Fit, Fitted, Problem, Step

__all__ = ["NeuronBank", "Options", "TransformerPatcher"]


class TransformerPatcher:
    """Fits neurons by `closed_form` or by the paper's `gradient`; serves them from one `NeuronBank`."""

    name: ClassVar[str] = "transformer-patcher"
    version: ClassVar[int] = 1
    baseline: ClassVar[bool] = False
    options: ClassVar[type[Options]] = Options

    def defaults(self, family: Family) -> Mapping[str, Any]:
        """Options that are not the dataclass's own."""
        return GENERATION if family in WRITERS else {}

    def site(self, sites: Sites, options: Options) -> Site:
        """Behind the last feed-forward layer."""
        return sites.last

    def fit(self, problem: Problem, options: Options) -> Fit:
        """Learn the neurons of one edit. Raises FitFailed, and NotFinite for NaN or infinity in the problem."""
        if not (torch.isfinite(problem.edit.queries).all() and torch.isfinite(problem.edit.residuals).all()):
            raise NotFinite("The activations of the edit hold NaN or infinity.")
        fit = closed_form.fit if options.fit == "closed-form" else gradient.fit
        return fit(problem, options)

    def fit_together(self, problems: Sequence[Problem], options: Options) -> Generator[Step, None, list[Fitted | None]]:
        """See `FittingTogether`: one neuron for each edit of a classifier, by the closed form alone."""
        if options.fit != "closed-form":
            return [None] * len(problems)
        return (yield from together.fit(problems, options))

    def overlay(self, hidden: int, device: torch.device, features: Features | None = None) -> NeuronBank:
        """A bank without patches."""
        return NeuronBank.empty(hidden, device)
