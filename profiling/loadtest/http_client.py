"""Connections that carry HTTP calls, at little cost: bytes out, statuses and bodies in."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import httptools

REFUSED = "refused"  # no connection
RESET = "reset"  # it broke before the whole answer
TIMED_OUT = "timed out"
MALFORMED = "malformed"  # what came is no HTTP

PAUSE_S = 0.05  # after a connection that was refused
SWEEP_S = 0.05  # how often timeouts are looked for

Clock = Callable[[], float]


class Target(NamedTuple):
    """Where calls go: an address, what the Host header says, and what every path begins with."""

    host: str
    port: int
    authority: str
    prefix: str

    @classmethod
    def of(cls, url: str) -> "Target":
        """Take an address apart, http://HOST[:PORT][/PREFIX].

        Raises:
            ValueError: If it is none.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or 80
        except ValueError as error:
            raise ValueError(f"{url!r} is no address: {error}") from error
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{url!r} is no address; give one such as http://127.0.0.1:8000")
        return cls(parts.hostname, port, parts.netloc, parts.path.rstrip("/"))


class LaneConfig(NamedTuple):
    """How calls are carried.

    Attributes:
        connections: The most at a time.
        timeout_s: The longest a call may take, from when it was due.
        keep_bodies: Whether the answers' bodies are kept.
        ramp_s: How long a closed loop takes to open its connections. Where the processes of a
            server share a socket, one of them may take all that come at once.
        clock: Seconds, of every time that is told.
    """

    connections: int
    timeout_s: float = 30.0
    keep_bodies: bool = False
    ramp_s: float = 0.0
    clock: Clock = time.perf_counter


class ScheduledCall(NamedTuple):
    """A call, by its place in the list, and when it is due."""

    call: int
    due_s: float


class CallResult(NamedTuple):
    """What became of a call.

    Attributes:
        ticket: The call.
        sent_s: None where it ran out of time before a connection was free.
        end_s: When the answer was whole, or failed.
        outcome: The answer's status, such as "200", or why there is none.
        body: The answer's, if bodies are kept.
    """

    ticket: ScheduledCall
    sent_s: float | None
    end_s: float
    outcome: str
    body: bytes


class ConnectionPool:
    """A pool of connections and what ended on them; lives on one event loop.

    Args:
        target: Where calls go.
        payloads: The calls as bytes.
        config: How they are carried.
    """

    def __init__(self, target: Target, payloads: Sequence[bytes], config: LaneConfig) -> None:
        self.target, self.payloads, self.config = target, payloads, config
        self._lanes: list[_Connection] = []
        self._idle: list[_Connection] = []
        self._turns: Iterator[int] = iter(())
        self._waiting: deque[ScheduledCall] = deque()
        self._ended: list[CallResult] = []
        self._loop = asyncio.get_running_loop()
        self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)

    async def run_closed_loop(self, turns: Iterator[int]) -> list[CallResult]:
        """Carry calls on all connections, each sending the next when its answer is in."""
        self._begin(all_due=True)
        self._turns, kept, self._idle = turns, self._lanes, []
        opened = [_Connection(self) for _ in range(self.config.connections - len(kept))]
        self._lanes = kept + opened
        for number, lane in enumerate(opened):
            delay_s = self.config.ramp_s * number / len(opened)
            self._loop.call_later(delay_s, self._proceed, lane)
        for lane in kept:
            self._proceed(lane)
        await self._finished
        return self._ended

    async def run_open_loop(self, tickets: Sequence[ScheduledCall]) -> list[CallResult]:
        """Carry calls when they are due, in their order, whatever became of those before."""
        self._begin(all_due=False)
        stop = threading.Event()
        # A thread sleeps finer than an event loop's timers, which are a millisecond coarse.
        pacer = threading.Thread(target=self._pace, args=(tickets, stop), daemon=True)
        pacer.start()
        try:
            await self._finished
        finally:
            stop.set()
        return self._ended

    async def close(self) -> None:
        """Close all connections."""
        self._sweeping.cancel()
        for lane in self._lanes:
            lane.close()
        await asyncio.sleep(0)  # aborted connections close in the loop's next turn

    def end(self, lane: "_Connection", ended: CallResult) -> None:
        """A lane's call has ended: note it, and give the lane its next."""
        self._ended.append(ended)
        if ended.outcome == REFUSED:
            self._loop.call_later(PAUSE_S, self._proceed, lane)
        else:
            self._proceed(lane)

    def _begin(self, *, all_due: bool) -> None:
        self._ended, self._all_due = [], all_due
        self._finished: asyncio.Future[None] = self._loop.create_future()

    def _proceed(self, lane: "_Connection") -> None:
        ticket = self._next()
        if ticket is not None:
            lane.carry(ticket)
            return
        self._idle.append(lane)
        self._finish_if_done()

    def _next(self) -> ScheduledCall | None:
        now_s = self.config.clock()
        while self._waiting:
            ticket = self._waiting.popleft()
            if now_s - ticket.due_s < self.config.timeout_s:
                return ticket
            self._ended.append(CallResult(ticket, None, now_s, TIMED_OUT, b""))
        call = next(self._turns, None)
        return None if call is None else ScheduledCall(call, now_s)

    def _finish_if_done(self) -> None:
        all_idle = len(self._idle) == len(self._lanes)
        if self._all_due and all_idle and not self._waiting and not self._finished.done():
            self._finished.set_result(None)

    def _pace(self, tickets: Sequence[ScheduledCall], stop: threading.Event) -> None:
        """A thread: tell the loop of every call when it is due."""
        for ticket in tickets:
            wait_s = ticket.due_s - self.config.clock()
            if wait_s > 0 and stop.wait(wait_s):
                return
            self._loop.call_soon_threadsafe(self._arrive, ticket)
        self._loop.call_soon_threadsafe(self._arrive_last)

    def _arrive(self, ticket: ScheduledCall) -> None:
        self._waiting.append(ticket)
        if self._idle:
            self._proceed(self._idle.pop())
        elif len(self._lanes) < self.config.connections:
            self._lanes.append(_Connection(self))
            self._proceed(self._lanes[-1])

    def _arrive_last(self) -> None:
        self._all_due = True
        self._finish_if_done()

    def _sweep(self) -> None:
        """End the calls that take too long: one timer for all, rather than one a call."""
        overdue_s = self.config.clock() - self.config.timeout_s
        for lane in self._lanes:
            if lane.ticket is not None and lane.ticket.due_s <= overdue_s:
                lane.give_up(TIMED_OUT)
        self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)


class _Connection:
    """Carries one call at a time, over a connection that is kept, and renewed once it breaks."""

    def __init__(self, lanes: ConnectionPool) -> None:
        self._lanes = lanes
        self._clock = lanes.config.clock
        self._wire: _Protocol | None = None
        self._connecting: asyncio.Task[None] | None = None
        self.ticket: ScheduledCall | None = None

    def carry(self, ticket: ScheduledCall) -> None:
        self.ticket, self._sent_s = ticket, self._clock()
        if self._wire is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect(ticket))
        else:
            self._wire.transport.write(self._lanes.payloads[ticket.call])

    def give_up(self, outcome: str) -> None:
        self._drop()
        self._end(outcome, b"")

    def close(self) -> None:
        self.ticket = None
        self._drop()

    async def _connect(self, ticket: ScheduledCall) -> None:
        host, port = self._lanes.target.host, self._lanes.target.port
        loop = asyncio.get_running_loop()
        try:
            _, self._wire = await loop.create_connection(
                lambda: _Protocol(self._on_end), host, port
            )
        except OSError:
            self._connecting = None
            self._end(REFUSED, b"")
        else:
            self._connecting = None
            self._wire.transport.write(self._lanes.payloads[ticket.call])

    def _on_end(self, wire: "_Protocol", outcome: str) -> None:
        if wire is not self._wire:
            return  # given up before
        body = b"".join(wire.parts) if self._lanes.config.keep_bodies else b""
        wire.parts.clear()
        if not wire.reusable:
            self._drop()
        if self.ticket is not None:  # the server may also close a connection that rests
            self._end(outcome, body)

    def _end(self, outcome: str, body: bytes) -> None:
        ticket, self.ticket = self.ticket, None
        assert ticket is not None, "only a call that is on its way ends"
        self._lanes.end(self, CallResult(ticket, self._sent_s, self._clock(), outcome, body))

    def _drop(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.transport.abort()
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()


class _Protocol(asyncio.Protocol):
    """One connection; tells how each call on it ended. The parser calls `on_*`."""

    def __init__(self, on_end: Callable[["_Protocol", str], None]) -> None:
        self._tell = on_end
        self._parser = httptools.HttpResponseParser(self)
        self._status: int | None = None
        self.parts: list[bytes] = []
        self.reusable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no instances of it

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.reusable = False
            self._tell(self, MALFORMED)
            return
        if self._status is not None:
            outcome, self._status = str(self._status), None
            self._tell(self, outcome)

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        self._tell(self, RESET)

    def on_body(self, part: bytes) -> None:
        self.parts.append(part)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # below, it only announces the answer
            self._status = status
            self.reusable = self._parser.should_keep_alive()
