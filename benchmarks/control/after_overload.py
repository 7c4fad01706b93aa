"""Exits at 10 requests per second on an idle server, and 2 s after 5 s of overload.

    .venv/bin/python -m benchmarks.control.after_overload

Every budget (as a share of the way from floor to ceiling, or none) under both measures. The same 60
images are sent three times: twice with nothing before, which shows how much exits differ by chance,
and after the overload (32 connections that send without a pause). JSON on the last line.
"""

import json
import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import (
    IMAGE_BUNDLE,
    ask,
    image_calls,
    make_parser,
    print_report,
    put_budget,
    serving,
)
from profiling.loadtest.http_client import ConnectionConfig
from profiling.loadtest.load import closed_loop, open_loop

MEASURES = ("compute", "end_to_end")
SHARES = (0.15, 0.5, 0.85, None)
COUNT, RATE = 60, 10.0
OVERLOAD_S, REST_S, CONNECTIONS = 5.0, 2.0, 32
SMOKE_COUNT, SMOKE_S = 6, 0.3
HEAD = "| measure | budget, ms | mean exit, idle | again | after overload | same, idle | same |"


class Trial(NamedTuple):
    """One budget, or none, under one measure.

    Attributes:
        measure: Latency that the budget is about.
        budget_ms: The budget.
        mean_exits: Mean exit on the idle server, there again, and after the overload.
        same_idle: Share of the images that left at the same exit both times on the idle server.
        same: Share that left after the overload where they had left the time before.
        reason: What the server then said about its budget.
    """

    measure: str
    budget_ms: float | None
    mean_exits: tuple[float, float, float]
    same_idle: float
    same: float
    reason: str | None

    def row(self) -> str:
        """The row of the table."""
        budget = "none" if self.budget_ms is None else f"{self.budget_ms:.2f}"
        exits = " | ".join(f"{each:.2f}" for each in self.mean_exits)
        return f"| {self.measure} | {budget} | {exits} | {self.same_idle:.0%} | {self.same:.0%} |"


class Plan(NamedTuple):
    """Numbers of requests, and times."""

    requests: int = COUNT
    overload_s: float = OVERLOAD_S
    rest_s: float = REST_S


def main() -> None:
    """Run all trials."""
    args = make_parser(__doc__).parse_args()
    plan = Plan(SMOKE_COUNT, SMOKE_S, SMOKE_S) if args.smoke else Plan()
    trials = []
    print(HEAD, "|---" * 7 + "|", sep="\n", flush=True)
    for measure in MEASURES:
        with serving("--bundle", str(IMAGE_BUNDLE), "--measure", measure) as server:
            put_budget(server.url, None)
            light(server.url, plan)
            state = state_of(server.url)
            for share in SHARES[:1] if args.smoke else SHARES:
                trials.append(overload(server.url, plan, measure, budget_at(state, share)))
                print(trials[-1].row(), flush=True)
    print_report({"trials": [each._asdict() for each in trials]}, smoke=args.smoke)


def overload(url: str, plan: Plan, measure: str, budget_ms: float | None) -> Trial:
    """Send light traffic twice, overload, rest, and light traffic again."""
    put_budget(url, budget_ms)
    runs = []
    for _ in range(2):
        time.sleep(plan.rest_s)
        runs.append(light(url, plan))
    config = ConnectionConfig(connections=CONNECTIONS)
    closed_loop(url, image_calls(), config, seconds=plan.overload_s)
    time.sleep(plan.rest_s)
    runs.append(light(url, plan))
    first, again, after = runs
    means = float(first.mean()), float(again.mean()), float(after.mean())
    same_idle, same = float((first == again).mean()), float((again == after).mean())
    return Trial(measure, budget_ms, means, same_idle, same, state_of(url)["reason"])


def light(url: str, plan: Plan) -> NDArray[np.int64]:
    """Send the first images at a steady, low rate; return the exit of each."""
    due_s = np.arange(plan.requests) / RATE
    config = ConnectionConfig(connections=CONNECTIONS, keep_bodies=True)
    result = open_loop(url, image_calls(), due_s, config)
    assert result.bodies is not None, "bodies are kept"
    if result.num_errors:
        raise RuntimeError(f"light traffic was not answered: {result.outcomes}")
    order = np.argsort(result.due_s, kind="stable")
    return np.array([json.loads(result.bodies[place])["exit"] for place in order.tolist()])


def state_of(url: str) -> dict[str, Any]:
    """The answer of GET /budget for the only model."""
    state: dict[str, Any] = ask(f"{url}/budget")["models"][0]
    return state


def budget_at(state: dict[str, Any], share: float | None) -> float | None:
    """The budget at a position between floor and ceiling."""
    if share is None:
        return None
    floor_ms, ceiling_ms = state["floor_ms"], state["ceiling_ms"]
    return float(floor_ms + share * (ceiling_ms - floor_ms))


if __name__ == "__main__":
    main()
