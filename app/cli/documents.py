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
