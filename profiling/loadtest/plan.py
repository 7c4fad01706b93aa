"""The plan of `eenet loadtest`: what to send and when; and its execution."""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar
from urllib.parse import urlencode

import numpy as np
from numpy.typing import NDArray

from profiling.loadtest.http_client import ConnectionConfig
from profiling.loadtest.inputs import Inputs
from profiling.loadtest.load import (
    Call,
    LoadResult,
    SideCalls,
    closed_loop,
    open_loop,
    poisson_steps,
)
from profiling.loadtest.schedule import Schedule, read_schedule
from profiling.loadtest.variants import InputVariant, read_variant
from profiling.trace import Replay, check_replay, read_trace, replay_trace

CLOSED_CONNECTIONS, OPEN_CONNECTIONS = 32, 256
WARM_UP_S = 1.0
# A kept connection that the server closes while it is idle could fail a side call.
NEW_CONNECTION = (("Connection", "close"),)
T = TypeVar("T")


class LoadPlan(NamedTuple):
    """A load.

    Attributes:
        calls: N inputs in each of P variants, variant by variant.
        num_inputs: N.
        inputs: Input of each call, by its index in the file, (P N,).
        variants: Variant of this input, (P N,).
        phases: Index of the variant to send, by time.
        groups: Indices of the inputs to send, among the N, by time.
        rates: Requests per second, by time; None without --rate.
        replay: Recorded arrivals; None without --trace. With neither, requests are sent as fast as
            they are answered.
        seconds: Duration.
        connections: Most connections open at a time.
        budgets: Budgets to set, by time; None takes the budget off.
        polls_s: Times at which to poll GET /budget.
        model: The model whose budget is set, if not all.
        seed: Seed of the arrivals.
    """

    calls: list[Call]
    num_inputs: int
    inputs: NDArray[np.intp]
    variants: NDArray[np.str_]
    phases: Schedule[int]
    groups: Schedule[NDArray[np.intp]]
    rates: Schedule[float] | None
    replay: Replay | None
    seconds: float
    connections: int
    budgets: Schedule[float | None]
    polls_s: NDArray[np.float64]
    model: str | None
    seed: int

    @property
    def mean_rate(self) -> float | None:
        """Mean of the offered requests per second; None in a closed loop."""
        if self.replay is not None:
            return len(self.replay.arrivals_s) / self.seconds
        if self.rates is None:
            return None
        spans = self.rates.spans(self.seconds)
        return sum(rate * (end_s - begin_s) for begin_s, end_s, rate in spans) / self.seconds

    def overloading(self, exceeding: float, capacity_per_s: float) -> "LoadPlan":
        """Compress the trace to the plan's duration, its rate scaled to overload a server.

        Args:
            exceeding: Share of the seconds whose rate exceeds the capacity.
            capacity_per_s: Requests per second that the server answers at full depth.

        Raises:
            ValueError: If all arrivals of the trace come at one time.
        """
        assert self.replay is not None, "a plan that overloads has a trace"
        times_s = self.replay.arrivals_s
        replay = replay_trace(times_s, self.seconds, capacity_per_s, exceeding, self.seed)
        return self._replace(replay=replay)

    def pick(self, number: int, after_s: float) -> int:
        """Select the inputs in turn, in the variant of the time."""
        variant = self.phases.values[self.phases.at(after_s)]
        group = self.groups.values[self.groups.at(after_s)]
        return variant * self.num_inputs + int(group[number % len(group)])


def read_plan(args: argparse.Namespace, inputs: Inputs) -> LoadPlan:
    """Make a plan from the flags; inputs are sent in a random order.

    With --exceeding the plan is complete once `overloading` knows the server's capacity.

    Raises:
        ValueError: If a flag makes no sense; the message names it.
    """
    steps = _from_start("--phases", args, lambda name: read_variant(name, inputs.modality))
    variants = list(dict.fromkeys(steps.values))
    classes = _classes(args)
    meant = [inputs.rows_of(each) for each in classes.values]
    rows = np.random.default_rng(args.seed).permutation(np.unique(np.concatenate(meant)))
    polls = 0 if args.poll_s is None else math.ceil(args.seconds / args.poll_s)
    is_open = args.rate is not None or args.trace is not None
    return LoadPlan(
        calls=_calls(args, inputs.of_rows(rows.tolist()), variants),
        num_inputs=len(rows),
        inputs=np.tile(rows, len(variants)),
        variants=np.repeat([each.name for each in variants], len(rows)),
        phases=Schedule(steps.begins_s, tuple(map(variants.index, steps.values))),
        groups=Schedule(
            classes.begins_s, tuple(np.flatnonzero(np.isin(rows, each)) for each in meant)
        ),
        rates=None if args.rate is None else _from_start("--rate", args, _rate),
        budgets=_budgets(args),
        replay=_replay(args),
        seconds=args.seconds,
        connections=args.connections or (OPEN_CONNECTIONS if is_open else CLOSED_CONNECTIONS),
        polls_s=np.arange(polls) * (args.poll_s or 0.0),
        model=args.model,
        seed=args.seed,
    )


def send(url: str, plan: LoadPlan, headers: tuple[tuple[str, str], ...] = ()) -> LoadResult:
    """Execute a plan; the side calls are the changes of the budget, then the polls.

    Args:
        url: The server's.
        plan: What to send.
        headers: To send with every call.
    """
    path = budget_path(plan.model)
    puts = [
        Call(
            path, json.dumps({"budget_ms": ms}).encode(), "application/json", "PUT", NEW_CONNECTION
        )
        for ms in plan.budgets.values
    ]
    poll = Call(path, method="GET", headers=NEW_CONNECTION)
    beside = [SideCalls(puts, plan.budgets.times()), SideCalls([poll], plan.polls_s)]
    config = ConnectionConfig(plan.connections, keep_bodies=True, headers=headers)
    if plan.replay is not None or plan.rates is not None:
        arrivals_s = _arrivals(plan)
        return open_loop(url, plan.calls, arrivals_s, config, pick=plan.pick, beside=beside)
    return closed_loop(
        url,
        plan.calls,
        config,
        seconds=plan.seconds,
        warm_up_s=min(WARM_UP_S, plan.seconds / 10),
        pick=plan.pick,
        beside=beside,
    )


def _arrivals(plan: LoadPlan) -> NDArray[np.float64]:
    if plan.replay is not None:
        return plan.replay.arrivals_s
    assert plan.rates is not None, "an open loop has a trace or rates"
    return poisson_steps(plan.rates, plan.seconds, plan.seed)


def budget_path(model: str | None) -> str:
    """The route of one model's budget, or of all."""
    return "/budget" + ("" if model is None else "?" + urlencode({"model": model}))


def _replay(args: argparse.Namespace) -> Replay | None:
    """Read the trace: all of it where it will be compressed, else its first seconds."""
    if args.trace is None:
        return None
    times_s = read_trace(args.trace)
    if args.exceeding is None:
        return Replay(times_s[times_s < args.seconds])
    check_replay(args.seconds, args.exceeding)
    return Replay(times_s)


def _calls(
    args: argparse.Namespace, inputs: Inputs, variants: Sequence[InputVariant]
) -> list[Call]:
    """Make the calls of every input in every variant, variant by variant."""
    options = {"model": args.model, "budget_ms": args.budget_ms, "deadline_ms": args.deadline_ms}
    query = urlencode({name: value for name, value in options.items() if value is not None})
    path = "/predict" + (f"?{query}" if query else "")
    bodies = [body for each in variants for body in inputs.bodies(each, args.seed)]
    return [Call(path, body, inputs.content_type) for body in bodies]


def _classes(args: argparse.Namespace) -> Schedule[list[str] | None]:
    """The true classes to send, by time; None: all."""
    if args.classes is None or ":" not in args.classes:
        return Schedule((0.0,), (None if args.classes is None else args.classes.split(","),))
    return _from_start("--classes", args, lambda text: None if text == "all" else text.split("+"))


def _budgets(args: argparse.Namespace) -> Schedule[float | None]:
    if args.budgets is None:
        return Schedule((), ())
    if args.budget_ms is not None:
        raise ValueError(
            "--budget-ms is each request's own wish, which --budgets does not touch; give one"
        )
    return _steps("--budgets", args, _budget)


def _from_start(flag: str, args: argparse.Namespace, read: Callable[[str], T]) -> Schedule[T]:
    steps = _steps(flag, args, read)
    if steps.begins_s[0] > 0:
        raise ValueError(f"{flag} begins at {steps.begins_s[0]:g} s; say what holds from 0 s on")
    return steps


def _steps(flag: str, args: argparse.Namespace, read: Callable[[str], T]) -> Schedule[T]:
    """Read the schedule of a flag; the load must last until its last step.

    Raises:
        ValueError: If it does not, or if the flag makes no sense.
    """
    text = getattr(args, flag.removeprefix("--"))
    try:
        steps = read_schedule(text, read)
    except ValueError as error:
        raise ValueError(f"{flag} is {text!r}: {error}") from error
    if steps.begins_s[-1] >= args.seconds:
        raise ValueError(
            f"{flag} has a change at {steps.begins_s[-1]:g} s, but the load ends after "
            f"{args.seconds:g} s; raise --seconds"
        )
    return steps


def _rate(text: str) -> float:
    return _positive(text, "requests per second")


def _budget(text: str) -> float | None:
    return None if text == "off" else _positive(text, "milliseconds, or off")


def _positive(text: str, unit: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:  # NaN fails too
        raise ValueError(f"{text!r} is not a number above 0 of {unit}")
    return value
