"""Whether the database is what its hashes say, and the model answers what was recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.editing.outcome import Answers, Encoded
from app.engine import Engine
from app.follower import Follower
from app.store import EditRecord, HistoryRow, Ledger
from editors.errors import EditorError

TOLERANCE = 1e-5
"""How far a recomputed score may be from the recorded one: another batch moves the last bits of a model."""


_JUDGED = frozenset({"live", "reapplied", "refitted"})
"""What follows a judgement; other events let an edit in with the evidence that it has."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked. `detail` is a sentence."""

    checked: str
    ok: bool
    detail: str


async def audit(ledger: Ledger, engine: Engine, follower: Follower, *, new_tokens: int) -> list[Finding]:
    """Hash chains and patches by the store's own check, then every edit that is live, answered again."""
    findings = [Finding(flaw.where, False, flaw.what) for flaw in ledger.verify()]
    try:
        live = await follower.catch_up()
    except EditorError as error:
        return [*findings, Finding("serving", False, f"What is live cannot be served: {error}")]
    if not findings:
        sound = f"History, revisions 0 to {live.revision} and every patch match their hashes."
        findings.append(Finding("ledger", True, sound))
    return findings + [await _answered_again(ledger.edit(edit_id), engine, new_tokens) for edit_id in live.live_edits()]


async def _answered_again(record: EditRecord, engine: Engine, new_tokens: int) -> Finding:
    """The edit's input under the revision for which its answer was recorded."""
    assert record.after is not None
    judged = _judged(record.history)
    encoded = Encoded.of(engine.model, record.draft)
    view = engine.live.view(as_of=judged)
    now = (await Answers.under(engine, encoded, view, new_tokens=new_tokens)).prediction
    then, said = record.after["prediction"], _said(asdict(now))
    same = _said(then, short=True) == _said(asdict(now), short=True)
    same = same and abs(then.get("score", 0.0) - getattr(now, "score", 0.0)) <= TOLERANCE
    detail = f"answers {said} as recorded" if same else f"recorded {_said(then)}, answers {said}"
    return Finding(f"edit {record.id}", same, f"{record.draft.input!r} {detail}.")


def _judged(history: Sequence[HistoryRow]) -> int:
    """The revision for which the evidence that an edit has was recorded.

    A restore may bring back an earlier patch with the evidence of its own time, which its row names by its digest.
    """
    sealed = [row for row in history if "evidence" in row.detail]
    last = sealed[-1].detail["evidence"]
    revisions = [row.detail["revision"] for row in sealed if row.detail["evidence"] == last and row.event in _JUDGED]
    return int(revisions[-1])


def _said(prediction: Mapping[str, Any], *, short: bool = False) -> str:
    """A recorded answer, with its score unless `short`."""
    if "text" in prediction:
        return repr(prediction["text"])
    label = str(prediction["label"])
    return label if short else f"{label} ({prediction['score']:.6f})"
