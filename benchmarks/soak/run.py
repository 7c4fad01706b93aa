"""Minutes of mixed traffic with injected faults: nothing may grow, get lost or come twice.

    .venv/bin/python -m benchmarks.soak.run [--seconds 600] [--only lengths]

Three phases at 32 connections, on one server of several processes:

- `kills`: an engine, then a front-end is killed. Lost is what they held, and no more.
- `mixed`: images and texts in turn, budgets that change.
- `lengths`: texts of constantly changing length, for which ONNX Runtime's arena must hold memory.

In all of them, clients leave early or send nonsense, and one checks every answer. Ends with status
1 if a request is lost (beyond those of killed processes), if an answer is wrong or comes twice, if
memory (PSS of all processes) grows by more than 1 MiB a minute, if descriptors or queues do not
come back to what they were, or if the 99th percentile of latency rises. JSON on the last line.
"""

import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.harness import (
    IMAGE_BUNDLE,
    TEXT_BUNDLE,
    Figures,
    RunningServer,
    ask,
    image_calls,
    make_parser,
    print_report,
    put_budget,
    serving,
    text_calls,
)
from benchmarks.soak.clients import Aside, clients_aside
from benchmarks.soak.watch import LEFT, Growth, descriptors, growth_of, metrics, sampling, total
from profiling.loadtest.http_client import ConnectionConfig
from profiling.loadtest.load import Call, LoadResult, closed_loop

CONNECTIONS, SLICES = 32, 5
WARM_UP, SMOKE_WARM_UP = 5000, 200  # requests; fill caches
BUDGETS_MS = (None, 1.5, 20.0, 1000.0)
KILLED = ("engine-0", "front-e-0")
PROCESSES = ("--front-ends", "2", "--engines", "2")
SHARES = {"kills": 0.1, "mixed": 0.5, "lengths": 0.4}
MOST_MIB_PER_MINUTE = 1.0
# A line through less than this tells nothing about a minute: the sum may grow by so much then.
LEAST_S, MOST_GROWTH = 100.0, 0.02
MORE_DESCRIPTORS = 3
LATER_P99, LATER_P99_MS = 1.5, 20.0  # the last slices against the first ones
SETTLE_S = 10.0


class Phase(NamedTuple):
    """What one phase saw.

    Attributes:
        outcomes: Calls of the load by outcome.
        rate: Its requests per second.
        p99_ms: Its 99th percentile in each slice of the phase.
        aside: What the other clients saw.
        growth: Of memory.
        more_descriptors: Open ones after the phase, less those before it, by process; those that
            were killed are left out.
        left: Samples in queues and in flight after the phase.
    """

    outcomes: dict[str, int]
    rate: float
    p99_ms: list[float]
    aside: Aside
    growth: Growth
    more_descriptors: dict[str, int]
    left: float


def main() -> int:
    """Load the server, watch it, judge."""
    parser = make_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--only", choices=SHARES, help="one phase, for all the time")
    args = parser.parse_args()
    shares = SHARES if args.only is None else {args.only: 1.0}
    seconds, interval_s = (6.0, 0.2) if args.smoke else (args.seconds, 1.0)
    bundles = ("--bundle", str(IMAGE_BUNDLE), "--bundle", str(TEXT_BUNDLE))
    faults, figures = [], {}
    with serving(*bundles, *PROCESSES) as server:
        warm_up(server, SMOKE_WARM_UP if args.smoke else WARM_UP)
        for number, (name, share) in enumerate(shares.items()):
            calls = texts_of_all_lengths() if name == "lengths" else alternating_calls()
            seen = run_phase(
                server, number, calls, share * seconds, interval_s, kills=name == "kills"
            )
            found = faults_of(seen, kills=name == "kills", brief=args.smoke)
            faults += [f"{name}: {fault}" for fault in found]
            figures[name] = shown(seen)
            print(f"{name}: {figures[name]}{': BAD' if found else ''}", flush=True)
        cancelled = total(metrics(server.url), "eenet_cancelled_total")
    if not cancelled and not args.smoke:
        faults.append("no request of a client that left was cancelled")
    print("\n".join(faults) or "good")
    good = {"cancelled": cancelled, "faults": faults, "good": not faults}
    print_report({**figures, **good}, smoke=args.smoke)
    return 0 if not faults else 1


def warm_up(server: RunningServer, count: int) -> None:
    """Send as many requests of each kind, so that what has a bound has reached it.

    That is the memory of answers, ONNX Runtime's arena, which grows by steps of several MiB until
    it has met the largest input, and the heaps of the front-ends, which grow by 3 MiB with the
    first 30,000 texts of different lengths.
    """
    config = ConnectionConfig(CONNECTIONS)
    # A promise may be kept by a scheduler that answers otherwise.
    put_budget(server.url, None)
    closed_loop(server.url, alternating_calls(), config, count=count)
    put_budget(server.url, BUDGETS_MS[1])  # most texts leave early, so that many fit into a while
    closed_loop(server.url, texts_of_all_lengths(), config, count=count)
    put_budget(server.url, None)
    closed_loop(server.url, texts_of_all_lengths(), config, count=count // 10)


def run_phase(
    server: RunningServer,
    number: int,
    calls: Sequence[Call],
    seconds: float,
    interval_s: float,
    *,
    kills: bool,
) -> Phase:
    """Load a server for a while, with faults."""
    config, loads = ConnectionConfig(CONNECTIONS), list[LoadResult]()
    await_quiet(server)
    before = descriptors(server, left_out=KILLED if kills else ())
    act = killer(server, seconds / interval_s) if kills else changer(server)
    with (
        sampling(server, interval_s, act) as samples,
        clients_aside(server.url, alternating_calls()[:40], number) as aside,
    ):
        for _ in range(SLICES):
            loads.append(closed_loop(server.url, calls, config, seconds=seconds / SLICES))
    left = await_quiet(server)
    after = descriptors(server)
    outcomes: dict[str, int] = {}
    for outcome, count in itertools.chain(*(load.outcomes.items() for load in loads)):
        outcomes[outcome] = outcomes.get(outcome, 0) + count
    return Phase(
        outcomes,
        sum(load.rate for load in loads) / SLICES,
        [(load.percentiles(99) or [float("nan")])[0] for load in loads],
        aside,
        growth_of(samples),
        {name: count - before[name] for name, count in after.items() if name in before},
        left,
    )


def await_quiet(server: RunningServer) -> float:
    """Wait until nothing is in flight and all processes are back; return what is still left."""
    ends_s = time.monotonic() + SETTLE_S
    while True:
        left = total(metrics(server.url), *LEFT)
        if (not left and is_whole(server)) or time.monotonic() > ends_s:
            return left
        time.sleep(0.2)


def is_whole(server: RunningServer) -> bool:
    """Whether the server is ready, with every process that may be killed."""
    try:
        ask(f"{server.url}/readyz")
        return set(KILLED) <= set(server.processes())
    except OSError:
        return False


def changer(server: RunningServer) -> Callable[[int], None]:
    """Change the budget at each turn."""
    return lambda turn: put_budget(server.url, BUDGETS_MS[turn % len(BUDGETS_MS)])


def killer(server: RunningServer, turns: float) -> Callable[[int], None]:
    """Kill an engine after a third of the turns, and a front-end after two thirds."""
    due = {round(turns / 3): KILLED[0], round(2 * turns / 3): KILLED[1]}

    def act(turn: int) -> None:
        if (name := due.get(turn)) is not None:
            os.kill(server.processes()[name], signal.SIGKILL)

    return act


def faults_of(seen: Phase, *, kills: bool, brief: bool) -> list[str]:
    """Say what of the bar was missed.

    Args:
        seen: What the phase saw.
        kills: Whether processes were killed in it: connections break then, and memory comes anew.
        brief: Whether it was too short to judge times and memory.
    """
    checked = seen.aside.checked
    lost = checked.lost + sum(n for outcome, n in seen.outcomes.items() if outcome != "200")
    # Each connection may lose what was on its way, and be refused until a front-end is back.
    allowed = 4 * CONNECTIONS if kills else 0
    faults = [f"{lost} requests are lost"] if lost > allowed else []
    faults += [f"{checked.wrong} answers are wrong"] if checked.wrong else []
    faults += ["no answer was checked"] if not checked.answered else []
    if seen.aside.accepted:
        faults.append(f"{seen.aside.accepted} bad requests were not refused")
    faults += [f"{seen.left:.0f} samples are left in queues"] if seen.left else []
    for name, count in seen.more_descriptors.items():
        if count > MORE_DESCRIPTORS:
            faults.append(f"{name} has {count} open descriptors more")
    return faults if brief or kills else faults + faults_over_time(seen)


def faults_over_time(seen: Phase) -> list[str]:
    """Say whether memory or latency rose."""
    faults, (slope, error) = [], seen.growth.slope
    if seen.growth.seconds >= LEAST_S:
        # Memory goes up and down; what two standard errors explain is no growth.
        if slope - 2 * error > MOST_MIB_PER_MINUTE:
            faults.append(f"memory grows by {slope:.1f} MiB a minute")
    elif slope * seen.growth.seconds / 60 > MOST_GROWTH * seen.growth.mib:
        faults.append(f"memory grows by {slope:.1f} MiB a minute")
    first, last = max(seen.p99_ms[:2]), min(seen.p99_ms[-2:])
    if last > LATER_P99 * first + LATER_P99_MS:
        faults.append(f"p99 rises from {first:.0f} to {last:.0f} ms")
    return faults


def shown(seen: Phase) -> Figures:
    """The figures of a phase."""
    slope, error = seen.growth.slope
    checked = seen.aside.checked
    return {
        "requests": sum(seen.outcomes.values()),
        "outcomes": seen.outcomes,
        "requests_per_s": round(seen.rate, 1),
        "p99_ms": [round(ms, 1) for ms in seen.p99_ms],
        "checked": checked.answered,
        "lost": checked.lost,
        "wrong": checked.wrong,
        "left_early": seen.aside.left,
        "refused": seen.aside.refused,
        "memory_mib": round(seen.growth.mib, 1),
        "mib_per_minute": round(slope, 2),
        "mib_per_minute_error": round(error, 2),
        "mib_per_minute_of": seen.growth.by_process,
        "more_descriptors": seen.more_descriptors,
        "left_in_queues": seen.left,
    }


def alternating_calls() -> list[Call]:
    """An image, then a text, and so on."""
    return [call for both in zip(image_calls(), text_calls(), strict=True) for call in both]


def texts_of_all_lengths() -> list[Call]:
    """Texts from one word up to beyond the model's limit, no two neighbours of one length."""
    words = [json.loads(call.body)["text"].split() for call in text_calls()]
    pool, rng = list(itertools.chain.from_iterable(words)), random.Random(0)
    lengths = [1 + n % 250 for n in range(1000)]
    rng.shuffle(lengths)
    return [
        Call("/predict", json.dumps({"text": " ".join(chosen)}).encode(), "application/json")
        for chosen in (rng.choices(pool, k=length) for length in lengths)
    ]


if __name__ == "__main__":
    sys.exit(main())
