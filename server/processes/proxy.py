"""An operator's request on its way from a front-end to control, and the response back."""

import logging
from typing import Any

import numpy as np
from starlette.responses import Response
from starlette.types import ASGIApp, Scope
from starlette.types import Message as AsgiMessage

from server.errors import INTERNAL_DETAIL
from server.problems import problem_response
from server.processes.wire import Message
from server.request_context import RequestContext, current_request
from server.trace_records import RequestTrace

log = logging.getLogger(__name__)

HEADERS = (b"accept", b"content-type", b"host")  # keys and origins are checked by then


def pack_request(number: int, scope: Scope, body: bytes) -> Message:
    """Pack a request that control answers.

    Args:
        number: By which the response comes back.
        scope: The request's.
        body: Its whole body.
    """
    state, request = scope["state"], current_request.get()
    fields = {
        "number": number,
        "method": scope["method"],
        "path": scope["path"],
        "query": scope["query_string"].decode("latin-1"),
        "headers": [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name in HEADERS
        ],
        "request_id": state["request_id"],
        "received_s": state["received_s"],
        "owner": state["owner"],
        "root_path": scope["root_path"],
        "trace": None if request is None else request.trace,
    }
    return Message("http", fields, (np.frombuffer(body, np.uint8),))


async def answer(app: ASGIApp, message: Message) -> Message:
    """Let an app answer a request that was packed; return the packed response."""
    fields = message.fields
    body = message.arrays[0].tobytes()
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": fields["method"],
        "scheme": "http",
        "path": fields["path"],
        "raw_path": fields["path"].encode(),
        "query_string": fields["query"].encode("latin-1"),
        "root_path": fields["root_path"],
        "headers": [(n.encode("latin-1"), v.encode("latin-1")) for n, v in fields["headers"]],
        "client": None,
        "server": None,
        "state": {
            "request_id": fields["request_id"],
            "received_s": fields["received_s"],
            "owner": fields["owner"],
            "server_timing": {},
        },
    }
    status, headers, parts = 500, list[Any](), list[bytes]()

    async def receive() -> AsgiMessage:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(part: AsgiMessage) -> None:
        nonlocal status, headers
        if part["type"] == "http.response.start":
            status, headers = part["status"], part["headers"]
        else:
            parts.append(part.get("body", b""))

    trace = None if fields["trace"] is None else RequestTrace(*fields["trace"])
    current_request.set(RequestContext(fields["request_id"], trace))  # of this task
    try:
        await app(scope, receive, send)
    except Exception:  # A bug in our code: without an answer the client would wait for it.
        log.exception("request %s failed", fields["request_id"])
        failed = problem_response(500, "internal", INTERNAL_DETAIL, fields["request_id"])
        status, headers, parts = 500, failed.raw_headers, [bytes(failed.body)]
    shown = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in headers]
    return Message(
        "reply",
        {
            "number": fields["number"],
            "status": status,
            "headers": shown,
            "route": getattr(scope.get("route"), "path", None),
        },
        (np.frombuffer(b"".join(parts), np.uint8),),
    )


def unpack_response(message: Message) -> Response:
    """Unpack what `answer` packed."""
    if (request := current_request.get()) is not None:
        request.route = message.fields["route"]
    response = Response(message.arrays[0].tobytes(), message.fields["status"])
    response.raw_headers = [
        (n.encode("latin-1"), v.encode("latin-1")) for n, v in message.fields["headers"]
    ]
    return response
