"""Deadlines at 70 % load, beside requests without any and with budgets of their own.

    .venv/bin/python -m benchmarks.deadlines [--seconds 4] [--only core,device,served] [--load 0.7]

The unit is the 99th percentile, end to end and without other load, of answers that leave at exit 0;
deadlines are multiples of it. core and device: the engine alone over the replay backend in virtual
time, which no other process disturbs: one core whose batches vary as on a CPU, and an accelerator
that does 16 rows in the time of one. served: the shipped images over HTTP under a middle budget,
Poisson arrivals at a share of what 32 connections in a closed loop got just before; the load
generator has the same cores, so that its own lateness is in what the client sees. JSON on the last
line.
"""

import argparse
import itertools
import json
import os
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from benchmarks.engine import ZOO, image_files, put_budget, serving
from benchmarks.virtual_time import VirtualTime
from models.runtime.replay_backend import ReplayBackend
from models.stage_costs import StageCosts
from profiling.calibration import load_recorded
from profiling.latency import machine_name
from profiling.loadtest.http_client import ConnectionConfig
from profiling.loadtest.load import Call, LoadResult, closed_loop, open_loop, poisson
from scheduler.fitted import load_scheduler
from scheduler.policy import ExitPolicy
from server.engine.engine import Engine
from server.engine.request import Completion, InferenceRequest, Prediction
from server.metrics import Metrics, ModelMetrics

BUNDLE = ZOO / "cifar10-resnet56"
SHARES = (0.2, 0.5, 1.0)  # of the requests have a deadline
MULTIPLES = (2, 3, 5)
OWN_BUDGETS = 0.2  # of the requests without a deadline
CONNECTIONS = 32
VIRTUAL_S = 12.0  # of each load in virtual time
Figures = dict[str, Any]
Bools = NDArray[np.bool_]
Array = NDArray[np.float64]


class Mix(NamedTuple):
    """What requests wish for: NaN where nothing, (N,) both."""

    deadline_ms: Array
    budget_ms: Array

    @classmethod
    def drawn(
        cls, count: int, share: float, deadline_ms: float, budgets_ms: tuple[float, float]
    ) -> "Mix":
        """A share of the requests have the deadline; some of the others a budget in the range."""
        rng = np.random.default_rng(1)
        urgent = rng.random(count) < share
        own = ~urgent & (rng.random(count) < OWN_BUDGETS)
        budgets = rng.uniform(*budgets_ms, count)
        return cls(np.where(urgent, deadline_ms, np.nan), np.where(own, budgets, np.nan))


class Seen(NamedTuple):
    """What became of N requests; exit -1 and NaN where there is no answer."""

    exit: NDArray[np.intp]
    late: Bools  # the answer says so itself
    refused: Bools  # the deadline passed before the first exit
    latency_ms: dict[str, Array]  # by where it is measured


def main() -> None:
    """Run what is asked for and print a line a share and multiple."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load over HTTP")
    parser.add_argument("--load", type=float, default=0.7, help="share of the capacity")
    parser.add_argument("--only", default="core,device,served")
    args = parser.parse_args()
    core = Fake(StageCosts.of_exits([1.0, 1.75, 2.5]), max_batch=1, jitter=0.35)
    device = Fake(StageCosts.of_exits([4.0, 8.0, 12.0], free_rows=16), max_batch=16, jitter=0.05)
    parts: dict[str, Callable[[], Figures]] = {
        "core": lambda: alone(core, args.load),
        "device": lambda: alone(device, args.load),
        "served": lambda: served(args.seconds, args.load),
    }
    report: Figures = {"machine": machine_name(), "cores": len(os.sched_getaffinity(0))}
    for name in args.only.split(","):
        print(name, flush=True)
        report[name] = parts[name]() | {"loadavg": os.getloadavg()[0]}
    print(json.dumps(report))


def each_case(unit_ms: float, run: Callable[[float, float], tuple[Mix, Seen]]) -> Figures:
    """No deadlines, then every share and multiple; shown as they are measured."""
    print(f"  exit 0 unloaded, p99 {unit_ms:.2f} ms")
    cases: list[Figures] = []
    for share, multiple in [(0.0, 0), *itertools.product(SHARES, MULTIPLES)]:
        mix, seen = run(share, multiple * unit_ms)
        cases.append({"share": share, "multiple": multiple} | figures_of(mix, seen))
        print("  " + line_of(cases[-1]), flush=True)
    return {"unit_ms": unit_ms, "cases": cases}


def figures_of(mix: Mix, seen: Seen) -> Figures:
    """Shares are of all requests with a deadline: one that gets no answer in time is a miss."""
    urgent = ~np.isnan(mix.deadline_ms)
    found: Figures = {"requests": len(urgent), "with deadline": int(urgent.sum())}
    if urgent.any():
        for where, latency_ms in seen.latency_ms.items():
            found[f"in time, {where}"] = float((latency_ms <= mix.deadline_ms)[urgent].mean())
        found["deadline_exceeded"] = float(seen.late[urgent].mean())
        found["504"] = float(seen.refused[urgent].mean())
        found["exits, with"] = exit_rates(seen.exit[urgent])
    if not urgent.all():
        found["exits, without"] = exit_rates(seen.exit[~urgent])
        for where, latency_ms in seen.latency_ms.items():
            others = latency_ms[~urgent & (seen.exit >= 0)]
            found[f"p99 without, {where}, ms"] = float(np.percentile(others, 99))
    return found


def exit_rates(exits: NDArray[np.intp]) -> list[float]:
    """Of those answered."""
    counts = np.bincount(exits[exits >= 0], minlength=3)
    rates: list[float] = (counts / max(counts.sum(), 1)).round(3).tolist()
    return rates


def line_of(case: Figures) -> str:
    """A case for people."""
    shown = [f"{100 * case['share']:.0f} % at {case['multiple']}x:"]
    for name, value in case.items():
        if name.startswith(("in time", "deadline", "504")):
            shown.append(f"{name} {100 * value:.2f} %;")
        elif name.startswith(("exits", "p99")):
            shown.append(f"{name} {value if isinstance(value, list) else round(value, 1)};")
    return " ".join(shown)


# --- over HTTP


def served(seconds: float, load: float) -> Figures:
    """The real server; others on the machine change what it can do, so that is asked every time."""
    files = image_files()
    calls = [Call("/predict", file, "image/jpeg") for file in files]
    with serving("--bundle", str(BUNDLE)) as server:
        put_budget(server.url, 1e-3)
        unloaded = closed_loop(server.url, calls, ConnectionConfig(1), seconds=seconds, warm_up_s=1)
        floor_ms, ceiling_ms = budget_range(server.url)
        put_budget(server.url, (floor_ms + ceiling_ms) / 2)
        closed_loop(server.url, calls, ConnectionConfig(CONNECTIONS), seconds=2)

        def run(share: float, deadline_ms: float) -> tuple[Mix, Seen]:
            full = closed_loop(
                server.url, calls, ConnectionConfig(CONNECTIONS), seconds=seconds / 3
            )
            arrivals_s = poisson(load * full.rate, seconds, 0)
            mix = Mix.drawn(len(arrivals_s), share, deadline_ms, (floor_ms, ceiling_ms))
            given = calls_of(files, mix)
            result = open_loop(
                server.url, given, arrivals_s, ConnectionConfig(256, keep_bodies=True)
            )
            return mix, seen_over_http(result)

        return each_case(float(np.percentile(unloaded.latency_ms, 99)), run)


def budget_range(url: str) -> tuple[float, float]:
    """What leaving at exit 0 and running to the end cost now."""
    with urllib.request.urlopen(f"{url}/budget") as answer:
        state = json.load(answer)["models"][0]
    return state["floor_ms"], state["ceiling_ms"]


def calls_of(files: list[bytes], mix: Mix) -> list[Call]:
    """One for each wish, of the files in turn."""
    options = [
        "&".join(
            f"{name}={value:.4f}"
            for name, value in (("deadline_ms", deadline_ms), ("budget_ms", budget_ms))
            if not np.isnan(value)
        )
        for deadline_ms, budget_ms in zip(*mix, strict=True)
    ]
    return [
        Call(f"/predict?{query}" if query else "/predict", file, "image/jpeg")
        for query, file in zip(options, itertools.cycle(files), strict=False)
    ]


def seen_over_http(result: LoadResult) -> Seen:
    """The answers in the order of the calls."""
    order = np.argsort(result.call)
    assert result.bodies is not None, "bodies are kept"
    answers = [json.loads(result.bodies[place] or b"{}") for place in order]
    status, from_due = result.outcome[order], result.latency_ms[order]
    lateness_ms = 1e3 * (result.sent_s - result.due_s)[order]
    ok = status == "200"
    of_server = np.array([a["latency_ms"]["total"] if good else np.nan
                          for a, good in zip(answers, ok, strict=True)])  # fmt: skip
    at_client = {"sent to answer": from_due - lateness_ms, "due to answer": from_due}
    return Seen(
        np.array([a["exit"] if good else -1 for a, good in zip(answers, ok, strict=True)]),
        np.array([a.get("deadline_exceeded", False) for a in answers], bool),
        status == "504",
        {"server": of_server} | {name: np.where(ok, ms, np.nan) for name, ms in at_client.items()},
    )


# --- the engine alone


class Fake(NamedTuple):
    """A device; what a batch takes is its cost times exp of a normal number of this deviation."""

    costs: StageCosts
    max_batch: int
    jitter: float


class Outcome(NamedTuple):
    """Of a row, and how long it took."""

    answer: Prediction | None
    latency_ms: float


def alone(device: Fake, load: float) -> Figures:
    """The engine in virtual time under a middle budget."""
    policy, frontier = load_scheduler(BUNDLE)
    frontier = frontier.with_costs(device.costs.costs_ms)
    log_probs = load_recorded(BUNDLE / "calibration.npz").test.log_probs
    floor_ms, *_, ceiling_ms = device.costs.costs_ms.tolist()
    middle = frontier.at_cost((floor_ms + ceiling_ms) / 2).parameter

    def run(rows: list[InferenceRequest], arrivals_s: Array, parameter: float) -> list[Outcome]:
        return run_engine(device, log_probs, policy, parameter, rows, arrivals_s)

    def rows_of(count: int) -> list[InferenceRequest]:
        chosen = np.random.default_rng(0).integers(0, log_probs.shape[1], count)
        return [InferenceRequest((chosen[place : place + 1],), tag=place) for place in range(count)]

    def loaded(share: float, deadline_ms: float) -> tuple[Mix, Seen]:
        arrivals_s = poisson(load * capacity, VIRTUAL_S, 0)
        mix = Mix.drawn(len(arrivals_s), share, deadline_ms, (floor_ms, ceiling_ms))
        rows = rows_of(len(arrivals_s))
        for row, arrival_s, deadline, budget in zip(rows, arrivals_s, *mix, strict=True):
            row.deadline_s = None if np.isnan(deadline) else arrival_s + deadline / 1e3
            row.parameter = None if np.isnan(budget) else frontier.at_cost(budget).parameter
        return mix, seen_alone(run(rows, arrivals_s, middle))

    unloaded = run(rows_of(1000), np.arange(1000.0), frontier[0].parameter)
    saturated = run(rows_of(4000), np.zeros(4000), middle)
    capacity = 4e6 / max(each.latency_ms for each in saturated)
    unit_ms = float(np.percentile([each.latency_ms for each in unloaded], 99))
    return {"capacity_per_s": capacity} | each_case(unit_ms, loaded)


def run_engine(
    device: Fake,
    log_probs: NDArray[np.floating],
    policy: ExitPolicy,
    parameter: float,
    rows: list[InferenceRequest],
    arrivals_s: Array,
) -> list[Outcome]:
    """What becomes of rows that come at these times, in their order."""
    time, rng = VirtualTime(), np.random.default_rng(0)
    outcomes: dict[object, Outcome] = {}

    def sleep(seconds: float) -> None:
        time.sleep(seconds * float(np.exp(device.jitter * rng.standard_normal())))

    def on_batch(completions: list[Completion]) -> None:
        for row, outcome in completions:
            answer = outcome if isinstance(outcome, Prediction) else None
            outcomes[row.tag] = Outcome(answer, 1e3 * (time.clock() - row.arrived_s))

    backend = ReplayBackend(log_probs, device.costs, sleep, clock=lambda: 0.0)
    metrics = ModelMetrics(Metrics(CollectorRegistry(), ""), "m", backend.num_exits)
    engine = Engine(
        backend, policy, parameter, workers=0, max_batch=device.max_batch, metrics=metrics,
        on_batch=on_batch, costs=device.costs, clock=time.clock,
    )  # fmt: skip
    engine.stop()  # with nothing in, `run` returns
    for row, arrival_s in zip(rows, arrivals_s.tolist(), strict=True):
        time.at(arrival_s, partial(engine.submit, [row]))
    while time.skip():
        engine.run()
    return [outcomes[row.tag] for row in rows]


def seen_alone(outcomes: list[Outcome]) -> Seen:
    """As over HTTP."""
    answers = [each.answer for each in outcomes]
    ms = [np.nan if each.answer is None else each.latency_ms for each in outcomes]
    return Seen(
        np.array([-1 if answer is None else answer.exit for answer in answers]),
        np.array([answer is not None and answer.late for answer in answers]),
        np.array([answer is None for answer in answers]),
        {"engine": np.array(ms)},
    )


if __name__ == "__main__":
    main()
