"""This repository's server: every request to the last exit, and at a budget."""

import functools
import math
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import ask, eenet, put_budget
from benchmarks.peers.running import serving
from benchmarks.peers.tasks import Replay, Task, exit_rates
from benchmarks.peers.turns import Contender, Pace, Server, States, say
from models.bundle import Precision
from profiling.loadtest.load import LoadResult

TO_THE_END, AT_BUDGET = "every request to the last exit", "at a budget"
LOST_ACCURACY = 0.005  # that the budget may cost, against the plain network
RESERVE = 0.002  # of it, since the controller moves the parameter around its point
WATCH_S = 0.25
SETTLE_TIMES = 2  # each at the costs that the budget before leads to
STEP, PRECISION = 1.08, 1.02  # ratios of budgets: of the first trials, and of the answer


def least_accuracy(task: Task) -> float:
    """The test accuracy that our predictions at a budget must reach."""
    return task.accuracy["float32"] - LOST_ACCURACY


def our_server(task: Task, pace: Pace, precision: str) -> Server:
    """Our server with one bundle, without a budget and at one.

    Args:
        task: The task.
        pace: Length of the measurements.
        precision: A value of `--precision`; auto: the server chooses.
    """
    name = "ours" if precision == "auto" else f"ours in {precision}"
    ours = Ours(task, pace, precision)
    watch = functools.partial(_watch, wait_s=pace.warm_up_s)
    to_the_end = Contender(
        f"{name}, {TO_THE_END}",
        task.calls,
        functools.partial(ours.count_wrong, to_the_end=True),
        lambda url, send: put_budget(url, None),
        watch,
        ours.describe,
    )
    at_budget = Contender(
        f"{name}, {AT_BUDGET}",
        task.calls,
        functools.partial(ours.count_wrong, to_the_end=False),
        ours.settle,
        watch,
        ours.describe,
    )
    return Server(name, ours.serve, [to_the_end, at_budget])


class Ours:
    """`eenet serve` with default options but for its precision.

    Args:
        task: The task.
        pace: Length of the measurements.
        precision: A value of `--precision`; auto: the server chooses at each start.
    """

    def __init__(self, task: Task, pace: Pace, precision: str) -> None:
        self._task, self._pace, self._option = task, pace, precision
        self._replays: dict[str, Replay] = {}
        self._precision = ""  # of the server that runs

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Start the server, find its precision, and yield its address.

        Raises:
            CannotRun: If it does not start.
        """
        bundle = self._task.bundle
        command = [*eenet("serve"), "--bundle", str(bundle.folder), "--port", "PORT"]
        command += ["--precision", self._option, "--log-level", "warning"]
        with serving(command, {}, f"ours-{self._task.name}", _is_ready) as url:
            self._precision = precision = served_precision(_metrics(url), bundle.precisions)
            if precision not in self._replays:
                self._replays[precision] = Replay(self._task, bundle.variant(precision))
            yield url

    def count_wrong(self, result: LoadResult, *, to_the_end: bool) -> int:
        """Count answers that are not those of the graphs that are served."""
        return self._replay.count_wrong(result, to_the_end=to_the_end)

    def settle(self, url: str, send: Callable[[int], object]) -> None:
        """Set the smallest budget that keeps the accuracy."""
        _settle(self._replay, least_accuracy(self._task) + RESERVE, self._pace, url, send)

    def describe(self, result: LoadResult, states: States) -> dict[str, Any]:
        """Precision, budget, latency, accuracy and exits of a measurement."""
        accuracies = [self._replay.accuracy(state["parameter"]) for state in states]
        return {
            "precision": self._precision,
            "budget_ms": states[-1]["budget_ms"],
            "rolling_latency_ms": states[-1]["rolling_latency_ms"],
            "test_accuracy": sum(accuracies) / len(accuracies),
            "exit_rates": exit_rates(result),
        }

    @property
    def _replay(self) -> Replay:
        return self._replays[self._precision]


def smallest_budget(first_ms: float, is_enough: Callable[[float], bool], trials: int) -> float:
    """Search for the smallest budget that is enough, by trial.

    The first trials move away from the first budget until one is enough and another is not; the
    others halve the (logarithmic) interval between them.

    Args:
        first_ms: Where to start.
        is_enough: Tries a budget.
        trials: Most budgets to try.

    Returns:
        The smallest budget that was enough; where none was, the largest that was tried.
    """
    enough_ms, too_small_ms, budget_ms = math.inf, 0.0, first_ms
    for _ in range(trials):
        if is_enough(budget_ms):
            enough_ms = budget_ms
        else:
            too_small_ms = budget_ms
        if enough_ms <= PRECISION * too_small_ms:
            break
        if math.isinf(enough_ms):
            budget_ms = too_small_ms * STEP
        elif not too_small_ms:
            budget_ms = enough_ms / STEP
        else:
            budget_ms = math.sqrt(enough_ms * too_small_ms)
    return too_small_ms if math.isinf(enough_ms) else enough_ms


def _settle(
    replay: Replay, least: float, pace: Pace, url: str, send: Callable[[int], object]
) -> None:
    """Set the smallest budget that keeps the accuracy, in the milliseconds of this very load.

    The search starts at the cost of the cheapest point of the frontier that keeps it. Only a trial
    under the load shows whether a budget is enough: the controller leaves a margin unspent that
    follows the noise, and the cost of these inputs is known only from running them.
    """
    put_budget(url, None)  # GET /frontier is about the policy in force, which a promise may change
    for _ in range(SETTLE_TIMES):
        send(pace.settle_calls)
        points = ask(f"{url}/frontier")
        point = next(each for each in points if replay.accuracy(each["parameter"]) >= least)
        first_ms = _cost_ms(points, replay.exit_rates(point["parameter"]))
        put_budget(url, first_ms)
    started = time.perf_counter()
    send(pace.settle_calls)
    rate = pace.settle_calls / (time.perf_counter() - started)
    calls = max(int(rate * pace.trial_s), pace.settle_calls)

    def keeps_accuracy(budget_ms: float) -> bool:
        put_budget(url, budget_ms)
        with _watch(url, wait_s=pace.warm_up_s) as states:
            send(calls)
        accuracy = float(np.mean([replay.accuracy(state["parameter"]) for state in states]))
        say(f"    {budget_ms:.3f} ms: accuracy {accuracy:.4f}, {least:.4f} needed")
        return accuracy >= least

    put_budget(url, smallest_budget(first_ms, keeps_accuracy, pace.trials))
    send(pace.settle_calls)


def _cost_ms(points: States, exit_rates: NDArray[np.float64]) -> float:
    """Mean cost of these exits by the server's frontier.

    The exit rates of the frontier are those of the calibration set. The inputs that are sent leave
    at other exits, and the budget is about their cost.
    """
    rates = np.array([each["exit_rates"] for each in points])
    costs_ms = np.linalg.lstsq(rates, [each["expected_cost_ms"] for each in points])[0]
    return float(exit_rates @ costs_ms)


@contextmanager
def _watch(url: str, wait_s: float) -> Iterator[States]:
    """Record the states of GET /budget, from the end of the warm-up to the end of the load."""
    states: States = []
    stop = threading.Event()

    def record() -> None:
        next_s = wait_s
        while not stop.wait(next_s):
            states.extend(ask(f"{url}/budget")["models"])
            next_s = WATCH_S

    watcher = threading.Thread(target=record)
    watcher.start()
    try:
        yield states
    finally:
        stop.set()
        watcher.join()
    states.extend(ask(f"{url}/budget")["models"])


def served_precision(metrics: str, precisions: Sequence[Precision]) -> Precision:
    """Read the precision that a server has chosen, one of its bundle's, from its metrics."""
    labels = [line for line in metrics.splitlines() if line.startswith("eenet_model_info{")]
    for precision in precisions:
        if any(f'precision="{precision}"' in each for each in labels):
            return precision
    raise ValueError(f"the metric eenet_model_info names none of {', '.join(precisions)}: {labels}")


def _metrics(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
        text: str = response.read().decode()
    return text


def _is_ready(url: str) -> bool:
    try:
        ask(f"{url}/readyz")
    except OSError:
        return False
    return True
