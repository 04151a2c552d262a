"""/guard: inputs that no edit may change. What is put is kept in the database, and goes before the files."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from app.guarding import GuardState
from app.routes.answering import wanted
from app.routes.problems import problems
from app.routes.service import Actor, Engine, Guarding, Wait

router = APIRouter(prefix="/guard", tags=["guard"])

JSON_LINES = "application/jsonl"
SECONDS_TO_GO_BACK = 2.0
"""The guard of the files is at hand, so that nobody waits longer for it."""


class GuardOut(BaseModel):
    """What edits are measured on."""

    source: Literal["put", "guard file", "memory file", "none"]
    number: int = Field(description="Counts what was put; 0 for a guard from a file.")
    sha256: str | None = Field(description="Of the bytes that were put.")
    at: datetime | None
    actor: str | None
    ready: bool = Field(description="Whether the model has read it. Until it has, edits wait.")
    in_use: int = Field(description="The number of the guard that removals are measured on meanwhile.")
    inputs: int
    right: int = Field(description="Inputs of the one in use that the unedited model gets right; these may not change.")
    wrong: int = Field(description="Those that it gets wrong: watched, and reported, but free to change.")
    left_out: int = Field(description="Lines of a file whose target the model cannot answer.")
    near_boundary: int = Field(description="Of those in use the inputs between whose two likeliest answers is little.")

    @classmethod
    def of(cls, state: GuardState) -> GuardOut:
        put, known = state.put, state.in_use.known
        return cls(
            source=state.source,
            number=0 if put is None else put.number,
            sha256=None if put is None else put.sha256,
            at=None if put is None else put.at,
            actor=None if put is None else put.actor,
            ready=state.ready,
            in_use=state.in_use.number,
            inputs=len(known) + known.left_out if put is None else put.inputs,
            right=len(known) - known.missed,
            wrong=known.missed,
            left_out=known.left_out,
            near_boundary=int(state.in_use.near_boundary.sum()),
        )


@router.get("", responses=problems())
async def show(response: Response, guarding: Guarding, engine: Engine) -> GuardOut:
    """The guard that edits are measured on before they go live."""
    response.headers["X-Model-Revision"] = str(engine.live.revision)
    return GuardOut.of(await guarding.state())


@router.put(
    "",
    responses=problems(413),
    openapi_extra={"requestBody": {"content": {JSON_LINES: {"schema": {"type": "string"}}}, "required": True}},
)
async def put(
    request: Request, response: Response, guarding: Guarding, engine: Engine, actor: Actor, wait: Wait
) -> GuardOut:
    """Measure edits on these inputs from now on: JSON Lines of `input`, with a known-good `target` where there is one.

    All of it is refused for one bad line. `Prefer: wait` waits until the model has read the inputs.
    """
    await guarding.put(await request.body(), actor=actor)
    async with wanted(request):
        await guarding.wait(wait)
    response.headers["X-Model-Revision"] = str(engine.live.revision)
    return GuardOut.of(await guarding.state())


@router.delete("", responses=problems())
async def withdraw(response: Response, guarding: Guarding, engine: Engine, actor: Actor, wait: Wait) -> GuardOut:
    """Measure edits on the guard of the files again. What was put stays in the history."""
    await guarding.withdraw(actor=actor)
    await guarding.wait(max(wait, SECONDS_TO_GO_BACK))
    response.headers["X-Model-Revision"] = str(engine.live.revision)
    return GuardOut.of(await guarding.state())


@router.get("/inputs", response_class=Response, responses={**problems(), 200: {"content": {JSON_LINES: {}}}})
async def inputs(guarding: Guarding) -> Response:
    """The guard as it was put, as JSON Lines; nothing if none was."""
    return Response(await guarding.content(), media_type=JSON_LINES)
