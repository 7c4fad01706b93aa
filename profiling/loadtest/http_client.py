"""A cheap HTTP/1.1 client for load tests: bytes out, statuses and bodies in."""

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
MALFORMED = "malformed"  # the response is not HTTP

PAUSE_S = 0.05  # after a connection that was refused
SWEEP_S = 0.05  # interval between checks for timeouts

Clock = Callable[[], float]


class Target(NamedTuple):
    """The server to call: address, Host header and path prefix."""

    host: str
    port: int
    authority: str
    prefix: str

    @classmethod
    def of(cls, url: str) -> "Target":
        """Parse an address, http://HOST[:PORT][/PREFIX].

        Raises:
            ValueError: If it is not one.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or 80
        except ValueError as error:
            raise ValueError(f"{url!r} is not an address: {error}") from error
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{url!r} is not an address; give one such as http://127.0.0.1:8000")
        return cls(parts.hostname, port, parts.netloc, parts.path.rstrip("/"))


class ConnectionConfig(NamedTuple):
    """Settings of the client's connections.

    Attributes:
        connections: Most connections open at a time.
        timeout_s: Longest time a call may take, counted from when it was due.
        keep_bodies: Whether to keep the response bodies.
        ramp_s: Time over which a closed loop opens its connections. Where the processes of a
            server share a socket, one of them may accept all that arrive at once.
        headers: Sent with every call.
        clock: Returns seconds; every time in a result is measured with it.
    """

    connections: int
    timeout_s: float = 30.0
    keep_bodies: bool = False
    ramp_s: float = 0.0
    headers: tuple[tuple[str, str], ...] = ()
    clock: Clock = time.perf_counter


class ScheduledCall(NamedTuple):
    """The index of a call, and the time at which it is due."""

    call: int
    due_s: float


class CallResult(NamedTuple):
    """The outcome of one call.

    Attributes:
        scheduled: The call, and when it was due.
        sent_s: Time of sending; None if the call timed out before a connection was free.
        end_s: Time at which the response was complete, or failed.
        outcome: Status of the response, such as "200", or the reason why there is none.
        body: Body of the response, if bodies are kept.
    """

    scheduled: ScheduledCall
    sent_s: float | None
    end_s: float
    outcome: str
    body: bytes


class ConnectionPool:
    """Connections to one server, and the calls that ended on them; lives on one event loop.

    Args:
        target: The server.
        payloads: The calls as bytes.
        config: Settings of the connections.
    """

    def __init__(self, target: Target, payloads: Sequence[bytes], config: ConnectionConfig) -> None:
        self.target, self.payloads, self.config = target, payloads, config
        self._connections: list[_Connection] = []
        self._idle: list[_Connection] = []
        self._turns: Iterator[int] = iter(())
        self._waiting: deque[ScheduledCall] = deque()
        self._ended: list[CallResult] = []
        self._loop = asyncio.get_running_loop()
        self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)

    async def run_closed_loop(self, turns: Iterator[int]) -> list[CallResult]:
        """Send calls on all connections; each sends its next when its response has arrived."""
        self._begin(all_due=True)
        self._turns, kept, self._idle = turns, self._connections, []
        opened = [_Connection(self) for _ in range(self.config.connections - len(kept))]
        self._connections = kept + opened
        for number, connection in enumerate(opened):
            delay_s = self.config.ramp_s * number / len(opened)
            self._loop.call_later(delay_s, self._proceed, connection)
        for connection in kept:
            self._proceed(connection)
        await self._finished
        return self._ended

    async def run_open_loop(self, schedule: Sequence[ScheduledCall]) -> list[CallResult]:
        """Send calls in order when they are due, whether or not earlier ones were answered."""
        self._begin(all_due=False)
        stop = threading.Event()
        # A thread sleeps finer than an event loop's timers, which are a millisecond coarse.
        pacer = threading.Thread(target=self._pace, args=(schedule, stop), daemon=True)
        pacer.start()
        try:
            await self._finished
        finally:
            stop.set()
        return self._ended

    async def close(self) -> None:
        """Close all connections."""
        self._sweeping.cancel()
        for connection in self._connections:
            connection.close()
        await asyncio.sleep(0)  # aborted connections close in the loop's next turn

    def end(self, connection: "_Connection", ended: CallResult) -> None:
        """Record the end of a call and give the connection its next one."""
        self._ended.append(ended)
        if ended.outcome == REFUSED:
            self._loop.call_later(PAUSE_S, self._proceed, connection)
        else:
            self._proceed(connection)

    def _begin(self, *, all_due: bool) -> None:
        self._ended, self._all_due = [], all_due
        self._finished: asyncio.Future[None] = self._loop.create_future()

    def _proceed(self, connection: "_Connection") -> None:
        scheduled = self._next()
        if scheduled is not None:
            connection.carry(scheduled)
            return
        self._idle.append(connection)
        self._finish_if_done()

    def _next(self) -> ScheduledCall | None:
        now_s = self.config.clock()
        while self._waiting:
            scheduled = self._waiting.popleft()
            if now_s - scheduled.due_s < self.config.timeout_s:
                return scheduled
            self._ended.append(CallResult(scheduled, None, now_s, TIMED_OUT, b""))
        call = next(self._turns, None)
        return None if call is None else ScheduledCall(call, now_s)

    def _finish_if_done(self) -> None:
        all_idle = len(self._idle) == len(self._connections)
        if self._all_due and all_idle and not self._waiting and not self._finished.done():
            self._finished.set_result(None)

    def _pace(self, schedule: Sequence[ScheduledCall], stop: threading.Event) -> None:
        """Body of the pacing thread: hand each call to the event loop when it is due."""
        for scheduled in schedule:
            wait_s = scheduled.due_s - self.config.clock()
            if wait_s > 0 and stop.wait(wait_s):
                return
            self._loop.call_soon_threadsafe(self._arrive, scheduled)
        self._loop.call_soon_threadsafe(self._arrive_last)

    def _arrive(self, scheduled: ScheduledCall) -> None:
        self._waiting.append(scheduled)
        if self._idle:
            self._proceed(self._idle.pop())
        elif len(self._connections) < self.config.connections:
            self._connections.append(_Connection(self))
            self._proceed(self._connections[-1])

    def _arrive_last(self) -> None:
        self._all_due = True
        self._finish_if_done()

    def _sweep(self) -> None:
        """Fail the calls that take too long; one timer serves all calls."""
        overdue_s = self.config.clock() - self.config.timeout_s
        for connection in self._connections:
            if connection.scheduled is not None and connection.scheduled.due_s <= overdue_s:
                connection.give_up(TIMED_OUT)
        self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)


class _Connection:
    """One connection, reused for one call at a time and reopened after it breaks."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._clock = pool.config.clock
        self._protocol: _Protocol | None = None
        self._connecting: asyncio.Task[None] | None = None
        self.scheduled: ScheduledCall | None = None

    def carry(self, scheduled: ScheduledCall) -> None:
        self.scheduled, self._sent_s = scheduled, self._clock()
        if self._protocol is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect(scheduled))
        else:
            self._protocol.transport.write(self._pool.payloads[scheduled.call])

    def give_up(self, outcome: str) -> None:
        self._drop()
        self._end(outcome, b"")

    def close(self) -> None:
        self.scheduled = None
        self._drop()

    async def _connect(self, scheduled: ScheduledCall) -> None:
        host, port = self._pool.target.host, self._pool.target.port
        loop = asyncio.get_running_loop()
        try:
            _, self._protocol = await loop.create_connection(
                lambda: _Protocol(self._on_end), host, port
            )
        except OSError:
            self._connecting = None
            self._end(REFUSED, b"")
        else:
            self._connecting = None
            self._protocol.transport.write(self._pool.payloads[scheduled.call])

    def _on_end(self, protocol: "_Protocol", outcome: str) -> None:
        if protocol is not self._protocol:
            return  # timed out before
        body = b"".join(protocol.parts) if self._pool.config.keep_bodies else b""
        protocol.parts.clear()
        if not protocol.reusable:
            self._drop()
        if self.scheduled is not None:  # the server may also close an idle connection
            self._end(outcome, body)

    def _end(self, outcome: str, body: bytes) -> None:
        scheduled, self.scheduled = self.scheduled, None
        assert scheduled is not None, "only a call that was sent can end"
        self._pool.end(self, CallResult(scheduled, self._sent_s, self._clock(), outcome, body))

    def _drop(self) -> None:
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            protocol.transport.abort()
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()


class _Protocol(asyncio.Protocol):
    """Reads the responses of one connection and reports each outcome; the parser calls `on_*`."""

    def __init__(self, on_end: Callable[["_Protocol", str], None]) -> None:
        self._report = on_end
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
            self._report(self, MALFORMED)
            return
        if self._status is not None:
            outcome, self._status = str(self._status), None
            self._report(self, outcome)

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        self._report(self, RESET)

    def on_body(self, part: bytes) -> None:
        self.parts.append(part)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # 1xx only announces the response
            self._status = status
            self.reusable = self._parser.should_keep_alive()
