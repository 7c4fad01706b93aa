"""HTTP answers to errors, and validation errors as one sentence."""

import json
import re
from collections.abc import Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import pydantic_core
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from server.errors import InvalidContent, MalformedRequest, ServeError, TooComplex
from server.json_body import decode_utf_8, read_flat_object, require_utf_8
from server.prediction_paths import takes_samples
from server.spelling import did_you_mean

PROBLEM_TYPE = "application/problem+json"
HTTP_CODES = {400: "malformed", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
FOLDERS = re.compile(r"""[^\s'":;,(]*/""")  # in front of a file's name
TREE_BYTES = 16 * 1024  # up to which all values of a body may become objects at once

Body = TypeVar("Body", bound=BaseModel)


def parse_json(model: type[Body], body: bytes) -> Body:
    """Read a body: a flat object.

    Raises:
        MalformedRequest: If it is not JSON.
        InvalidContent: If a field is unknown, missing or has a bad value.
        TooComplex: If it holds more than any honest body.
    """
    try:
        if len(body) > TREE_BYTES:
            return model.model_validate(read_flat_object(body, model.model_fields))
        return _parse_small(model, body)
    except ValidationError as error:
        raise InvalidContent(format_validation_error(error)) from error


def _parse_small(model: type[Body], body: bytes) -> Body:
    """Read a body by pydantic alone, or else as a large one: half a character may be in it."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        if error.errors()[0]["type"] != "json_invalid":
            raise
        require_utf_8(body)
        decode_utf_8(body)
        try:
            fields = read_flat_object(body, model.model_fields)
        except (MalformedRequest, InvalidContent) as refusal:
            if isinstance(refusal, InvalidContent) and _is_json(body):
                raise
            detail = format_validation_error(error)
            raise MalformedRequest(f"the body is not JSON: {detail}") from error
        return model.model_validate(fields)


def _is_json(body: bytes) -> bool:
    """Whether a small body is JSON, with or without half characters."""
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def format_validation_error(error: ValidationError | RequestValidationError) -> str:
    """The first thing that pydantic found, as one sentence."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if not where or not isinstance(first["input"], str | int | float | None):
        return f"{where}: {message}" if where else message
    given = str(first["input"])
    hint = ""
    if first["type"] == "literal_error":
        hint = did_you_mean(given, re.findall("'([^']*)'", first["ctx"]["expected"]))
    return f"{where}: {message}, got {given[:80]!r}{hint}"


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
    """The answer to a request that failed (RFC 9457)."""
    content = pydantic_core.to_json(problem(status, code, detail, request_id))
    return Response(content, status, headers, media_type=PROBLEM_TYPE)


async def answer_known_error(request: Request, error: Exception) -> Response:
    """Answer a known error with its own status and sentence."""
    assert isinstance(error, ServeError), "registered for this class alone"
    is_prediction = takes_samples(request.scope["path"])
    if is_prediction or isinstance(error, TooComplex):  # a probe's 503 refuses nobody
        request.app.state.refusals.record_if_refusal(error)
    return problem_response(
        error.status, error.code, error.detail, request.state.request_id, error.headers
    )


async def answer_validation_error(request: Request, error: Exception) -> Response:
    """Answer a query that FastAPI refused."""
    assert isinstance(error, RequestValidationError), "registered for this class alone"
    return await answer_known_error(request, InvalidContent(format_validation_error(error)))


async def answer_http_error(request: Request, error: Exception) -> Response:
    """Answer an error of the router: no such path, no such method."""
    assert isinstance(error, HTTPException), "registered for this class alone"
    code = HTTP_CODES.get(error.status_code, "http")
    detail, headers = error.detail, dict(error.headers or {})
    if error.status_code == 404:
        detail = f"there is no {request.url.path}; see /docs"
    elif error.status_code == 405:
        allowed = headers.get("Allow", "another method")
        detail = f"{request.method} is not allowed on {request.url.path}; use {allowed}"
    return problem_response(error.status_code, code, detail, request.state.request_id, headers)


def without_folders(text: str, known: Iterable[Path]) -> str:
    """A sentence with the names of files alone: where they are concerns this host's log only.

    Args:
        text: The sentence.
        known: Folders that it may name, whose own names are kept.
    """
    for folder in known:
        text = text.replace(str(folder), folder.name)
    return FOLDERS.sub("", text)
