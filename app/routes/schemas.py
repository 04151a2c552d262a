"""The shapes of requests and answers. Unknown fields are refused."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from app.engine import Answer
from app.errors import Unprocessable
from app.model import Answered, Generation, Prediction
from app.settings import Settings
from app.store import EditRecord, HistoryRow, RevisionRecord

Text = Annotated[str, Field(pattern=r"^[^\x00]*[^\s\x00][^\x00]*$", max_length=1_000_000)]
"""A text that says something."""
Note = Annotated[str, Field(pattern=r"^[^\x00]*$", max_length=10_000)]
"""Free text, kept for the audit."""
EditId = Annotated[
    str,
    Field(
        pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
        description="UUIDv7, lower case.",
        json_schema_extra={"format": "uuid"},
    ),
]
RevisionNumber = Annotated[int, Field(ge=0, le=2**53 - 1)]


class Closed(BaseModel):
    """A request body: no unknown fields, no silent conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class GenerationIn(Closed):
    """How a generating model writes: greedily, unless `do_sample`. The same seed draws the same answer."""

    max_new_tokens: int | None = Field(None, ge=1, description="Default: the service's setting.")
    do_sample: bool = False
    temperature: float | None = Field(None, ge=0.0001, le=100)
    top_k: int | None = Field(None, ge=1, le=10**6)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int = Field(0, ge=0, le=2**63 - 1)
    stop: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        [], max_length=4, description="Texts before which an answer ends."
    )


class Under(Closed):
    """Under which edits to answer."""

    edits: Literal["on", "off"] = "on"
    as_of: RevisionNumber | None = None
    min_revision: RevisionNumber | None = None
    exclude: list[EditId] = Field(default=[], max_length=10_000)


class PredictIn(Under):
    """What to answer, and under which edits."""

    inputs: list[Text] = Field(min_length=1, examples=[["where is my bike"]])
    explain: bool = False
    generation: GenerationIn | None = Field(None, description="Generating models only.")
    stream: bool = Field(False, description="Generating models only: answer as server-sent events, token by token.")


class FiredOut(BaseModel):
    edit_id: str
    strength: float = Field(description="The largest activation among the patch's neurons.")
    positions: int | None = Field(None, description="Generating models: on how many positions of the answer it acted.")


class LabelOut(BaseModel):
    """A classifier's answer."""

    label: str
    score: float
    scores: dict[str, float]


class TextOut(BaseModel):
    """A generating model's answer."""

    text: str
    finish_reason: Literal["stop", "length"]


AnsweredOut = LabelOut | TextOut


class LabelPredictionOut(LabelOut):
    fired: list[FiredOut]
    base: LabelOut | None = Field(None, description="What the unedited model says.")


class TextPredictionOut(TextOut):
    fired: list[FiredOut]
    base: TextOut | None = Field(None, description="What the unedited model says.")


PredictionOut = LabelPredictionOut | TextPredictionOut


class PredictOut(BaseModel):
    revision: int
    model: str
    predictions: list[PredictionOut]


class PieceOut(BaseModel):
    """Of a stream: some more text of the answer to input `index`."""

    index: int
    text: str


class WholeOut(BaseModel):
    """Of a stream: the whole answer to input `index`."""

    index: int
    prediction: PredictionOut


class DoneOut(BaseModel):
    """Of a stream: its end."""

    revision: int
    model: str


Share = Annotated[float, Field(ge=0, le=1)]


class RequiredIn(Closed):
    """What gates shall require of this edit; never less than the service does."""

    rephrases_hold: Share | None = None
    guard_unchanged: Share | None = None
    guard_fires: Share | None = Field(default=None, description="At most.")
    other_edits_hold: Share | None = None


class EditIn(Closed):
    """A mistake: what went in, and what should have come out."""

    input: Text
    target: Text
    rephrases: list[Text] = []
    keep: list[Text] = []
    editor: Annotated[str, Field(max_length=100)] | None = None
    options: dict[str, JsonValue] = {}
    reason: Note = ""
    reporter: Note = ""
    dry_run: bool = False
    supersedes: EditId | None = None
    required: RequiredIn = RequiredIn()


class RecordedAnswers(BaseModel):
    prediction: AnsweredOut
    rephrases: list[AnsweredOut]


class GateOut(BaseModel):
    name: str
    measured: float
    required: float
    passed: bool
    failures: list[dict[str, Any]]


class NearBoundaryOut(BaseModel):
    """Inputs of the guard between whose two likeliest answers there is little: they move first."""

    inputs: int
    changed: int
    failures: list[dict[str, Any]]


class ConsistencyOut(BaseModel):
    """How alike the model is to the unedited one on the guard, input by input (Zhang et al. 2021)."""

    pearson: float = Field(description="Correlation of the probabilities of what should be answered.")
    right_to_wrong: int
    wrong_to_right: int
    wrong_to_other_wrong: int


class GuardSeenOut(BaseModel):
    """What was seen of the guard beyond its gates."""

    number: int = Field(description="Of the guard that was put; 0 for one from a file.")
    inputs: int
    right: int = Field(description="Inputs that the unedited model gets right: those that the gates count.")
    near_boundary: NearBoundaryOut
    consistency: ConsistencyOut


class ConflictOut(BaseModel):
    """A live edit of nearly the same input that wants another answer."""

    edit_id: str
    input: str
    wanted: str
    similarity: float


class VerdictOut(BaseModel):
    passed: bool
    gates: list[GateOut]
    guard: GuardSeenOut | None = None
    conflicts: list[ConflictOut] = []


class FitOut(BaseModel):
    model_config = ConfigDict(extra="allow")

    steps: int
    seconds: float
    loss: float
    parameters: int
    seed: int


class PatchOut(BaseModel):
    sha256: str
    bytes: int
    format: str


class HitsOut(BaseModel):
    count: int
    last_at: datetime | None


class HistoryOut(BaseModel):
    at: datetime
    event: str
    actor: str
    detail: dict[str, Any]
    hash: str

    @classmethod
    def of(cls, row: HistoryRow) -> HistoryOut:
        return cls(at=row.at, event=row.event, actor=row.actor, detail=dict(row.detail), hash=row.hash)


class EditOut(BaseModel):
    """The audit record of an edit."""

    id: str
    status: str
    editor: str
    options: dict[str, Any]
    input: str
    target: str
    rephrases: list[str]
    keep: list[str]
    reason: str
    reporter: str
    dry_run: bool
    supersedes: str | None
    required: dict[str, float]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    revision: int | None
    refit_due: int | None = Field(description="The revision that broke the edit, while it waits to be fitted again.")
    reverted_at: datetime | None
    reverted_revision: int | None
    before: RecordedAnswers | None
    after: RecordedAnswers | None
    verdict: VerdictOut | None
    fit: FitOut | None
    failure: str | None
    patch: PatchOut | None
    hits: HitsOut
    history: list[HistoryOut]

    @classmethod
    def of(cls, record: EditRecord) -> EditOut:
        draft = record.draft
        return cls.model_validate(
            {
                **{name: getattr(draft, name) for name in _OF_DRAFT},
                **{name: getattr(record, name) for name in _OF_RECORD},
                "status": record.status.value,
                "options": dict(draft.options),
                "required": dict(draft.required),
                "rephrases": list(draft.rephrases),
                "keep": list(draft.keep),
                "patch": record.patch and {name: getattr(record.patch, name) for name in PatchOut.model_fields},
                "hits": {"count": record.hits, "last_at": record.last_hit_at},
                "history": [HistoryOut.of(row) for row in record.history],
            }
        )


_OF_DRAFT = ("input", "target", "editor", "reason", "reporter", "dry_run", "supersedes")
_OF_RECORD = (
    "id",
    "created_at",
    "started_at",
    "finished_at",
    "revision",
    "refit_due",
    "reverted_at",
    "reverted_revision",
    "before",
    "after",
    "verdict",
    "fit",
    "failure",
)


class EditsOut(BaseModel):
    items: list[EditOut]
    next_cursor: str | None


class RevisionOut(BaseModel):
    """One numbered set of live patches."""

    number: int
    cause: str
    edit_id: str | None
    actor: str
    at: datetime
    hash: str

    @classmethod
    def of(cls, record: RevisionRecord) -> RevisionOut:
        return cls.model_validate({**{name: getattr(record, name) for name in cls.model_fields}, "cause": record.cause})


class RevisionsOut(BaseModel):
    items: list[RevisionOut]
    next_cursor: str | None


class RevisionDetailOut(RevisionOut):
    live: list[str] = Field(description="The edits that are live in it, in ledger order.")


class DiffOut(BaseModel):
    """What changed from one revision to another."""

    a: int
    b: int
    added: list[str]
    removed: list[str]


def check_texts(texts: list[str], where: str, *, at_most: int, settings: Settings) -> None:
    """Refuse too many texts, and texts of too many characters."""
    if len(texts) > at_most:
        msg = f"{len(texts)} texts are given; at most {at_most} are taken"
        raise Unprocessable(f"body.{where}: {msg}.", errors=[{"loc": ["body", where], "msg": msg}])
    errors = [
        {"loc": ["body", where, index], "msg": f"has {len(text)} characters; at most {settings.max_input_characters}"}
        for index, text in enumerate(texts)
        if len(text) > settings.max_input_characters
    ]
    if errors:
        raise Unprocessable(f"body.{where}.{errors[0]['loc'][-1]}: {errors[0]['msg']}.", errors=errors)


def prediction_out(said: Answered, answer: Answer, base: Answered | None) -> PredictionOut:
    """One answer, as a caller sees it."""
    if isinstance(said, Generation):
        assert base is None or isinstance(base, Generation)
        return TextPredictionOut(
            text=said.text,
            finish_reason=_finish_reason(said),
            fired=[
                FiredOut(edit_id=each.edit_id, strength=each.strength, positions=each.positions)
                for each in answer.fired
            ],
            base=None if base is None else TextOut(text=base.text, finish_reason=_finish_reason(base)),
        )
    assert base is None or isinstance(base, Prediction)
    return LabelPredictionOut(
        label=said.label,
        score=said.score,
        scores=dict(said.scores),
        fired=[FiredOut(edit_id=each.edit_id, strength=each.strength, positions=None) for each in answer.fired],
        base=None if base is None else LabelOut(label=base.label, score=base.score, scores=dict(base.scores)),
    )


def _finish_reason(said: Generation) -> Literal["stop", "length"]:
    return "stop" if said.finish_reason == "stop" else "length"
