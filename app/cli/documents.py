"""The service's JSON as its clients read it. The contract may add members; clients ignore what they do not know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

Json = Mapping[str, Any]


class Fired(TypedDict):
    """An edit that took part in computing an answer, of a generating model in so many of its positions."""

    edit_id: str
    strength: float
    positions: NotRequired[int]


class Prediction(TypedDict):
    """The answer to one input: a classifier's label, or a generating model's text. `base`, when it was asked for, is
    what the unedited model says.
    """

    label: NotRequired[str]
    score: NotRequired[float]
    scores: NotRequired[Mapping[str, float]]
    text: NotRequired[str]
    finish_reason: NotRequired[str]
    fired: NotRequired[Sequence[Fired]]
    base: NotRequired[Prediction | None]


class Answer(TypedDict):
    """Predictions in the order of the inputs, all at one revision."""

    revision: int
    model: str
    predictions: Sequence[Prediction]


class Gate(TypedDict):
    """One measured requirement of an edit, or of what its removal leaves."""

    name: str
    measured: float | None
    required: float | None
    passed: bool
    failures: NotRequired[Sequence[Any]]


class Verdict(TypedDict):
    """The judged evidence of an edit."""

    passed: bool
    gates: Sequence[Gate]
    guard: NotRequired[Json | None]
    conflicts: NotRequired[Sequence[Json]]


class Answers(TypedDict):
    """What the model said to an edit's input and rephrases."""

    prediction: Prediction
    rephrases: NotRequired[Sequence[Prediction]]


class HistoryRow(TypedDict):
    """One thing that happened to an edit, chained by hash."""

    at: str
    event: str
    actor: str
    detail: Any
    hash: str


class Draft(TypedDict):
    """The body of an edit request."""

    input: str
    target: str
    rephrases: NotRequired[Sequence[str]]
    keep: NotRequired[Sequence[str]]
    editor: NotRequired[str]
    options: NotRequired[Json]
    reason: NotRequired[str]
    reporter: NotRequired[str]
    dry_run: NotRequired[bool]
    supersedes: NotRequired[str]
    required: NotRequired[Json]


class Edit(TypedDict):
    """The audit record of an edit."""

    id: str
    status: str
    editor: str
    input: str
    target: str
    created_at: str
    options: NotRequired[Json]
    rephrases: NotRequired[Sequence[str]]
    keep: NotRequired[Sequence[str]]
    reason: NotRequired[str]
    reporter: NotRequired[str]
    supersedes: NotRequired[str | None]
    required: NotRequired[Json]
    refit_due: NotRequired[int | None]
    started_at: NotRequired[str | None]
    finished_at: NotRequired[str | None]
    revision: NotRequired[int | None]
    reverted_at: NotRequired[str | None]
    reverted_revision: NotRequired[int | None]
    before: NotRequired[Answers | None]
    after: NotRequired[Answers | None]
    verdict: NotRequired[Verdict | None]
    fit: NotRequired[Json | None]
    failure: NotRequired[str | None]
    patch: NotRequired[Json | None]
    hits: NotRequired[Json | None]
    history: NotRequired[Sequence[HistoryRow]]


class GuardShown(TypedDict):
    """The guard that edits are measured on, and, while it is read, the one in use meanwhile."""

    source: str
    number: int
    sha256: str | None
    at: str | None
    ready: bool
    in_use: int
    inputs: int
    right: int
    wrong: int
    left_out: int
    near_boundary: int


class OfKind(TypedDict):
    """Changed inputs of one kind, and the share that get the target; None where there are none."""

    texts: int
    right: float | None


class OfInput(OfKind):
    """Changed versions of an edit's input. `failures`: those that do not get the target."""

    kinds: Mapping[str, OfKind]
    failures: Sequence[Json]
    left_out: NotRequired[int]


class OfGuard(TypedDict):
    """Changed inputs of the guard: shares that are right by the unedited model and now, and that it answers alike."""

    inputs: int
    texts: int
    before: float | None
    after: float | None
    unchanged: float | None
    failures: Sequence[Json]
    left_out: NotRequired[int]


class Robustness(TypedDict):
    """How an edit and the guard bear small changes of their inputs, at one revision."""

    edit_id: str
    revision: int
    seed: int
    versions: int
    input: OfInput
    guard: OfGuard | None


class Outcome(TypedDict):
    """What became of one imported line: an edit, or the problem that stood against it."""

    line: int
    edit_id: NotRequired[str]
    status: NotRequired[str]
    revision: NotRequired[int | None]
    error: NotRequired[Json]


class Page(TypedDict):
    """One page of a listing, newest first."""

    items: Sequence[Edit]
    next_cursor: str | None
