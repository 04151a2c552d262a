"""HTTP in, one call, HTTP out."""

from __future__ import annotations

from fastapi import FastAPI

from app.routes import edits, guard, model, predict, process, revisions, robustness
from app.routes.middleware import BoundedBody, BoundedRequests, RequestContext
from app.routes.openai import routes as openai
from app.routes.problems import add_problem_handlers
from app.routes.service import Service
from app.settings import Settings

__all__ = ["Service", "add_routes"]


def add_routes(app: FastAPI, settings: Settings) -> None:
    """Everything a caller can reach."""
    app.router.routes.extend(predict.router.routes)  # FastAPI looks through what is included twice at each request
    for room in (edits, robustness, revisions, model, guard, process, openai):
        app.include_router(room.router)
    add_problem_handlers(app)
    larger = dict.fromkeys(("/edits/import", "/guard"), settings.max_import_bytes)
    metrics = app.state.service.metrics
    app.add_middleware(
        BoundedBody, limit=settings.max_body_bytes, larger=larger, at_once=settings.max_buffered_bytes, metrics=metrics
    )
    app.add_middleware(BoundedRequests, limit=settings.max_requests, metrics=metrics)
    app.add_middleware(RequestContext, metrics=metrics)
