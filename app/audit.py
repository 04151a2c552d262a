"""Whether the database is what its hashes say, and the model answers what was recorded."""

from __future__ import annotations

from dataclasses import dataclass

from app.editing.outcome import Answers, Encoded
from app.engine import Engine
from app.follower import Follower
from app.store import EditRecord, Ledger
from editors.errors import EditorError

TOLERANCE = 1e-5
"""How far a recomputed score may be from the recorded one: another batch moves the last bits of a model."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked. `detail` is a sentence."""

    checked: str
    ok: bool
    detail: str


async def audit(ledger: Ledger, engine: Engine, follower: Follower) -> list[Finding]:
    """Hash chains and patches by the store's own check, then every edit that is live, answered again."""
    findings = [Finding(flaw.where, False, flaw.what) for flaw in ledger.verify()]
    try:
        live = await follower.catch_up()
    except EditorError as error:
        return [*findings, Finding("serving", False, f"What is live cannot be served: {error}")]
    if not findings:
        sound = f"History, revisions 0 to {live.revision} and every patch match their hashes."
        findings.append(Finding("ledger", True, sound))
    return findings + [await _answered_again(ledger.edit(edit_id), engine) for edit_id in live.live_edits()]


async def _answered_again(record: EditRecord, engine: Engine) -> Finding:
    """The edit's input under the revision for which its answer was recorded: when it was last judged to go live."""
    assert record.after is not None
    judged = [row.detail["revision"] for row in record.history if row.event in ("live", "reapplied")][-1]
    encoded = Encoded.of(engine.model, record.draft)
    now = (await Answers.under(engine, encoded, engine.live.view(as_of=judged))).prediction
    then = record.after["prediction"]
    same = now.label == then["label"] and abs(now.score - then["score"]) <= TOLERANCE
    said = f"{then['label']} ({then['score']:.6f})"
    detail = f"answers {said} as recorded" if same else f"recorded {said}, answers {now.label} ({now.score:.6f})"
    return Finding(f"edit {record.id}", same, f"{record.draft.input!r} {detail}.")
