"""This repository's server: every sample to the end, and at a budget."""

import functools
import json
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.running import serving
from benchmarks.peers.tasks import Replay, Task, exit_rates, judge_of_ours
from benchmarks.peers.turns import WARM_UP_S, Contender, Server, States
from profiling.loadtest.load import LoadResult
from scheduler.control.controller import ControllerConfig

TO_THE_END, AT_BUDGET = "ours, every sample to the end", "ours, at a budget"
LOST_ACCURACY = 0.005  # that the budget may cost, against the plain network
RESERVE = 0.002  # of it, since the controller moves the parameter around its point
SETTLE_CALLS = 400  # each time before the budget is set: what the server expects has settled
WATCH_S = 0.25
SETTLE_TIMES = 2  # each at the costs that the budget before leads to
STEPS = (0.06, 0.06, 0.04, 0.03, 0.02)  # changes of the budget by trial
MUCH_MORE = 1.2  # than the first, where no trial was enough
TRIAL_S = 4.0


def least_accuracy(task: Task) -> float:
    """What our answers at a budget must reach on the test set."""
    return task.plain_accuracy - LOST_ACCURACY


def our_server(task: Task) -> Server:
    """Our server with one bundle, without a budget and at one."""
    command = [sys.executable, "-m", "server.cli.main", "serve", "--bundle", str(task.bundle)]
    more = ["--port", "PORT", "--log-level", "warning"]
    replay = Replay(task)
    to_the_end = Contender(
        TO_THE_END,
        task.calls,
        judge_of_ours(task, to_the_end=True),
        lambda url, send: _set_budget(url, None),
        _watch,
        functools.partial(_describe, replay),
    )
    at_budget = Contender(
        AT_BUDGET,
        task.calls,
        judge_of_ours(task, to_the_end=False),
        functools.partial(_settle, replay, least_accuracy(task) + RESERVE),
        _watch,
        functools.partial(_describe, replay),
    )
    return Server(
        "ours",
        lambda: serving([*command, *more], {}, f"ours-{task.name}", _is_ready),
        [to_the_end, at_budget],
    )


def _settle(replay: Replay, least: float, url: str, send: Callable[[int], object]) -> None:
    """Set the smallest budget that keeps the accuracy, in the milliseconds of this very load.

    First that of the point of the frontier, then by trial, as an operator would: what the inputs
    cost under this load is known only from running them.
    """
    # The controller leaves a share of every budget unspent: what it aims at is to be the point.
    spent = 1 - ControllerConfig().window_margin
    for _ in range(SETTLE_TIMES):
        send(SETTLE_CALLS)
        points = _ask(f"{url}/frontier")
        point = next(each for each in points if replay.accuracy(each["parameter"]) >= least)
        budget_ms = _cost_ms(points, replay.exit_rates(point["parameter"])) / spent
        _set_budget(url, budget_ms)
    started = time.perf_counter()
    send(SETTLE_CALLS)
    calls = max(int(SETTLE_CALLS * TRIAL_S / (time.perf_counter() - started)), SETTLE_CALLS)
    enough = [budget_ms * MUCH_MORE]
    for step in STEPS:
        with _watch(url) as states:  # from when the load has been at its height for a while
            send(calls)
        accuracy = np.mean([replay.accuracy(state["parameter"]) for state in states])
        if accuracy >= least:
            enough.append(budget_ms)
        budget_ms *= 1 - step if accuracy >= least else 1 + step
        _set_budget(url, budget_ms)
    _set_budget(url, min(enough[1:] or enough))
    send(SETTLE_CALLS)


def _cost_ms(points: States, exit_rates: NDArray[np.float64]) -> float:
    """What these exits cost on average where the server's frontier holds.

    Its own exit rates are those of the calibration set; the inputs that are sent take others, and
    the budget is about what they cost.
    """
    rates = np.array([each["exit_rates"] for each in points])
    costs_ms = np.linalg.lstsq(rates, [each["expected_cost_ms"] for each in points])[0]
    return float(exit_rates @ costs_ms)


def _set_budget(url: str, budget_ms: float | None) -> None:
    _ask(f"{url}/budget", json.dumps({"budget_ms": budget_ms}).encode())


@contextmanager
def _watch(url: str) -> Iterator[States]:
    """Notes what GET /budget says, from the end of the warm-up to the end of the load."""
    states: States = []
    stop = threading.Event()

    def note() -> None:
        wait_s = WARM_UP_S
        while not stop.wait(wait_s):
            states.extend(_ask(f"{url}/budget")["models"])
            wait_s = WATCH_S

    watcher = threading.Thread(target=note)
    watcher.start()
    try:
        yield states
    finally:
        stop.set()
        watcher.join()
    states.extend(_ask(f"{url}/budget")["models"])


def _describe(replay: Replay, result: LoadResult, states: States) -> dict[str, Any]:
    accuracies = [replay.accuracy(state["parameter"]) for state in states]
    return {
        "budget_ms": states[-1]["budget_ms"],
        "rolling_latency_ms": states[-1]["rolling_latency_ms"],
        "test_accuracy": sum(accuracies) / len(accuracies),
        "exit_rates": exit_rates(result),
    }


def _is_ready(url: str) -> bool:
    try:
        _ask(f"{url}/readyz")
    except OSError:
        return False
    return True


def _ask(url: str, body: bytes | None = None) -> Any:
    """GET, or PUT with a body."""
    kind, method = {"Content-Type": "application/json"}, "GET" if body is None else "PUT"
    request = urllib.request.Request(url, body, kind, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)
