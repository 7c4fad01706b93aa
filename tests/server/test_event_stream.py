"""POST /predict/stream in one process, by the messages of ASGI and by a client."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from server.app import create_app
from server.engine.request import InferenceRequest
from server.errors import NotReady
from server.event_stream import Event, EventStream, encode_event, start_stream
from server.refusals import NoCounts, RefusalLog
from server.settings import Settings

if TYPE_CHECKING:
    from tests.conftest import Images

JPEG = {"content-type": "image/jpeg"}
ENTRY = {"exit", "label", "confidence", "score", "threshold", "elapsed_ms"}
NEVER_EARLY = {"budget_ms": 1e6}


class Seen(NamedTuple):
    name: str
    fields: dict[str, Any]


def events_of(text: str) -> list[Seen]:
    assert text.endswith("\n\n")
    blocks = [re.fullmatch(r"event: (\w+)\ndata: (.+)", part) for part in text[:-2].split("\n\n")]
    assert all(blocks), text
    return [Seen(block[1], json.loads(block[2])) for block in blocks if block]


def stream(client: TestClient, **request: Any) -> list[Seen]:
    answer = client.post("/predict/stream", **request)
    assert answer.status_code == 200, answer.text
    return events_of(answer.text)


def counted(client: TestClient, name: str) -> float:
    found = re.findall(rf"(?m)^{re.escape(name)} (\S+)$", client.get("/metrics").text)
    return float(found[0]) if found else 0.0


def test_an_event_for_each_exit_and_then_the_whole_prediction(
    client: TestClient, images: Images
) -> None:
    for file in images.files[:10]:
        whole = client.post("/predict?trace=true", content=file, headers=JPEG).json()
        *exits, last = stream(client, content=file, headers=JPEG)
        assert [name for name, _ in exits] == ["exit"] * (whole["exit"] + 1)
        for (_, fields), entry in zip(exits, whole["trace"], strict=True):
            assert set(fields) == ENTRY and fields["exit"] == entry["exit"]
            assert fields["label"] == entry["label"]
            assert fields["confidence"] == pytest.approx(entry["confidence"], abs=1e-4)
        assert last.name == "prediction" and set(last.fields) == whole.keys() - {"trace"}
        for field in ("label", "class_id", "exit", "model"):
            assert last.fields[field] == whole[field]


def test_the_prediction_holds_the_trace_only_if_it_is_asked_for(
    client: TestClient, images: Images
) -> None:
    query = {"trace": "true", **NEVER_EARLY}
    *exits, last = stream(client, content=images.files[0], headers=JPEG, params=query)
    assert [fields for _, fields in exits] == last.fields["trace"]
    assert len(exits) == 3 and last.fields["exit"] == 2


@pytest.mark.parametrize("kind", ["json", "form", "octets"])
def test_every_body_of_predict_is_taken(client: TestClient, images: Images, kind: str) -> None:
    file = images.files[0]
    bodies: dict[str, Any] = {
        "json": {"json": {"image": base64.b64encode(file).decode(), "top_k": 2}},
        "form": {"files": {"file": file}, "data": {"top_k": "2"}},
        "octets": {
            "content": file,
            "headers": {"content-type": "application/octet-stream"},
            "params": {"top_k": 2},
        },
    }
    *_, last = stream(client, **bodies[kind])
    assert last.name == "prediction" and len(last.fields["top_k"]) == 2


def test_the_answer_is_an_event_stream_that_nobody_stores_or_collects(
    client: TestClient, images: Images
) -> None:
    given = {**JPEG, "x-request-id": "mine", "accept": "application/json"}
    answer = client.post("/predict/stream", content=images.files[0], headers=given)
    headers = answer.headers
    assert headers["content-type"] == "text/event-stream"
    assert headers["cache-control"] == "no-store" and headers["x-accel-buffering"] == "no"
    assert headers["x-request-id"] == events_of(answer.text)[-1].fields["request_id"] == "mine"
    assert "content-length" not in headers and "total" in headers["server-timing"]


@pytest.mark.parametrize(
    ("request_", "status", "code", "named"),
    [
        ({"content": b"GIF89a", "headers": JPEG}, 422, "invalid_content", "image"),
        ({"content": b"", "headers": JPEG}, 422, "invalid_content", "image"),
        ({"json": {"images": ["x"]}}, 422, "invalid_content", "a stream takes one image"),
        ({"json": {"texts": ["x", "y"]}}, 422, "invalid_content", "send the list to /predict"),
        ({"json": {"image": "x", "top_k": 0}}, 422, "invalid_content", "top_k"),
        ({"json": {"image": "x", "topk": 1}}, 422, "invalid_content", "did you mean"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "malformed", ""),
        ({"content": b"x", "headers": {"content-type": "text/csv"}}, 415, "unsupported", "csv"),
        ({"json": {"text": "x"}}, 404, "unknown_model", "reads texts"),
        ({"json": {"image": "x", "model": "nope"}}, 404, "unknown_model", "nope"),
    ],
)
def test_a_refusal_before_the_first_event_is_an_ordinary_one(
    client: TestClient, request_: dict[str, Any], status: int, code: str, named: str
) -> None:
    answer = client.post("/predict/stream", **request_)
    problem = answer.json()
    assert (answer.status_code, problem["status"]) == (status, status)
    assert problem["code"].startswith(code) and named in problem["detail"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert client.app.state.front.admission.samples == 0  # type: ignore[attr-defined]


def test_a_deadline_before_exit_0_is_a_504_and_a_later_one_is_kept(
    client: TestClient, images: Images
) -> None:
    for query, status in (({"deadline_ms": 1e-6}, 504), ({"deadline_ms": 1e5}, 200)):
        answer = client.post("/predict/stream", content=images.files[0], headers=JPEG, params=query)
        assert answer.status_code == status
    assert events_of(answer.text)[-1].name == "prediction"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_other_methods_are_refused(client: TestClient, method: str) -> None:
    answer = client.request(method, "/predict/stream")
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"
    assert client.post("/predict/stream/").status_code == 404


def test_a_full_queue_refuses_streams_and_counts_them(
    client: TestClient, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    rejected = 'eenet_rejected_total{reason="queue_full"}'
    admission, before = client.app.state.front.admission, counted(client, rejected)  # type: ignore[attr-defined]
    monkeypatch.setattr(admission, "max_samples", 0)
    answer = client.post("/predict/stream", content=images.files[0], headers=JPEG)
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
    assert counted(client, rejected) == before + 1


def test_a_stream_counts_once_and_takes_feedback(client: TestClient, images: Images) -> None:
    names = (
        'eenet_requests_total{route="/predict/stream",status="200"}',
        'eenet_request_latency_seconds_count{model="cifar10-resnet56"}',
    )
    before = [counted(client, name) for name in names]
    *exits, last = stream(client, content=images.files[0], headers=JPEG, params=NEVER_EARLY)
    assert [counted(client, name) for name in names] == [each + 1 for each in before]
    given = {"request_id": last.fields["request_id"], "label": last.fields["label"]}
    assert client.post("/feedback", json=given).json()["correct"] is True
    assert len(exits) == 3


@pytest.mark.slow
def test_streams_need_a_key_where_predictions_do(shipped_bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    digest = hashlib.sha256(b"secret-of-ann").hexdigest()
    keys.write_text(f"sha256:{digest} ann\n")
    with TestClient(create_app(Settings(bundle=(shipped_bundle,), api_keys=keys))) as client:
        answer = client.post("/predict/stream", content=b"x", headers=JPEG)
        assert answer.status_code == 401
        known = {**JPEG, "authorization": "Bearer secret-of-ann"}
        assert client.post("/predict/stream", content=b"x", headers=known).status_code == 422


# ---- by the messages of ASGI --------------------------------------------------------------------


class Sent:
    """What an app sends; a client that may take its time, or leave."""

    def __init__(self, on_event: Callable[[int], Any] = lambda count: None) -> None:
        self.status: int | None = None
        self.body = b""
        self.is_complete = False
        self._on_event = on_event
        self._count = 0

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        assert not self.is_complete
        self.is_complete = not message["more_body"]
        self.body += message["body"]
        if message["body"]:
            self._count += 1
            if (waits := self._on_event(self._count)) is not None:
                await waits


async def no_more() -> Any:
    await asyncio.Event().wait()


def scope_of(path: str = "/predict/stream", query: bytes = b"budget_ms=1000000") -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "headers": [(b"content-type", b"image/jpeg")],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("testserver", 80),
    }


def body_then(file: bytes, then: Callable[[], Any] = no_more) -> Callable[[], Any]:
    messages = [{"type": "http.request", "body": file, "more_body": False}]

    async def receive() -> Any:
        return messages.pop() if messages else await then()

    return receive


def test_a_client_that_leaves_between_two_events_cancels_its_sample(
    client: TestClient, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is held after the first exit, until the client has left."""
    front, left = client.app.state.front, asyncio.Event()  # type: ignore[attr-defined]
    (model,) = front.models.values()
    dropped: list[InferenceRequest] = []
    cancel = model.dispatcher.cancel

    def note(request: InferenceRequest) -> None:
        dropped.append(request)
        cancel(request)

    monkeypatch.setattr(model.dispatcher, "cancel", note)
    on_exits = model.dispatcher.on_exits
    monkeypatch.setattr(  # nothing comes after the first exit
        next(iter(client.app.state.service.runners.values())),  # type: ignore[attr-defined]
        "_on_exits",
        lambda shown: on_exits(shown) if shown[0][1].exit == 0 else None,
    )
    monkeypatch.setattr(model.dispatcher, "deliver", lambda requests, done_s: None)

    async def disconnect() -> Any:
        await left.wait()
        return {"type": "http.disconnect"}

    sent = Sent(lambda count: left.set())
    receive = body_then(images.files[0], disconnect)
    client.portal.call(client.app, scope_of(), receive, sent)  # type: ignore[union-attr,arg-type]
    assert sent.status == 200 and len(dropped) == 1
    assert front.admission.samples == 0 and dropped[0].on_exit is None


def test_a_slow_reader_holds_no_place_once_its_sample_is_answered(
    client: TestClient, images: Images
) -> None:
    front = client.app.state.front  # type: ignore[attr-defined]

    async def take(count: int) -> None:
        while front.admission.samples:  # until the engine has answered
            await asyncio.sleep(0.001)

    sent = Sent(lambda count: take(count) if count == 1 else None)
    client.portal.call(client.app, scope_of(), body_then(images.files[0]), sent)  # type: ignore[union-attr,arg-type]
    assert [name for name, _ in events_of(sent.body.decode())] == ["exit"] * 3 + ["prediction"]
    assert sent.is_complete


class Answers(NoCounts):
    """An app's counts."""

    def __init__(self) -> None:
        self.rejected: list[str] = []

    def count_rejected(self, reason: str) -> None:
        self.rejected.append(reason)


def request_of(counts: Answers) -> Request:
    refusals = RefusalLog(counts)
    app = type("App", (), {"state": type("State", (), {"refusals": refusals})})
    return Request({"type": "http", "app": app, "state": {"request_id": "mine"}})


def answer_with(
    events: AsyncGenerator[Event], counts: Answers, *, cancelled: bool = False
) -> list[Seen]:
    async def run() -> Sent:
        sent = Sent()
        response = await start_stream(request_of(counts), events)
        assert isinstance(response, EventStream)
        task = asyncio.ensure_future(response({"type": "http"}, no_more, sent))
        if cancelled:
            while not sent.body:
                await asyncio.sleep(0)
            task.cancel()
        await task
        return sent

    sent = asyncio.run(run())
    assert sent.is_complete
    return events_of(sent.body.decode())


async def failing(error: BaseException) -> AsyncGenerator[Event]:
    yield Event("exit", {"exit": 0})
    raise error


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(NotReady("the engine died"), 503, "not_ready"), (RuntimeError("a bug"), 500, "internal")],
)
def test_an_error_behind_the_first_event_is_the_last_one(
    error: Exception, status: int, code: str
) -> None:
    counts = Answers()
    exit, last = answer_with(failing(error), counts)
    assert exit == ("exit", {"exit": 0})
    assert last.name == "error" and (last.fields["status"], last.fields["code"]) == (status, code)
    assert last.fields["request_id"] == "mine" and "a bug" not in last.fields["detail"]
    assert counts.rejected == ([code] if code == "not_ready" else [])


def test_a_stream_that_is_open_when_the_time_to_drain_is_over_ends_with_an_error() -> None:
    closed = []

    async def endless() -> AsyncGenerator[Event]:
        try:
            yield Event("exit", {"exit": 0})
            await no_more()
        finally:
            closed.append(True)

    _, last = answer_with(endless(), Answers(), cancelled=True)
    assert last.name == "error" and last.fields["status"] == 503
    assert "draining" in last.fields["detail"] and closed == [True]


def test_a_label_of_many_lines_stays_in_one_line_of_data() -> None:
    written = encode_event(Event("exit", {"label": "a\nb\r\n\u2028c"}))
    assert written.count(b"\n") == 3 and b"\r" not in written
    assert events_of(written.decode())[0].fields["label"] == "a\nb\r\n\u2028c"


def test_openapi_documents_the_stream(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/predict/stream"]["post"]
    assert "text/event-stream" in operation["responses"]["200"]["content"]
    assert {"400", "404", "413", "415", "422", "429", "503", "504"} <= operation["responses"].keys()
