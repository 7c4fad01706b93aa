"""Requests as people send them: tests/data/cases holds each with the answer that is right."""

import base64
import contextlib
import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Server

pytestmark = pytest.mark.e2e
FOLDER = Path(__file__).parent.parent / "data/cases"
CASES = json.loads((FOLDER / "requests.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def server(start_server: Callable[..., AbstractContextManager[Server]]) -> Iterator[Server]:
    with start_server() as running:
        yield running


def body_of(case: dict[str, Any]) -> bytes:
    if "file" in case:
        return (FOLDER / case["file"]).read_bytes()
    if "body_base64" in case:
        return base64.b64decode(case["body_base64"])
    return bytes(case["body"].encode())


@pytest.mark.parametrize("query", ["", "?top_k=3"], ids=["short-path", "long-path"])
def test_every_case_is_answered_right(server: Server, query: str) -> None:
    wrong = []
    port = server.client.base_url.port
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as client:
        for case in CASES:
            headers = {"Content-Type": case["type"], **case.get("headers", {})}
            client.request("POST", case["path"] + query, body_of(case), headers)
            answer = client.getresponse()
            text = answer.read().decode()
            if answer.status != case["status"] or case["holds"] not in text:
                wrong.append((case["name"], answer.status, text[:300]))
    assert wrong == []


def test_a_bad_item_of_a_list_hurts_no_other(server: Server) -> None:
    (case,) = (each for each in CASES if each["name"] == "half-emoji-in-list")
    answer = server.client.post(
        "/predict", content=body_of(case), headers={"content-type": case["type"]}
    )
    first, second = answer.json()["predictions"]
    assert first["label"] == "Business" and second["error"]["status"] == 422
