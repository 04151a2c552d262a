"""The fit of one entry: how far it may reach, then its values by descent through the model.

Hartvigsen et al. 2023, section 3.2: Adam on the value alone. The loss is the lead that is missing, not the paper's
log likelihood, which saturates while a near twin of the wanted label still leads. The descent stops as soon as the
wanted answer leads everywhere by a margin, and keeps the best values that it met.

The paper has one value an entry. Of a text that is written one value carries a few tokens at most, and none of the last
layer more than one; with its own value at each position that says a token the last layer is enough (`Places.EACH`).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.codebook.options import Options
from editors.codebook.radii import SAME, same_within
from editors.errors import FitFailed, NotFinite
from editors.inside import Inside
from editors.leads import leads
from editors.types import Fit, Fitted, Problem, Remembered, Step
from editors.visit import Places

BEYOND = 1.2
"""How far the descent aims, in units of the margin at which it stops."""
ALONE = 0.05
"""The initial radius in units of the key's length, where nothing is remembered."""
LEAST = 2.0
"""The least reach, in units of the distance within which two keys are the same: the input itself must be covered,
whatever batch its key comes from.
"""
SHORT_OF = 0.999
"""How much of the way to a remembered input an entry may reach."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some texts of the edit inside the model. rows: (k,) int64, the positions of those that the entry covers."""

    inside: Inside
    rows: Tensor

    def leads(self, values: Tensor, places: Places) -> Tensor:
        """By how much the wanted answer leads: (values, hidden) -> (k,). Differentiable."""
        lead: Tensor = leads(self.inside.logits(values, places)[self.rows].float(), self.inside.labels[self.rows])
        return lead

    def wrong(self, lead: Tensor) -> Tensor:
        """The texts that are wrong somewhere: (k,) -> (texts,) int64."""
        wrong: Tensor = self.inside.owners[self.rows][lead <= 0].unique()
        return wrong


@dataclass(frozen=True, slots=True)
class _Tried:
    """Values, and how right the texts are with them: the input first, then as many as possible, then by how much."""

    values: Tensor
    right: tuple[bool, int, float]
    loss: float


def fit(problem: Problem, inside: Inside, options: Options) -> Fit:
    """The entry of the edit. Raises FitFailed if no values make the input right, and NotFinite."""
    insides = [inside]
    for enter in problem.further:
        insides.append(enter())
        yield Step(0, 0.0)
    reach = reach_of(torch.cat([each.keys for each in insides]), problem.remembered, options.radius)
    pieces = _covered(insides, reach)
    places = Places.EACH if options.values == "each" else Places[options.replace.upper()]
    own = inside.own(places).float()
    values = (own.clone() if options.start == "warm" else torch.zeros_like(own)).requires_grad_()
    descent = torch.optim.Adam([values], lr=options.learning_rate)
    best: _Tried | None = None
    for number in range(options.steps + 1):
        descent.zero_grad()
        tried = yield from _tried(values, pieces, places, options.margin, number)
        best = tried if best is None or tried.right > best.right else best
        if number == options.steps or tried.right[2] >= options.margin:
            break
        descent.step()
        yield Step(number + 1, tried.loss)
    assert best is not None
    if not best.right[0]:
        raise FitFailed(
            f"The wanted answer does not lead with any of the {number} values that were tried; the last loss was "
            f"{tried.loss:.3g}."
        )
    return Fitted(_tensors(inside, best.values, reach, places), number, best.loss)


def _covered(insides: Sequence[Inside], reach: float) -> list[_Piece]:
    """The pieces in which there are texts within reach of the first one's key."""
    key = insides[0].keys[0].double()
    pieces = []
    for inside in insides:
        covered = (inside.keys.double() - key).norm(dim=-1) <= reach
        pieces.append(_Piece(inside, covered[inside.owners].nonzero().squeeze(-1)))
    return [piece for piece in pieces if len(piece.rows)]


def _tried(
    values: Tensor, pieces: Sequence[_Piece], places: Places, margin: float, number: int
) -> Generator[Step, None, _Tried]:
    """How right the texts are with these values, whose gradients are left in place; a slice for each piece."""
    total, least, wrong = 0.0, math.inf, list[Tensor]()
    for piece in pieces:
        with torch.enable_grad():
            lead = piece.leads(values, places)
            loss = torch.relu(BEYOND * margin - lead).sum()
            if loss.requires_grad:  # it does not where no value at these places reaches the answer
                loss.backward()
        total, least = total + float(loss.detach()), min(least, float(lead.detach().min()))
        wrong.append(piece.wrong(lead.detach()))
        if piece is not pieces[-1]:
            yield Step(number, total)
    if math.isnan(total):
        raise NotFinite(f"The loss of the values is NaN after {number} steps.")
    input_right = not bool((wrong[0] == 0).any())
    return _Tried(values.detach().clone(), (input_right, -sum(map(len, wrong)), least), total)


def reach_of(keys: Tensor, remembered: Sequence[Remembered], share: float) -> float:
    """How far an entry may reach, before other entries limit it.

    A share of the way to the nearest remembered key. As far as the keys of the rephrases, if that is more, but at most
    half the way to the nearest remembered key that wants another answer, and not over any remembered key. Never so
    little that the input's own key, moved by another batch, is outside.

    keys: (texts, hidden), the input's first. Raises NotFinite for NaN or infinity in what is remembered.
    """
    key = keys[0]
    same = same_within(key)
    differing, any_key = math.inf, math.inf
    for part in remembered:
        distances = _distances(part.keys, key)
        if not bool(torch.isfinite(distances).all()):
            raise NotFinite("The remembered keys hold NaN or infinity.")
        other = distances > same  # the input itself may be remembered with its mistake
        any_key = min(any_key, _least(distances[other]))
        differing = min(differing, _least(distances[other & part.differ]))
    reach = min(share, SHORT_OF) * any_key if any_key < math.inf else ALONE * float(key.double().norm())
    rephrased = float((keys.double() - key.double()).norm(dim=-1).max()) * (1 + SAME)
    return max(reach, min(rephrased, differing / 2, SHORT_OF * any_key), LEAST * same)


def _distances(keys: Tensor, key: Tensor) -> Tensor:
    """(n, hidden), (hidden,) -> (n,). Not by a matrix product, which tells near keys apart no better than by chance."""
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(keys.float(), key.float().unsqueeze(0), compute_mode=mode).squeeze(-1)


def _least(distances: Tensor) -> float:
    return float(distances.min()) if len(distances) else math.inf


def _tensors(inside: Inside, values: Tensor, reach: float, places: Places) -> dict[str, Tensor]:
    return {
        "key": inside.keys[0],  # in the model's own dtype, which says how exact it is
        "values": values,
        "reach": torch.tensor(reach, dtype=torch.float64),
        "answer": inside.labels[inside.owners == 0],
        "places": torch.tensor(int(places)),
    }
