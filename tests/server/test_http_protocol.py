"""Bytes in, answers out: the protocol on a transport that records what is written."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import uvicorn
from uvicorn.server import ServerState

from server.gate import Gate
from server.hot_route import HotRoute
from server.http_connection import LINGER_BYTES
from server.http_protocol import HttpProtocol
from server.limits import Limits
from server.refusals import RefusalLog

KIB = 1024
MAX_FIELDS, MAX_HEAD_BYTES = Limits.max_fields, Limits.max_head
GET = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /predict HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
App = Callable[[Any, Any, Any], Awaitable[None]]


class FakeTransport:
    """A connection whose other end is a list."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = self.ended = self.paused = False

    def write(self, data: bytes) -> None:
        assert not self.closed and not self.ended
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_extra_info(self, name: str) -> None:
        return None

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


class Seen(NamedTuple):
    """A request as the app saw it."""

    path: str
    body: bytes
    fields: dict[str, str]


class Talk(NamedTuple):
    """What came of it all."""

    seen: list[Seen]
    statuses: list[int]
    transport: FakeTransport

    @property
    def problem(self) -> dict[str, Any]:
        head, _, body = self.transport.written.rpartition(b"\r\n\r\n")
        assert b"application/problem+json" in head
        problem: dict[str, Any] = json.loads(body)
        return problem


def recorder(seen: list[Seen], hold: asyncio.Event | None = None) -> App:
    """An app that reads the body, notes the request and answers 200, the first one when told."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        fields = {name.decode(): value.decode() for name, value in scope["headers"]}
        seen.append(Seen(scope["path"], body, fields))
        if hold is not None:
            await hold.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return app


def protocol_of(app: App, transport: FakeTransport) -> HttpProtocol:
    config = uvicorn.Config(app, http=HttpProtocol, ws="none", log_config=None, lifespan="off")
    loop = asyncio.get_running_loop()
    protocol = HttpProtocol(config=config, server_state=ServerState(), app_state={}, _loop=loop)
    protocol.connection_made(transport)  # type: ignore[arg-type]
    return protocol


async def settle(turns: int = 100) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


def talk(*parts: bytes) -> Talk:
    """Send parts one after the other, as far as the server takes them."""

    async def send() -> Talk:
        seen: list[Seen] = []
        transport = FakeTransport()
        protocol = protocol_of(recorder(seen), transport)
        for part in parts:
            if transport.closed:
                break
            protocol.data_received(part)
            await settle(3)
        await settle()
        return Talk(seen, statuses(transport), transport)

    return asyncio.run(send())


def statuses(transport: FakeTransport) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d+) ", transport.written)]


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def offer(protocol: str, connection: str = "Upgrade") -> bytes:
    return f"Upgrade: {protocol}\r\nConnection: {connection}\r\n".encode()


def streaming(*parts: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> App:
    """An app that answers in parts; without headers, of unknown length."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers or []})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


def answer_to(request: bytes, app: App) -> tuple[bytes, bytes, FakeTransport]:
    """Return head and body of the answer, and the connection."""

    async def send() -> FakeTransport:
        transport = FakeTransport()
        protocol_of(app, transport).data_received(request)
        await settle()
        return transport

    transport = asyncio.run(send())
    head, _, body = transport.written.partition(b"\r\n\r\n")
    return head, body, transport


@pytest.mark.parametrize("keep", [b"", b"Connection: keep-alive\r\n"])
def test_http_1_0_gets_no_chunks(keep: bytes) -> None:
    get = b"GET / HTTP/1.0\r\nHost: x\r\n%s\r\n" % keep
    head, body, transport = answer_to(get, streaming(b"one", b"two"))
    assert b"chunked" not in head and b"content-length" not in head
    assert body == b"onetwo" and transport.closed
    assert b"connection: close" in head


def test_http_1_0_gets_an_answer_of_known_length_as_before() -> None:
    known = [(b"Content-Length", b"6")]
    head, body, _ = answer_to(b"GET / HTTP/1.0\r\n\r\n", streaming(b"one", b"two", headers=known))
    assert b"Content-Length: 6".lower() in head.lower() and body == b"onetwo"


def test_http_1_1_gets_chunks() -> None:
    head, body, transport = answer_to(GET, streaming(b"one", b"two"))
    assert b"chunked" in head and body == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    assert not transport.closed


# ---- what clients send --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10**6, 7, 1])
def test_requests_in_a_row_are_answered_in_order(size: int) -> None:
    body = POST + b"Content-Length: 3\r\n\r\nabc"
    chunks = CHUNKED + b"2;x=y\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    got = talk(*cut(GET + body + GET + chunks + GET, size))
    assert got.statuses == [200] * 5 and not got.transport.closed
    assert [each.body for each in got.seen] == [b"", b"abc", b"", b"abc", b""]


@pytest.mark.parametrize("at_once", [True, False])
def test_each_request_has_the_whole_limit(at_once: bool) -> None:
    large = b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20 * KIB + b"\r\n\r\n"
    got = talk(large * 20) if at_once else talk(*[large] * 20)
    assert got.statuses == [200] * 20


def test_as_much_as_the_limit_is_taken() -> None:
    fields = b"".join(b"x%d: y\r\n" % n for n in range(MAX_FIELDS))
    assert talk(b"GET / HTTP/1.1\r\n" + fields + b"\r\n").statuses == [200]
    head = b"GET / HTTP/1.1\r\nX: %s\r\n\r\n"
    assert talk(head % (b"a" * (MAX_HEAD_BYTES - len(head) + 2))).statuses == [200]
    assert talk(head % (b"a" * (MAX_HEAD_BYTES - len(head) + 3))).statuses == [431]


@pytest.mark.parametrize("size", [256 * KIB, 5000])
def test_a_large_body_is_no_large_head(size: int) -> None:
    body = bytes(range(256)) * 4 * KIB
    whole = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    in_chunks = [b"%x\r\n%s\r\n" % (len(each), each) for each in cut(body, 70_000)]
    chunked = CHUNKED + b"".join(in_chunks) + b"0\r\n\r\n"
    got = talk(*cut(whole + chunked + GET, size))
    assert got.statuses == [200] * 3
    assert [each.body == body for each in got.seen] == [True, True, False]


def test_small_chunks_may_be_many() -> None:
    got = talk(*cut(CHUNKED + b"1\r\na\r\n" * 20_000 + b"0\r\n\r\n", 8 * KIB))
    assert got.statuses == [200] and got.seen[0].body == b"a" * 20_000


def test_the_head_ends_between_two_parts() -> None:
    head, body = POST + b"Content-Length: 100000\r\n\r", b"\n" + b"a" * 100_000
    assert talk(head, body).seen[0].body == b"a" * 100_000


def test_trailers_are_no_headers() -> None:
    got = talk(CHUNKED + b"1\r\na\r\n0\r\nHost: other\r\nX: y\r\n\r\n" + GET)
    assert got.statuses == [200, 200]
    assert got.seen[0].fields == {"host": "x", "transfer-encoding": "chunked"}


# ---- heads that are too large -------------------------------------------------------------------

LONG = b"a" * 100 * KIB
TOO_LARGE = {
    "header": (b"GET / HTTP/1.1\r\nX: " + LONG, 431),
    "whole header": (b"GET / HTTP/1.1\r\nX: " + LONG + b"\r\n\r\n", 431),
    "header name": (b"GET / HTTP/1.1\r\n" + LONG, 431),
    "spaces": (b"GET / HTTP/1.1\r\nX:" + b" " * 40 * KIB + b"y\r\n\r\n", 431),
    "headers": (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * (MAX_FIELDS + 1) + b"\r\n", 431),
    "large headers": (b"GET / HTTP/1.1\r\n" + (b"X: " + b"a" * 998 + b"\r\n") * 40 + b"\r\n", 431),
    "URL": (b"GET /" + LONG, 414),
    "whole URL": (b"GET /" + LONG + b" HTTP/1.1\r\n\r\n", 414),
    "query": (b"GET /?" + b"a=b&" * 10 * KIB + b" HTTP/1.1\r\n\r\n", 414),
    "empty lines": (b"\r\n" * 20 * KIB, 431),
    "trailer": (CHUNKED + b"1\r\na\r\n0\r\nX: " + LONG, 431),
    "whole trailer": (CHUNKED + b"1\r\na\r\n" * 99 + b"0\r\nX: " + LONG + b"\r\n\r\n", 431),
    "trailers": (CHUNKED + b"0\r\n" + b"x: y\r\n" * (MAX_FIELDS + 1) + b"\r\n", 431),
    "chunk extension": (CHUNKED + b"1;x=" + LONG, 431),
    "whole extension": (CHUNKED + b"1;x=" + LONG + b"\r\na\r\n0\r\n\r\n", 431),
    "extensions": (CHUNKED + (b"1;x=" + b"y" * 400 + b"\r\na\r\n") * 200 + b"0\r\n\r\n", 431),
    "chunk size": (CHUNKED + b"0" * 100 * KIB, 431),
    "offer": (b"GET / HTTP/1.1\r\n" + offer("h2c") + b"X: " + LONG, 431),
    "trailer of an offer": (
        POST + offer("h2c") + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + LONG,
        431,
    ),
}


@pytest.mark.parametrize("size", [256 * KIB, 10_000, 100])
@pytest.mark.parametrize(("data", "status"), TOO_LARGE.values(), ids=TOO_LARGE.keys())
def test_a_head_that_is_too_large_is_refused(data: bytes, status: int, size: int) -> None:
    got = talk(*cut(data, size), GET, GET)
    assert got.statuses == [status] and not got.seen
    assert got.problem["status"] == status
    assert got.problem["code"] == ("url_too_long" if status == 414 else "head_too_large")
    assert b"\r\nconnection: close\r\n" in got.transport.written
    assert got.transport.ended


@pytest.mark.parametrize("size", [256 * KIB, 1000])
def test_a_large_head_behind_another_request_is_refused_after_its_answer(size: int) -> None:
    got = talk(*cut(GET + b"GET / HTTP/1.1\r\nX: " + LONG + b"\r\n\r\n" + GET, size))
    assert got.statuses == [200, 431]


def test_an_offer_behind_another_request_has_no_larger_limit() -> None:
    fields = b"".join(b"X-%d: %s\r\n" % (index, b"a" * 900) for index in range(90))
    first = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    second = b"GET /b HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n" + fields
    whole = first + second + b"\r\n"
    assert 31_000 < 32 * 1024 < len(second)
    answered = talk(whole[:-31_000], whole[-31_000:])
    assert statuses(answered.transport) == [200, 431]


def test_one_byte_at_a_time_is_counted_too() -> None:
    got = talk(*cut(b"GET / HTTP/1.1\r\nX: " + b"a" * MAX_HEAD_BYTES, 1))
    assert got.statuses == [431]


def test_a_client_that_keeps_sending_is_cut_off() -> None:
    got = talk(b"GET / HTTP/1.1\r\nX: ", *[LONG] * 5)
    assert not got.transport.closed  # so that what is on its way does not reset the connection
    got = talk(b"GET / HTTP/1.1\r\nX: ", *[LONG] * (LINGER_BYTES // len(LONG) + 2))
    assert got.transport.closed


@pytest.mark.parametrize(
    "refused",
    [b"GET / HTTP/1.1\r\nX: " + LONG, CHUNKED + b"1;x=" + LONG],
    ids=["head", "body"],
)
def test_a_refusal_waits_for_the_answers_before_it(refused: bytes) -> None:
    async def run() -> None:
        seen: list[Seen] = []
        hold, transport = asyncio.Event(), FakeTransport()
        protocol = protocol_of(recorder(seen, hold), transport)
        protocol.data_received(GET + GET + refused)
        await settle()
        assert transport.written == b""
        hold.set()
        await settle()
        assert statuses(transport) == [200, 200, 431] and len(seen) == 2
        assert transport.ended and not transport.paused

    asyncio.run(run())


def test_a_request_that_has_its_answer_gets_no_second() -> None:
    async def hasty(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 413, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def run() -> None:
        transport = FakeTransport()
        protocol = protocol_of(hasty, transport)
        protocol.data_received(CHUNKED)
        await settle()
        protocol.data_received(b"1;x=" + LONG)
        await settle()
        assert statuses(transport) == [413] and transport.closed

    asyncio.run(run())


# ---- offers of another protocol -----------------------------------------------------------------

OFFERS = {
    "h2c": offer("h2c", "Upgrade, HTTP2-Settings") + b"HTTP2-Settings: AAEAAEAAAAIAAAAB\r\n",
    "websocket": offer("websocket") + b"Sec-WebSocket-Key: dGhl\r\nSec-WebSocket-Version: 13\r\n",
    "TLS": offer("TLS/1.0"),
    "HTTP/2.0": offer("HTTP/2.0, SHTTP/1.3", "keep-alive, uPGRADE"),
    "two fields": offer("h2c", "keep-alive") + offer("foo", ", upgrade ,x"),
}


@pytest.mark.parametrize("size", [10**6, 1], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("fields", OFFERS.values(), ids=OFFERS.keys())
def test_an_offer_is_ignored_and_the_body_read(fields: bytes, size: int) -> None:
    length = POST + fields + b"Content-Length: %d\r\n\r\n" % len(GET) + GET
    chunks = POST + fields + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
    nothing = b"GET /livez HTTP/1.1\r\n" + fields + b"\r\n"
    got = talk(*cut(length + chunks % (len(GET), GET) + nothing + GET, size))
    assert got.statuses == [200] * 4
    assert [each.body for each in got.seen] == [GET, GET, b"", b""]
    assert [each.path for each in got.seen] == ["/predict", "/predict", "/livez", "/next"]
    assert "upgrade" not in got.seen[0].fields
    assert not got.transport.closed


def test_an_offer_with_a_large_body_is_ignored() -> None:
    body = b"GET / HTTP/1.1\r\n\r\n" * 10_000
    got = talk(POST + OFFERS["h2c"] + b"Content-Length: %d\r\n\r\n" % len(body) + body + GET)
    assert [each.body for each in got.seen] == [body, b""]


def test_an_offer_of_http_1_0_is_ignored() -> None:
    got = talk(b"POST /predict HTTP/1.0\r\n" + offer("h2c") + b"Content-Length: 3\r\n\r\nabc")
    assert got.seen[0].body == b"abc" and got.transport.closed


def test_an_offer_with_two_lengths_is_malformed() -> None:
    both = b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    got = talk(POST + offer("h2c") + both + b"0\r\n\r\n" + GET)
    assert got.statuses == [400] and not got.seen and got.transport.ended


@pytest.mark.parametrize("target", [b"example.com:443", b"/predict"])
@pytest.mark.parametrize("size", [10**6, 1])
def test_there_is_no_tunnel(target: bytes, size: int) -> None:
    head = b"CONNECT %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (target, len(GET))
    got = talk(*cut(head + GET + GET, size))
    assert got.statuses == [405] and not got.seen and got.transport.ended
    assert got.problem["code"] == "method_not_allowed"
    assert b"\r\nallow: GET, POST, PUT\r\n" in got.transport.written


# ---- the end of the server ----------------------------------------------------------------------


@pytest.mark.parametrize("before", [b"", GET], ids=["new", "idle"])
def test_a_request_that_is_on_its_way_when_the_server_ends_is_answered(before: bytes) -> None:
    async def run() -> None:
        transport = FakeTransport()
        protocol = protocol_of(recorder([]), transport)
        if before:
            protocol.data_received(before)
            await settle()
        protocol.shutdown()
        assert not transport.closed
        protocol.data_received(GET)
        await settle()
        assert statuses(transport)[-1] == 200 and transport.closed
        assert transport.written.count(b"connection: close") == 1

    asyncio.run(run())


@pytest.mark.parametrize("before", [b"", GET, b"GET / HT"], ids=["new", "idle", "half a head"])
def test_a_connection_on_which_nothing_comes_ends_with_the_server(before: bytes) -> None:
    async def run() -> None:
        transport = FakeTransport()
        protocol = protocol_of(recorder([]), transport)
        protocol.data_received(before) if before else None
        await settle()
        protocol.shutdown()
        while not transport.closed:
            await asyncio.sleep(0.01)
        assert statuses(transport) == ([200] if before == GET else [])

    asyncio.run(run())


@pytest.mark.parametrize(
    ("origin", "shown"), [(b"https://a.example", True), (b"https://b.example", False)]
)
@pytest.mark.parametrize("url", [b"/predict", b"/ml/predict?top_k=1"])
def test_a_web_page_may_read_why_its_request_was_refused(
    url: bytes, origin: bytes, shown: bool
) -> None:
    gate = Gate(origins=("https://a.example",), root_path="/ml")
    front: Any = SimpleNamespace(models={}, admission=SimpleNamespace(refusal=lambda samples: None))
    app: Any = recorder([])
    app.state = SimpleNamespace(hot=HotRoute(front, RefusalLog(), gate=gate), intake=None)
    length = Limits.max_body + 1
    head = b"POST %s HTTP/1.1\r\nOrigin: %s\r\nContent-Length: %d\r\n\r\n" % (url, origin, length)

    async def send() -> bytes:
        transport = FakeTransport()
        protocol_of(app, transport).data_received(head)
        await settle()
        return transport.written

    written = asyncio.run(send())
    assert written.startswith(b"HTTP/1.1 413 ")
    assert (b"access-control-allow-origin: https://a.example\r\n" in written) is shown
