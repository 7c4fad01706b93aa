"""Which errors each operation may answer with."""

from http import HTTPStatus
from typing import Any, Final

from server.gate import Group, group_of
from server.prediction_paths import takes_samples
from server.problems import PROBLEM_TYPE, problem

REF: Final = "$ref"
WRITING: Final = ("post", "put", "patch")
PROBES: Final = ("/livez", "/readyz", "/health", "/healthz", "/ping", "/v2/health")
# Before any route sees the request; 500 also where a route fails.
ANYWHERE: Final = (400, 408, 413, 414, 415, 431, 500, 503)
# By status: the code and the sentence of an example, and what may cause the error.
CAUSES: Final[dict[int, tuple[str, str, str]]] = {
    400: (
        "malformed",
        "the body is not JSON: Invalid JSON: expected value at line 1 column 1",
        "The request is not HTTP, or its body is not JSON or not a form.",
    ),
    401: (
        "unauthorized",
        "this server asks for a key: send it as Authorization: Bearer KEY",
        "The server asks for a key, and none or an unknown one came.",
    ),
    403: (
        "forbidden",
        "this key is for other routes; use one that is listed for this one",
        "The key is for other routes, or a web page of another site asks.",
    ),
    404: (
        "unknown_model",
        "no model 'nope' is loaded; name one of ag-news-minilm, cifar10-resnet56",
        "No such model, version or prediction, or the route is on another port.",
    ),
    408: (
        "timeout",
        "the body did not arrive within 30 s; send it at once",
        "The request took too long to arrive.",
    ),
    413: (
        "body_too_large",
        "the body is larger than the limit of 65536 bytes; send less at once",
        "The body passes the limit.",
    ),
    414: ("url_too_long", "the URL is longer than the limit; shorten it", "The URL is too long."),
    415: (
        "unsupported_media_type",
        "content encoding 'br' is not taken; send gzip or none",
        "The content type, its charset or the content encoding is not accepted.",
    ),
    422: (
        "invalid_content",
        "top_k: Input should be greater than or equal to 1, got '0'",
        "An unreadable input, an unknown field, a bad value, or more than a request may hold.",
    ),
    429: (
        "queue_full",
        "1024 samples are in flight; try again later",
        "Too many samples, or bytes of bodies, are in flight.",
    ),
    431: (
        "head_too_large",
        "the headers are larger than the limit; send fewer",
        "The headers are too large.",
    ),
    500: (
        "internal",
        "The server failed on this request; the log has the trace under the request's id.",
        "The network failed on this input, or the server has a bug.",
    ),
    503: (
        "not_ready",
        "the server is draining; try another replica",
        "The server is starting, draining or broken, or too many connections are open.",
    ),
    504: (
        "deadline_exceeded",
        "the deadline of 5 ms passed before the first exit",
        "The deadline passed before the first exit.",
    ),
}
_HEADERS: Final[dict[int, tuple[str, ...]]] = {
    401: ("WWW-Authenticate",),
    415: ("Accept-Encoding",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}
EVERY_ANSWER: Final = ("X-Request-ID", "Server-Timing")
HEADERS: Final[dict[str, dict[str, Any]]] = {
    "X-Request-ID": {
        "description": "The client's own id of the request, or one that was made",
        "schema": {"type": "string"},
    },
    "Server-Timing": {
        "description": "Milliseconds: `total`, of one prediction also queue, decode and compute",
        "schema": {"type": "string"},
    },
    "Retry-After": {"description": "Seconds to wait", "schema": {"type": "string"}},
    "WWW-Authenticate": {"description": "The challenge", "schema": {"type": "string"}},
    "Accept-Encoding": {
        "description": "The encodings that are taken, where another one came",
        "schema": {"type": "string"},
    },
}


def statuses_of(path: str, method: str) -> list[int]:
    """Return the statuses of errors that an operation may answer with.

    Args:
        path: With the names of parameters in braces.
        method: In lower case.
    """
    found = set(ANYWHERE)
    group = group_of(path)
    if group is not Group.OPEN:
        found |= {401, 403, 404, 422}
    if method in WRITING:
        found |= {422, 429}
    if takes_samples(path):
        found.add(504)
    return sorted(found)


def error_responses(path: str, method: str) -> dict[str, Any]:
    """Return the responses of an operation that are errors, by status."""
    return {
        str(status): {REF: f"#/components/responses/{_name(status)}"}
        for status in statuses_of(path, method)
    }


def error_components() -> dict[str, Any]:
    """Return the responses that `error_responses` refers to, by name."""
    return {_name(status): _component(status) for status in CAUSES}


def header_refs(*names: str) -> dict[str, Any]:
    """Return references to the headers of these names."""
    return {name: {REF: f"#/components/headers/{name}"} for name in names}


def _name(status: int) -> str:
    return HTTPStatus(status).phrase.title().replace(" ", "").replace("-", "")


def _component(status: int) -> dict[str, Any]:
    code, sentence, cause = CAUSES[status]
    example = problem(status, code, sentence, "a13b015d76b420106b90e273d751d90d")
    return {
        "description": cause,
        "headers": header_refs(*EVERY_ANSWER, *_HEADERS.get(status, ())),
        "content": {
            PROBLEM_TYPE: {"schema": {REF: "#/components/schemas/Problem"}, "example": example}
        },
    }
