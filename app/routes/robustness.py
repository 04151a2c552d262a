"""GET /edits/<id>/robustness: how an edit, and the guard, bear small changes of their inputs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, Field

from app.routes.answering import unless_gone
from app.routes.problems import problems
from app.routes.schemas import EditId
from app.routes.service import Editing

router = APIRouter(prefix="/edits", tags=["edits"])


class KindOfChangeOut(BaseModel):
    """Changed inputs of one kind."""

    texts: int
    right: float | None


class MissedOut(BaseModel):
    kind: str
    text: str
    now: str


class InputRobustnessOut(BaseModel):
    """Changed versions of an edit's input; shares of none are null."""

    texts: int
    right: float | None = Field(description="Share that get the target.")
    kinds: dict[str, KindOfChangeOut]
    failures: list[MissedOut] = Field(description="100 at most.")
    left_out: int = Field(description="Versions that do not fit the model.")


class ChangedOut(BaseModel):
    input: str
    kind: str
    text: str
    was: str
    now: str


class GuardRobustnessOut(BaseModel):
    """Changed inputs of the guard, one version each; shares of none are null."""

    inputs: int
    texts: int
    before: float | None = Field(description="Share that the unedited model answers as it should the input itself.")
    after: float | None = Field(description="The same share now.")
    unchanged: float | None = Field(description="Share that is answered as the unedited model answers the same text.")
    failures: list[ChangedOut] = Field(description="Those that are not; 100 at most.")
    left_out: int = Field(description="Inputs that nothing changes, or whose version does not fit the model.")


class RobustnessOut(BaseModel):
    """How an edit and the guard bear small changes of their inputs."""

    edit_id: str
    revision: int
    seed: int
    versions: int
    input: InputRobustnessOut
    guard: GuardRobustnessOut | None


@router.get("/{edit_id}/robustness", responses=problems(404))
async def robustness(
    edit_id: Annotated[EditId, Path()],
    request: Request,
    response: Response,
    editing: Editing,
    seed: Annotated[int, Query(ge=0, le=2**31 - 1, description="The same seed makes the same texts.")] = 0,
    versions: Annotated[int, Query(ge=1, le=20, description="Changed inputs of each kind, at most.")] = 5,
    guard: Annotated[bool, Query(description="Whether inputs of the guard are changed as well.")] = True,
) -> RobustnessOut:
    """How the edit bears typos, other capitals or punctuation and dropped words in its input, and the guard the same.

    Measured now, at the live revision, whether the edit is live in it or not. Nothing is stored.
    """
    measuring = editing.robustness(edit_id, seed=seed, versions=versions, guard=guard)
    measured = await unless_gone(request, measuring)
    response.headers["X-Model-Revision"] = str(measured.revision)
    return RobustnessOut.model_validate(asdict(measured))
