import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest

from profiling.loadtest.http_client import ConnectionConfig
from profiling.loadtest.load import Call, SideCalls, closed_loop, open_loop, poisson, poisson_steps
from profiling.loadtest.schedule import Schedule

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Serving = Callable[[Handler], AbstractContextManager[str]]

CALLS = [Call(f"/{name}", name.encode() * 3, "text/plain") for name in ("a", "b", "c")]


@pytest.fixture
def serving() -> Serving:
    """Makes servers of a handler of connections, on a thread of their own; gives their address."""

    @contextmanager
    def serve(handler: Handler) -> Iterator[str]:
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(asyncio.start_server(handler, "127.0.0.1", 0))
        port = server.sockets[0].getsockname()[1]
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            loop.call_soon_threadsafe(server.close)
            asyncio.run_coroutine_threadsafe(cancel_others(), loop).result(5)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    return serve


async def cancel_others() -> None:
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # a connection that has just come begins its handler


async def read_call(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """The head and the body of the next call; EOFError when there is none."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
    return head, await reader.readexactly(int(fields["Content-Length"]))


def answer(body: bytes, status: str = "200 OK", *fields: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(head).encode() + body


def answering(respond: Callable[[str, bytes], bytes | None], wait_s: float = 0.0) -> Handler:
    """A handler that writes what `respond` makes of head and body; None closes the connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (written := respond(*await read_call(reader))) is not None:
                await asyncio.sleep(wait_s)
                writer.write(written)
        except (EOFError, ConnectionError):
            pass
        finally:
            writer.close()

    return handle


def test_calls_are_sent_in_turn_and_answered_as_they_are(serving: Serving) -> None:
    heads: list[str] = []

    def echo(head: str, body: bytes) -> bytes:
        heads.append(head)
        return answer(body)

    with serving(answering(echo)) as url:
        config = ConnectionConfig(2, keep_bodies=True)
        result = closed_loop(f"{url}/prefix/", CALLS, config, count=7)
    assert sorted(result.call.tolist()) == [0, 0, 0, 1, 1, 2, 2]
    assert result.bodies == [CALLS[call].body for call in result.call]
    assert result.outcomes == {"200": 7} and result.num_errors == 0
    assert result.rate == pytest.approx(7 / result.seconds)
    assert "POST /prefix/a HTTP/1.1\r\n" in heads[0] and "Content-Type: text/plain" in heads[0]


def test_every_connection_waits_for_its_answer_and_is_kept(serving: Serving) -> None:
    opened: list[None] = []
    respond = answering(lambda head, body: answer(b"ok"), wait_s=0.02)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(None)
        await respond(reader, writer)

    with serving(handle) as url:
        result = closed_loop(url, CALLS, ConnectionConfig(3), seconds=0.2, warm_up_s=0.1)
    assert len(opened) == 3
    assert 15 <= len(result.call) <= 33  # 3 connections, at most 11 answers each
    assert result.due_s.min() >= 0 and result.due_s.max() < 0.2
    slowest, fastest = result.percentiles(100, 0) or ()
    assert 20 <= fastest <= slowest < 100


def test_an_answer_may_come_in_chunks_or_after_an_announcement(serving: Serving) -> None:
    chunked = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    )
    announced = b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"later")
    bodies = {"/a": chunked, "/b": announced, "/c": answer(b"", "204 No Content")}
    with serving(answering(lambda head, body: bodies[head.split()[1]])) as url:
        result = closed_loop(url, CALLS, ConnectionConfig(1, keep_bodies=True), count=4)
    assert result.bodies == [b"abcde", b"later", b"", b"abcde"]
    assert result.outcome.tolist() == ["200", "200", "204", "200"]
    assert result.num_errors == 1


def test_what_is_no_answer_is_counted_and_the_load_goes_on(serving: Serving) -> None:
    answers = {"/a": None, "/b": b"no HTTP at all\r\n\r\n", "/c": answer(b"busy", "429 Too Many")}
    with serving(answering(lambda head, body: answers[head.split()[1]])) as url:
        result = closed_loop(url, CALLS, ConnectionConfig(1, keep_bodies=True), count=6)
    assert result.outcome.tolist() == ["reset", "malformed", "429"] * 2
    assert result.bodies is not None and result.bodies[2] == b"busy"
    assert result.num_errors == 6 and result.rate == 0
    assert result.percentiles(50) is None


def test_half_an_answer_is_a_reset(serving: Serving) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_call(reader)
        writer.write(answer(b"whole")[:-1])
        writer.close()

    with serving(handle) as url:
        result = closed_loop(url, CALLS, ConnectionConfig(1, keep_bodies=True), count=2)
    assert result.outcomes == {"reset": 2}


def test_a_connection_that_the_server_closes_is_renewed(serving: Serving) -> None:
    closing = answer(b"bye", "200 OK", "Connection: close")
    with serving(answering(lambda head, body: closing)) as url:
        result = closed_loop(url, CALLS, ConnectionConfig(2), count=8)
    assert result.outcomes == {"200": 8}


def test_a_server_that_is_not_there_refuses_every_call() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    result = closed_loop(url, CALLS, ConnectionConfig(2), seconds=0.12)
    assert set(result.outcomes) == {"refused"}
    assert 2 <= len(result.call) <= 8  # each connection rests before it tries again


def test_a_call_that_takes_too_long_is_given_up(serving: Serving) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            writer.close()

    with serving(silent) as url:
        one = closed_loop(url, CALLS, ConnectionConfig(2, timeout_s=0.1), count=4)
        many = open_loop(url, CALLS, np.zeros(20), ConnectionConfig(2, timeout_s=0.1))
    assert one.outcomes == {"timed out": 4}
    assert (one.latency_ms >= 100).all() and (one.latency_ms < 300).all()
    assert many.outcomes == {"timed out": 20} and many.latency_ms.max() < 400
    assert np.isnan(many.sent_s).sum() == 18  # no connection was free for them in time


def test_an_open_loop_sends_when_calls_are_due_whatever_is_answered(serving: Serving) -> None:
    arrivals = np.arange(20) * 0.005
    with serving(answering(lambda head, body: answer(b"ok"), wait_s=0.05)) as url:
        result = open_loop(url, CALLS, arrivals, ConnectionConfig(64))
    order = np.argsort(result.due_s)
    assert result.due_s[order] == pytest.approx(arrivals)
    assert result.call[order].tolist() == [number % 3 for number in range(20)]
    late_ms = 1e3 * (result.sent_s - result.due_s)
    assert late_ms.min() >= 0
    assert result.seconds < 0.9  # one after another they would take a second


def test_waiting_for_a_free_connection_counts(serving: Serving) -> None:
    with serving(answering(lambda head, body: answer(b"ok"), wait_s=0.02)) as url:
        result = open_loop(url, CALLS, np.zeros(10), ConnectionConfig(1))
    order = np.argsort(result.sent_s)
    assert result.outcomes == {"200": 10}
    assert (result.latency_ms[order] >= 20 * np.arange(1, 11) - 1).all()
    assert (result.due_s == 0).all() and result.sent_s.max() >= 0.18


def test_poisson_arrivals_rise_at_their_rate_and_follow_their_seed() -> None:
    arrivals = poisson(1000, 20, seed=3)
    assert len(arrivals) == pytest.approx(20_000, rel=0.03)
    gaps = np.diff(arrivals)
    assert (gaps >= 0).all() and 0 <= arrivals[0] and arrivals[-1] < 20
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert (arrivals == poisson(1000, 20, seed=3)).all()
    assert arrivals[0] != poisson(1000, 20, seed=4)[0]


def test_a_rate_may_change() -> None:
    arrivals = poisson_steps(Schedule((0.0, 10.0, 30.0), (100.0, 1000.0, 20.0)), 60, seed=3)
    assert (np.diff(arrivals) >= 0).all()
    counts = np.histogram(arrivals, [0, 10, 30, 60])[0]
    assert counts == pytest.approx([1000, 20_000, 600], rel=0.1)


def test_calls_may_be_picked_by_number_and_time(serving: Serving) -> None:
    def pick(number: int, after_s: float) -> int:
        return 2 if after_s >= 0.05 else number % 2

    with serving(answering(lambda head, body: answer(b"ok"))) as url:
        opened = open_loop(url, CALLS, np.arange(10) * 0.01, ConnectionConfig(8), pick=pick)
        closed = closed_loop(url, CALLS, ConnectionConfig(1), seconds=0.1, pick=pick)
    order = np.argsort(opened.due_s)
    assert opened.call[order].tolist() == [0, 1, 0, 1, 0, 2, 2, 2, 2, 2]
    assert ((closed.call == 2) == (closed.due_s >= 0.05)).mean() > 0.9
    assert (closed.call == 2).any() and (closed.call == 1).any()


def test_calls_beside_the_load_have_a_connection_and_a_count_of_their_own(
    serving: Serving,
) -> None:
    heads: list[str] = []

    def echo(head: str, body: bytes) -> bytes:
        heads.append(head)
        return answer(body)

    puts = [Call(f"/put/{n}", str(n).encode(), method="PUT") for n in range(2)]
    beside = [SideCalls(puts, np.array([0.0, 0.05])), SideCalls([CALLS[0]], np.array([0.02, 0.04]))]
    with serving(answering(echo)) as url:
        for result in (
            closed_loop(
                url, CALLS[1:], ConnectionConfig(2), seconds=0.1, warm_up_s=0.02, beside=beside
            ),
            open_loop(url, CALLS[1:], np.arange(10) * 0.01, ConnectionConfig(2), beside=beside),
        ):
            put, other = result.beside
            assert result.bodies is None and set(result.outcomes) == {"200"}
            assert put.bodies == [b"0", b"1"] and put.due_s.tolist() == pytest.approx([0, 0.05])
            assert other.bodies == [b"aaa"] * 2 and put.outcomes == {"200": 2}
    assert sum(head.startswith("PUT /put/") for head in heads) == 4


def test_times_are_those_of_the_clock(serving: Serving) -> None:
    def clock() -> float:
        return 10 * time.perf_counter()

    with serving(answering(lambda head, body: answer(b"ok"), wait_s=0.01)) as url:
        result = closed_loop(url, CALLS, ConnectionConfig(1, clock=clock), count=3)
    assert 100 <= result.latency_ms.min() < 1000


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("localhost:8000", "http://127.0.0.1:8000"),
        ("https://localhost", "http://127.0.0.1:8000"),
        ("http://", "http://127.0.0.1:8000"),
        ("http://localhost:99999", "99999|range"),
    ],
)
def test_a_bad_address_is_one_sentence(url: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        closed_loop(url, CALLS, ConnectionConfig(1), count=1)


def test_what_makes_no_sense_is_refused_before_anything_is_sent() -> None:
    url, one = "http://localhost:1", ConnectionConfig(1)
    with pytest.raises(ValueError, match="seconds or count"):
        closed_loop(url, CALLS, one)
    with pytest.raises(ValueError, match="at least one call"):
        closed_loop(url, [], one, count=1)
    with pytest.raises(ValueError, match="one connection"):
        closed_loop(url, CALLS, ConnectionConfig(0), count=1)
    with pytest.raises(ValueError, match="line ends"):
        closed_loop(url, [Call("/a\r\nX: 1")], one, count=1)
    with pytest.raises(ValueError, match="line ends"):
        closed_loop(url, [Call("/a", headers=(("X", "1\n2"),))], one, count=1)
    with pytest.raises(ValueError, match="do not fall"):
        open_loop(url, CALLS, np.array([1.0, 0.5]), one)
    with pytest.raises(ValueError, match="one arrival"):
        open_loop(url, CALLS, np.array([]), one)
    with pytest.raises(ValueError, match="do not fall"):
        closed_loop(url, CALLS, one, count=1, beside=[SideCalls(CALLS, np.array([1.0, 0.0]))])
