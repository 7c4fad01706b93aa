"""Measure servers in turns, one running at a time."""

import functools
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.running import CannotRun
from benchmarks.peers.tasks import Judge
from profiling.loadtest.http_client import ConnectionConfig
from profiling.loadtest.load import Call, LoadResult, closed_loop, open_loop, poisson

States = list[dict[str, Any]]

RAMP_S = 0.5
ANSWER_S = 5.0  # in which a server must answer to count as started
CHECK_CONNECTIONS, OPEN_CONNECTIONS = 8, 256


class Pace(NamedTuple):
    """Length of the measurements.

    Attributes:
        rounds: Measurements of each server under each load.
        seconds: Duration of a measurement.
        warm_up_s: Duration of the same load before.
        settle_calls: Calls before a budget is set, so that the server knows its costs.
        trials: Budgets to try.
        trial_s: Duration of a trial.
    """

    rounds: int = 2
    seconds: float = 10.0
    warm_up_s: float = 2.0
    settle_calls: int = 400
    trials: int = 6
    trial_s: float = 4.0


class Load(NamedTuple):
    """A closed loop on some connections, or an open loop at a rate per second."""

    name: str
    connections: int = OPEN_CONNECTIONS
    rate: float | None = None

    @property
    def config(self) -> ConnectionConfig:
        """Settings of its connections."""
        return ConnectionConfig(self.connections, keep_bodies=True, ramp_s=RAMP_S)

    def run(self, url: str, calls: Sequence[Call], pace: Pace, seed: int) -> LoadResult:
        """Send calls for some seconds, after a warm-up that does not count."""
        seconds, warm_up_s = pace.seconds, pace.warm_up_s
        if self.rate is None:
            return closed_loop(url, calls, self.config, seconds=seconds, warm_up_s=warm_up_s)
        open_loop(url, calls, arrivals(self.rate, warm_up_s, seed), self.config)
        return open_loop(url, calls, arrivals(self.rate, seconds, seed), self.config)

    def send(self, url: str, calls: Sequence[Call], count: int) -> LoadResult:
        """Send a number of calls; in an open loop about that number."""
        if self.rate is None:
            return closed_loop(url, calls, self.config, count=count)
        return open_loop(url, calls, arrivals(self.rate, count / self.rate, seed=0), self.config)


def arrivals(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Random arrival times, at least one."""
    drawn = poisson(rate, seconds, seed)
    return drawn if len(drawn) else np.zeros(1)


class Contender(NamedTuple):
    """A server in one configuration.

    Attributes:
        name: Its name in tables.
        calls: The calls to send.
        count_wrong: Counts wrong answers.
        prepare: Called before each measurement with the server's address and a function that sends
            a number of calls in the way of the measurement.
        watch: Opens a context that records the server's states during each measurement.
        describe: Returns further figures of a result and those states.
    """

    name: str
    calls: Sequence[Call]
    count_wrong: Judge
    prepare: Callable[[str, Callable[[int], object]], None] = lambda url, send: None
    watch: Callable[[str], AbstractContextManager[States]] = lambda url: nullcontext([])
    describe: Callable[[LoadResult, States], dict[str, Any]] = lambda result, states: {}


class Server(NamedTuple):
    """A server to start, and the configurations to measure it in."""

    name: str
    serve: Callable[[], AbstractContextManager[str]]
    contenders: Sequence[Contender]


class Measurement(NamedTuple):
    """One measurement."""

    contender: str
    load: str
    rate: float
    p50_ms: float
    p99_ms: float
    requests: int
    errors: int
    wrong: int
    more: dict[str, Any]


class Turns:
    """Measures servers in turns, one running at a time.

    Attributes:
        measured: All measurements, in order.
        left_out: Servers that failed, and the reason.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.measured: list[Measurement] = []
        self.left_out: dict[str, str] = {}

    def measure(self, servers: Sequence[Server], loads: Sequence[Load]) -> None:
        """Measure all servers under all loads, round after round."""
        for number in range(self._pace.rounds):
            for server in servers:
                if server.name not in self.left_out:
                    self._try(server, loads, number)

    def _try(self, server: Server, loads: Sequence[Load], number: int) -> None:
        say(f"round {number + 1}: {server.name}")
        try:
            with server.serve() as url:
                for contender in server.contenders:
                    self._measure(url, contender, loads, number)
        except CannotRun as error:
            say(f"{server.name} is left out: {error}")
            self.left_out[server.name] = str(error)

    def _measure(self, url: str, contender: Contender, loads: Sequence[Load], number: int) -> None:
        calls = contender.calls
        for load in loads:
            contender.prepare(url, functools.partial(load.send, url, calls))
            with contender.watch(url) as states:
                result = load.run(url, calls, self._pace, seed=number + 1)
            self._note(contender, load.name, result, contender.describe(result, states))
        config = ConnectionConfig(CHECK_CONNECTIONS, keep_bodies=True)
        every = closed_loop(url, calls, config, count=len(calls))
        self._note(contender, "every input once", every, {})

    def _note(
        self, contender: Contender, load: str, result: LoadResult, more: dict[str, Any]
    ) -> None:
        figures = measurement_of(contender, load, result, more)
        self.measured.append(figures)
        say(
            f"  {contender.name}, {load}: {figures.rate:.1f}/s, {figures.p50_ms:.2f} and "
            f"{figures.p99_ms:.2f} ms, {figures.errors} errors, {figures.wrong} wrong"
        )

    def summary(self) -> dict[str, dict[str, dict[str, float]]]:
        """Medians over the rounds, by contender and load, of those not left out."""
        kept = [each for each in self.measured if each.contender not in self.left_out]
        grouped: dict[str, dict[str, list[Measurement]]] = {}
        for each in kept:
            grouped.setdefault(each.contender, {}).setdefault(each.load, []).append(each)
        return {
            contender: {load: summarise(rounds) for load, rounds in loads.items()}
            for contender, loads in grouped.items()
        }


def measurement_of(
    contender: Contender, load: str, result: LoadResult, more: dict[str, Any]
) -> Measurement:
    """Make a measurement of a result.

    Raises:
        CannotRun: If there was no answer, or one that cannot be read.
    """
    percentiles = result.percentiles(50, 99)
    if percentiles is None:
        raise CannotRun(f"it answers only {result.outcomes}")
    try:
        wrong = contender.count_wrong(result)
    except (ValueError, KeyError, TypeError) as error:
        raise CannotRun(f"its answers cannot be read: {error!r}") from error
    p50_ms, p99_ms = percentiles
    return Measurement(
        contender.name,
        load,
        result.rate,
        p50_ms,
        p99_ms,
        len(result.call),
        result.num_errors,
        wrong,
        more,
    )


def summarise(rounds: Sequence[Measurement]) -> dict[str, float]:
    """Medians of rate and latency, their spread over the rounds, and sums of failures."""
    names = ("rate", "p50_ms", "p99_ms")
    columns = {name: np.array([getattr(each, name) for each in rounds]) for name in names}
    medians = {name: float(np.median(column)) for name, column in columns.items()}
    spreads = {f"{name}_spread": float(np.ptp(columns[name]) / medians[name]) for name in names[:2]}
    sums = {name: sum(getattr(each, name) for each in rounds) for name in ("errors", "wrong")}
    return medians | spreads | sums


def answers(url: str, call: Call) -> bool:
    """Whether a server answers a call."""
    config = ConnectionConfig(1, timeout_s=ANSWER_S)
    return bool(closed_loop(url, [call], config, count=1).ok.all())


def say(text: str) -> None:
    """Report progress on standard error."""
    print(text, file=sys.stderr, flush=True)
