"""A classifier's passes over texts of different lengths, without padding and without what no head reads.

Such a pass ends where the last feed-forward layer joins the rest; norm and head run for the positions that are read,
and so does, where the model lets it, that layer itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import product

import torch
from torch import Tensor

from app.model.packing import Packed, packed, packing
from editors.errors import UnsupportedModel
from editors.join import ENOUGH_ROWS, Ended, Join, Pass, Transform
from editors.site import kind
from editors.visit import Visit


class Unpadded:
    """How one model is run so. See `open`."""

    def __init__(self, join: Join, *, first_position: int, narrow: bool) -> None:
        """first_position: the number of a text's first position. narrow: whether the last feed-forward layer can be
        computed for some positions alone.
        """
        self._join = join
        self._first_position = first_position
        self._narrow = narrow
        self._last = {join.site.reads, join.last.down if join.last is not None else ""}

    @classmethod
    @torch.no_grad()
    def open(
        cls, join: Join, ids: Sequence[Tensor], padded: Callable[[], Tensor], first_positions: Sequence[int]
    ) -> Unpadded:
        """The first way of running the model so that gives the logits of texts that it gives for them padded.

        ids: of texts of different lengths. padded: (texts, labels), runs them padded. first_positions: numbers that a
        text's first position may have. Raises UnsupportedModel, and leaves the model as it was.
        """
        logits = padded()
        with packing(join.model):
            if not torch.equal(padded(), logits):
                raise UnsupportedModel(f"{kind(join.model)} is another one when its attention is exchanged.")
            for first_position, narrow in product(first_positions, (join.last is not None, False)):
                way = cls(join, first_position=first_position, narrow=narrow)
                if way._gives(logits, ids):
                    return way
            raise UnsupportedModel(f"{kind(join.model)} gives other logits for texts that are not padded.")

    def _gives(self, logits: Tensor, ids: Sequence[Tensor]) -> bool:
        try:
            alone, _ = self.run(ids)
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError, UnsupportedModel):
            return False
        return torch.allclose(alone, logits, rtol=1e-4, atol=1e-5)

    def run(
        self,
        ids: Sequence[Tensor],
        transform: Transform | None = None,
        visits: Callable[[Tensor], Visit | None] | None = None,
    ) -> tuple[Tensor, Pass]:
        """Logits of texts, (texts, labels), and what the pass saw at the site: one position a text.

        visits: what happens at inner layers, from the mask of the padded texts, (texts, longest) bool.
        """
        texts = Packed.of(ids, first_position=self._first_position, device=self._join.device)
        visit = None if visits is None else visits(texts.given().to(self._join.device))
        call = self._pass(texts, visit)
        with packed(texts), self._join.during(call, visit), suppress(Ended):
            self._join.model(**texts.inputs)
        assert call.queries is not None
        assert call.residuals is not None
        call.queries, call.residuals = call.queries[: len(ids)], call.residuals[: len(ids)]
        residuals = call.residuals if transform is None else transform(call.queries, call.residuals)
        return self._join.readout(residuals.to(call.residuals.dtype)), call

    def _pass(self, texts: Packed, visit: Visit | None) -> Pass:
        bounds = texts.bounds()
        read = bounds[:-1] if self._join.site.position == "first" else [end - 1 for end in bounds[1:]]
        read += read[-1:] * (ENOUGH_ROWS - len(read))
        columns = torch.tensor(read, device=self._join.device)
        narrow = self._narrow
        if visit is not None:
            visit.packed = True
            narrow = narrow and self._last.isdisjoint(_modules(visit))
        return Pass(torch.zeros_like(columns), columns, ends=True, narrow=narrow)


def _modules(visit: Visit) -> Iterator[str]:
    """The modules where something happens on a visit."""
    for site in visit.sites:
        yield site.reads.up
        yield site.writes.down
