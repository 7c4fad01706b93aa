"""SlackFit, the scheduler of SuperServe (Khare et al., NSDI '25, section 4.2), over our exits.

Offline, every choice of an exit and a batch size is put into one of some evenly spaced buckets by
its latency, and each bucket keeps the choice of the largest batch. Online, a free worker takes the
bucket whose latency is closest to, but less than, the slack of the request with the earliest
deadline, and runs as many requests in order of their deadlines to that exit.
"""

import heapq
import itertools
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from profiling.simulation.network import NetworkCosts
from profiling.simulation.overload import NEVER, REFUSED, Offered, Served
from profiling.simulation.simulator import Device

Array = NDArray[np.float64]


class Choice(NamedTuple):
    """An exit for a batch of at most `rows` rows, and the latency of that batch."""

    latency_ms: float
    exit: int
    rows: int


def all_choices(network: NetworkCosts, accuracy: Array, max_batch: int) -> list[Choice]:
    """List every batch size at every exit that is worth its latency.

    Args:
        network: Costs of the network.
        accuracy: Accuracy of each exit on calibration rows, (K,). An exit that is no more accurate
            than one before it is left out.
        max_batch: Most rows of a batch.
    """
    best = np.maximum.accumulate(accuracy)
    kept = [k for k in range(len(accuracy)) if k == 0 or accuracy[k] > best[k - 1]]
    return [
        Choice(float(network.to_exit(exit).table_ms(max_batch)[:, rows].sum()), exit, rows)
        for exit in kept
        for rows in range(1, max_batch + 1)
    ]


def fill_buckets(choices: Sequence[Choice], buckets: int) -> list[Choice]:
    """Keep one choice in each bucket of latency, rising: of the largest batch, then most accurate.

    Args:
        choices: All of them.
        buckets: Number of buckets, evenly spaced between the shortest and the longest latency.
    """
    latencies_ms = np.array([choice.latency_ms for choice in choices])
    edges = np.linspace(latencies_ms.min(), latencies_ms.max(), buckets + 1)
    places = np.searchsorted(edges[1:-1], latencies_ms, side="right")
    return [
        max(
            (choices[at] for at in np.flatnonzero(places == bucket).tolist()),
            key=lambda choice: (choice.rows, choice.exit),
        )
        for bucket in np.unique(places)
    ]


def serve_slackfit(
    offered: Offered,
    device: Device,
    network: NetworkCosts,
    choices: Sequence[Choice],
    deadline_ms: float,
    *,
    drops_late: bool = True,
) -> Served:
    """Serve requests under SlackFit.

    Args:
        offered: The requests, in the order of their deadlines.
        device: Its workers and jitter; the batch sizes are those of the choices.
        network: Costs of the network.
        choices: Those of the buckets, by rising latency.
        deadline_ms: Deadline of every request.
        drops_late: Whether requests are refused that no choice can answer in time. The paper does
            not say; without it, late requests delay those behind them.
    """
    arrivals_ms: list[float] = offered.arrivals_ms.tolist()
    latencies_ms = [choice.latency_ms for choice in choices]
    tables_ms = {
        choice.exit: network.to_exit(choice.exit)
        .table_ms(max(each.rows for each in choices))
        .sum(0)
        for choice in choices
    }
    exits, latency_ms = (
        np.full(len(arrivals_ms), REFUSED, np.int8),
        np.full(len(arrivals_ms), NEVER),
    )
    waiting, running, noise = deque[int](), list[float](), itertools.cycle(device.jitter)
    free, coming, shortest_ms = device.workers, 0, latencies_ms[0]
    while coming < len(arrivals_ms) or running or waiting:
        arrival_ms = arrivals_ms[coming] if coming < len(arrivals_ms) else NEVER
        if running and running[0] <= arrival_ms:
            now_ms = heapq.heappop(running)
            free += 1
        else:
            now_ms = arrival_ms
            waiting.append(coming)
            coming += 1
        while free and waiting:
            slack_ms = arrivals_ms[waiting[0]] + deadline_ms - now_ms
            if drops_late and slack_ms < shortest_ms:
                waiting.popleft()
                continue
            choice = choices[max(bisect_left(latencies_ms, slack_ms) - 1, 0)]
            batch = [waiting.popleft() for _ in range(min(choice.rows, len(waiting)))]
            end_ms = now_ms + float(tables_ms[choice.exit][len(batch)]) * next(noise)
            exits[batch] = choice.exit
            latency_ms[batch] = [end_ms - arrivals_ms[row] for row in batch]
            heapq.heappush(running, end_ms)
            free -= 1
    return Served(exits, latency_ms)
