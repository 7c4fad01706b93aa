"""Both clients against a fake transport: what they send, and what they make of answers."""

import asyncio
import base64
import inspect
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_server import EXITS, PREDICTION, Both, FakeServer, answer, problem

import eenet_client
from eenet_client import (
    AnswerUnreadable,
    AsyncClient,
    ClassProbability,
    Client,
    ItemError,
    Prediction,
    StatusError,
)

JPEG = b"\xff\xd8\xff\xe0 an image"
BUDGET = {
    "model": "m", "policy": "stopping", "budget_ms": None, "measure": "compute",
    "effective_budget_ms": None, "parameter": 0.1, "rolling_latency_ms": 2.5, "window": 1000,
    "samples": 3, "floor_ms": 1.0, "ceiling_ms": 3.0, "feasible": True, "reason": None,
    "promise": "disagreement", "summary": "a sentence", "max_disagreement": 0.01,
    "certified": {"epsilon": 0.01, "confidence": 0.95, "rows": 9, "bound": 0.009, "cost_ms": 1.1},
    "expected_accuracy": 0.9, "expected_exit_rates": [1.0], "exit_rates": [0.5, 0.5],
    "thresholds": [None, None], "added_later": 1,
}  # fmt: skip


def body_of(request: httpx.Request) -> Any:
    assert request.headers["content-type"] == "application/json"
    return json.loads(request.content)


def test_an_image_is_sent_as_it_is_with_its_options_in_the_query(either: Both) -> None:
    server = FakeServer(answer(PREDICTION))
    got = either.call(server, "predict", image=JPEG, top_k=2, trace=True, budget_ms=1.5, model="m")
    (request,) = server.requests
    assert (request.method, request.url.path, request.content) == ("POST", "/predict", JPEG)
    assert dict(request.url.params) == {
        "top_k": "2", "trace": "true", "budget_ms": "1.5", "model": "m"
    }  # fmt: skip
    assert request.headers["content-type"] == "image/jpeg"
    assert (got.label, got.exit, got.latency_ms.compute) == ("ship", 1, 1.9)
    assert got.top_k == (ClassProbability("ship", 8, 0.97),)
    assert got.trace is None and got.mask is None and not got.truncated
    assert got.raw == PREDICTION


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (JPEG, "image/jpeg"),
        (b"\x89PNG...", "image/png"),
        (b"BM...", "application/octet-stream"),
        (b"", "application/octet-stream"),
    ],
)
def test_an_image_may_be_a_file(either: Both, tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(content)
    for given in (path, str(path), content):
        server = FakeServer(answer(PREDICTION))
        either.call(server, "predict", image=given)
        assert server.requests[0].content == content
        assert server.requests[0].headers["content-type"] == kind


def test_a_text_is_sent_as_json(either: Both) -> None:
    server = FakeServer(answer({**PREDICTION, "truncated": True}))
    got = either.call(server, "predict", text="é\ud800\n", priority=0, request_id="mine")
    assert body_of(server.requests[0]) == {"text": "é\ud800\n", "priority": 0}
    assert server.requests[0].headers["x-request-id"] == "mine"
    assert got.truncated and not got.deadline_exceeded


def test_every_optional_field_of_a_prediction_is_read() -> None:
    more = {"trace": EXITS, "mask": base64.b64encode(b"png").decode(), "deadline_exceeded": True}
    got = Prediction.parse({**PREDICTION, **more, "added_later": 1})
    assert got.mask == b"png" and got.deadline_exceeded and got.raw["added_later"] == 1
    assert got.trace is not None
    assert [each.exit for each in got.trace] == [0, 1] and got.trace[1].threshold is None
    with pytest.raises(AttributeError):
        got.label = "other"  # type: ignore[misc]


def test_lists_keep_their_order_and_their_failures(either: Both) -> None:
    failed = {"status": 422, "code": "invalid_content", "detail": "empty", "request_id": "a/1"}
    for given in ({"texts": ["x", ""]}, {"images": [JPEG, b""]}):
        server = FakeServer(answer({"predictions": [PREDICTION, {"error": failed}]}))
        first, second = either.call(server, "predict_list", top_k=1, **given)
        assert first == Prediction.parse(PREDICTION)
        assert second == ItemError(422, "invalid_content", "empty", "a/1")
        sent = body_of(server.requests[0])
        assert sent["top_k"] == 1
    assert [base64.b64decode(each) for each in sent["images"]] == [JPEG, b""]


@pytest.mark.parametrize(
    ("method", "given", "named"),
    [
        ("predict", {}, "an image or a text"),
        ("predict", {"image": b"", "text": ""}, "not both"),
        ("predict_list", {}, "images or texts"),
        ("predict_list", {"texts": "one"}, "use predict"),
        ("predict_list", {"images": b"one"}, "use predict"),
        ("predict_list", {"images": "path.jpg"}, "use predict"),
    ],
)
def test_a_call_that_means_nothing_is_refused_before_it_is_sent(
    either: Both, method: str, given: dict[str, Any], named: str
) -> None:
    server = FakeServer()
    with pytest.raises(ValueError, match=named):
        either.call(server, method, **given)
    assert server.requests == []


def test_an_unknown_option_is_refused_and_none_means_none(either: Both) -> None:
    with pytest.raises(TypeError, match="'topk' is no option of a prediction; there are model, "):
        either.call(FakeServer(), "predict", text="x", topk=1)
    server = FakeServer(answer(PREDICTION))
    either.call(server, "predict", text="x", top_k=None)
    assert body_of(server.requests[0]) == {"text": "x"}


def test_budgets_are_read_and_changed(either: Both) -> None:
    server = FakeServer(*[answer({"models": [BUDGET]})] * 3)
    (got,) = either.call(server, "budget", "m")
    assert got.certified is not None and got.certified.bound == 0.009
    assert got.exit_rates == (0.5, 0.5) and got.raw["added_later"] == 1
    either.call(server, "set_budget", None, measure="end_to_end")
    either.call(server, "set_budget", max_disagreement=0.02, model="m")
    read, removed, changed = server.requests
    assert (read.method, read.url.query) == ("GET", b"model=m")
    assert body_of(removed) == {"budget_ms": None, "measure": "end_to_end"}
    assert body_of(changed) == {"max_disagreement": 0.02}
    assert (changed.method, changed.url.path, changed.url.query) == ("PUT", "/budget", b"model=m")


def test_feedback_models_metrics_and_health(either: Both) -> None:
    model = {
        "model": "m", "version": "1", "task": "image", "inputs": ["image"], "classes": ["a", "b"],
        "num_exits": 3, "policy": "stopping", "promise": "none", "summary": "a sentence",
    }  # fmt: skip
    server = FakeServer(
        answer({"model": "m", "exit": 2, "correct": False}),
        answer({"models": [{**model, "added_later": 1}]}),
        httpx.Response(200, text="eenet_up 1\n"),
        answer({"status": "ready"}),
        problem(503, "not_ready", "the server is draining"),
    )
    assert either.call(server, "feedback", "abc/1", 3).correct is False
    assert body_of(server.requests[0]) == {"request_id": "abc/1", "label": 3}
    (loaded,) = either.call(server, "models")
    assert (loaded.name, loaded.classes, loaded.raw["added_later"]) == ("m", ("a", "b"), 1)
    assert either.call(server, "metrics") == "eenet_up 1\n"
    assert either.call(server, "live")
    ready = either.call(server, "ready")
    assert not ready and ready.reason == "the server is draining"
    assert server.waits == [], "a probe's 503 is an answer"


def test_key_base_path_and_agent_are_sent(either: Both) -> None:
    server = FakeServer(answer(PREDICTION))
    options = {"key": "secret", "base_url": "https://server/ml/"}
    either.call(server, "predict", text="x", client=options)
    (request,) = server.requests
    assert str(request.url) == "https://server/ml/predict"
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["user-agent"] == f"eenet-client/{eenet_client.__version__}"


def test_what_no_eenet_server_sends_is_named(either: Both) -> None:
    for given in (answer({}), answer([]), httpx.Response(200, text="<html>")):
        with pytest.raises(AnswerUnreadable, match=r"http://server:8000/predict .* base URL"):
            either.call(FakeServer(given), "predict", text="x")


@pytest.mark.parametrize("is_async", [False, True])
def test_a_unix_socket_is_used(tmp_path: Path, is_async: bool) -> None:
    path = str(tmp_path / "socket")
    body = b"eenet_up 1\n"

    def answer_one(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(4096).startswith(b"GET /metrics HTTP/1.1")
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    async def ask() -> str:
        async with AsyncClient("http://server", uds=path) as client:
            return await client.metrics()

    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(path)
        listener.listen()
        answered = pool.submit(answer_one, listener)
        if is_async:
            assert asyncio.run(ask()) == body.decode()
        else:
            with Client("http://server", uds=path) as client:
                assert client.metrics() == body.decode()
        answered.result()


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"base_url": "server:8000"}, "http://"),
        ({"timeout_s": 0}, "timeout_s 0"),
        ({"retries": -1}, "retries -1"),
    ],
)
def test_an_option_that_means_nothing_is_refused(option: dict[str, Any], named: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match=named):
            kind(**option)


def test_both_clients_have_the_same_methods_and_documentation() -> None:
    def public(kind: type) -> dict[str, Any]:
        found = inspect.getmembers(kind, inspect.isfunction)
        return {name: member for name, member in found if not name.startswith("_")}

    sync, of_async = public(Client), public(AsyncClient)
    assert sync.keys() == of_async.keys()
    for name, member in sync.items():
        assert member.__doc__ == of_async[name].__doc__
        given = inspect.signature(member).parameters
        assert list(given) == list(inspect.signature(of_async[name]).parameters)


def test_every_error_of_the_server_has_a_class_of_its_own() -> None:
    assert StatusError.known.keys() == {
        400, 401, 403, 404, 405, 408, 413, 414, 415, 422, 429, 431, 500, 503, 504
    }  # fmt: skip
