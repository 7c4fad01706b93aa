from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server.errors import INTERNAL_DETAIL
from server.processes.proxy import answer, pack_request, unpack_response


def answered(app: Any) -> Response:
    scope = {
        "method": "PUT",
        "path": "/budget",
        "root_path": "/ml",
        "query_string": b"model=a",
        "headers": [(b"host", b"x"), (b"authorization", b"Bearer secret")],
        "state": {"request_id": "id", "received_s": 1.5, "owner": -(2**63)},
    }
    message = pack_request(7, scope, b"body")
    assert "secret" not in repr(message), "the key has been checked by then"
    reply = asyncio.run(answer(app, message))
    assert reply.fields["number"] == 7
    return unpack_response(reply)


def test_control_sees_the_request_and_its_owner() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        seen = {
            "url": f"{request.method} {scope['path']}?{request.url.query} in {scope['root_path']}",
            "headers": dict(request.headers),
            "body": (await request.body()).decode(),
            "state": [request.state.request_id, request.state.owner],
        }
        await JSONResponse(seen, 201)(scope, receive, send)

    response = answered(app)
    assert response.status_code == 201
    assert json.loads(bytes(response.body)) == {
        "url": "PUT /budget?model=a in /ml",
        "headers": {"host": "x"},
        "body": "body",
        "state": ["id", -(2**63)],
    }


def test_a_bug_is_answered_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise LookupError("what went wrong")

    response = answered(app)
    assert response.status_code == 500
    told = json.loads(bytes(response.body))
    assert (told["detail"], told["request_id"]) == (INTERNAL_DETAIL, "id")
    assert "what went wrong" in caplog.text
