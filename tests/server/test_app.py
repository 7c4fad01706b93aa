from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from starlette.testclient import TestClient

import server.routes.budget
from server.app import create_app
from server.errors import INTERNAL_DETAIL
from server.hot_route import DEFAULTS
from server.model import ModelControl
from server.settings import Settings

if TYPE_CHECKING:
    from tests.conftest import Images

JPEG = {"content-type": "image/jpeg"}


def test_every_answer_carries_an_id_and_the_split_of_its_time(
    client: TestClient, images: Images
) -> None:
    answer = client.post("/predict", content=images.files[0], headers=JPEG)
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])
    timing = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    assert set(timing) == {"total", "queue", "decode", "compute"}
    assert float(timing["total"]) >= float(timing["compute"]) > 0
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_a_sound_request_id_is_echoed_and_another_replaced(client: TestClient) -> None:
    assert client.get("/livez", headers={"x-request-id": "a.B-3_z"}).headers["x-request-id"] == (
        "a.B-3_z"
    )
    assert client.get("/nope", headers={"x-request-id": "x" * 129}).headers["x-request-id"] != (
        "x" * 129
    )


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "not_found"),
        ("GET", "/predict", 405, "method_not_allowed"),
        ("GET", "/budget?model=nope", 404, "unknown_model"),
        ("GET", "/frontier?model=nope", 404, "unknown_model"),
        ("POST", "/predict", 415, "unsupported_media_type"),
        ("PUT", "/budget", 400, "malformed"),
    ],
)
def test_errors_are_problems(
    client: TestClient, method: str, path: str, status: int, code: str
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert set(problem) == {"type", "title", "status", "detail", "code", "request_id", "error"}
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["detail"] == problem["error"]
    assert problem["request_id"] == answer.headers["x-request-id"]


def test_bodies_over_the_limit_are_refused_with_and_without_a_length(shipped_bundle: Path) -> None:
    app = create_app(Settings(bundle=(shipped_bundle,), max_body_mib=1))
    with TestClient(app) as client:
        told = client.post("/predict", content=b"x" * (2**20 + 1), headers=JPEG)
        chunked = client.post("/predict", content=iter([b"x" * 2**19] * 3), headers=JPEG)
        text = client.get("/metrics").text
    for answer in (told, chunked):
        assert answer.status_code == 413
        assert answer.json()["code"] == "body_too_large"
        assert answer.headers["x-request-id"]
    assert 'eenet_rejected_total{reason="body_too_large"} 2.0' in text


def test_an_unknown_failure_is_logged_and_answered_with_a_fixed_sentence(
    shipped_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(model: ModelControl) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(server.routes.budget, "budget_state", broken)
    with (
        caplog.at_level(logging.ERROR),
        TestClient(create_app(Settings(bundle=(shipped_bundle,)))) as client,
    ):
        answer = client.get("/budget")
    assert answer.status_code == 500
    assert answer.json()["detail"] == INTERNAL_DETAIL
    assert "secret" not in answer.text
    assert "secret detail" in caplog.text and answer.headers["x-request-id"] in caplog.text


def test_live_and_ready_and_the_aliases(client: TestClient) -> None:
    assert client.get("/livez").json() == {"status": "live"}
    for path in ("/readyz", "/health", "/healthz", "/ping"):
        assert client.get(path).json() == {"status": "ready"}


def wait_until(holds: Callable[[], bool]) -> None:
    patience = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < patience, "it never came true"
        time.sleep(0.01)


def test_not_ready_while_draining_and_when_every_batch_fails(
    shipped_bundle: Path, images: Images
) -> None:
    app = create_app(Settings(bundle=(shipped_bundle,)))
    with TestClient(app) as client:
        service = app.state.service
        (runner,) = service.runners.values()
        run_stage = runner.engine.backend.run_stage

        def fail(stage: int, state: np.ndarray) -> np.ndarray:
            raise RuntimeError("device lost")

        runner.engine.backend.run_stage = fail
        answer = client.post("/predict", content=images.files[0], headers=JPEG)
        assert (answer.status_code, answer.json()["code"]) == (500, "internal")
        wait_until(lambda: client.get("/readyz").status_code == 503)
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert "fails on every input" in answer.json()["detail"]

        runner.engine.backend.run_stage = run_stage
        wait_until(lambda: client.get("/readyz").status_code == 200)
        service.front.admission.not_ready = "the server is draining"
        refused = client.post("/predict", content=images.files[0], headers=JPEG)
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        service.front.admission.not_ready = None
        service.control.draining = True
        assert "draining" in client.get("/readyz").json()["detail"]
        late = client.post("/predict", content=images.files[0], headers=JPEG)
        assert late.status_code == 200, "what was accepted before the end is still answered"


def test_the_api_page_describes_the_routes(client: TestClient) -> None:
    assert client.get("/docs").status_code == 200
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/predict", "/budget", "/frontier", "/metrics", "/livez", "/readyz"} <= set(paths)
    body = paths["/predict"]["post"]["requestBody"]["content"]
    octets = "application/octet-stream"
    assert set(body) == {"image/*", octets, "multipart/form-data", "application/json"}


def test_a_client_that_leaves_mid_body_is_no_failure_of_the_server(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "raw_path": b"/predict",
        "query_string": b"",
        "headers": [(b"content-type", b"image/png"), (b"content-length", b"5000")],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("testserver", 80),
    }
    messages = iter(
        [
            {"type": "http.request", "body": b"abc", "more_body": True},
            {"type": "http.disconnect"},
        ]
    )

    async def receive() -> dict:
        return next(messages)

    async def send(message: dict) -> None:
        raise AssertionError("nobody is there to read an answer")

    with caplog.at_level(logging.INFO):
        client.portal.call(client.app, scope, receive, send)
    assert not caplog.records
    text = client.get("/metrics").text
    assert 'eenet_requests_total{route="/predict",status="499"} 1.0' in text
    assert 'route="/predict",status="500"' not in text


def test_only_images_may_be_large(client: TestClient) -> None:
    large = b'{"budget_ms": ' + b" " * 70_000 + b"1}"
    kind = {"content-type": "application/json"}
    assert client.put("/budget", content=large, headers=kind).status_code == 413
    assert client.put("/budget", content=iter([large]), headers=kind).status_code == 413


def test_a_misspelt_query_is_422(client: TestClient) -> None:
    answers = [
        client.get("/budget?modle=x"),
        client.put("/budget?modle=x", json={"budget_ms": 1.0}),
        client.get("/frontier?modle=x"),
    ]
    for answer in answers:
        assert answer.status_code == 422 and "modle" in answer.json()["detail"]


def test_an_answer_whose_handler_was_cancelled_is_not_booked(
    shipped_bundle: Path, images: Images
) -> None:
    app = create_app(Settings(bundle=(shipped_bundle,)))
    with TestClient(app) as client:
        (model,) = app.state.front.models.values()

        async def leave() -> int:
            """The result is there, and the handler is cancelled before it runs again."""
            dispatcher = model.dispatcher
            args = (images.files[0], DEFAULTS, time.perf_counter(), "gone")
            answer = asyncio.ensure_future(dispatcher.infer(*args))
            await asyncio.sleep(0)
            while not dispatcher._answered:
                await asyncio.sleep(0)
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)
            return len(dispatcher.take_answers().keys)

        assert client.portal.call(leave) == 0
        assert client.post("/predict", content=images.files[0], headers=JPEG).status_code == 200
        assert 'eenet_predictions_total{exit="' in client.get("/metrics").text


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/metrics", "/budget", "/docs"])
def test_head_is_answered_as_get(client: TestClient, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert head.status_code == get.status_code == 200
    assert head.headers["content-type"] == get.headers["content-type"]
    assert client.head("/predict").status_code == 405


@pytest.mark.parametrize("path", ["/predict/", "/budget/", "/livez/"])
def test_nobody_is_sent_to_where_the_host_header_says(client: TestClient, path: str) -> None:
    for answer in (
        client.post(path, headers={"host": "elsewhere.example"}, follow_redirects=False),
        client.get(path, headers={"host": "elsewhere.example"}, follow_redirects=False),
    ):
        assert answer.status_code == 404 and "location" not in answer.headers
