"""Every error a caller can meet, each with its HTTP status and stable code.

    ServiceError
        BadRequest 400          malformed_request
        NotFound 404            not_found
        MethodNotAllowed 405    method_not_allowed
        Conflict 409            NotLive not_live, NotReverted not_reverted, ConflictingEdit conflicting_edit,
                                NotCaughtUp not_caught_up, EditCancelled edit_cancelled
        RevisionMoved 412       revision_moved
        BodyTooLarge 413        body_too_large
        Unprocessable 422       invalid_request, UnknownLabel unknown_label, UnknownEditor unknown_editor,
                                BaselineEditor baseline_editor,
                                BadOptions bad_options, InputTooLong input_too_long, UnwritableTarget unwritable_target,
                                UnknownRevision unknown_revision, UnknownEdit unknown_edit,
                                IdempotencyKeyReused idempotency_key_reused, EditRejected edit_rejected,
                                EditFailed edit_failed
        BodyTooSlow 408         body_too_slow
        TooManyRequests 429     too_many_requests, QueueFull queue_full, Overloaded overloaded
        Unavailable 503         unavailable, WaitedTooLong waited_too_long; 499 ClientGone client_gone, told to nobody
        TimedOut 504            timed_out

What editors raise is translated into these in one table, `TRANSLATED`; a test proves it complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from editors import errors as editor_errors


class ServiceError(Exception):
    """The root of every error that a caller can meet. `detail` is a sentence that names the thing and the value."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "The service failed"

    def __init__(self, detail: str, *, headers: Mapping[str, str] | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = members
        """Further members of the problem document."""


class BadRequest(ServiceError):
    status, code, title = 400, "malformed_request", "The request cannot be read"


class NotFound(ServiceError):
    status, code, title = 404, "not_found", "There is no such thing"


class MethodNotAllowed(ServiceError):
    status, code, title = 405, "method_not_allowed", "This resource has no such method"


class Conflict(ServiceError):
    status, code, title = 409, "conflict", "The request conflicts with the present state"


class NotLive(Conflict):
    code, title = "not_live", "The edit is not live"


class NotReverted(Conflict):
    code, title = "not_reverted", "The edit is not reverted"


class ConflictingEdit(Conflict):
    code, title = "conflicting_edit", "Another live edit wants a different answer for the same input"

    def __init__(self, detail: str, conflicts: Sequence[str]) -> None:
        super().__init__(detail, conflicts=list(conflicts))


class NotCaughtUp(Conflict):
    code, title = "not_caught_up", "This process has not caught up with that revision yet"


class EditCancelled(Conflict):
    code, title = "edit_cancelled", "The edit was cancelled"


class RevisionMoved(ServiceError):
    status, code, title = 412, "revision_moved", "The revision has moved on"


class BodyTooLarge(ServiceError):
    status, code, title = 413, "body_too_large", "The body of the request is too large"


class Unprocessable(ServiceError):
    status, code, title = 422, "invalid_request", "The request is not valid"


class UnknownLabel(Unprocessable):
    code, title = "unknown_label", "The model has no such label"


class UnknownEditor(Unprocessable):
    code, title = "unknown_editor", "There is no such editor"


class BaselineEditor(Unprocessable):
    code, title = "baseline_editor", "The editor is a baseline, and not for live edits"

    def __init__(self, editor: str) -> None:
        super().__init__(
            f"The editor {editor!r} is a baseline, to measure others against; its edits may go live only with "
            "ERRATA_BASELINES=on."
        )


class BadOptions(Unprocessable):
    code, title = "bad_options", "The editor does not take these options"


class InputTooLong(Unprocessable):
    code, title = "input_too_long", "The input is longer than the model reads"


class UnwritableTarget(Unprocessable):
    code, title = "unwritable_target", "The model's tokenizer cannot write the target"


class UnknownRevision(Unprocessable):
    code, title = "unknown_revision", "There is no such revision"


class UnknownEdit(Unprocessable):
    code, title = "unknown_edit", "There is no such edit"


class IdempotencyKeyReused(Unprocessable):
    code, title = "idempotency_key_reused", "The idempotency key was used for another request"


class EditRejected(Unprocessable):
    code, title = "edit_rejected", "The edit did not pass its gates"


class EditFailed(Unprocessable):
    code, title = "edit_failed", "No patch could be learned"


class BodyTooSlow(ServiceError):
    status, code, title = 408, "body_too_slow", "The body of the request did not arrive"


class TooManyRequests(ServiceError):
    status, code, title = 429, "too_many_requests", "Too much is asked at once"


class QueueFull(TooManyRequests):
    code, title = "queue_full", "Too many edits are waiting"


class Overloaded(TooManyRequests):
    code, title = "overloaded", "The service has as much to answer as it takes"


class Unavailable(ServiceError):
    status, code, title = 503, "unavailable", "The service is not ready"


class WaitedTooLong(Unavailable):
    code, title = "waited_too_long", "The request waited too long for its turn"


class ClientGone(Unavailable):
    status, code, title = 499, "client_gone", "The client went away"


class TimedOut(ServiceError):
    status, code, title = 504, "timed_out", "The answer took too long"


REFUSALS: tuple[type[ServiceError], ...] = (QueueFull, Overloaded, WaitedTooLong, TimedOut, BodyTooSlow)
"""What callers meet when more is asked than the service does; counted by code."""


TRANSLATED: Mapping[type[editor_errors.EditorError], type[ServiceError]] = {
    editor_errors.UnsupportedModel: Unavailable,
    editor_errors.UnknownEditor: UnknownEditor,
    editor_errors.BadOptions: BadOptions,
    editor_errors.FitFailed: EditFailed,
    editor_errors.NotFinite: EditFailed,
    editor_errors.CorruptPatch: Unavailable,
    editor_errors.ForeignPatch: Unavailable,
}
"""What each error of the editors is to a caller."""


def translate(error: editor_errors.EditorError) -> ServiceError:
    """The error a caller should meet for an error of the editors."""
    return TRANSLATED[type(error)](str(error))
