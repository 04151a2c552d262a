"""Every error as application/problem+json (RFC 9457), with a stable code; on /v1 in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from app.errors import BadRequest, MethodNotAllowed, NotFound, ServiceError, Unprocessable, translate
from app.routes.openai.errors import UNSUPPORTED, is_openai, openai_error
from editors.errors import EditorError

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"


class ErrorAt(BaseModel):
    """One thing that is wrong with a request, and where."""

    loc: list[str | int]
    msg: str


class Problem(BaseModel):
    """What every error answers."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[ErrorAt] | None = None

    @classmethod
    def of(cls, error: ServiceError) -> Problem:
        """The problem document of an error."""
        return cls.model_validate(
            {
                "type": f"urn:errata:problem:{error.code}",
                "title": error.title,
                "status": error.status,
                "detail": error.detail,
                "code": error.code,
                **error.members,
            }
        )


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI document: these statuses answer a problem."""
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": _SCHEMA}}}
        for status in sorted({400, 422, 503, *statuses})
    }


_SCHEMA = {"$ref": "#/components/schemas/Problem"}


def problem(error: ServiceError) -> JSONResponse:
    """The response for an error."""
    document = Problem.of(error).model_dump(exclude_unset=True)
    return JSONResponse(document, error.status, dict(error.headers), MEDIA_TYPE)


def error_at(path: str, error: ServiceError) -> JSONResponse:
    """The response for an error, in the shape that callers of this path read."""
    return openai_error(error) if is_openai(path) else problem(error)


def add_problem_handlers(app: FastAPI) -> None:
    """Let every exception that reaches the edge answer a problem."""

    @app.exception_handler(ServiceError)
    async def service_error(request: Request, error: ServiceError) -> JSONResponse:
        app.state.service.metrics.refused(error)
        return error_at(request.url.path, error)

    @app.exception_handler(EditorError)
    async def editor_error(request: Request, error: EditorError) -> JSONResponse:
        return error_at(request.url.path, translate(error))

    @app.exception_handler(RequestValidationError)
    async def invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_at(request.url.path, invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return error_at(request.url.path, _of_http(request, error))


def invalid(found: Sequence[Mapping[str, Any]]) -> ServiceError:
    """What pydantic found wrong, as an error that names the places."""
    errors = [_error_at(error) for error in found]
    if any(error["type"] == "json_invalid" for error in errors):
        return BadRequest(f"The body is not JSON: {errors[0]['msg']}.")
    shown = [{"loc": error["loc"], "msg": error["msg"]} for error in errors]
    where = ".".join(str(part) for part in shown[0]["loc"])
    more = f" (and {len(shown) - 1} more)" if len(shown) > 1 else ""
    detail = f"{where}: {shown[0]['msg']}{more}."
    if errors[0]["type"] == UNSUPPORTED:
        return Unprocessable(detail, errors=shown, code=UNSUPPORTED)
    return Unprocessable(detail, errors=shown)


def _error_at(error: Mapping[str, Any]) -> dict[str, Any]:
    """Pydantic's message, where it would show a pattern in words."""
    context = error.get("ctx", {})
    if error["type"] == "string_pattern_mismatch":
        is_id = "[0-9a-f]{12}" in context.get("pattern", "")
        msg = "Must be the id of an edit" if is_id else "Must hold more than white space, and no NUL character"
    elif error["type"] == "json_invalid":
        msg = str(context.get("error", error["msg"]))
    else:
        msg = error["msg"]
    return {"type": error["type"], "loc": list(error["loc"]), "msg": msg}


def _of_http(request: Request, error: HTTPException) -> ServiceError:
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return NotFound(f"There is nothing at {request.url.path}.", headers=headers)
    if error.status_code == 405:
        return MethodNotAllowed(f"{request.url.path} does not answer {request.method}.", headers=headers)
    return BadRequest(f"The request cannot be read: {error.detail}", headers=headers)
