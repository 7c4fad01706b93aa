"""Measurements of servers in turns."""

import functools
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers.running import CannotRun
from benchmarks.peers.tasks import Judge
from profiling.loadtest.http_client import ConnectionConfig
from profiling.loadtest.load import Call, LoadResult, closed_loop, open_loop, poisson

States = list[dict[str, Any]]

RAMP_S, WARM_UP_S = 0.5, 2.0
ANSWER_S = 5.0  # in which a server that is starting must answer to be taken for started
CHECK_CONNECTIONS, OPEN_CONNECTIONS = 8, 256


class Load(NamedTuple):
    """How calls are sent: each connection waits for its answer, or so many a second are sent."""

    name: str
    connections: int = OPEN_CONNECTIONS
    rate: float | None = None

    @property
    def config(self) -> ConnectionConfig:
        """Of its connections."""
        return ConnectionConfig(self.connections, keep_bodies=True, ramp_s=RAMP_S)

    def run(self, url: str, calls: Sequence[Call], seconds: float, seed: int) -> LoadResult:
        """Send for so long, after a warm-up that does not count."""
        if self.rate is None:
            return closed_loop(url, calls, self.config, seconds=seconds, warm_up_s=WARM_UP_S)
        open_loop(url, calls, poisson(self.rate, WARM_UP_S, seed), self.config)
        return open_loop(url, calls, poisson(self.rate, seconds, seed), self.config)

    def send(self, url: str, calls: Sequence[Call], count: int) -> LoadResult:
        """Send so many calls, in an open loop about so many."""
        if self.rate is None:
            return closed_loop(url, calls, self.config, count=count)
        return open_loop(url, calls, poisson(self.rate, count / self.rate, seed=0), self.config)


class Contender(NamedTuple):
    """A server set up in one way.

    Attributes:
        name: For people.
        calls: What is sent.
        count_wrong: Counts wrong answers.
        prepare: Called before each measurement with the server's address, and with what sends so
            many calls as the measurement will.
        watch: Makes what notes the server's states during each measurement.
        describe: Makes of a result and those states what is worth telling beside rate and latency.
    """

    name: str
    calls: Sequence[Call]
    count_wrong: Judge
    prepare: Callable[[str, Callable[[int], object]], None] = lambda url, send: None
    watch: Callable[[str], AbstractContextManager[States]] = lambda url: nullcontext([])
    describe: Callable[[LoadResult, States], dict[str, Any]] = lambda result, states: {}


class Server(NamedTuple):
    """What is started, and the ways in which it is then measured."""

    name: str
    serve: Callable[[], AbstractContextManager[str]]
    contenders: Sequence[Contender]


class Figures(NamedTuple):
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
        measured: All figures, in order.
        left_out: Servers that failed, and why.
    """

    def __init__(self, rounds: int, seconds: float) -> None:
        self._rounds, self._seconds = rounds, seconds
        self.measured: list[Figures] = []
        self.left_out: dict[str, str] = {}

    def measure(self, servers: Sequence[Server], loads: Sequence[Load]) -> None:
        """All servers under all loads, round after round."""
        for number in range(self._rounds):
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
                result = load.run(url, calls, self._seconds, seed=number + 1)
            self._note(contender, load.name, result, contender.describe(result, states))
        config = ConnectionConfig(CHECK_CONNECTIONS, keep_bodies=True)
        every = closed_loop(url, calls, config, count=len(calls))
        self._note(contender, "every input once", every, {})

    def _note(
        self, contender: Contender, load: str, result: LoadResult, more: dict[str, Any]
    ) -> None:
        figures = figures_of(contender, load, result, more)
        self.measured.append(figures)
        say(
            f"  {contender.name}, {load}: {figures.rate:.1f}/s, {figures.p50_ms:.2f} and "
            f"{figures.p99_ms:.2f} ms, {figures.errors} errors, {figures.wrong} wrong"
        )

    def summary(self) -> dict[str, dict[str, dict[str, float]]]:
        """Medians over the rounds, by contender and load, of those not left out."""
        kept = [each for each in self.measured if each.contender not in self.left_out]
        grouped: dict[str, dict[str, list[Figures]]] = {}
        for each in kept:
            grouped.setdefault(each.contender, {}).setdefault(each.load, []).append(each)
        return {
            contender: {load: summarise(rounds) for load, rounds in loads.items()}
            for contender, loads in grouped.items()
        }


def figures_of(
    contender: Contender, load: str, result: LoadResult, more: dict[str, Any]
) -> Figures:
    """The figures of a result.

    Raises:
        CannotRun: If there was no answer, or one that says nothing.
    """
    percentiles = result.percentiles(50, 99)
    if percentiles is None:
        raise CannotRun(f"it answers nothing but {result.outcomes}")
    try:
        wrong = contender.count_wrong(result)
    except (ValueError, KeyError, TypeError) as error:
        raise CannotRun(f"its answers cannot be read: {error!r}") from error
    return Figures(
        contender.name,
        load,
        result.rate,
        *percentiles,
        len(result.call),
        result.num_errors,
        wrong,
        more,
    )


def summarise(rounds: Sequence[Figures]) -> dict[str, float]:
    """Medians of rate and latency, their spread over the rounds, and sums of what went wrong."""
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


def say(what: str) -> None:
    """Tell how far it is."""
    print(what, file=sys.stderr, flush=True)
