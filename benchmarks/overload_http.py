"""The server at ten times its capacity: what it answers, how soon it refuses, how it recovers.

    .venv/bin/python -m benchmarks.overload_http [--seconds 10] [--stage-ms 10] [--front-ends N]

One engine of the replay backend, whose stages sleep, so that capacity does not depend on what the
load generator leaves of the cores. First a closed loop finds the capacity; then an open loop sends
ten times as much over 400 connections; then requests go one after the other. In both loads probes
are asked 20 times a second. Reported are the goodput of both loads, the latency of the probes, the
times to retry that refusals name, the processor time of a refusal (what all processes of the server
used in the second load, less what they used in the first, which answers as many), and the first
latency after the load. Ends with status 1 if a bar is missed (a smoke run: if no request is
refused). JSON on the last line.
"""

import re
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.harness import (
    IMAGE_BUNDLE,
    Figures,
    RunningServer,
    image_calls,
    make_parser,
    print_figures,
    print_report,
    serving,
    write_costs,
)
from models.stage_costs import StageCosts
from profiling.loadtest.http_client import ConnectionConfig
from profiling.loadtest.load import Call, LoadResult, SideCalls, closed_loop, open_loop, poisson

CONNECTIONS, CAPACITY_CONNECTIONS = 400, 16
TIMES, PROBES_PER_S = 10, 20.0
PROBES = ("/livez", "/readyz", "/metrics")
RETRY_AFTER = re.compile(rb"try again in (\d+) s")
LEAST_GOODPUT, MOST_PROBE_MS, MOST_REFUSAL_US, MOST_RECOVERY_MS = 0.95, 50.0, 200.0, 2000.0


def main() -> int:
    """Load, overload, and ask once more; 1 if a bar is missed."""
    parser = make_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--stage-ms", type=float, default=10.0, help="of one image in a stage")
    parser.add_argument("--front-ends", type=int, default=None, help="as of eenet serve")
    args = parser.parse_args()
    seconds = 1.0 if args.smoke else args.seconds
    with tempfile.TemporaryDirectory() as folder:
        costs = StageCosts((1, 2), np.array([[1.0, 2.0]] * 3) * args.stage_ms)
        table = write_costs(costs, Path(folder))
        options = ["--bundle", str(IMAGE_BUNDLE), "--backend", "replay", "--engine-workers", "1"]
        options += ["--replay-costs", str(table)]
        if args.front_ends != 0:
            options += ["--engines", "1"]
        if args.front_ends is not None:
            options += ["--front-ends", str(args.front_ends)]
        with serving(*options) as server:
            figures = measure(server, seconds)
    print_figures(figures)
    good = figures["refused"] > 0 if args.smoke else meets_bars(figures)
    print_report({**figures, "good": good}, smoke=args.smoke)
    return 0 if good else 1


def measure(server: RunningServer, seconds: float) -> Figures:
    """Measure one server."""
    calls = image_calls()
    config = ConnectionConfig(CAPACITY_CONNECTIONS)
    asked_s = np.arange(0.0, seconds, 1 / PROBES_PER_S)
    probes = [SideCalls([Call(path, method="GET")], asked_s) for path in PROBES]
    started_s = server.cpu_s()
    normal = closed_loop(server.url, calls, config, seconds=seconds, beside=probes)
    normal_s = server.cpu_s() - started_s
    arrivals_s = poisson(TIMES * normal.rate, seconds, seed=0)
    config = ConnectionConfig(CONNECTIONS, keep_bodies=True)
    over = open_loop(server.url, calls, arrivals_s, config, beside=probes)
    over_s = server.cpu_s() - started_s - normal_s
    after = closed_loop(server.url, calls, ConnectionConfig(1), count=10)
    refused = over.num_errors
    probes_ms = {
        path: float(np.percentile(result.latency_ms, 99))
        for path, result in zip(PROBES, over.beside, strict=True)
    }
    goodput = answered_in(over, seconds)
    return {
        "capacity_per_s": normal.rate,
        "goodput_per_s": goodput,
        "goodput_ratio": goodput / normal.rate,
        "outcomes": over.outcomes,
        "refused": refused,
        "refusals_without_retry_after": refused - len(waits_s(over)),
        "retry_after_s": sorted(set(waits_s(over))),
        "answer_p99_ms": (over.percentiles(99) or [float("nan")])[0],
        "refusal_cpu_us": 1e6 * (over_s - normal_s) / max(refused, 1),
        "probe_p99_ms": probes_ms,
        "probe_errors": sum(result.num_errors for result in over.beside),
        "first_after_ms": float(after.latency_ms[0]),
        "errors_after": after.num_errors,
    }


def answered_in(load: LoadResult, seconds: float) -> float:
    """Answers a second while the load lasted; those that come later were waiting at its end."""
    ends_s = load.due_s + load.latency_ms / 1e3
    return float((load.ok & (ends_s <= seconds)).sum()) / seconds


def waits_s(load: LoadResult) -> list[int]:
    """The time to retry that each refusal names, in seconds."""
    assert load.bodies is not None, "bodies were kept"
    refusals = [body for body, ok in zip(load.bodies, load.ok, strict=True) if not ok]
    return [int(found[1]) for body in refusals if (found := RETRY_AFTER.search(body))]


def meets_bars(figures: Figures) -> bool:
    """Whether overload costs the answers, the probes and what follows as little as it may."""
    return bool(
        set(figures["outcomes"]) == {"200", "429"}
        and figures["goodput_ratio"] >= LEAST_GOODPUT
        and figures["refusals_without_retry_after"] == 0
        and max(figures["probe_p99_ms"].values()) <= MOST_PROBE_MS
        and figures["probe_errors"] == 0
        and figures["refusal_cpu_us"] <= MOST_REFUSAL_US
        and figures["first_after_ms"] <= MOST_RECOVERY_MS
        and figures["errors_after"] == 0
    )


if __name__ == "__main__":
    sys.exit(main())
