"""Clients that leave while a slow device works on what came before them."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from server.app import create_app
from server.settings import Settings

if TYPE_CHECKING:
    import httpx

    from tests.conftest import Images
    from tests.e2e.conftest import Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

STAGES_MS = (150, 20, 20)
MODEL = "cifar10-resnet56"
LEFT = 'eenet_requests_total{route="/predict",status="499"}'
ANSWERED = 'eenet_requests_total{route="/predict",status="200"}'
CANCELLED = f'eenet_cancelled_total{{model="{MODEL}"}}'
INFLIGHT = "eenet_inflight_samples"
WAITING = f'eenet_queue_depth{{model="{MODEL}",stage="0"}}'


@pytest.fixture(scope="module")
def server(
    start_server: Callable[..., AbstractContextManager[Server]],
    shipped_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A device that takes one image at a time, and so long that others have to wait."""
    costs = tmp_path_factory.mktemp("costs") / "costs.json"
    costs.write_text(json.dumps({"batch_sizes": [1], "stages_ms": [[ms] for ms in STAGES_MS]}))
    slow = ("--backend", "replay", "--replay-costs", str(costs), "--max-batch", "1")
    with start_server("--bundle", str(shipped_bundle), *slow) as server:
        yield server


def numbers(client: httpx.Client) -> dict[str, float]:
    """All metrics, by name and labels."""
    lines = client.get("/metrics").text.splitlines()
    found = (re.fullmatch(r"([^#]\S*) (\S+)", line) for line in lines)
    return {match[1]: float(match[2]) for match in found if match}


def grown(client: httpx.Client, before: dict[str, float], name: str) -> float:
    return numbers(client).get(name, 0.0) - before.get(name, 0.0)


def until(client: httpx.Client, holds: Callable[[], bool]) -> None:
    due = time.perf_counter() + 10
    while not holds():
        assert time.perf_counter() < due, numbers(client)
        time.sleep(0.01)


def ask(server: Server, content: bytes, kind: str = "image/jpeg") -> socket.socket:
    """A request whose answer nobody has read yet."""
    base = server.client.base_url
    connection = socket.create_connection((base.host, base.port), timeout=20)
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: "
    connection.sendall(f"{head}{len(content)}\r\n\r\n".encode() + content)
    return connection


def status_of(connection: socket.socket) -> int:
    with connection:
        return int(connection.recv(4096).split()[1])


def list_of(images: Images, count: int) -> bytes:
    files = [base64.b64encode(file).decode() for file in images.files[:count]]
    return json.dumps({"images": files}).encode()


def test_a_client_that_leaves_while_it_waits_is_counted_and_gives_its_place_back(
    server: Server, images: Images
) -> None:
    client, before = server.client, numbers(server.client)
    stays = [ask(server, file) for file in images.files[:2]]
    leaves = ask(server, images.files[2])
    until(client, lambda: numbers(client)[INFLIGHT] == 3 and numbers(client)[WAITING] >= 1)
    leaves.close()
    until(client, lambda: grown(client, before, LEFT) == 1)
    assert grown(client, before, CANCELLED) == 1
    assert numbers(client)[INFLIGHT] <= 2, "its place is free at once"
    assert [status_of(each) for each in stays] == [200, 200]
    assert numbers(client)[INFLIGHT] == 0
    assert grown(client, before, ANSWERED) == 2
    run = f'eenet_batch_size_sum{{model="{MODEL}",stage="0"}}'
    assert grown(client, before, run) == 2, "nothing was run for who had left"


def test_a_list_whose_client_leaves_is_dropped_whole(server: Server, images: Images) -> None:
    client, before = server.client, numbers(server.client)
    leaves = ask(server, list_of(images, 20), "application/json")
    until(client, lambda: numbers(client)[INFLIGHT] == 20 and numbers(client)[WAITING] >= 1)
    leaves.close()
    until(client, lambda: numbers(client)[INFLIGHT] == 0)
    assert grown(client, before, LEFT) == 1
    answered = ask(server, images.files[0])
    assert status_of(answered) == 200, "the device is free for others"
    until(client, lambda: grown(client, before, CANCELLED) >= 18)
    assert numbers(client)[WAITING] == 0


def test_a_client_that_leaves_while_its_image_is_on_the_device_is_counted(
    server: Server, images: Images
) -> None:
    client, before = server.client, numbers(server.client)
    leaves = ask(server, images.files[0])
    until(client, lambda: numbers(client)[INFLIGHT] == 1 and numbers(client)[WAITING] == 0)
    leaves.close()
    until(client, lambda: grown(client, before, LEFT) == 1)
    until(client, lambda: grown(client, before, CANCELLED) == 1)
    assert numbers(client)[INFLIGHT] == 0


def test_the_end_of_an_answered_connection_is_no_departure(server: Server, images: Images) -> None:
    client, before = server.client, numbers(server.client)
    for file in images.files[:2]:
        assert status_of(ask(server, file)) == 200
    time.sleep(0.05)
    assert grown(client, before, LEFT) == grown(client, before, CANCELLED) == 0
    assert grown(client, before, ANSWERED) == 2


def test_a_client_that_leaves_before_any_item_of_its_list_has_begun_gives_all_places_back(
    shipped_bundle: Path, images: Images
) -> None:
    app = create_app(Settings(bundle=(shipped_bundle,)))
    messages = [{"type": "http.request", "body": list_of(images, 3), "more_body": False}]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "raw_path": b"/predict",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("testserver", 80),
    }

    async def receive() -> Any:
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        pass

    with TestClient(app) as client:
        admission = app.state.front.admission
        admit = admission.admit

        def admit_and_leave(samples: int) -> None:
            admit(samples)
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

        admission.admit = admit_and_leave
        client.portal.call(app, scope, receive, send)
        assert admission.samples == 0
