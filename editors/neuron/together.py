"""The closed-form fit of many independent edits at once: what `closed_form` gives each, at a fraction of the cost.

The edits are memory to one another. One solve gives all keys, one product for each piece of the memory the rows
nearest to every one of them, and all values take their steps side by side. What needs more than one neuron, or
anything else that only a fit by itself does, is left to `closed_form`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.leads import leads
from editors.moments import Moments
from editors.neuron.closed_form import NEAR
from editors.neuron.gate import HIGHEST_THRESHOLD, Gate, apart_from_mean, key_of, threshold_behind
from editors.neuron.neurons import Neuron, tensors_of
from editors.neuron.options import Options
from editors.neuron.value import fit_values
from editors.types import Fitted, Problem, Readout, Rows, Step

PRODUCTS = 2**18
"""How many products of keys and remembered rows are computed between two predictions."""


@dataclass(frozen=True, slots=True)
class _Shared:
    """What all edits that are fitted together have in common."""

    moments: Moments
    memory: Sequence[Rows]
    readout: Readout


@dataclass(frozen=True, slots=True)
class _Turn:
    """One edit, its number in the call, and those of its rows that the neuron shall turn."""

    number: int
    edit: Rows
    rows: Rows


def fit(problems: Sequence[Problem], options: Options) -> Generator[Step, None, list[Fitted | None]]:
    """One neuron for each edit; None for one that `closed_form` is to fit by itself."""
    fitted: list[Fitted | None] = [None] * len(problems)
    if not problems:
        return fitted
    finite = _finite(problems)
    shared, numbers = _sharing(problems, finite)
    if shared is None:
        return fitted
    missing, turns = _turns(problems, numbers, shared, options.margin)
    yield Step(0, missing)
    if not turns:
        return fitted
    keys = _keys(turns, shared.moments, options.ridge)
    yield Step(0, missing)
    outside = _Outside(shared, [(number, problems[number].edit) for number in finite])
    nearest = torch.full_like(keys[:, 0], -torch.inf)
    for piece in outside.nearest(keys, turns, spare_same_label=options.spare_same_label):
        nearest = torch.maximum(nearest, piece)  # NaN stays
        yield Step(0, missing)
    gated = [
        (turn, Gate(key, shared.moments.mean, threshold_behind(x, options.threshold), options.activation))
        for turn, key, x in zip(turns, keys, nearest.tolist(), strict=True)
        if _keeps_out(x, turn, options)
    ]
    for number, one in (yield from _with_values(gated, shared.readout, options)):
        fitted[number] = one
    return fitted


def _finite(problems: Sequence[Problem]) -> list[int]:
    """The numbers of the edits without NaN or infinity."""
    edits = [problem.edit for problem in problems]
    rows = Rows.join(edits)
    finite = torch.isfinite(rows.queries).all(-1) & torch.isfinite(rows.residuals).all(-1)
    return [number for number, own in enumerate(_of_each(edits, finite)) if bool(own.all())]


def _of_each(edits: Sequence[Rows], of_rows: Tensor) -> tuple[Tensor, ...]:
    """What belongs to the rows of each edit, of what belongs to all their rows: (n, ...)."""
    return torch.split(of_rows, [len(edit) for edit in edits])


def _sharing(problems: Sequence[Problem], finite: Sequence[int]) -> tuple[_Shared | None, list[int]]:
    """What most of the edits that one neuron may settle have in common, and the numbers of those."""
    in_common = {number: _in_common(problems[number]) for number in finite if _is_plain(problems[number])}
    if not in_common:
        return None, []
    ((most, _),) = Counter(in_common.values()).most_common(1)
    numbers = [number for number, each in in_common.items() if each == most]
    first = problems[numbers[0]]
    assert first.moments is not None
    return _Shared(first.moments, first.memory, first.readout), numbers


def _is_plain(problem: Problem) -> bool:
    """Whether this is one mistake of a classifier, with a memory whose moments are known."""
    labels = problem.edit.labels
    return (
        len(labels) > 0
        and problem.moments is not None
        and not bool(problem.positions.any())
        and bool((labels == labels[0]).all())
    )


def _in_common(problem: Problem) -> Hashable:
    return problem.readout, id(problem.moments), tuple(id(part) for part in problem.memory)


def _turns(
    problems: Sequence[Problem], numbers: Sequence[int], shared: _Shared, margin: float
) -> tuple[float, list[_Turn]]:
    """Of each edit apart from the mean the rows that are wrong, or all if none is; and the lead that all rows miss."""
    edits = [problems[number].edit for number in numbers]
    rows = Rows.join(edits)
    lead, apart = _leads(rows, shared.readout), apart_from_mean(rows.queries, shared.moments)
    turns = []
    for number, edit, wrong, told in zip(
        numbers, edits, _of_each(edits, lead <= 0), _of_each(edits, apart), strict=True
    ):
        if bool(told.all()):
            turns.append(_Turn(number, edit, edit[wrong] if bool(wrong.any()) else edit))
    return float(torch.relu(margin - lead).sum()), turns


@torch.no_grad()
def _leads(rows: Rows, readout: Readout) -> Tensor:
    return leads(readout(rows.residuals).float(), rows.labels)


def _keys(turns: Sequence[_Turn], moments: Moments, ridge: float) -> Tensor:
    """The key of each turn: (turns, hidden) float64."""
    deviations = torch.cat([turn.rows.queries for turn in turns]).double() - moments.mean
    counts = [len(turn.rows) for turn in turns]
    solved = moments.solve(deviations, ridge=ridge)
    return torch.stack([key_of(*own) for own in zip(deviations.split(counts), solved.split(counts), strict=True)])


class _Outside:
    """Rows on which a neuron should not fire: the memory and the other edits, without those that want its label."""

    def __init__(self, shared: _Shared, edits: Sequence[tuple[int, Rows]]) -> None:
        """edits: of the call, each with its number."""
        rows = Rows.join([edit for _, edit in edits])
        numbers = torch.tensor([number for number, _ in edits], device=rows.labels.device)
        lengths = torch.tensor([len(edit) for _, edit in edits], device=rows.labels.device)
        owners = numbers.repeat_interleave(lengths)
        self._parts = [(part, torch.full_like(part.labels, -1)) for part in shared.memory] + [(rows, owners)]
        self._mean = shared.moments.mean

    def nearest(self, keys: Tensor, turns: Sequence[_Turn], *, spare_same_label: bool) -> Iterator[Tensor]:
        """Piece by piece the largest <key, q - mean> of each key, -inf if there is no row: (turns,) float64."""
        labels = torch.stack([turn.rows.labels[0] for turn in turns])
        numbers = torch.tensor([turn.number for turn in turns], device=labels.device)
        level = keys @ self._mean
        size = max(1, PRODUCTS // len(turns))
        for part, owners in self._parts:
            columns = keys.to(part.queries.dtype).T
            for start in range(0, len(part), size):
                rows, own = part[start : start + size], owners[start : start + size].unsqueeze(-1) == numbers
                spared = own | (rows.labels.unsqueeze(-1) == labels) if spare_same_label else own
                yield (rows.queries @ columns).masked_fill_(spared, -torch.inf).amax(0) - level


def _keeps_out(nearest: float, turn: _Turn, options: Options) -> bool:
    """Whether one key does for all these rows, and holds none of the rows outside down. Not for NaN."""
    if options.held and not nearest <= NEAR:
        return False
    return nearest < HIGHEST_THRESHOLD or (len(turn.rows) == 1 and nearest >= HIGHEST_THRESHOLD)


def _with_values(
    gated: Sequence[tuple[_Turn, Gate]], readout: Readout, options: Options
) -> Generator[Step, None, list[tuple[int, Fitted]]]:
    """The edits that these gates, with the best of values, set right; each with its number."""
    if not gated:
        return []
    activations = [gate.activations(turn.rows.queries) for turn, gate in gated]
    weakest = [each.min() for each in activations]  # see `closed_form.fit`
    rows = Rows.join([turn.rows for turn, _ in gated])
    values = yield from fit_values(
        rows,
        torch.cat([torch.full_like(turn.rows.labels, index) for index, (turn, _) in enumerate(gated)]),
        torch.cat([each / least for each, least in zip(activations, weakest, strict=True)]),
        readout,
        margin=options.margin,
        most_steps=options.value_steps,
        steps=0,
    )
    steps, missing = values.steps.tolist(), values.missing.tolist()
    yield Step(max(steps), sum(missing))
    neurons = [gate.neuron(values.values[index] / weakest[index]) for index, (_, gate) in enumerate(gated)]
    right = _set_right([turn.edit for turn, _ in gated], neurons, readout)
    return [
        (turn.number, Fitted(tensors_of([neurons[index]]), steps[index], missing[index]))
        for index, (turn, _) in enumerate(gated)
        if right[index]
    ]


def _set_right(edits: Sequence[Rows], neurons: Sequence[Neuron], readout: Readout) -> list[bool]:
    """Whether every row of each edit is right with its neuron."""
    patched = [
        Rows(edit.queries, neuron.add_to(edit.residuals, edit.queries), edit.labels)
        for edit, neuron in zip(edits, neurons, strict=True)
    ]
    return [bool(own.all()) for own in _of_each(edits, _leads(Rows.join(patched), readout) > 0)]
