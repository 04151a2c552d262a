"""GET /model: what is served, and what can be asked of it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as validated

from app.routes.problems import problems
from app.routes.service import ServiceOf
from app.settings import Settings
from editors.layers import Family
from editors.types import Editor

router = APIRouter(tags=["model"])


class EditorOut(BaseModel):
    """An editor and the JSON schema of its options."""

    name: str
    version: int
    default: bool
    baseline: bool = Field(description="Whether it is there to be measured against, and not for live edits.")
    options: dict[str, Any]


class ModelOut(BaseModel):
    """The deployed model, as this process serves it."""

    id: str
    fingerprint: str
    task: str
    labels: list[str] = Field(description="What a classifier can answer; none of a generating model.")
    end_tokens: list[str] = Field(description="What ends an answer of a generating model; edits are taught the first.")
    decoding: dict[str, Any] = Field(description="The model's own settings that shape its answers.")
    device: str
    dtype: str
    site: str
    hidden_size: int = Field(description="The width of what patches read and write.")
    revision: int
    live_edits: int
    memory_rows: int
    memory_left_out: int
    guard_rows: int
    editors: list[EditorOut]
    limits: dict[str, float]


@router.get("/model", responses=problems())
async def show(response: Response, service: ServiceOf) -> ModelOut:
    """The model, its labels, the editors and the limits."""
    parts, settings = service.parts, service.settings
    model, live = parts.engine.model, parts.engine.live
    response.headers["X-Model-Revision"] = str(live.revision)
    return ModelOut(
        id=model.name,
        fingerprint=model.fingerprint,
        task=model.task,
        labels=list(model.labels),
        end_tokens=list(model.end_tokens),
        decoding=dict(model.decoding_settings),
        device=str(model.device),
        dtype=model.dtype,
        site=model.site.name,
        hidden_size=model.hidden_size,
        revision=live.revision,
        live_edits=int(live.alive.sum()),
        memory_rows=len(parts.memory),
        memory_left_out=parts.memory.known.missed + parts.memory.known.left_out,
        guard_rows=len(parts.memory.guard),
        editors=[_editor_out(editor, settings, model.sites.family) for editor in parts.editors.values()],
        limits={**_limits(settings), "max_input_tokens": model.max_tokens},
    )


def _editor_out(editor: Editor, settings: Settings, family: Family) -> EditorOut:
    schema = TypeAdapter(validated(editor.options, config=ConfigDict(extra="forbid"), frozen=True)).json_schema()
    for name, value in editor.defaults(family).items():
        schema["properties"][name]["default"] = value
    return EditorOut(
        name=editor.name,
        version=editor.version,
        default=editor.name == settings.editor,
        baseline=editor.baseline,
        options=schema,
    )


def _limits(settings: Settings) -> dict[str, float]:
    return {name: value for name, value in settings.model_dump().items() if name.startswith("max_")}
