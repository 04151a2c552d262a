"""Mean and covariance of remembered queries: all that a closed-form key needs of the memory as a whole.

They change little from edit to edit and cost more than a fit, so they can be computed once and handed in with
every problem.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from editors.errors import NotFinite

FEW_ROWS = 0.5
"""The least ridge of as many rows as dimensions, where few are to be trusted little; it falls with their square."""


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Mean and covariance of so many queries: (hidden,) and (hidden, hidden), both float64."""

    mean: Tensor
    covariance: Tensor
    count: int
    _factors: dict[float, Tensor] = field(default_factory=dict, repr=False)
    """Cholesky factors by ridge: computed once, since every edit of a model asks for the same one."""
    _nothing: list[Moments] = field(default_factory=list, repr=False)

    @classmethod
    @torch.no_grad()
    def of(cls, queries: Tensor) -> Moments:
        """The moments of (n, hidden) queries. Without any rows: mean zero, covariance zero. Raises NotFinite."""
        count = max(len(queries), 1)
        mean = queries.sum(0, dtype=torch.float64) / count
        if not torch.isfinite(mean).all():
            raise NotFinite("The remembered queries hold NaN or infinity.")
        centred = (queries - mean).float()  # the products are off by 1e-6, far below any ridge
        return cls(mean, (centred.T @ centred).double() / count, len(queries))

    @property
    def telling(self) -> bool:
        """Whether there were enough rows to say anything of every direction."""
        return self.count >= len(self.mean)

    @property
    def least_ridge(self) -> float:
        """The ridge that so many rows call for, where few are to be trusted little."""
        return float(FEW_ROWS * (len(self.mean) / max(self.count, 1)) ** 2)

    def nothing(self) -> Moments:
        """The moments of no rows, of the same width; made once."""
        if not self._nothing:
            self._nothing.append(Moments(torch.zeros_like(self.mean), torch.zeros_like(self.covariance), 0))
        return self._nothing[0]

    def about_origin(self) -> Moments:
        """The same rows seen from zero instead of their mean."""
        covariance = self.covariance + torch.outer(self.mean, self.mean)
        return Moments(torch.zeros_like(self.mean), covariance, self.count)

    def solve(self, deviations: Tensor, *, ridge: float) -> Tensor:
        """(C + ridge * mean eigenvalue * I)^-1 applied to each row: (n, hidden) -> (n, hidden), float64."""
        factor = self._factors.get(ridge)
        if factor is None:
            factor = self._factors[ridge] = self._factor(ridge)
        solved: Tensor = torch.cholesky_solve(deviations.T, factor)
        return solved.T

    def _factor(self, ridge: float) -> Tensor:
        level = self.covariance.diagonal().mean()
        # Of one row or none the covariance is zero: then every direction counts the same.
        added = torch.where(level > 0, ridge * level, 1.0)
        factor: Tensor = torch.linalg.cholesky(self.covariance + (added * torch.ones_like(self.mean)).diag())
        return factor
