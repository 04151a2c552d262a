"""What a report is as it comes in, and what is answered once its edit has ended."""

from __future__ import annotations

from app.editing import Report
from app.editing.editing import rejection
from app.editing.worker import NO_CONFLICT
from app.errors import ConflictingEdit, EditCancelled, EditFailed, ServiceError
from app.routes.schemas import EditIn, check_texts
from app.settings import Settings
from app.store import IN_WORK, EditRecord, Status


def report_of(body: EditIn, settings: Settings) -> Report:
    """The report that a body makes. Raises Unprocessable for texts beyond the limits."""
    check_texts([body.input], "input", at_most=1, settings=settings)
    check_texts(body.rephrases, "rephrases", at_most=settings.max_rephrases, settings=settings)
    check_texts(body.keep, "keep", at_most=settings.max_rephrases, settings=settings)
    return Report(
        input=body.input,
        target=body.target,
        rephrases=tuple(body.rephrases),
        keep=tuple(body.keep),
        editor=body.editor,
        options=body.options,
        reason=body.reason,
        reporter=body.reporter,
        dry_run=body.dry_run,
        supersedes=body.supersedes,
        required=body.required.model_dump(exclude_none=True),
    )


def outcome_of(record: EditRecord) -> int:
    """The status of the answer to a report. Raises for one that came to nothing."""
    if record.status in IN_WORK:
        return 202
    if record.status is Status.REJECTED:
        raise _rejection(record)
    if record.status is Status.FAILED:
        raise EditFailed(record.failure or "The fit failed.", edit_id=record.id)
    if record.status is Status.CANCELLED:
        raise EditCancelled(f"Edit {record.id} was cancelled.", edit_id=record.id)
    return 201 if record.status is Status.LIVE else 200


def _rejection(record: EditRecord) -> ServiceError:
    verdict = record.verdict or {"gates": []}
    for gate in verdict["gates"]:
        if gate["name"] == NO_CONFLICT:
            ids = [failure["edit_id"] for failure in gate["failures"]]
            detail = f"Another answer for this input went live first: {', '.join(ids)}."
            return ConflictingEdit(f"{detail} Name that edit in `supersedes` to replace it.", ids)
    return rejection(record.id, verdict)
