"""Texts read in batches of similar length, so that little is padded; others may use the device between two of them."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from app.engine.live import View
from app.engine.patched import Patched
from app.model import Encoding, Model, Read
from editors.layers import LayerSite
from editors.types import Reading, Rows


def reading(
    model: Model,
    encodings: Sequence[Encoding],
    wanted: Sequence[Tensor],
    *,
    view: View | None = None,
    keys_at: Sequence[LayerSite] = (),
    max_batch: int,
) -> Generator[None, None, Read]:
    """What the model computes when fed the wanted answers, in the order of the texts.

    view: under which entries of inner layers, see `Model.read`; None is the unedited model, whose keys can be taken.
    """
    order = sorted(range(len(encodings)), key=lambda index: len(encodings[index]) + len(wanted[index]))
    parts: list[Read] = []
    for start in range(0, len(order), max_batch):
        chosen = order[start : start + max_batch]
        batch = [encodings[index] for index in chosen], [wanted[index] for index in chosen]
        parts.append(model.read(*batch, _acting(model, view, batch[1]), keys_at=keys_at))
        if start + max_batch < len(order):
            yield
    return _in_order(parts, order)


def _acting(model: Model, view: View | None, wanted: Sequence[Tensor]) -> Patched | None:
    return None if view is None else Patched([view] * len(wanted), model.device, fed=[len(each) for each in wanted])


def _in_order(parts: Sequence[Read], order: Sequence[int]) -> Read:
    """Batches that were read by length, as one reading in the order of the texts."""
    rows = Rows.join([part.reading.rows for part in parts])
    answered = torch.cat([part.answered for part in parts])
    lengths = [length for part in parts for length in part.reading.lengths]
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    back = sorted(range(len(order)), key=order.__getitem__)
    index = torch.cat([torch.arange(starts[place], starts[place + 1]) for place in back]).to(answered.device)
    keys = {name: torch.cat([part.reading.keys[name] for part in parts])[back] for name in parts[0].reading.keys}
    return Read(Reading(rows[index], tuple(lengths[place] for place in back), keys), answered[index])
