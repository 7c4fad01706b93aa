"""Streams of a real server in both process modes, on a device that takes 60 ms for each stage."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.e2e.test_cancel import CANCELLED, INFLIGHT, grown, numbers, until

if TYPE_CHECKING:
    from tests.conftest import Images
    from tests.e2e.conftest import Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

STAGE_S = 0.06
STREAMED = 'eenet_requests_total{route="/predict/stream",status="200"}'
PREDICTED = 'eenet_predictions_total{exit="2",model="cifar10-resnet56"}'
EXITS = ["exit 0", "exit 1", "exit 2"]
Start = Callable[..., AbstractContextManager["Server"]]


def slow_flags(bundle: Path, folder: Path, stage_ms: float) -> tuple[str, ...]:
    """Options of a server whose stages take as long for 128 images as for one."""
    costs = folder / "costs.json"
    costs.write_text(json.dumps({"batch_sizes": [1, 128], "stages_ms": [[stage_ms] * 2] * 3}))
    replay = ("--backend", "replay", "--replay-costs", str(costs), "--max-queue-s", "60")
    return ("--bundle", str(bundle), *replay)


@pytest.fixture(scope="module")
def server(
    start_server: Start, shipped_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    flags = slow_flags(shipped_bundle, tmp_path_factory.mktemp("costs"), STAGE_S * 1e3)
    with start_server(*flags) as server:
        yield server


def request_of(file: bytes, version: str = "1.1", query: str = "budget_ms=1e6") -> bytes:
    head = f"POST /predict/stream?{query} HTTP/{version}\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
    return f"{head}Content-Length: {len(file)}\r\n\r\n".encode() + file


def connect(server: Server) -> socket.socket:
    base = server.client.base_url
    return socket.create_connection((base.host, base.port), timeout=20)


def read_until(client: socket.socket, mark: bytes) -> bytes:
    text = b""
    while mark not in text:
        part = client.recv(4096)
        assert part, text
        text += part
    return text


def names_of(text: str) -> list[str]:
    """The events, in order; those of exits with their number."""
    found = re.findall(r"(?m)^event: (\w+)\r?\ndata: (.*)$", text)
    return [f"exit {json.loads(data)['exit']}" if name == "exit" else name for name, data in found]


def test_each_exit_comes_while_the_next_stage_runs(server: Server, images: Images) -> None:
    came_s: list[float] = []
    with connect(server) as client:
        client.sendall(request_of(images.files[0]))
        begun_s, text = time.perf_counter(), b""
        while b"event: prediction" not in text:
            part = client.recv(4096)
            assert part, text
            came_s += [time.perf_counter() - begun_s] * part.count(b"event: ")
            text += part
    assert names_of(text.decode()) == [*EXITS, "prediction"]
    first, second, third, prediction = came_s
    assert first > 0.9 * STAGE_S
    assert second - first > STAGE_S / 2 and third - second > STAGE_S / 2
    assert prediction - third < STAGE_S / 2


def test_a_hundred_streams_lose_no_event_and_keep_their_order(
    server: Server, images: Images
) -> None:
    before = numbers(server.client)
    query = {"budget_ms": "1e6", "trace": "true"}

    async def stream(client: httpx.AsyncClient, file: bytes) -> list[str]:
        answer = await client.post(
            "/predict/stream", content=file, params=query, headers={"content-type": "image/jpeg"}
        )
        assert answer.status_code == 200
        *exits, last = [json.loads(data) for data in re.findall(r"(?m)^data: (.*)$", answer.text)]
        assert last["trace"] == exits, "each stream has its own sample's exits"
        return names_of(answer.text)

    async def all_at_once() -> list[list[str]]:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(
            base_url=server.client.base_url, timeout=60, verify=False, limits=limits
        ) as client:
            return await asyncio.gather(*[stream(client, file) for file in images.files[:100]])

    assert asyncio.run(all_at_once()) == [[*EXITS, "prediction"]] * 100
    assert grown(server.client, before, STREAMED) == 100
    until(server.client, lambda: grown(server.client, before, PREDICTED) == 100)
    assert numbers(server.client)[INFLIGHT] == 0


def test_a_client_that_leaves_in_the_middle_drops_its_sample(
    server: Server, images: Images
) -> None:
    client, before = server.client, numbers(server.client)
    with connect(server) as leaves:
        leaves.sendall(request_of(images.files[0]))
        read_until(leaves, b"event: exit")
    until(client, lambda: grown(client, before, CANCELLED) == 1)
    assert numbers(client)[INFLIGHT] == 0
    assert grown(client, before, STREAMED) == 1 and grown(client, before, PREDICTED) == 0


def test_http_1_0_gets_the_events_as_they_come_without_chunks(
    server: Server, images: Images
) -> None:
    with connect(server) as client:
        client.sendall(request_of(images.files[0], "1.0"))
        text = first = read_until(client, b"event: exit")
        while part := client.recv(4096):
            text += part
    assert b"prediction" not in first, "it does not wait for the end"
    head, _, body = text.partition(b"\r\n\r\n")
    assert b"chunked" not in head and b"connection: close" in head
    assert body.startswith(b"event: exit\n") and body.endswith(b"}\n\n")
    assert names_of(body.decode()) == [*EXITS, "prediction"]


def test_a_connection_serves_the_next_request_behind_a_stream(
    server: Server, images: Images
) -> None:
    with httpx.Client(base_url=server.client.base_url, timeout=20, verify=False) as client:
        sockets = set()
        for path in ("/predict/stream", "/predict", "/predict/stream"):
            answer = client.post(
                path, content=images.files[0], headers={"content-type": "image/jpeg"}
            )
            assert answer.status_code == 200
            sockets.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
        assert len(sockets) == 1


def test_an_open_stream_is_finished_at_shutdown(
    start_server: Start, shipped_bundle: Path, images: Images, tmp_path: Path
) -> None:
    with (
        start_server(*slow_flags(shipped_bundle, tmp_path, 30)) as server,
        connect(server) as client,
    ):
        client.sendall(request_of(images.files[0]))
        text = read_until(client, b"event: exit")
        server.process.send_signal(signal.SIGTERM)
        while part := client.recv(4096):
            text += part
        assert server.process.wait(20) == 0
    assert names_of(text.decode()) == [*EXITS, "prediction"]
    assert text.endswith(b"0\r\n\r\n")


def test_a_stream_that_cannot_be_finished_ends_with_an_error(
    start_processes: Start, shipped_bundle: Path, images: Images, tmp_path: Path
) -> None:
    """The engine stands still behind the first exit."""
    flags = (*slow_flags(shipped_bundle, tmp_path, 30), "--drain-s", "1", "--front-ends", "1")
    with start_processes(*flags) as server, connect(server) as client:
        pid = server.pids["eenet-engine-0"]
        client.sendall(request_of(images.files[0]))
        text = read_until(client, b"event: exit")
        os.kill(pid, signal.SIGSTOP)
        server.process.send_signal(signal.SIGTERM)
        while part := client.recv(4096):
            text += part
        os.kill(pid, signal.SIGCONT)
        assert server.process.wait(20) == 0
    assert names_of(text.decode())[-1] == "error" and b'"status":503' in text
    assert text.endswith(b"0\r\n\r\n"), "the answer has an orderly end"
