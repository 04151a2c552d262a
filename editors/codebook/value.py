"""The fit of one entry: how far it may reach, then its values by descent through the model.

Hartvigsen et al. 2023, section 3.2: Adam on the value alone. The loss is the lead that is missing, not the paper's
log likelihood, which saturates while a near twin of the wanted label still leads. The descent stops as soon as the
wanted answer leads everywhere by a margin, and keeps the best values that it met.

The paper has one value an entry. Of a text that is written one value carries a few tokens at most, and none of the last
layer more than one; with its own value at each position that says a token the last layer is enough (`Reach.EACH`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.codebook.options import Options
from editors.codebook.radii import SAME
from editors.errors import FitFailed, NotFinite
from editors.inside import Inside
from editors.leads import leads
from editors.types import Fit, Fitted, Problem, Remembered, Step
from editors.visit import Reach

BEYOND = 1.2
"""How far the descent aims, in units of the margin at which it stops."""
UNKNOWN = 0.1
"""The initial radius in units of the key's length, where nothing is remembered."""
SHORT_OF = 0.999
"""How much of the way to a guard input an entry that is widened may reach."""


@dataclass(frozen=True, slots=True)
class _Best:
    """Values, and how right the texts are with it: the input first, then as many as possible, then by how much."""

    values: Tensor
    right: tuple[bool, int, float]
    loss: float


def fit(problem: Problem, inside: Inside, options: Options) -> Fit:
    """The entry of the edit. Raises FitFailed if no value makes the input right, and NotFinite."""
    reach = reach_of(inside.keys, problem.remembered, options.radius)
    covered = (inside.keys - inside.keys[0]).double().norm(dim=-1) <= reach
    rows = covered[inside.owners].nonzero().squeeze(-1)
    owners, labels = inside.owners[rows], inside.labels[rows]
    places = Reach.EACH if options.values == "each" else Reach[options.replace.upper()]
    own = inside.own(places).float()
    values = (own.clone() if options.start == "warm" else torch.zeros_like(own)).requires_grad_()
    descent = torch.optim.Adam([values], lr=options.learning_rate)
    best: _Best | None = None
    for number in range(options.steps + 1):
        with torch.enable_grad():
            lead = leads(inside.logits(values, places)[rows].float(), labels)
            loss = torch.relu(BEYOND * options.margin - lead).sum()
        tried = _Best(values.detach().clone(), _right(lead.detach(), owners), float(loss.detach()))
        if math.isnan(tried.loss):
            raise NotFinite(f"The loss of the values is NaN after {number} steps.")
        best = tried if best is None or tried.right > best.right else best
        if number == options.steps or float(lead.detach().min()) >= options.margin:
            break
        descent.zero_grad()
        loss.backward()
        descent.step()
        yield Step(number + 1, tried.loss)
    assert best is not None
    if not best.right[0]:
        raise FitFailed(
            f"The wanted answer does not lead with any of the {number} values that were tried; the last loss was "
            f"{tried.loss:.3g}."
        )
    return Fitted(_tensors(inside, best.values, reach, places), number, best.loss)


def reach_of(keys: Tensor, remembered: Sequence[Remembered], share: float) -> float:
    """How far an entry may reach, before other entries limit it.

    A share of the way to the nearest remembered key. As far as the keys of the rephrases, if that is more, but at most
    half the way to the nearest remembered key that wants another answer, and not over any remembered key.

    keys: (texts, hidden), the input's first. Raises NotFinite for NaN or infinity in what is remembered.
    """
    key = keys[0]
    length = float(key.double().norm())
    differing, any_key = math.inf, math.inf
    for part in remembered:
        distances = _distances(part.keys, key)
        if not bool(torch.isfinite(distances).all()):
            raise NotFinite("The remembered keys hold NaN or infinity.")
        other = distances > SAME * length  # the input itself may be remembered with its mistake
        any_key = min(any_key, _least(distances[other]))
        differing = min(differing, _least(distances[other & part.differ]))
    reach = share * any_key if any_key < math.inf else UNKNOWN * length
    rephrased = float((keys - key).double().norm(dim=-1).max()) * (1 + SAME)
    return max(reach, min(rephrased, differing / 2, SHORT_OF * any_key))


def _distances(keys: Tensor, key: Tensor) -> Tensor:
    """(n, hidden), (hidden,) -> (n,). Not by a matrix product, which tells near keys apart no better than by chance."""
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(keys.float(), key.float().unsqueeze(0), compute_mode=mode).squeeze(-1)


def _least(distances: Tensor) -> float:
    return float(distances.min()) if len(distances) else math.inf


def _right(lead: Tensor, owners: Tensor) -> tuple[bool, int, float]:
    """Whether the input is right at every position, how many texts are, and the least lead."""
    wrong = owners[lead <= 0].unique()
    return not bool((wrong == 0).any()), -len(wrong), float(lead.min())


def _tensors(inside: Inside, values: Tensor, reach: float, places: Reach) -> dict[str, Tensor]:
    return {
        "key": inside.keys[0].float(),
        "values": values,
        "reach": torch.tensor(reach, dtype=torch.float64),
        "answer": inside.labels[inside.owners == 0],
        "places": torch.tensor(int(places)),
    }
