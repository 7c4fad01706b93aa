"""Generate load on an HTTP server, in a closed or an open loop, and collect the outcomes."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from profiling.loadtest.http_client import (
    CallResult,
    Clock,
    ConnectionConfig,
    ConnectionPool,
    ScheduledCall,
    Target,
)
from profiling.loadtest.schedule import Schedule

OK = "200"

InputSelector = Callable[[int, float], int]
"""Selects the call to send as the n-th, from 0, given the seconds since the start."""


class Call(NamedTuple):
    """One HTTP request; the path may contain a query."""

    path: str
    body: bytes = b""
    content_type: str | None = None
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = ()

    def encode(self, target: Target, headers: Sequence[tuple[str, str]] = ()) -> bytes:
        """Encode the request as bytes.

        Args:
            target: The server.
            headers: Further ones.

        Raises:
            ValueError: If the path or a header contains a blank or a line end.
        """
        kind = () if self.content_type is None else (("Content-Type", self.content_type),)
        length = ("Content-Length", str(len(self.body)))
        fields = (("Host", target.authority), *kind, length, *self.headers, *headers)
        first = f"{self.method} {target.prefix}{self.path} HTTP/1.1"
        lines = [first, *(f"{name}: {value}" for name, value in fields)]
        if first.count(" ") != 2 or any("\r" in line or "\n" in line for line in lines):
            raise ValueError(f"the call to {self.path!r} contains blanks or line ends; encode them")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


class SideCalls(NamedTuple):
    """Calls sent during the load on a connection of their own, at times from its start, (M,).

    M may be 0.
    """

    calls: Sequence[Call]
    at_s: NDArray[np.float64]


class LoadResult(NamedTuple):
    """Outcomes of N calls in the order in which they ended; times count from the start.

    Attributes:
        call: Index of the call, (N,).
        due_s: Time at which it was due, (N,).
        sent_s: Time of sending, (N,); NaN if it timed out before a connection was free.
        latency_ms: From when it was due until its response was complete or failed, (N,).
        outcome: Status of the response, such as "200", or the reason why there is none: refused,
            reset, timed out, malformed; (N,).
        bodies: Response bodies, N of them; None unless they were kept.
        beside: Outcomes of the side calls, with bodies.
    """

    call: NDArray[np.intp]
    due_s: NDArray[np.float64]
    sent_s: NDArray[np.float64]
    latency_ms: NDArray[np.float64]
    outcome: NDArray[np.str_]
    bodies: list[bytes] | None
    beside: tuple["LoadResult", ...] = ()

    @property
    def ok(self) -> NDArray[np.bool_]:
        """Whether each call was answered with status 200, (N,)."""
        answered: NDArray[np.bool_] = self.outcome == OK
        return answered

    @property
    def num_errors(self) -> int:
        """Number of calls with another outcome than status 200."""
        return int((~self.ok).sum())

    @property
    def outcomes(self) -> dict[str, int]:
        """Number of calls by outcome."""
        return dict(sorted(Counter(self.outcome.tolist()).items()))

    @property
    def seconds(self) -> float:
        """Time from when the first call was due until the last one ended."""
        if not len(self.call):
            return 0.0
        return float((self.due_s + self.latency_ms / 1e3).max() - self.due_s.min())

    @property
    def rate(self) -> float:
        """Calls answered with status 200 per second."""
        return float(self.ok.sum()) / self.seconds if self.seconds else 0.0

    def percentiles(self, *percents: float) -> list[float] | None:
        """Latency percentiles in ms of calls answered with status 200; None if there are none."""
        answered = self.latency_ms[self.ok]
        return [float(ms) for ms in np.percentile(answered, percents)] if len(answered) else None


def closed_loop(
    url: str,
    calls: Sequence[Call],
    config: ConnectionConfig,
    *,
    seconds: float | None = None,
    count: int | None = None,
    warm_up_s: float = 0.0,
    pick: InputSelector | None = None,
    beside: Sequence[SideCalls] = (),
) -> LoadResult:
    """Send the next call on each connection as soon as the previous one is answered.

    Args:
        url: Address of the server.
        calls: Sent in turn from the first, unless `pick` selects them.
        config: Settings of the connections; all of them are used.
        seconds: Time after which no call is sent; or
        count: number of calls to send.
        warm_up_s: Duration of the same load before, which is not counted.
        pick: Selects the next call.
        beside: Other calls during the load, reported separately.

    Raises:
        ValueError: If the arguments make no sense.
    """
    if (seconds is None) == (count is None):
        raise ValueError("give either seconds or count")
    clock, choose = config.clock, pick or _in_turn(len(calls))

    async def load(pool: ConnectionPool, started_s: float) -> list[CallResult]:
        return await pool.run_closed_loop(_turns(choose, started_s, seconds, count, clock))

    async def warm_up(pool: ConnectionPool) -> None:
        if warm_up_s > 0:
            await pool.run_closed_loop(_turns(choose, clock(), warm_up_s, None, clock))

    return _run(url, calls, config, load, beside, warm_up)


def open_loop(
    url: str,
    calls: Sequence[Call],
    arrivals_s: NDArray[np.float64],
    config: ConnectionConfig,
    *,
    pick: InputSelector | None = None,
    beside: Sequence[SideCalls] = (),
) -> LoadResult:
    """Send calls at given times, whether or not earlier ones are answered.

    Latency counts from when the call was due: waiting for a connection because the server is slow
    is part of the server's latency.

    Args:
        url: Address of the server.
        calls: Sent in turn from the first, unless `pick` selects them.
        arrivals_s: Sending times from the start, rising, (N,).
        config: Settings of the connections, which are opened as needed.
        pick: Selects the next call.
        beside: Other calls during the load, reported separately.

    Raises:
        ValueError: If the arguments make no sense.
    """
    if not len(arrivals_s):
        raise ValueError("give at least one arrival")
    _check_rising(arrivals_s)
    choose = pick or _in_turn(len(calls))

    async def load(pool: ConnectionPool, started_s: float) -> list[CallResult]:
        return await pool.run_open_loop(
            [
                ScheduledCall(choose(n, at_s), started_s + at_s)
                for n, at_s in enumerate(arrivals_s.tolist())
            ]
        )

    return _run(url, calls, config, load, beside)


def poisson(rate: float, seconds: float, seed: int | Sequence[int]) -> NDArray[np.float64]:
    """Draw random arrival times at a mean rate per second, rising, (N,)."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.uniform(0.0, seconds, rng.poisson(rate * seconds)))


def poisson_steps(rates: Schedule[float], seconds: float, seed: int) -> NDArray[np.float64]:
    """Draw random arrival times at a rate that changes, rising, (N,)."""
    return np.concatenate(
        [
            begin_s + poisson(rate, end_s - begin_s, (seed, number))
            for number, (begin_s, end_s, rate) in enumerate(rates.spans(seconds))
        ]
    )


def _check_rising(times_s: NDArray[np.float64]) -> None:
    if (np.diff(times_s, prepend=0.0) < 0).any():
        raise ValueError("give times that start at 0 s or later and do not fall")


def _in_turn(num_calls: int) -> InputSelector:
    return lambda number, _: number % num_calls


def _run(
    url: str,
    calls: Sequence[Call],
    config: ConnectionConfig,
    load: Callable[[ConnectionPool, float], Awaitable[list[CallResult]]],
    beside: Sequence[SideCalls],
    prepare: Callable[[ConnectionPool], Awaitable[None]] | None = None,
) -> LoadResult:
    """Open the connections, run the load, and send the side calls on connections of their own."""
    if not calls or config.connections < 1 or config.timeout_s <= 0:
        raise ValueError("give at least one call, one connection and a timeout above 0 s")
    for each in beside:
        _check_rising(each.at_s)
    target = Target.of(url)
    aside = config._replace(connections=1, keep_bodies=True)
    payloads = [
        [call.encode(target, config.headers) for call in some]
        for some in (calls, *(b[0] for b in beside))
    ]

    async def run() -> LoadResult:
        main, *others = pools = [
            ConnectionPool(target, some, aside if number else config)
            for number, some in enumerate(payloads)
        ]
        try:
            if prepare is not None:
                await prepare(main)
            started_s = config.clock()
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(other.run_open_loop(_schedule(each, started_s)))
                    for other, each in zip(others, beside, strict=True)
                ]
                ended = await load(main, started_s)
            told = tuple(_result(task.result(), started_s, True) for task in tasks)
            return _result(ended, started_s, config.keep_bodies)._replace(beside=told)
        finally:
            for pool in pools:
                await pool.close()

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(run())


def _schedule(beside: SideCalls, started_s: float) -> list[ScheduledCall]:
    """Schedule the side calls: one per time, in turn."""
    return [
        ScheduledCall(number % len(beside.calls), started_s + at_s)
        for number, at_s in enumerate(beside.at_s.tolist())
    ]


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """The fastest event loop available."""
    try:
        import uvloop
    except ImportError:  # not available for Windows
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _turns(
    pick: InputSelector, started_s: float, seconds: float | None, count: int | None, clock: Clock
) -> Iterator[int]:
    """Yield the selected calls, a number of them or for some seconds."""
    for number in itertools.count() if count is None else range(count):
        after_s = clock() - started_s
        if seconds is not None and after_s >= seconds:
            return
        yield pick(number, after_s)


def _result(ended: Sequence[CallResult], started_s: float, keep_bodies: bool) -> LoadResult:
    due_s = np.array([each.scheduled.due_s for each in ended], float)
    sent_s = [np.nan if each.sent_s is None else each.sent_s for each in ended]
    end_s = np.array([each.end_s for each in ended], float)
    return LoadResult(
        np.array([each.scheduled.call for each in ended], np.intp),
        due_s - started_s,
        np.array(sent_s, float) - started_s,
        1e3 * (end_s - due_s),
        np.array([each.outcome for each in ended], np.str_),
        [each.body for each in ended] if keep_bodies else None,
    )
