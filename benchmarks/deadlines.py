"""Deadlines at 70 % load, beside requests without any and with budgets of their own.

    .venv/bin/python -m benchmarks.deadlines [--seconds 4] [--only core,device,served] [--load 0.7]

The unit is the 99th percentile of end-to-end latency, without other load, of responses that leave
at exit 0; deadlines are multiples of it. core and device: the engine alone over the replay backend
in virtual time, which no other process disturbs: one core whose batches vary as on a CPU, and an
accelerator that runs 16 rows in the time of one. served: the shipped images over HTTP under a
middle budget, Poisson arrivals at a share of what 32 connections in a closed loop reached just
before; the load generator shares the cores, so that its own lateness is in the client's figures.
JSON on the last line.
"""

import itertools
import json
import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import (
    IMAGE_BUNDLE,
    Figures,
    ask,
    image_calls,
    make_parser,
    print_report,
    put_budget,
    recorded_of,
    scheduler_of,
    serving,
)
from benchmarks.virtual_time import VirtualTime
from models.runtime.replay_backend import ReplayBackend
from models.stage_costs import StageCosts
from profiling.loadtest.http_client import ConnectionConfig
from profiling.loadtest.load import Call, LoadResult, closed_loop, open_loop, poisson
from scheduler.fitted import Scheduler
from server.engine.engine import Engine
from server.engine.request import InferenceRequest, Prediction

SHARES = (0.2, 0.5, 1.0)  # of the requests have a deadline
MULTIPLES = (2, 3, 5)
OWN_BUDGETS = 0.2  # of the requests without a deadline
CONNECTIONS, OPEN_CONNECTIONS = 32, 256
Bools = NDArray[np.bool_]
Array = NDArray[np.float64]


class Sizes(NamedTuple):
    """Amount of work.

    Attributes:
        load: Share of the capacity.
        seconds: Duration of each load over HTTP.
        warm_up_s: Duration of the warm-up over HTTP.
        virtual_s: Duration of each load in virtual time.
        unloaded: Requests one after another, to find the unit.
        saturated: Requests at once, to find the capacity.
        cases: Share of requests with a deadline, and the deadline as a multiple of the unit.
    """

    load: float
    seconds: float
    warm_up_s: float = 2.0
    virtual_s: float = 12.0
    unloaded: int = 1000
    saturated: int = 4000
    cases: tuple[tuple[float, int], ...] = ((0.0, 0), *itertools.product(SHARES, MULTIPLES))


class Mix(NamedTuple):
    """Deadlines and budgets of requests, (N,) both; NaN where a request has none."""

    deadline_ms: Array
    budget_ms: Array

    @classmethod
    def draw(
        cls, count: int, share: float, deadline_ms: float, budgets_ms: tuple[float, float]
    ) -> "Mix":
        """Give a share of the requests the deadline, and some of the others a budget."""
        rng = np.random.default_rng(1)
        urgent = rng.random(count) < share
        own = ~urgent & (rng.random(count) < OWN_BUDGETS)
        budgets = rng.uniform(*budgets_ms, count)
        return cls(np.where(urgent, deadline_ms, np.nan), np.where(own, budgets, np.nan))


class Outcomes(NamedTuple):
    """Outcomes of N requests.

    Attributes:
        exit: Exit taken, (N,); -1 without a prediction.
        late: Whether the response says that the deadline was exceeded, (N,).
        refused: Whether the deadline passed before the first exit, (N,).
        latency_ms: By the place where it is measured, (N,) each; NaN without a prediction.
    """

    exit: NDArray[np.intp]
    late: Bools
    refused: Bools
    latency_ms: dict[str, Array]


def main() -> None:
    """Run the parts that were asked for; print a line per share and multiple."""
    parser = make_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load over HTTP")
    parser.add_argument("--load", type=float, default=0.7, help="share of the capacity")
    parser.add_argument("--only", default="core,device,served")
    args = parser.parse_args()
    sizes = Sizes(args.load, args.seconds)
    if args.smoke:
        sizes = Sizes(args.load, 0.3, 0.2, 0.2, 50, 200, ((0.0, 0), (0.5, 5)))
    core = Fake(StageCosts.of_exits([1.0, 1.75, 2.5]), max_batch=1, jitter=0.35)
    device = Fake(StageCosts.of_exits([4.0, 8.0, 12.0], free_rows=16), max_batch=16, jitter=0.05)
    parts: dict[str, Callable[[], Figures]] = {
        "core": lambda: alone(core, sizes),
        "device": lambda: alone(device, sizes),
        "served": lambda: served(sizes),
    }
    figures: Figures = {}
    for name in args.only.split(","):
        print(name, flush=True)
        figures[name] = parts[name]() | {"loadavg": os.getloadavg()[0]}
    print_report(figures, smoke=args.smoke)


def run_cases(
    sizes: Sizes, unit_ms: float, run: Callable[[float, float], tuple[Mix, Outcomes]]
) -> Figures:
    """Run every share and multiple; print each case when it is measured."""
    print(f"  exit 0 unloaded, p99 {unit_ms:.2f} ms")
    cases: list[Figures] = []
    for share, multiple in sizes.cases:
        mix, outcomes = run(share, multiple * unit_ms)
        cases.append({"share": share, "multiple": multiple} | figures_of(mix, outcomes))
        print("  " + format_case(cases[-1]), flush=True)
    return {"unit_ms": unit_ms, "cases": cases}


def figures_of(mix: Mix, outcomes: Outcomes) -> Figures:
    """Shares of all requests with a deadline: one without a prediction in time is a miss."""
    urgent = ~np.isnan(mix.deadline_ms)
    found: Figures = {"requests": len(urgent), "with deadline": int(urgent.sum())}
    if urgent.any():
        for where, latency_ms in outcomes.latency_ms.items():
            found[f"in time, {where}"] = float((latency_ms <= mix.deadline_ms)[urgent].mean())
        found["deadline_exceeded"] = float(outcomes.late[urgent].mean())
        found["504"] = float(outcomes.refused[urgent].mean())
        found["exits, with"] = exit_rates(outcomes.exit[urgent])
    if not urgent.all():
        found["exits, without"] = exit_rates(outcomes.exit[~urgent])
        for where, latency_ms in outcomes.latency_ms.items():
            others = latency_ms[~urgent & (outcomes.exit >= 0)]
            found[f"p99 without, {where}, ms"] = float(np.percentile(others, 99))
    return found


def exit_rates(exits: NDArray[np.intp]) -> list[float]:
    """Share of each exit among the requests with a prediction."""
    counts = np.bincount(exits[exits >= 0], minlength=3)
    rates: list[float] = (counts / max(counts.sum(), 1)).round(3).tolist()
    return rates


def format_case(case: Figures) -> str:
    """Format the figures of a case as one line."""
    shown = [f"{100 * case['share']:.0f} % at {case['multiple']}x:"]
    for name, value in case.items():
        if name.startswith(("in time", "deadline", "504")):
            shown.append(f"{name} {100 * value:.2f} %;")
        elif name.startswith(("exits", "p99")):
            shown.append(f"{name} {value if isinstance(value, list) else round(value, 1)};")
    return " ".join(shown)


# --- over HTTP


def served(sizes: Sizes) -> Figures:
    """Measure the real server; its capacity is measured before each case, since it varies."""
    calls, many = image_calls(), ConnectionConfig(CONNECTIONS)
    seconds, warm_up_s = sizes.seconds, sizes.warm_up_s
    with serving("--bundle", str(IMAGE_BUNDLE)) as server:
        put_budget(server.url, 1e-3)
        one = ConnectionConfig(1)
        unloaded = closed_loop(server.url, calls, one, seconds=seconds, warm_up_s=warm_up_s / 2)
        floor_ms, ceiling_ms = budget_range(server.url)
        put_budget(server.url, (floor_ms + ceiling_ms) / 2)
        closed_loop(server.url, calls, many, seconds=warm_up_s)

        def run(share: float, deadline_ms: float) -> tuple[Mix, Outcomes]:
            full = closed_loop(server.url, calls, many, seconds=seconds / 3)
            arrivals_s = poisson(sizes.load * full.rate, seconds, 0)
            mix = Mix.draw(len(arrivals_s), share, deadline_ms, (floor_ms, ceiling_ms))
            config = ConnectionConfig(OPEN_CONNECTIONS, keep_bodies=True)
            return mix, read_outcomes(
                open_loop(server.url, with_options(calls, mix), arrivals_s, config)
            )

        return run_cases(sizes, float(np.percentile(unloaded.latency_ms, 99)), run)


def budget_range(url: str) -> tuple[float, float]:
    """Latency of leaving at exit 0 and of running to the end, as the server expects them now."""
    state = ask(f"{url}/budget")["models"][0]
    return state["floor_ms"], state["ceiling_ms"]


def with_options(calls: list[Call], mix: Mix) -> list[Call]:
    """One call per request of the mix, with its deadline and budget."""
    found = []
    for call, deadline_ms, budget_ms in zip(itertools.cycle(calls), *mix, strict=False):
        options = [("deadline_ms", deadline_ms), ("budget_ms", budget_ms)]
        query = "&".join(f"{name}={ms:.4f}" for name, ms in options if not np.isnan(ms))
        found.append(call._replace(path=f"{call.path}?{query}" if query else call.path))
    return found


def read_outcomes(result: LoadResult) -> Outcomes:
    """Read the responses, in the order of the calls."""
    order = np.argsort(result.call)
    assert result.bodies is not None, "bodies are kept"
    responses = [json.loads(result.bodies[place] or b"{}") for place in order]
    status, from_due_ms = result.outcome[order], result.latency_ms[order]
    lateness_ms = 1e3 * (result.sent_s - result.due_s)[order]
    ok = status == "200"
    total_ms = [
        response["latency_ms"]["total"] if good else np.nan
        for response, good in zip(responses, ok, strict=True)
    ]
    at_client = {"sent to answer": from_due_ms - lateness_ms, "due to answer": from_due_ms}
    exits = [each["exit"] if good else -1 for each, good in zip(responses, ok, strict=True)]
    return Outcomes(
        np.array(exits),
        np.array([each.get("deadline_exceeded", False) for each in responses], bool),
        status == "504",
        {"server": np.array(total_ms)}
        | {name: np.where(ok, ms, np.nan) for name, ms in at_client.items()},
    )


# --- the engine alone


class Fake(NamedTuple):
    """A fake device; a batch takes its cost times exp of a normal number of this deviation."""

    costs: StageCosts
    max_batch: int
    jitter: float


class Finished(NamedTuple):
    """The prediction of a request, if there is one, and the time until then."""

    prediction: Prediction | None
    latency_ms: float


def alone(device: Fake, sizes: Sizes) -> Figures:
    """Run the engine in virtual time under a middle budget."""
    scheduler = scheduler_of(IMAGE_BUNDLE)
    frontier = scheduler.frontier.with_costs(device.costs.costs_ms)
    log_probs = recorded_of(IMAGE_BUNDLE).test.log_probs
    floor_ms, *_, ceiling_ms = device.costs.costs_ms.tolist()
    middle = frontier.at_cost((floor_ms + ceiling_ms) / 2).parameter

    def run(
        requests: list[InferenceRequest], arrivals_s: Array, parameter: float
    ) -> list[Finished]:
        return replay(device, log_probs, scheduler, parameter, requests, arrivals_s)

    def loaded(share: float, deadline_ms: float) -> tuple[Mix, Outcomes]:
        arrivals_s = poisson(sizes.load * capacity, sizes.virtual_s, 0)
        mix = Mix.draw(len(arrivals_s), share, deadline_ms, (floor_ms, ceiling_ms))
        requests = draw_requests(len(arrivals_s), log_probs.shape[1])
        for request, arrival_s, deadline, budget in zip(requests, arrivals_s, *mix, strict=True):
            request.deadline_s = None if np.isnan(deadline) else arrival_s + deadline / 1e3
            request.parameter = None if np.isnan(budget) else frontier.at_cost(budget).parameter
        return mix, outcomes_of(run(requests, arrivals_s, middle))

    apart_s, at_once_s = np.arange(float(sizes.unloaded)), np.zeros(sizes.saturated)
    unloaded = run(
        draw_requests(sizes.unloaded, log_probs.shape[1]), apart_s, frontier[0].parameter
    )
    saturated = run(draw_requests(sizes.saturated, log_probs.shape[1]), at_once_s, middle)
    capacity = 1e3 * sizes.saturated / max(each.latency_ms for each in saturated)
    unit_ms = float(np.percentile([each.latency_ms for each in unloaded], 99))
    return {"capacity_per_s": capacity} | run_cases(sizes, unit_ms, loaded)


def draw_requests(count: int, recorded: int) -> list[InferenceRequest]:
    """Draw requests of recorded rows."""
    rows = np.random.default_rng(0).integers(0, recorded, count)
    return [InferenceRequest((rows[place : place + 1],)) for place in range(count)]


def replay(
    device: Fake,
    log_probs: NDArray[np.floating],
    scheduler: Scheduler,
    parameter: float,
    requests: list[InferenceRequest],
    arrivals_s: Array,
) -> list[Finished]:
    """Run requests that arrive at these times through the engine, in virtual time."""
    time, rng = VirtualTime(), np.random.default_rng(0)
    finished: dict[InferenceRequest, Finished] = {}

    def sleep(seconds: float) -> None:
        time.sleep(seconds * float(np.exp(device.jitter * rng.standard_normal())))

    def keep(done: list[InferenceRequest]) -> None:
        for request in done:
            prediction = request.result if isinstance(request.result, Prediction) else None
            latency_ms = 1e3 * (time.clock() - request.arrived_s)
            finished[request] = Finished(prediction, latency_ms)

    engine = Engine(
        ReplayBackend(log_probs, device.costs, sleep, clock=lambda: 0.0),
        scheduler.policy,
        parameter,
        workers=0,
        max_batch=device.max_batch,
        on_done=keep,
        costs=device.costs,
        clock=time.clock,
        combiner=scheduler.combiner,
    )
    engine.stop()  # from now on `run` returns when no request waits
    for request, arrival_s in zip(requests, arrivals_s.tolist(), strict=True):
        time.at(arrival_s, partial(engine.submit, [request]))
    while time.skip():
        engine.run()
    return [finished[request] for request in requests]


def outcomes_of(finished: list[Finished]) -> Outcomes:
    """The same outcomes as over HTTP, measured at the engine."""
    predictions = [each.prediction for each in finished]
    latency_ms = [np.nan if each.prediction is None else each.latency_ms for each in finished]
    return Outcomes(
        np.array([-1 if each is None else each.exit for each in predictions]),
        np.array([each is not None and each.late for each in predictions]),
        np.array([each is None for each in predictions]),
        {"engine": np.array(latency_ms)},
    )


if __name__ == "__main__":
    main()
