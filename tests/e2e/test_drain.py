"""The two phases of a stop, with requests in flight."""

from __future__ import annotations

import base64
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.e2e.conftest import free_port

if TYPE_CHECKING:
    from tests.conftest import Images
    from tests.e2e.conftest import Server, StartServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
JPEG = {"content-type": "image/jpeg"}
FOR_EVER = ("--deregister-s", "600")
# On a connection of its own, without the certificates that it would read for nothing.
ask = partial(httpx.request, verify=False)


@contextmanager
def drained(server: Server) -> Iterator[None]:
    """Send SIGTERM; within, the server is in its first phase."""
    server.process.send_signal(signal.SIGTERM)
    while ask("GET", f"{server.client.base_url}/readyz").status_code != 503:
        pass
    yield


def test_requests_are_taken_and_connections_ended_until_balancers_know(
    start_server: StartServer, shipped_bundle: Path, images: Images
) -> None:
    flags = ("--bundle", str(shipped_bundle), "--deregister-s", "3")
    port = free_port()
    with (
        start_server(*flags, "--admin-port", str(port)) as server,
        httpx.Client(base_url=server.client.base_url, verify=False) as kept,
    ):
        file, url = images.files[0], str(server.client.base_url)
        assert "connection" not in kept.post("/predict", content=file, headers=JPEG).headers
        with drained(server):
            encoded = base64.b64encode(file).decode()
            for answer in (
                kept.post("/predict", content=file, headers=JPEG),
                ask("POST", f"{url}/predict", content=file, headers=JPEG),
                ask("POST", f"{url}/predict", json={"images": [encoded] * 3}),
                ask("GET", f"{url}/budget", headers=JPEG),
            ):
                assert answer.headers["connection"] == "close"
                assert answer.status_code == (404 if "/budget" in str(answer.url) else 200)
            told = ask("GET", f"http://127.0.0.1:{port}/readyz")
            assert told.status_code == 503 and "draining" in told.json()["detail"]
        assert server.process.wait(20) == 0
        with pytest.raises(httpx.ConnectError):
            ask("GET", f"{url}/livez")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_in_flight_is_answered_and_the_status_is_0(
    start_server: StartServer, shipped_bundle: Path, images: Images, number: signal.Signals
) -> None:
    deregister = FOR_EVER if number == signal.SIGINT else ()
    with (
        start_server("--bundle", str(shipped_bundle), "--max-queue-s", "60", *deregister) as server,
        ThreadPoolExecutor(4) as pool,
    ):
        encoded = [base64.b64encode(file).decode() for file in images.files[:100]]
        lists = [
            pool.submit(server.client.post, "/predict", json={"images": encoded}) for _ in range(4)
        ]
        while "eenet_inflight_samples 0.0" in server.client.get("/metrics").text:
            assert not all(each.done() for each in lists), "the lists were over too soon"
        server.process.send_signal(number)
        for each in lists:
            answer = each.result()
            assert answer.status_code == 200
            assert all("label" in item for item in answer.json()["predictions"])
        assert server.process.wait(20) == 0


def test_what_has_come_and_was_not_read_before_the_signal_is_answered(
    start_server: StartServer, shipped_bundle: Path, images: Images
) -> None:
    port, file = free_port(), images.files[0]
    flags = ("--bundle", str(shipped_bundle), "--admin-port", str(port))
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
    request = f"{head}Content-Length: {len(file)}\r\n\r\n".encode() + file
    with start_server(*flags) as server, ExitStack() as stack:
        base, pids = server.client.base_url, server.pids
        reads = pids.get("eenet-front-e-0", server.process.pid)
        os.kill(reads, signal.SIGSTOP)
        clients = [
            stack.enter_context(socket.create_connection((base.host, base.port or 0), timeout=20))
            for _ in range(20)
        ]
        for client in clients:
            client.sendall(request)
        server.process.send_signal(signal.SIGTERM)
        if reads != server.process.pid:
            while httpx.get(f"http://127.0.0.1:{port}/readyz").status_code != 503:
                pass
        os.kill(reads, signal.SIGCONT)
        for client in clients:
            answer = client.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200") and b"connection: close" in answer.lower()
        assert server.process.wait(20) == 0


@pytest.mark.parametrize(
    "second", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_second_signal_ends_it_at_once(
    start_server: StartServer, shipped_bundle: Path, second: signal.Signals
) -> None:
    with start_server("--bundle", str(shipped_bundle), *FOR_EVER) as server:
        pids = server.pids
        with drained(server):
            server.process.send_signal(second)
        assert server.process.wait(20) == 1
        while any(Path(f"/proc/{pid}").exists() for name, pid in pids.items() if name != "control"):
            pass


def test_a_client_that_never_ends_its_request_is_told_so_within_the_time_to_drain(
    start_server: StartServer, shipped_bundle: Path
) -> None:
    with start_server("--bundle", str(shipped_bundle), "--drain-s", "1") as server:
        base = server.client.base_url
        with socket.create_connection((base.host, base.port or 0), timeout=20) as half:
            half.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n")
            half.sendall(b"Content-Length: 5000\r\n\r\nabc")
            server.client.get("/livez")
            server.process.send_signal(signal.SIGTERM)
            assert half.recv(4096).startswith(b"HTTP/1.1 503")
            assert server.process.wait(20) == 0
