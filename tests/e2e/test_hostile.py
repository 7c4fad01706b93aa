"""Hostile bytes to the real server, over sockets of their own."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Images
    from tests.e2e.conftest import Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

POST = b"POST /predict HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Content-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
OFFER = b"Upgrade: %s\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAA\r\n"
LONG = b"a" * 300_000
# A server whose decoders never return from an image.
STUCK = """
import sys, threading
from models.preprocess import ImagePreprocessor
from server.cli.main import main
ImagePreprocessor.decode_if_fast = lambda *_, **__: threading.Event().wait()
sys.exit(main())
"""


@pytest.fixture(scope="module")
def server(
    start_server: Callable[..., AbstractContextManager[Server]], shipped_bundle: Path
) -> Iterator[Server]:
    with start_server("--bundle", str(shipped_bundle)) as server:
        yield server


def exchange(server: Server, *parts: bytes, until_end: bool = False) -> bytes:
    """Send parts, a little apart; what comes back until the end or a moment of silence."""
    base, answer = server.client.base_url, b""
    with socket.create_connection((base.host, base.port), timeout=5) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(0.05)
        connection.settimeout(5 if until_end else 0.3)
        try:
            while data := connection.recv(65536):
                answer += data
        except TimeoutError:
            assert not until_end, "the connection stays open"
    return answer


def statuses(answer: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d+) ", answer)]


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([b"GET /livez HTTP/1.1\r\nX: " + LONG], 431),
        ([b"GET /livez HTTP/1.1\r\nX: ", *[LONG[:10_000]] * 4], 431),
        ([b"GET /livez HTTP/1.1\r\n" + b"x: y\r\n" * 100_000 + b"\r\n"], 431),
        ([b"GET /" + LONG + b" HTTP/1.1\r\n\r\n"], 414),
        ([CHUNKED + b"1\r\na\r\n", b"0\r\nX: " + LONG], 431),
        ([CHUNKED, b"1;x=" + LONG], 431),
        ([b"CONNECT example.com:80 HTTP/1.1\r\nHost: x\r\n\r\n" + LIVEZ], 405),
    ],
    ids=["header", "slow header", "headers", "URL", "trailer", "extension", "CONNECT"],
)
def test_a_hostile_head_is_refused_and_the_connection_closed(
    server: Server, parts: list[bytes], status: int
) -> None:
    answer = exchange(server, *parts, until_end=True)
    assert statuses(answer) == [status]
    assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["status"] == status
    assert statuses(exchange(server, LIVEZ)) == [200]


def test_an_endless_header_is_cut(server: Server) -> None:
    base, sent = server.client.base_url, 0
    with socket.create_connection((base.host, base.port), timeout=5) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nX: ")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while sent < 64 * 2**20:
                sent += connection.send(LONG)


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0"])
def test_an_offer_of_another_protocol_is_ignored(
    server: Server, images: Images, protocol: bytes
) -> None:
    body = images.files[0]
    fields = OFFER % protocol + b"Content-Type: image/jpeg\r\n"
    length = POST + fields + b"Content-Length: %d\r\n\r\n" % len(body)
    chunked = POST + fields + b"Transfer-Encoding: chunked\r\n\r\n"
    in_chunks = chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    assert statuses(exchange(server, length + body + in_chunks + LIVEZ)) == [200] * 3
    assert statuses(exchange(server, length, body, LIVEZ)) == [200] * 2
    get = LIVEZ.replace(b"\r\n\r\n", b"\r\n" + OFFER % protocol + b"\r\n")
    assert statuses(exchange(server, get + LIVEZ)) == [200] * 2


@pytest.mark.parametrize("route", [b"POST /predict", b"PUT /budget", b"POST /feedback"])
def test_a_body_behind_an_offer_is_no_request(server: Server, route: bytes) -> None:
    head = route + b" HTTP/1.1\r\nHost: x\r\n" + OFFER % b"h2c"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(LIVEZ)
    for parts in ([head + LIVEZ], [head, LIVEZ]):
        assert statuses(exchange(server, *parts)) == [400]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_stuck_decoder_does_not_hold_the_process(
    start_server: Callable[..., AbstractContextManager[Server]],
    shipped_bundle: Path,
    images: Images,
    number: signal.Signals,
) -> None:
    options = ("--bundle", str(shipped_bundle), "--drain-s", "1", "--decode-workers", "1")
    with start_server(*options, entry=("-c", STUCK)) as server:
        large = images.files[0] + bytes(10_000)  # not decoded on the event loop
        head = POST + b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(large)
        answers: list[bytes] = []
        waiting = threading.Thread(
            target=lambda: answers.append(exchange(server, head, large, until_end=True))
        )
        waiting.start()
        time.sleep(0.3)
        server.process.send_signal(number)
        try:
            server.process.wait(timeout=8)
        except subprocess.TimeoutExpired:
            pytest.fail("the stuck decoder holds the process")
        waiting.join()
        assert statuses(answers[0]) == [503]
