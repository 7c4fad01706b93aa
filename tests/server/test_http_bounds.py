"""The bounds of connections: raw sockets to a real server, its clocks set to short times."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import uvicorn

from server.errors import QueueFull
from server.http_connection import WRITE_BYTES
from server.http_protocol import HttpProtocol
from server.intake import Intake
from server.limits import Limits
from server.refusals import RefusalLog

KIB, MIB = 1024, 2**20
SOON_S = 0.15
PATIENT = {"first_byte_s": 30.0, "head_s": 30.0, "body_s": 30.0, "keep_alive_s": 30.0}
GET = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"
ANSWER = b"a" * 40 * KIB


class Counts:
    def __init__(self) -> None:
        self.rejected, self.answered = Counter[str](), Counter[int]()

    def observe_request(self, route: str, status: int) -> None:
        self.answered[status] += 1

    def count_rejected(self, reason: str) -> None:
        self.rejected[reason] += 1


class App:
    """Reads the body and answers with its length and more; holds bodies that say so."""

    def __init__(self, intake: Intake, hot: Any) -> None:
        self.state = SimpleNamespace(intake=intake, hot=hot)
        self.requests: list[int] = []  # length of each body
        self.hold: asyncio.Event

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/early":
            await self.answer(send, b"early")
            return
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size += len(message["body"])
            more = message["more_body"]
        self.requests.append(size)
        if scope["path"] == "/hold":
            await self.hold.wait()
        await self.answer(send, ANSWER if scope["method"] == "GET" else b"%d" % size)

    async def answer(self, send: Any, body: bytes) -> None:
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Running(NamedTuple):
    app: App
    intake: Intake
    counts: Counts
    loop: asyncio.AbstractEventLoop
    port: int

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def let_go(self) -> None:
        self.loop.call_soon_threadsafe(self.app.hold.set)


@contextmanager
def running(hot: Any = None, **bounds: Any) -> Iterator[Running]:
    counts = Counts()
    intake = Intake(Limits(**{**PATIENT, **bounds}), RefusalLog(counts))
    app = App(intake, hot)
    loops: list[asyncio.AbstractEventLoop] = []
    quiet = {"lifespan": "off", "ws": "none", "log_config": None, "access_log": False}
    config = uvicorn.Config(app, http=HttpProtocol, port=0, timeout_graceful_shutdown=1, **quiet)
    server = uvicorn.Server(config)

    def run() -> None:
        async def serve() -> None:
            loops.append(asyncio.get_running_loop())
            app.hold = asyncio.Event()
            await server.serve()

        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Running(app, intake, counts, loops[0], port)
    finally:
        server.should_exit = True
        thread.join()
    assert intake.held_bytes == 0, "all that was held is given back"


def until(condition: Callable[[], object], patience_s: float = 10.0) -> None:
    end_s = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end_s, "it does not happen"
        time.sleep(0.005)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    answer = b""
    try:
        while data := connection.recv(65536):
            answer += data
    except ConnectionResetError:
        pass
    return answer


def read_answers(connection: socket.socket, count: int) -> bytes:
    """What comes until so many answers are whole."""
    answer = b""
    while len(re.findall(rb"\r\n\r\n", answer)) < count or not whole(answer):
        data = connection.recv(65536)
        assert data, answer[:300]
        answer += data
    return answer


def whole(answer: bytes) -> bool:
    head, _, rest = answer.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
    return len(rest) >= length and (len(rest) == length or whole(rest[length:]))


def statuses(answer: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d+) ", answer)]


def post(length: int | None, path: bytes = b"/x") -> bytes:
    kind = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
    return b"POST %s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % (path, kind)


# ---- seconds ------------------------------------------------------------------------------------

SLOW = {
    "nothing": (b"", "first_byte_s", "first_byte_timeout"),
    "half a head": (b"GET / HTTP/1.1\r\nX: a", "head_s", "head_timeout"),
    "an empty line": (b"\r\n", "head_s", "head_timeout"),
    "one byte": (b"G", "head_s", "head_timeout"),
    "no body": (post(100), "body_s", "body_timeout"),
    "half a body": (post(100) + b"abc", "body_s", "body_timeout"),
    "a large half": (post(MIB) + b"a" * 300 * KIB, "body_s", "body_timeout"),
    "no chunk": (post(None), "body_s", "body_timeout"),
    "half a chunk": (post(None) + b"ffff\r\nab", "body_s", "body_timeout"),
    "no last chunk": (post(None) + b"2\r\nab\r\n", "body_s", "body_timeout"),
    "half a trailer": (post(None) + b"0\r\nX: y", "body_s", "body_timeout"),
    "behind a request": (GET + b"GET / HT", "head_s", "head_timeout"),
}


@pytest.mark.parametrize(("sent", "bound", "reason"), SLOW.values(), ids=SLOW.keys())
def test_a_client_that_is_too_slow_gets_408(sent: bytes, bound: str, reason: str) -> None:
    with running(**{bound: SOON_S}) as server, server.connect() as connection:
        connection.sendall(sent)
        answer = read_all(connection)
        assert statuses(answer)[-1] == 408 and b"connection: close" in answer
        assert b'"code":"timeout"' in answer
        assert server.counts.rejected == {reason: 1}


@pytest.mark.parametrize("name", ["half a head", "no body", "half a body", "half a chunk"])
def test_a_byte_now_and_then_is_too_slow_too(name: str) -> None:
    sent, bound, reason = SLOW[name]
    with running(**{bound: SOON_S}) as server, server.connect() as connection:
        connection.sendall(sent)
        connection.settimeout(SOON_S / 5)
        answer = b""
        for _ in range(50):
            try:
                answer = read_all(connection)
                break
            except TimeoutError:
                connection.send(b"1")
        assert statuses(answer) == [408] and server.counts.rejected == {reason: 1}


def test_an_idle_connection_is_closed_without_a_word() -> None:
    with running(keep_alive_s=SOON_S) as server, server.connect() as connection:
        connection.sendall(GET)
        assert statuses(read_all(connection)) == [200]
        assert not server.counts.rejected


def test_a_connection_that_asks_now_and_then_stays() -> None:
    with running(keep_alive_s=SOON_S, head_s=SOON_S, body_s=SOON_S) as server:
        with server.connect() as connection:
            for _ in range(6):
                connection.sendall(post(3) + b"abc")
                assert statuses(read_answers(connection, 1)) == [200]
                time.sleep(SOON_S / 3)


def test_the_server_may_take_its_time() -> None:
    bounds = dict.fromkeys(PATIENT, SOON_S)
    with running(**bounds) as server, server.connect() as connection:
        connection.sendall(post(3, b"/hold") + b"abc")
        time.sleep(2 * SOON_S)
        server.let_go()
        assert statuses(read_answers(connection, 1)) == [200]


# ---- answers that nobody takes ------------------------------------------------------------------


@pytest.mark.parametrize("request_", [GET, post(3) + b"abc"], ids=["GET", "POST"])
def test_requests_wait_until_the_answers_before_are_taken(request_: bytes) -> None:
    with running() as server, server.connect() as connection:
        count, sent = 2000, 0
        waiting = request_ * count
        connection.settimeout(0.3)
        try:
            while sent < len(waiting):
                sent += connection.send(waiting[sent : sent + 64 * KIB])
        except TimeoutError:
            pass
        seen = -1
        while seen != len(server.app.requests):
            seen = len(server.app.requests)
            time.sleep(0.2)
        held = server.intake.held_bytes
        if request_ == GET:  # its answers are large
            assert seen < 400, "most requests wait"
            assert held < 600 * KIB
        connection.settimeout(10)
        rest = threading.Thread(target=connection.sendall, args=(waiting[sent:],))
        rest.start()
        answers = 0
        tail = b""
        while answers < count:
            tail = tail[-20:] + connection.recv(2**18)
            answers += len(re.findall(rb"HTTP/1\.1 200 OK\r\n", tail))
            tail = tail.rpartition(b"HTTP/1.1 200 OK\r\n")[2] if b"200 OK\r\n" in tail else tail
        rest.join()
        assert len(server.app.requests) == count


def test_a_client_that_takes_nothing_is_cut_off() -> None:
    with running(keep_alive_s=SOON_S) as server, server.connect() as connection:
        connection.settimeout(0.5)
        try:
            while True:
                connection.send(GET * 500)
        except (TimeoutError, ConnectionError):
            pass
        until(lambda: server.counts.rejected["answer_not_taken"] == 1)
        until(lambda: server.intake.held_bytes == 0)
    assert WRITE_BYTES < len(ANSWER), "one answer is more than may wait"


# ---- bytes --------------------------------------------------------------------------------------


def test_a_body_that_is_announced_too_large_is_refused_unread() -> None:
    with running(max_body=MIB) as server, server.connect() as connection:
        connection.sendall(post(MIB + 1))
        answer = read_all(connection)
        assert statuses(answer) == [413] and b'"code":"body_too_large"' in answer
        assert server.counts.rejected == {"body_too_large": 1} and not server.app.requests


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_in_flight_stay_within_the_bound(chunked: bool) -> None:
    """Clients send all but the last byte; some are refused, and memory is bounded."""
    size, most = 2 * MIB, 8 * MIB
    start = post(None) + b"%x\r\n" % size if chunked else post(size)
    peak, stop = [0], threading.Event()
    with running(max_held=most, max_body=size) as server:

        def watch() -> None:
            while not stop.is_set():
                peak[0] = max(peak[0], server.intake.held_bytes)

        def send(connection: socket.socket) -> None:
            try:
                connection.sendall(start + b"a" * (size - 1))
            except OSError:
                pass

        connections = [server.connect() for _ in range(20)]
        threads = [threading.Thread(target=send, args=(each,)) for each in connections]
        watching = threading.Thread(target=watch)
        for thread in (watching, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: server.counts.rejected["bytes_full"] >= 14)
        # Small bodies find room all the same.
        with server.connect() as honest:
            honest.sendall(post(1000) + b"a" * 1000)
            assert statuses(read_answers(honest, 1)) == [200]
        stop.set()
        watching.join()
        for connection in connections:
            connection.close()
        assert peak[0] <= most + MIB


def test_a_body_that_has_stopped_gives_way_to_one_that_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.intake.STALE_S", 0.05)
    with running(max_held=2 * MIB, max_body=MIB) as server:
        with server.connect() as stalled, server.connect() as honest:
            stalled.sendall(post(MIB) + b"a" * (MIB - 1))
            until(lambda: server.intake.held_bytes == MIB - 1)
            time.sleep(0.1)
            honest.sendall(post(MIB) + b"a" * MIB)
            assert statuses(read_answers(honest, 1)) == [200]
            assert statuses(read_all(stalled)) == [408]
            assert server.counts.rejected == {"stalled": 1}


def test_a_refusal_says_when_to_retry_and_the_client_can_read_it() -> None:
    with running(max_held=4 * MIB, max_body=3 * MIB) as server:
        with server.connect() as first, server.connect() as second:
            first.sendall(post(3 * MIB, b"/hold") + b"a" * (3 * MIB))
            until(lambda: server.app.requests == [3 * MIB])
            second.sendall(post(2 * MIB) + b"a" * (2 * MIB))  # all of it, before it reads
            answer = read_all(second)
            assert statuses(answer) == [429] and b'"code":"bytes_full"' in answer
            assert 1 <= int(re.search(rb"retry-after: (\d+)", answer)[1]) <= 60  # type: ignore[index]
            server.let_go()
            assert statuses(read_answers(first, 1)) == [200]
            assert server.intake.held_bytes == 0


def test_tiny_chunks_leave_others_their_turn() -> None:
    with running() as server, server.connect() as hostile, server.connect() as honest:
        sending = threading.Thread(
            target=hostile.sendall, args=(post(None) + b"1\r\na\r\n" * 100_000 + b"0\r\n\r\n",)
        )
        sending.start()
        for _ in range(10):
            honest.sendall(post(3) + b"abc")
            assert statuses(read_answers(honest, 1)) == [200]
        assert 100_000 not in server.app.requests, "the others had to wait for all chunks"
        sending.join()
        assert statuses(read_answers(hostile, 1)) == [200] and 100_000 in server.app.requests


# ---- a full queue -------------------------------------------------------------------------------


class FullRoute:
    """A route that admits nothing."""

    refusal = QueueFull("512 samples are in flight", {"Retry-After": "3"})
    paths = frozenset({b"/predict"})

    def cors_headers(self, url: bytes, headers: Any) -> Any:
        return []

    def takes(self, headers: Any) -> bool:
        raise AssertionError("a full queue is known before the headers are looked at")


PREDICT = b"POST /predict HTTP/1.1\r\nHost: x\r\nX-Request-ID: mine\r\nContent-Type: image/jpeg\r\n"


@pytest.mark.parametrize("length", [b"Content-Length: 100\r\n\r\n", b"Content-Length: 0\r\n\r\n"])
def test_when_the_queue_is_full_the_connection_stays(length: bytes) -> None:
    with running(FullRoute()) as server, server.connect() as connection:
        connection.sendall(PREDICT + length)
        answer = read_answers(connection, 1)
        assert statuses(answer) == [429] and b"retry-after: 3\r\n" in answer
        assert b"x-request-id: mine\r\n" in answer and b"connection: close" not in answer
        body = b"a" * 100 if b"100" in length else b""
        connection.sendall(body + GET)  # the body comes late, and is no request
        assert statuses(read_answers(connection, 1)) == [200]
        assert server.counts.rejected == {"queue_full": 1}


@pytest.mark.parametrize(
    "fields",
    [b"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n", b"Content-Length: 20000000\r\n\r\n",
     b"Transfer-Encoding: chunked\r\n\r\n", b"Connection: close\r\nContent-Length: 3\r\n\r\n"],
    ids=["expects leave", "large", "chunked", "close"],
)  # fmt: skip
def test_when_the_queue_is_full_and_the_body_is_no_matter_it_closes(fields: bytes) -> None:
    with running(FullRoute()) as server, server.connect() as connection:
        connection.sendall(PREDICT + fields)
        answer = read_all(connection)
        assert statuses(answer) == [429] and b"connection: close" in answer
        assert server.counts.rejected == {"queue_full": 1}


def test_a_route_that_answers_early_keeps_its_connection_in_step() -> None:
    with running() as server, server.connect() as connection:
        connection.sendall(post(5, b"/early"))
        assert statuses(read_answers(connection, 1)) == [200]
        connection.sendall(b"GET /" + GET)
        assert statuses(read_answers(connection, 1)) == [200]


# ---- connections --------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [70_000, 900_000, 3_000_000])
def test_what_is_left_of_a_body_that_was_answered_early_is_skipped(length: int) -> None:
    with running() as server, server.connect() as connection:
        for _ in range(3):
            connection.sendall(post(length, b"/early"))
            connection.sendall(bytes(length))
            assert statuses(read_answers(connection, 1)) == [200]


def test_connections_are_bounded_and_the_next_one_finds_its_place() -> None:
    with running(max_connections=5) as server:
        some = [server.connect() for _ in range(5)]
        for each in some:
            each.sendall(b"GET")  # so that none is idle
        until(lambda: len(server.intake._connections) == 5)
        with server.connect() as late:
            answer = read_all(late)
            assert statuses(answer) == [503] and b"retry-after: 1" in answer
        assert server.counts.rejected == {"connections": 1}
        some.pop().close()
        until(lambda: len(server.intake._connections) == 4)
        with server.connect() as next_one:
            next_one.sendall(GET)
            assert statuses(read_answers(next_one, 1)) == [200]
        for each in some:
            each.close()


def test_connections_that_say_nothing_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.intake.IDLE_S", 0.05)
    with running(max_connections=3) as server:
        silent = [server.connect() for _ in range(3)]
        time.sleep(0.1)
        for _ in range(3):
            with server.connect() as late:
                late.sendall(GET)
                assert statuses(read_answers(late, 1)) == [200]
        for each in silent:
            each.close()


def test_an_idle_connection_gives_way_to_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.intake.IDLE_S", 0.05)
    with running(max_connections=3) as server:
        idle = [server.connect() for _ in range(3)]
        for each in idle:
            each.sendall(GET)
            read_answers(each, 1)
        time.sleep(0.1)
        with server.connect() as late:
            late.sendall(GET)
            assert statuses(read_answers(late, 1)) == [200]
        assert read_all(idle[0]) == b"", "the one that had been idle longest"
        idle[1].sendall(GET)
        assert statuses(read_answers(idle[1], 1)) == [200]
        for each in idle:
            each.close()


# ---- lengths that contradict each other ---------------------------------------------------------

CONFLICTS = [
    b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
    b"Content-Length: 3\r\nContent-Length: 4\r\n",
    b"Content-Length: 3\r\nContent-Length: 3\r\n",
    b"Content-Length: 3, 3\r\n",
    b"Content-Length: +3\r\n",
    b"Content-Length: -3\r\n",
    b"Content-Length: 0x3\r\n",
    b"Content-Length: 3 4\r\n",
    b"Content-Length: 99999999999999999999999\r\n",
    b"Content-Length : 3\r\n",
    b"Content-Length:\r\n 3\r\n",
    b"Transfer-Encoding: chunked, gzip\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"X: a\nContent-Length: 3\r\n",
]


@pytest.mark.parametrize("fields", CONFLICTS, ids=lambda fields: fields[:40].decode())
def test_no_body_is_run_as_a_request(fields: bytes) -> None:
    inner = GET.replace(b"/x", b"/smuggled")
    with running() as server, server.connect() as connection:
        connection.sendall(b"POST /x HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n" + inner + GET)
        answer = read_all(connection)
        assert statuses(answer) in ([400], [413]) and not server.app.requests


@pytest.mark.parametrize(
    "chunks",
    [b"3\r\nabcd\r\n0\r\n\r\n", b"-1\r\n\r\n", b"3 \r\nabc\r\n0\r\n\r\n", b"3\nabc\n0\n\n",
     b"fffffffffffffffff\r\n"],
)  # fmt: skip
def test_a_chunk_that_does_not_end_where_it_says_is_malformed(chunks: bytes) -> None:
    with running() as server, server.connect() as connection:
        connection.sendall(post(None) + chunks + GET)
        assert statuses(read_all(connection)) == [400]
        assert not server.app.requests
