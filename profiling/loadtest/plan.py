"""What `eenet loadtest` is to send and when, and the sending of it."""

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

CLOSED_CONNECTIONS, OPEN_CONNECTIONS = 32, 256
WARM_UP_S = 1.0
NEW_CONNECTION = (("Connection", "close"),)  # else one that the server closes as it rests may fail
T = TypeVar("T")


class LoadPlan(NamedTuple):
    """A load.

    Attributes:
        calls: N inputs in each of P forms, form by form.
        num_inputs: N.
        inputs: Which input each call sends, by its place in the file, (P N,).
        forms: In which form, (P N,).
        phases: Which of the forms is sent when.
        groups: Which of the inputs are, by their places among the N.
        rates: Requests a second; None: as fast as they are answered.
        seconds: How long.
        connections: The most at a time.
        budgets: What is set when; None takes the budget off.
        looks_s: When GET /budget is asked.
        model: Whose budget, if not all.
        seed: Of the arrivals.
    """

    calls: list[Call]
    num_inputs: int
    inputs: NDArray[np.intp]
    forms: NDArray[np.str_]
    phases: Schedule[int]
    groups: Schedule[NDArray[np.intp]]
    rates: Schedule[float] | None
    seconds: float
    connections: int
    budgets: Schedule[float | None]
    looks_s: NDArray[np.float64]
    model: str | None
    seed: int

    @property
    def mean_rate(self) -> float | None:
        """Requests a second that are offered."""
        if self.rates is None:
            return None
        spans = self.rates.spans(self.seconds)
        return sum(rate * (end_s - begin_s) for begin_s, end_s, rate in spans) / self.seconds

    def pick(self, number: int, after_s: float) -> int:
        """Inputs in turn, in the form of the time."""
        form = self.phases.values[self.phases.at(after_s)]
        group = self.groups.values[self.groups.at(after_s)]
        return form * self.num_inputs + int(group[number % len(group)])


def read_plan(args: argparse.Namespace, inputs: Inputs) -> LoadPlan:
    """Make a plan of the flags; inputs are sent in a random order.

    Raises:
        ValueError: If a flag makes no sense; one sentence that names it.
    """
    steps = _from_start("--phases", args, lambda name: read_variant(name, inputs.modality))
    forms = list(dict.fromkeys(steps.values))
    classes = _classes(args)
    meant = [inputs.rows_of(each) for each in classes.values]
    rows = np.random.default_rng(args.seed).permutation(np.unique(np.concatenate(meant)))
    looks = 0 if args.poll_s is None else math.ceil(args.seconds / args.poll_s)
    connections = CLOSED_CONNECTIONS if args.rate is None else OPEN_CONNECTIONS
    return LoadPlan(
        calls=_calls(args, inputs.of_rows(rows.tolist()), forms),
        num_inputs=len(rows),
        inputs=np.tile(rows, len(forms)),
        forms=np.repeat([form.name for form in forms], len(rows)),
        phases=Schedule(steps.begins_s, tuple(map(forms.index, steps.values))),
        groups=Schedule(
            classes.begins_s, tuple(np.flatnonzero(np.isin(rows, each)) for each in meant)
        ),
        rates=None if args.rate is None else _from_start("--rate", args, _rate),
        seconds=args.seconds,
        connections=args.connections or connections,
        budgets=_budgets(args),
        looks_s=np.arange(looks) * (args.poll_s or 0.0),
        model=args.model,
        seed=args.seed,
    )


def send(url: str, plan: LoadPlan) -> LoadResult:
    """Carry it out; beside the load are the changes of the budget, then the looks at it."""
    path = budget_path(plan.model)
    puts = [
        Call(
            path, json.dumps({"budget_ms": ms}).encode(), "application/json", "PUT", NEW_CONNECTION
        )
        for ms in plan.budgets.values
    ]
    look = Call(path, method="GET", headers=NEW_CONNECTION)
    beside = [SideCalls(puts, plan.budgets.times()), SideCalls([look], plan.looks_s)]
    config = ConnectionConfig(plan.connections, keep_bodies=True)
    if plan.rates is not None:
        arrivals_s = poisson_steps(plan.rates, plan.seconds, plan.seed)
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


def budget_path(model: str | None) -> str:
    """Of one model's budget, or of all."""
    return "/budget" + ("" if model is None else "?" + urlencode({"model": model}))


def _calls(args: argparse.Namespace, inputs: Inputs, forms: Sequence[InputVariant]) -> list[Call]:
    """Every input in every form, form by form."""
    options = {"model": args.model, "budget_ms": args.budget_ms, "deadline_ms": args.deadline_ms}
    query = urlencode({name: value for name, value in options.items() if value is not None})
    path = "/predict" + (f"?{query}" if query else "")
    bodies = [body for form in forms for body in inputs.bodies(form, args.seed)]
    return [Call(path, body, inputs.content_type) for body in bodies]


def _classes(args: argparse.Namespace) -> Schedule[list[str] | None]:
    """The true classes that are sent, and when; None: all."""
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
    """What a flag says; the load must last until its last step.

    Raises:
        ValueError: If it does not, or the flag makes no sense.
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
