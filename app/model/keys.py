"""Takes the keys of a batch at inner layers, and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from editors.layers import LayerSite
from editors.visit import Found, Look, Visit


class Keys:
    """What acts on a pass that is read, where nothing else does."""

    def __init__(self, sites: Sequence[LayerSite]) -> None:
        self._sites = sites
        self.taken: dict[str, Tensor] = {}
        """By name of a site the keys there, (batch, hidden), after the pass."""

    def visit(self, given: Tensor) -> Visit | None:
        looks = [Look(site, partial(self._take, site.name)) for site in self._sites]
        return Visit(given, looks) if looks else None

    def __call__(self, queries: Tensor, residuals: Tensor) -> Tensor:
        return residuals

    def _take(self, name: str, keys: Tensor) -> Found | None:
        self.taken[name] = keys
        return None
