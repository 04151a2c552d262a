"""/edits: report a mistake, see its whole life, revert it, apply it again, move many at once."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from app.errors import BadRequest
from app.routes.answering import wanted
from app.routes.importing import Importing
from app.routes.problems import problems
from app.routes.reports import outcome_of, report_of
from app.routes.schemas import EditId, EditIn, EditOut, EditsOut, Note, RequiredIn
from app.routes.service import Actor, Editing, Engine, IfMatch, Ledger, ServiceOf, SettingsOf, Wait
from app.store import EditRecord, IdempotencyKey, Status

router = APIRouter(prefix="/edits", tags=["edits"])

JSON_LINES = "application/jsonl"
_IN_JSON_LINES: dict[str, Any] = {"content": {JSON_LINES: {}}}
SAFETENSORS = "application/octet-stream"
Id = Annotated[EditId, Path()]
Key = Annotated[
    str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255, description="Makes a retry safe.")
]


async def _existing(edit_id: Id, editing: Editing) -> EditRecord:
    """The edit, before a stream about it begins. Raises NotFound."""
    return await editing.record(edit_id)


async def _last_seen(
    last_event_id: Annotated[str | None, Header(description="Resume after this event.")] = None,
) -> int:
    """The history row after which to go on; 0 for the beginning."""
    if last_event_id is None or last_event_id == "":
        return 0
    if not (last_event_id.isascii() and last_event_id.isdecimal() and len(last_event_id) <= 18):
        raise BadRequest(f"Last-Event-ID is {last_event_id!r}; it must be the id of an event of this edit.")
    return int(last_event_id)


Existing = Annotated[EditRecord, Depends(_existing)]
LastSeen = Annotated[int, Depends(_last_seen)]


@router.post(
    "",
    status_code=202,
    responses={
        **problems(409, 412, 413, 429),
        200: {"model": EditOut, "description": "Not needed, or a dry run that passed."},
        201: {"model": EditOut, "description": "Live."},
    },
)
async def report(
    body: EditIn,
    request: Request,
    response: Response,
    editing: Editing,
    engine: Engine,
    settings: SettingsOf,
    actor: Actor,
    wait: Wait,
    if_match: IfMatch,
    key: Key = None,
) -> EditOut:
    """Report a mistake. The answer comes at once, or, with `Prefer: wait`, when the edit has ended.

    `If-Match` is checked as the report is accepted, not again when the edit goes live.
    """
    accepted = await editing.report(
        report_of(body, settings),
        actor=actor,
        key=None if key is None else IdempotencyKey(key, _body_hash(body)),
        if_match=if_match,
    )
    async with wanted(request):  # the edit goes on without whoever waited for it
        record = await editing.wait(accepted.edit_id, wait)
    response.status_code = outcome_of(record)
    response.headers["Location"] = f"/edits/{record.id}"
    if wait:
        response.headers["Preference-Applied"] = f"wait={wait:.0f}"
    response.headers["X-Model-Revision"] = str(engine.live.revision)
    return EditOut.of(record)


@router.get("", responses=problems())
async def list_edits(
    response: Response,
    ledger: Ledger,
    engine: Engine,
    settings: SettingsOf,
    status: Annotated[Status | None, Query()] = None,
    editor: Annotated[str | None, Query(max_length=100, pattern=r"^[^\x00]*$")] = None,
    q: Annotated[Note | None, Query(description="Part of the input, the target or the reason.")] = None,
    limit: Annotated[int, Query(ge=1)] = 50,
    cursor: Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00]*$")] = None,
) -> EditsOut:
    """Edits, newest first."""
    page = await asyncio.to_thread(
        ledger.edits, status=status, editor=editor, q=q, limit=min(limit, settings.max_page), cursor=cursor
    )
    response.headers["X-Model-Revision"] = str(engine.live.revision)
    return EditsOut(items=[EditOut.of(record) for record in page.items], next_cursor=page.next_cursor)


@router.post(
    "/import", response_class=StreamingResponse, responses={**problems(413), 200: {"content": {JSON_LINES: {}}}}
)
async def import_edits(request: Request, service: ServiceOf, actor: Actor) -> StreamingResponse:
    """Make every line an edit, in their order; a bad line is answered as such and the others go on."""
    lines = [(number, line) for number, line in enumerate((await request.body()).splitlines(), start=1) if line.strip()]
    importing = Importing(service.parts.editing, service.settings, actor)

    async def outcomes() -> AsyncIterator[bytes]:
        async for number, outcome in importing.outcomes(lines):
            yield json.dumps({"line": number, **outcome}).encode() + b"\n"

    return StreamingResponse(outcomes(), media_type=JSON_LINES)


@router.get("/export", response_class=StreamingResponse, responses={**problems(), 200: _IN_JSON_LINES})
async def export_edits(ledger: Ledger, engine: Engine) -> StreamingResponse:
    """Every live edit as a line that `import` takes, in ledger order."""
    live = engine.live

    async def lines() -> AsyncIterator[bytes]:
        for edit_id in live.live_edits():
            record = await asyncio.to_thread(ledger.edit, edit_id)
            yield json.dumps(_as_report(record), ensure_ascii=False).encode() + b"\n"

    return StreamingResponse(lines(), media_type=JSON_LINES, headers={"X-Model-Revision": str(live.revision)})


@router.get("/{edit_id}", responses=problems(404))
async def show(edit_id: Id, response: Response, editing: Editing, engine: Engine) -> EditOut:
    """The audit record: what was wrong, what was learned, how it was judged, what happened since."""
    record = await editing.record(edit_id)
    response.headers["X-Model-Revision"] = str(engine.live.revision)
    return EditOut.of(record)


@router.get("/{edit_id}/patch", responses={**problems(404), 200: {"content": {SAFETENSORS: {}}}})
async def patch(edit_id: Id, ledger: Ledger) -> Response:
    """The patch itself, as safetensors bytes."""
    sha256, data = await asyncio.to_thread(ledger.patch_of, edit_id)
    return Response(data, media_type=SAFETENSORS, headers={"ETag": f'"{sha256}"'})


@router.get("/{edit_id}/events", response_class=EventSourceResponse, responses=problems(404))
async def events(record: Existing, after: LastSeen, editing: Editing) -> AsyncIterator[ServerSentEvent]:
    """The edit's life as server-sent events: `status`, `progress`, `verdict`, until it ends."""
    async for event in editing.events(record.id, after):
        yield ServerSentEvent(event=event.kind, id=str(event.number), data=event.content)


@router.delete("/{edit_id}", responses=problems(404, 409, 412))
async def revert(
    edit_id: Id,
    response: Response,
    editing: Editing,
    engine: Engine,
    actor: Actor,
    if_match: IfMatch,
    reason: Annotated[Note, Query()] = "",
) -> EditOut:
    """Take the edit's patch out of service. The record stays; a new revision is made."""
    record, verdict = await editing.revert(edit_id, actor=actor, reason=reason, if_match=if_match)
    response.headers["X-Model-Revision"] = str(engine.live.revision)
    return EditOut.of(replace(record, verdict=verdict))


@router.post("/{edit_id}/reapply", responses=problems(404, 409, 412))
async def reapply(
    edit_id: Id, response: Response, editing: Editing, engine: Engine, actor: Actor, if_match: IfMatch
) -> EditOut:
    """Make a reverted edit live again with the patch it had. Judged again, not fitted again."""
    record = await editing.reapply(edit_id, actor=actor, if_match=if_match)
    response.headers["X-Model-Revision"] = str(engine.live.revision)
    return EditOut.of(record)


def _body_hash(body: EditIn) -> str:
    given = body.model_dump(mode="json")
    if body.required == RequiredIn():
        del given["required"]  # as keys were kept before there were requirements
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()


def _as_report(record: EditRecord) -> dict[str, Any]:
    draft = record.draft
    return {
        "input": draft.input,
        "target": draft.target,
        "rephrases": list(draft.rephrases),
        "keep": list(draft.keep),
        "editor": draft.editor,
        "options": dict(draft.options),
        "reason": draft.reason,
        "reporter": draft.reporter,
        **({"required": dict(draft.required)} if draft.required else {}),
    }
