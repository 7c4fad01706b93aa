import array
import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.processes.channel import MOST_FDS, Channel
from server.processes.wire import BadMessage, Message, MessageReader, encode

LARGE = np.arange(100_000)  # 800 kB, more than a socket takes


class End:
    """One end of a connection, and what arrived there."""

    def __init__(self, sock: socket.socket) -> None:
        self.messages: list[Message] = []
        self.fds: list[list[int]] = []
        self.closed = 0
        self.act: Callable[[Message], None] = lambda _: None
        self.channel = Channel(sock, asyncio.get_running_loop(), self._take, self._end)

    def _take(self, message: Message, fds: list[int]) -> None:
        self.messages.append(message)
        self.fds.append(fds)
        self.act(message)

    def _end(self) -> None:
        self.closed += 1

    def close(self) -> None:
        self.channel.close()
        for fd in (fd for fds in self.fds for fd in fds):
            os.close(fd)

    @property
    def kinds(self) -> list[str]:
        return [each.kind for each in self.messages]


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[End, End]]:
    left, right = map(End, socket.socketpair())
    try:
        yield left, right
    finally:
        left.close()
        right.close()


@asynccontextmanager
async def raw() -> AsyncIterator[tuple[socket.socket, End]]:
    """A plain socket and, at its other end, a channel."""
    sock, other = socket.socketpair()
    end = End(other)
    try:
        yield sock, end
    finally:
        sock.close()
        end.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.001)


async def turns() -> None:
    """Let the loop do what is ready."""
    for _ in range(5):
        await asyncio.sleep(0.001)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await test()

    asyncio.run(main())


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_messages_arrive_in_order_both_ways() -> None:
    async def talk() -> None:
        async with connected() as (left, right):
            for number in range(100):
                assert left.channel.send(Message("a", {"n": number}, (np.arange(number),)))
                assert right.channel.send(Message("b", {"n": number}))
            await until(lambda: len(left.messages) == len(right.messages) == 100)
            assert [each.fields["n"] for each in right.messages] == list(range(100))
            assert [len(each.arrays[0]) for each in right.messages] == list(range(100))
            assert set(left.kinds) == {"b"}

    run(talk)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 3)), max_size=12))
def test_messages_of_any_size_arrive_with_their_descriptors(plan: list[tuple[int, int]]) -> None:
    async def talk() -> None:
        async with connected() as (left, right):
            for number, (size, count) in enumerate(plan):
                fds = [os.memfd_create(f"{number} {each}") for each in range(count)]
                left.channel.send(Message("m", {"n": number}, (np.full(size, number),)), fds)
                for fd in fds:
                    os.close(fd)
            await until(lambda: len(right.messages) == len(plan))
            for number, (size, count) in enumerate(plan):
                message, fds = right.messages[number], right.fds[number]
                np.testing.assert_array_equal(message.arrays[0], np.full(size, number))
                names = [os.readlink(f"/proc/self/fd/{fd}") for fd in fds]
                assert names == [f"/memfd:{number} {each} (deleted)" for each in range(count)]
                assert not any(map(os.get_inheritable, fds))
            assert left.channel.pending_bytes == 0

    before = open_fds()
    run(talk)
    assert open_fds() == before


def test_a_message_of_more_parts_than_a_system_call_takes_arrives() -> None:
    async def talk() -> None:
        async with connected() as (left, right):
            left.channel.send(Message("m", {}, tuple(np.full(3, n) for n in range(3000))))
            await until(lambda: bool(right.messages))
            assert [each[0] for each in right.messages[0].arrays] == list(range(3000))

    run(talk)


def test_what_the_other_end_does_not_read_waits_in_memory() -> None:
    async def talk() -> None:
        async with connected() as (left, right):
            right.channel.pause_reading()
            right.channel.pause_reading()
            for _ in range(10):
                assert left.channel.send(Message("large", {}, (LARGE,)))
            await turns()
            assert 7e6 < left.channel.pending_bytes < 8.1e6
            assert right.messages == []
            right.channel.resume_reading()
            right.channel.resume_reading()
            await until(lambda: len(right.messages) == 10)
            assert left.channel.pending_bytes == 0
            for message in right.messages:
                np.testing.assert_array_equal(message.arrays[0], LARGE)

    run(talk)


def test_threads_send_whole_messages_in_their_order() -> None:
    async def talk() -> None:
        async with connected() as (left, right):

            def send(thread: int) -> None:
                for number in range(200):
                    filled = np.full(number * 20, thread)
                    message = Message("t", {"thread": thread, "n": number}, (filled,))
                    assert left.channel.send(message)

            threads = [threading.Thread(target=send, args=(each,)) for each in range(4)]
            for each in threads:
                each.start()
            await until(lambda: len(right.messages) == 800)
            for each in threads:
                each.join()
            for thread in range(4):
                mine = [each for each in right.messages if each.fields["thread"] == thread]
                assert [each.fields["n"] for each in mine] == list(range(200))
                assert all((each.arrays[0] == thread).all() for each in mine)

    run(talk)


def test_an_end_that_closes_is_noticed_once_and_is_not_told_itself() -> None:
    async def talk() -> None:
        async with connected() as (left, right):
            left.channel.send(Message("last words"))
            left.channel.close()
            left.channel.close()
            await until(lambda: right.closed == 1)
            await turns()
            assert right.kinds == ["last words"]
            for end in (left, right):
                assert not end.channel.send(Message("too late"))
                assert not end.channel.send(Message("too late"))
                end.channel.resume_reading()
                assert end.channel.pending_bytes == 0
            assert (left.closed, right.closed) == (0, 1)

    run(talk)


def test_a_send_that_fails_ends_the_channel_after_the_last_words() -> None:
    async def talk() -> None:
        async with connected() as (left, right):
            right.channel.pause_reading()
            left.channel.send(Message("last words"))
            left.channel.close()
            right.channel.send(Message("too late"))
            assert not right.channel.send(Message("too late"))
            assert right.closed == 0, "not within a call of send"
            await until(lambda: right.closed == 1)
            assert right.kinds == ["last words"]

    run(talk)


def test_an_end_that_is_gone_before_it_has_read_drops_what_waits() -> None:
    async def talk() -> None:
        async with connected() as (left, right):
            right.channel.pause_reading()
            read, write = os.pipe()
            for _ in range(3):
                left.channel.send(Message("large", {}, (LARGE,)), [read])
            os.close(read)
            right.channel.close()
            await until(lambda: left.closed == 1)
            assert left.channel.pending_bytes == 0
            with pytest.raises(BrokenPipeError):  # nobody holds the other end any more
                os.write(write, b"x")
            os.close(write)

    run(talk)


def test_a_handler_that_closes_its_channel_gets_nothing_more() -> None:
    async def talk() -> None:
        async with connected() as (left, right):
            right.act = lambda _: right.channel.close()
            read, write = os.pipe()
            left.channel.send(Message("first"))
            left.channel.send(Message("second"), [read, write])
            os.close(read)
            os.close(write)
            await until(lambda: left.closed == 1)
            assert (right.kinds, right.closed) == (["first"], 0)

    before = open_fds()
    run(talk)
    assert open_fds() == before


def test_a_handler_that_fails_is_logged_and_the_next_message_arrives(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(message: Message) -> None:
        if message.kind == "bad":
            raise RuntimeError("a handler has failed")

    async def talk() -> None:
        async with connected() as (left, right):
            right.act = fail
            left.channel.send(Message("bad"))
            left.channel.send(Message("good"))
            await until(lambda: right.kinds == ["bad", "good"])

    run(talk)
    assert "a handler has failed" in caplog.text


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\xff" * 100, "over the limit"),
        (b"".join(encode(Message("m", {"fds": 1}))), "names 1 descriptors, but has 0"),
        (b"".join(encode(Message("m", {"fds": -1}))), "names -1 descriptors"),
        (b"".join(encode(Message("m", {"fds": "2"}))), "names '2' descriptors"),
    ],
)
def test_bytes_that_are_no_message_close_the_connection(
    data: bytes, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def talk() -> None:
        async with raw() as (sock, end):
            sock.sendall(b"".join(encode(Message("good"))))
            await until(lambda: bool(end.messages))
            sock.sendall(data)
            await until(lambda: end.closed == 1)
            assert end.kinds == ["good"]
            assert sock.recv(1) == b""

    run(talk)
    assert problem in caplog.text


@pytest.mark.parametrize("count", [2, MOST_FDS + 1])
def test_descriptors_that_nobody_claims_are_closed(
    count: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def talk() -> None:
        async with raw() as (sock, end):
            read, write = os.pipe()
            rights = array.array("i", [write] * count)
            data = b"".join(encode(Message("plain")))
            sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            os.close(write)
            await asyncio.to_thread(os.read, read, 1)  # the end of file: all copies are closed
            os.close(read)
            assert end.kinds == (["plain"] if count <= MOST_FDS else [])
            assert end.closed == (count > MOST_FDS)

    run(talk)
    assert "came with no message" in caplog.text or "descriptors are lost" in caplog.text


def test_a_message_that_cannot_be_sent_is_refused_and_the_next_is_sent() -> None:
    async def talk() -> None:
        async with connected() as (left, right):
            with pytest.raises(ValueError, match="the channel's"):
                left.channel.send(Message("m", {"fds": 1}))
            with pytest.raises(ValueError, match="at most 64 descriptors, not 65"):
                left.channel.send(Message("m"), [0] * 65)
            with pytest.raises(BadMessage):
                left.channel.send(Message("m", {}, (np.array([None]),)))
            with pytest.raises(OSError):
                left.channel.send(Message("m"), [0, 10_000])
            left.channel.send(Message("good"))
            await until(lambda: bool(right.messages))
            assert right.kinds == ["good"]

    before = open_fds()
    run(talk)
    assert open_fds() == before


def test_a_blocking_reader_can_read_what_a_channel_sends() -> None:
    async def talk() -> None:
        async with raw() as (sock, end):
            end.channel.send(Message("hello", {"x": 1}))
            (message,) = MessageReader().feed(await asyncio.to_thread(sock.recv, 4096))
            assert (message.kind, message.fields) == ("hello", {"x": 1})

    run(talk)
