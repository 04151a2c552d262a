"""What an operator's tools ask of the process."""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from app.routes.problems import problems
from app.routes.service import ServiceOf

router = APIRouter(tags=["process"])


class AliveOut(BaseModel):
    status: Literal["alive"] = "alive"


class ReadyOut(BaseModel):
    status: Literal["ready"] = "ready"
    revision: int


@router.get("/livez")
async def livez() -> AliveOut:
    """The process answers."""
    return AliveOut()


@router.get("/readyz", responses=problems())
async def readyz(service: ServiceOf) -> ReadyOut:
    """The model is loaded and the process has caught up; 503 until then."""
    return ReadyOut(revision=service.parts.engine.live.revision)


@router.get("/metrics", response_class=Response, responses={200: {"content": {CONTENT_TYPE_LATEST: {}}}})
async def metrics(service: ServiceOf) -> Response:
    """Prometheus metrics."""
    if service.ready:
        service.metrics.queue_depth.set(await asyncio.to_thread(service.parts.ledger.waiting))
    return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
