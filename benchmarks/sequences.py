"""A classifier's mistakes edited one after the other, as the service does it, on stored activations alone.

No patch of the last feed-forward layer changes `q` or `s` of any input, so every text is read once and a whole
sequence of edits needs no transformer layer; the tests of the sites prove that equal to the full model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.model import Classifier
from benchmarks.slices import finish
from editors import codec, measures
from editors.errors import FitFailed
from editors.moments import Moments
from editors.neuron import NeuronBank, Options, TransformerPatcher
from editors.types import Header, Patch, Problem, Readout, Rows

BATCH = 64


@dataclass(frozen=True, slots=True)
class Read:
    """Activations of texts under the unedited model, with the labels they should get and those they do get."""

    rows: Rows
    predicted: Tensor  # (n,) int64

    @property
    def right(self) -> Tensor:
        """(n,) bool."""
        return self.predicted == self.rows.labels

    def only(self, chosen: Tensor) -> Read:
        """The chosen rows, by mask or index."""
        return Read(self.rows[chosen], self.predicted[chosen])


@dataclass(frozen=True, slots=True)
class Bench:
    """What a sequence of edits is made of and measured on."""

    mistakes: Rows
    variants: Rows  # of the mistakes, held back
    variant_of: Tensor  # (variants,) int64, index among the mistakes
    variant_differs: Tensor  # (variants,) bool, whether the tokenizer tells it from its mistake
    memory: Rows  # training rows that the unedited model gets right
    right: Rows  # test rows that the unedited model gets right: unseen by it, and by every fit
    readout: Readout

    def first(self, count: int) -> Bench:
        """The same with the first mistakes alone."""
        chosen = self.variant_of < count
        return replace(
            self,
            mistakes=self.mistakes[:count],
            variants=self.variants[chosen],
            variant_of=self.variant_of[chosen],
            variant_differs=self.variant_differs[chosen],
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """The measures of one sequence; shares between 0 and 1."""

    name: str
    edits: int
    failed: int
    success: float
    retained: float
    generalisation: float
    generalisation_differs: float  # over the variants that the tokenizer tells from their mistakes
    test_retain: float
    kept: float
    unchanged: float
    neurons_an_edit: float
    milliseconds: float  # an edit, over all
    milliseconds_first: float  # over the first 20 fitted
    milliseconds_last: float


def read(classifier: Classifier, texts: Sequence[str], labels: Sequence[str], report: Callable[[int], None]) -> Read:
    """Run the unedited model over texts, by length; `report` gets the number of texts done in each batch."""
    encodings = classifier.encode(texts)
    wanted = [classifier.wanted(*each) for each in zip(encodings, labels, strict=True)]
    order = sorted(range(len(texts)), key=lambda index: len(encodings[index]))
    seen = []
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        seen.append(classifier.read([encodings[index] for index in chosen], [wanted[index] for index in chosen]))
        report(len(chosen))
    back = torch.tensor(order).argsort()
    rows = Rows.join([part.reading.rows for part in seen])
    return Read(rows[back], torch.cat([part.answered for part in seen])[back])


def edit_all(name: str, bench: Bench, options: Options, *, seed: int = 0, report: Callable[[], None]) -> Outcome:
    """Edit every mistake in order; an edit whose input is right already, thanks to earlier ones, needs no patch."""
    editor, moments = TransformerPatcher(), Moments.of(bench.memory.queries)
    bank = editor.overlay(bench.memory.queries.shape[-1], torch.device("cpu"))
    memory, seconds, succeeded, neurons, failed = bench.memory, list[float](), list[bool](), 0, 0
    for number in range(len(bench.mistakes)):
        row = bench.mistakes[number : number + 1]
        if _answers(bank, row, bench.readout) != row.labels:
            started = time.perf_counter()
            one_position = torch.zeros_like(row.labels)
            problem = Problem(_patched(bank, row), one_position, [memory], bench.readout, seed, moments)
            try:
                patch = Patch(_HEADER, finish(editor.fit(problem, options)).tensors)
            except FitFailed:
                failed += 1
            else:
                bank = bank.extend([codec.decode(codec.encode(patch))])
                memory = Rows.join([memory, row])
                neurons += len(patch.tensors["biases"])
            seconds.append(time.perf_counter() - started)
        succeeded.append(bool(_answers(bank, row, bench.readout) == row.labels))
        report()
    return _measured(name, bench, bank, torch.tensor(succeeded), neurons, failed, seconds)


_HEADER = Header("transformer-patcher", 1, base="benchmark", site="benchmark", dtype="float32")


def _patched(bank: NeuronBank, rows: Rows) -> Rows:
    alive = torch.ones(1, len(bank), dtype=torch.bool)
    view = torch.zeros(len(rows), dtype=torch.int64)
    return replace(rows, residuals=bank.apply(rows.queries, rows.residuals, alive, view)[0])


@torch.no_grad()
def _answers(bank: NeuronBank, rows: Rows, readout: Readout) -> Tensor:
    return readout(_patched(bank, rows).residuals).argmax(-1)


@torch.no_grad()
def _measured(
    name: str,
    bench: Bench,
    bank: NeuronBank,
    succeeded: Tensor,
    neurons: int,
    failed: int,
    seconds: Sequence[float],
) -> Outcome:
    count = len(bench.mistakes)
    after_mistakes = _answers(bank, bench.mistakes, bench.readout)
    after_variants = _answers(bank, bench.variants, bench.readout)
    after_right = _answers(bank, bench.right, bench.readout)
    kept = measures.accuracy(after_right, bench.right.labels)
    retained = measures.edit_retain_rate(after_mistakes, bench.mistakes.labels)
    milliseconds = [1000 * second for second in seconds]
    return Outcome(
        name=name,
        edits=count,
        failed=failed,
        success=measures.accuracy(succeeded, torch.ones_like(succeeded)),
        retained=retained,
        generalisation=measures.generalisation_rate(after_variants, bench.variants.labels),
        generalisation_differs=measures.generalisation_rate(
            after_variants[bench.variant_differs], bench.variants.labels[bench.variant_differs]
        ),
        test_retain=kept + retained * count / len(bench.right),
        kept=kept,
        unchanged=measures.unchanged(bench.right.residuals, _patched(bank, bench.right).residuals),
        neurons_an_edit=neurons / count,
        milliseconds=_mean(milliseconds),
        milliseconds_first=_mean(milliseconds[:20]),
        milliseconds_last=_mean(milliseconds[-20:]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)
