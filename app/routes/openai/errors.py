"""Errors on /v1 in the shape that clients of OpenAI's interface read. Imports no other part of the routes."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel

from app.errors import ServiceError

PREFIX = "/v1"
UNSUPPORTED = "unsupported_parameter"
"""Pydantic's error type, and our code, of a field that the service knows but cannot honour."""
CODES = {"input_too_long": "context_length_exceeded"}
"""Our codes that have another name there."""


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorOut(BaseModel):
    """What every error on /v1 answers."""

    error: ErrorDetail


def openai_errors() -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI document: every error of a route has OpenAI's shape."""
    return {
        status: {"model": ErrorOut, "description": f"{whose} error, in OpenAI's shape."}
        for status, whose in (("4XX", "The caller's"), ("5XX", "The service's"))
    }


def is_openai(path: str) -> bool:
    """Whether errors at this path have OpenAI's shape."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def error_out(error: ServiceError) -> ErrorOut:
    """The error as a body. A field at fault is its `param`."""
    code = str(error.members.get("code", error.code))
    return ErrorOut(
        error=ErrorDetail(
            message=error.detail.removeprefix("body."),
            type="server_error" if error.status >= 500 else "invalid_request_error",
            param=_param(error),
            code=CODES.get(code, code),
        )
    )


def openai_error(error: ServiceError) -> JSONResponse:
    """The response for an error. What is invalid is a 400 there, never a 422."""
    status = 400 if error.status == 422 else error.status
    return JSONResponse(error_out(error).model_dump(), status, dict(error.headers))


def _param(error: ServiceError) -> str | None:
    """The field at fault: named by the error, or the first of those that were found invalid."""
    if "param" in error.members:
        return str(error.members["param"])
    errors = error.members.get("errors")
    return ".".join(map(str, errors[0]["loc"][1:])) or None if errors else None
