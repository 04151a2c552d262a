"""/revisions: every numbered set of live patches there ever was. None is removed or changed."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from app.routes.problems import problems
from app.routes.schemas import DiffOut, RevisionDetailOut, RevisionNumber, RevisionOut, RevisionsOut
from app.routes.service import Actor, Editing, Engine, IfMatch, Ledger, SettingsOf

router = APIRouter(prefix="/revisions", tags=["revisions"])

Number = Annotated[RevisionNumber, Path()]


@router.get("", responses=problems())
async def list_revisions(
    response: Response,
    ledger: Ledger,
    engine: Engine,
    settings: SettingsOf,
    limit: Annotated[int, Query(ge=1)] = 50,
    cursor: Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00]*$")] = None,
) -> RevisionsOut:
    """Revisions, newest first."""
    page = await asyncio.to_thread(ledger.revisions, limit=min(limit, settings.max_page), cursor=cursor)
    response.headers["X-Model-Revision"] = str(engine.live.revision)
    return RevisionsOut(items=[RevisionOut.of(record) for record in page.items], next_cursor=page.next_cursor)


@router.get("/{number}", responses=problems(404))
async def show(number: Number, ledger: Ledger) -> RevisionDetailOut:
    """One revision: why it was made, by whom, and what is live in it."""
    record = await asyncio.to_thread(ledger.revision, number)
    live = await asyncio.to_thread(ledger.live_edits, number)
    return RevisionDetailOut(**RevisionOut.of(record).model_dump(), live=list(live))


@router.get("/{a}/diff/{b}", responses=problems(404))
async def diff(a: Number, b: Number, ledger: Ledger) -> DiffOut:
    """Which edits are live in b and not in a, and the other way round."""
    for number in (a, b):
        await asyncio.to_thread(ledger.revision, number)
    before, after = [await asyncio.to_thread(ledger.live_edits, number) for number in (a, b)]
    return DiffOut(
        a=a,
        b=b,
        added=[edit_id for edit_id in after if edit_id not in set(before)],
        removed=[edit_id for edit_id in before if edit_id not in set(after)],
    )


@router.post("/{number}/restore", status_code=201, responses=problems(404, 412))
async def restore(
    number: Number, response: Response, editing: Editing, engine: Engine, actor: Actor, if_match: IfMatch
) -> RevisionOut:
    """Serve the patches of an earlier revision again, as a new revision."""
    record = await editing.restore(number, actor=actor, if_match=if_match)
    response.headers["Location"] = f"/revisions/{record.number}"
    response.headers["X-Model-Revision"] = str(engine.live.revision)
    return RevisionOut.of(record)
