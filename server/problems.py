"""How an error becomes an HTTP answer, and what is wrong with a body in one sentence."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, TypeVar

import pydantic_core
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from server.errors import InvalidContent, MalformedRequest, ServeError

PROBLEM_TYPE = "application/problem+json"
HTTP_CODES = {400: "malformed", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}

Body = TypeVar("Body", bound=BaseModel)


def parse_json(model: type[Body], body: bytes) -> Body:
    """Read a body.

    Raises:
        MalformedRequest: If it is not JSON.
        InvalidContent: If it is not what the model takes.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise MalformedRequest(
                f"the body is not JSON: {format_validation_error(first)}"
            ) from error
        raise InvalidContent(format_validation_error(first)) from error


def first_error(error: ValidationError) -> str:
    """The first thing pydantic found, as one sentence."""
    return format_validation_error(error.errors()[0])


def format_validation_error(first: Mapping[str, Any]) -> str:
    """One entry of pydantic's errors, as one sentence."""
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if not where or not isinstance(first["input"], str | int | float | None):
        return f"{where}: {message}" if where else message
    return f"{where}: {message}, got {str(first['input'])[:80]!r}"


def problem(status: int, code: str, detail: str, request_id: str) -> dict[str, Any]:
    """The body of an error answer (RFC 9457), the same text under `detail` and `error`."""
    return {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
        "error": detail,
    }


def problem_response(
    status: int, code: str, detail: str, request_id: str, headers: dict[str, str] | None = None
) -> Response:
    """Make the answer to a request that failed (RFC 9457)."""
    content = pydantic_core.to_json(problem(status, code, detail, request_id))
    return Response(content, status, headers, media_type=PROBLEM_TYPE)


async def answer_known_error(request: Request, error: Exception) -> Response:
    """Answer an error of the family, which knows its status and its sentence."""
    assert isinstance(error, ServeError), "registered for this class alone"
    if request.url.path == "/predict" and error.code in ("queue_full", "not_ready"):
        request.app.state.metrics.rejected.labels(error.code).inc()
    return problem_response(
        error.status, error.code, error.detail, request.state.request_id, error.headers
    )


async def answer_validation_error(request: Request, error: Exception) -> Response:
    """Answer what FastAPI's own validation found in a query."""
    assert isinstance(error, RequestValidationError), "registered for this class alone"
    return await answer_known_error(
        request, InvalidContent(format_validation_error(error.errors()[0]))
    )


async def answer_http_error(request: Request, error: Exception) -> Response:
    """Answer an error of the router: no such path, no such method."""
    assert isinstance(error, HTTPException), "registered for this class alone"
    code = HTTP_CODES.get(error.status_code, "http")
    detail = (
        error.detail if error.status_code != 404 else f"there is no {request.url.path}; see /docs"
    )
    return problem_response(
        error.status_code, code, detail, request.state.request_id, dict(error.headers or {})
    )
