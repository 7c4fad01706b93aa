"""Two minutes at full load: memory and queues must not grow.

    .venv/bin/python -m benchmarks.soak [--seconds 120]

Images and texts in turn at 32 connections, clients that disconnect early, budgets that change.
Ends with status 1 if memory (PSS of all processes) grew by more than 2 % over the second half (a
smoke run is too short to judge that), if requests were left in a queue, or if any response was an
error. JSON on the last line.
"""

import asyncio
import sys
import threading
import time
import urllib.request

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import (
    IMAGE_BUNDLE,
    TEXT_BUNDLE,
    Figures,
    RunningServer,
    image_calls,
    make_parser,
    print_report,
    put_budget,
    serving,
    text_calls,
)
from profiling.loadtest.http_client import ConnectionConfig
from profiling.loadtest.load import Call, closed_loop

CONNECTIONS = 32
GROWTH = 0.02
WARM_UP, SMOKE_WARM_UP = 5000, 200  # requests; fill caches
WATCHED = ("eenet_queue_depth", "eenet_inflight_samples", "eenet_cancelled_total")
BUDGETS_MS = (None, 1.5, 20.0, 1000.0)


def main() -> int:
    """Load the server, watch it, judge."""
    parser = make_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    args = parser.parse_args()
    seconds, interval_s = (3.0, 0.3) if args.smoke else (args.seconds, 2.0)
    warm_up = SMOKE_WARM_UP if args.smoke else WARM_UP
    calls, config = alternating_calls(), ConnectionConfig(CONNECTIONS)
    with serving("--bundle", str(IMAGE_BUNDLE), "--bundle", str(TEXT_BUNDLE)) as server:
        memory_mib: list[float] = []
        stop = threading.Event()
        aside = [
            threading.Thread(target=watch, args=(server, interval_s, memory_mib, stop)),
            threading.Thread(target=lambda: asyncio.run(disconnect_early(server.url, stop))),
        ]
        closed_loop(server.url, calls, config, count=warm_up)
        for thread in aside:
            thread.start()
        load = closed_loop(server.url, calls, config, seconds=seconds)
        stop.set()
        for thread in aside:
            thread.join()
        time.sleep(1.0)  # until the server has noticed the last disconnects
        counters = scrape(server.url)
    figures = judge(np.array(memory_mib), load.outcomes, load.rate, counters, grows=args.smoke)
    print_report(figures, smoke=args.smoke)
    return 0 if figures["good"] else 1


def judge(
    memory_mib: NDArray[np.float64],
    outcomes: dict[str, int],
    rate: float,
    counters: dict[str, float],
    *,
    grows: bool,
) -> Figures:
    """Print and return the figures.

    Args:
        memory_mib: Memory of all processes at equal intervals.
        outcomes: Number of calls by outcome.
        rate: Requests per second.
        counters: Watched metrics after the load.
        grows: Whether memory may grow.
    """
    second_half = memory_mib[len(memory_mib) // 2 :]
    slope = np.polyfit(np.arange(len(second_half)), second_half, 1)[0] * len(second_half)
    growth = float(slope / second_half.mean())
    left = sum(value for name, value in counters.items() if "cancelled" not in name)
    cancelled = sum(value for name, value in counters.items() if "cancelled" in name)
    small = grows or growth <= GROWTH
    good = small and left == 0 and set(outcomes) == {"200"} and cancelled > 0
    print(
        f"memory in MiB: first {memory_mib[0]:.1f}, last {memory_mib[-1]:.1f}, "
        f"growth over the second half {100 * growth:.2f} %"
    )
    print(
        f"{rate:.0f} requests/s, outcomes {outcomes}, {cancelled:.0f} requests cancelled after "
        f"disconnects, {left:.0f} left in queues: {'good' if good else 'BAD'}"
    )
    return {
        "requests_per_s": rate,
        "outcomes": outcomes,
        "memory_mib": memory_mib.round(1).tolist(),
        "growth_second_half": growth,
        "cancelled": cancelled,
        "left_in_queues": left,
        "good": good,
    }


def alternating_calls() -> list[Call]:
    """An image, then a text, and so on."""
    return [call for both in zip(image_calls(), text_calls(), strict=True) for call in both]


def watch(
    server: RunningServer, interval_s: float, memory_mib: list[float], stop: threading.Event
) -> None:
    """Record the memory, and change the budget, at equal intervals."""
    turn = 0
    while not stop.wait(interval_s):
        memory_mib.append(server.memory_mib())
        put_budget(server.url, BUDGETS_MS[turn % len(BUDGETS_MS)])
        turn += 1


async def disconnect_early(url: str, stop: threading.Event) -> None:
    """Send requests and disconnect before the response."""
    host, _, port = url.removeprefix("http://").partition(":")
    call = text_calls()[0]
    head = (
        f"POST {call.path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(call.body)}\r\n\r\n"
    )
    while not stop.is_set():
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(head.encode() + call.body)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()
        await asyncio.sleep(0.1)


def scrape(url: str) -> dict[str, float]:
    """Read the watched metrics."""
    with urllib.request.urlopen(f"{url}/metrics") as response:
        lines: list[str] = response.read().decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if line.startswith(WATCHED)]
    return {name: float(value) for name, value in pairs}


if __name__ == "__main__":
    sys.exit(main())
