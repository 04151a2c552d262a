"""Changes of all patches in one overlay: what serves the weights that this editor tunes.

The base is never touched and nothing is ever subtracted: what is served is the base and the sum of the changes that are
alive, in ledger order. Another set of them is another sum, and so, to the last bit, what those alone would give.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from editors.features import Features
from editors.finetuning.change import Change
from editors.types import Firing, Patch

SUMS = 4
"""How many sums are kept: of the revision that is served, of one that is asked for, of an edit that is judged."""


class Sums:
    """Sums of changes in their order, the latest kept: a longer sum goes on from where a shorter one ends."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Change, ...], Change] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)

    def of(self, changes: tuple[Change, ...]) -> Change:
        """The sum, the same to the last bit whatever is kept. changes: at least one."""
        with self._lock:
            begun = max((each for each in self._kept if changes[: len(each)] == each), key=len, default=changes[:1])
            summed = self._kept.get(begun, begun[0])
            if len(begun) < len(changes):
                # It is kept, and values may be fitted through it: nothing that inference_mode makes bears that.
                with torch.inference_mode(False), torch.no_grad():
                    summed = summed.plus(changes[len(begun) :])
            self._kept.pop(changes, None)
            self._kept[changes] = summed  # the last of them now
            for oldest in list(self._kept)[:-SUMS]:
                del self._kept[oldest]
            return summed


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """The down-projection of the last feed-forward layer with changed weights; see `types.Adding`.

    It acts on every row that sees a patch of it: each of these fires there, by the length of its change.
    """

    device: torch.device
    features: Features
    changes: tuple[Change, ...]
    norms: Tensor
    """(patches,) float32."""
    _sums: Sums = field(default_factory=Sums)  # shared by overlays that grew out of one another

    @classmethod
    def nothing(cls, device: torch.device, features: Features) -> Tuned:
        """Without patches."""
        return cls(device, features, (), torch.zeros(0, device=device))

    def __len__(self) -> int:
        return len(self.changes)

    def extend(self, patches: Sequence[Patch]) -> Tuned:
        """With `patches` after the present ones."""
        fresh = tuple(Change.of(patch, self.device) for patch in patches)
        norms = torch.tensor([change.norm() for change in fresh], device=self.device)
        return Tuned(self.device, self.features, (*self.changes, *fresh), torch.cat([self.norms, norms]), self._sums)

    def pick(self, numbers: Sequence[int]) -> Tuned:
        """These patches alone, ascending, numbered anew from 0."""
        changes = tuple(self.changes[number] for number in numbers)
        return Tuned(self.device, self.features, changes, self.norms[list(numbers)], self._sums)

    def apply(self, queries: Tensor, residuals: Tensor, alive: Tensor, view: Tensor) -> tuple[Tensor, Firing]:
        """Residuals with what the changed weights add; a row that sees no patch is returned bit for bit."""
        rows, patches = alive[view].nonzero(as_tuple=True)
        firing = Firing(rows, patches, self.norms[patches])
        if not len(rows):
            return residuals, firing
        patched = residuals.clone()
        for number in view.unique().tolist():
            seen = alive[number].nonzero().squeeze(-1).tolist()
            if seen:
                here = (view == number).nonzero().squeeze(-1)
                added = self._sums.of(tuple(self.changes[each] for each in seen)).on(self.features(queries[here]))
                patched[here] = (residuals[here].float() + added).to(residuals.dtype)
        return patched, firing
