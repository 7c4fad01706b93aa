"""Measures the latency of every stage and head on this machine."""

import datetime
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.backend import StageBackend, State, join_states
from models.stage_costs import StageCosts

PERCENTILES = (50, 90, 99)


class BatchLatency(NamedTuple):
    """Latency of one batch in ms: percentiles 50, 90 and 99, (K, 3) each.

    Attributes:
        stages_ms: Each stage alone.
        heads_ms: Each head alone.
        exits_ms: From the start until each exit, earlier heads included.
    """

    stages_ms: NDArray[np.float64]
    heads_ms: NDArray[np.float64]
    exits_ms: NDArray[np.float64]


class LatencyProfile(NamedTuple):
    """Latencies by batch size on one device, with one runtime thread."""

    by_batch: dict[int, BatchLatency]
    device: str = "cpu"

    @property
    def stage_costs(self) -> StageCosts:
        """Median latency of every stage with its head, by batch size."""
        sizes = sorted(self.by_batch)
        each = [self.by_batch[rows] for rows in sizes]
        medians = [latency.stages_ms[:, 0] + latency.heads_ms[:, 0] for latency in each]
        return StageCosts(tuple(sizes), np.stack(medians, 1))

    @property
    def costs_ms(self) -> NDArray[np.float64]:
        """Median latency of one row until each exit, earlier heads included, (K,)."""
        one = self.by_batch[1]
        costs: NDArray[np.float64] = np.cumsum(one.stages_ms[:, 0] + one.heads_ms[:, 0])
        return costs

    def to_json(self) -> dict[str, Any]:
        """Content of `profile.json`."""
        line = self.stage_costs.line()
        return {
            "device": self.device,
            "machine": machine_name(),
            "date": datetime.date.today().isoformat(),
            "threads": 1,
            "percentiles": list(PERCENTILES),
            "latency_ms": {
                str(rows): {
                    "stages": latency.stages_ms.round(4).tolist(),
                    "heads": latency.heads_ms.round(4).tolist(),
                    "exits": latency.exits_ms.round(4).tolist(),
                }
                for rows, latency in self.by_batch.items()
            },
            **self.stage_costs.to_json(),
            "fit": {
                "row_ms": line.row_ms.round(4).tolist(),
                "batch_ms": line.batch_ms.round(4).tolist(),
            },
            "costs_ms": self.costs_ms.round(4).tolist(),
        }


def measure_latency(
    backend: StageBackend,
    example: State,
    *,
    batch_sizes: Sequence[int] = (1, 2, 4, 8),
    warm_up: int = 20,
    repeats: int = 200,
    clock: Callable[[], float] = time.perf_counter,
) -> LatencyProfile:
    """Time every stage and head for every batch size.

    Each round passes through the whole network, so a slow spell of the machine affects all exits
    alike.

    Args:
        backend: Provides the stages and heads.
        example: Input of one row.
        batch_sizes: Rows per batch; must include 1.
        warm_up: Rounds to discard.
        repeats: Rounds to measure.
        clock: Current time in seconds.
    """
    by_batch = {}
    for rows in batch_sizes:
        batch = join_states([example] * rows)
        rounds = np.stack([_one_round(backend, batch, clock) for _ in range(warm_up + repeats)])[
            warm_up:
        ]
        until = rounds.sum(1, keepdims=True).cumsum(2)  # (rounds, 1, K)
        timed = np.concatenate([rounds, until], 1) * 1e3
        percentiles = np.percentile(timed, PERCENTILES, axis=0).transpose(1, 2, 0)  # (3, K, 3)
        by_batch[rows] = BatchLatency(*percentiles)
    return LatencyProfile(by_batch, backend.device)


def save_profile(profile: LatencyProfile, path: Path) -> None:
    """Write `profile.json`."""
    path.write_text(json.dumps(profile.to_json(), indent=1) + "\n")


def machine_name() -> str:
    """Marketing name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _one_round(
    backend: StageBackend, batch: State, clock: Callable[[], float]
) -> NDArray[np.float64]:
    """Time every stage and head once, in seconds, (2, K)."""
    seconds, state = np.zeros((2, backend.num_exits)), batch
    for k in range(backend.num_exits):
        start = clock()
        state = backend.run_stage(k, state)
        backend.synchronize()
        middle = clock()
        backend.run_head(k, state)
        seconds[:, k] = middle - start, clock() - middle
    return seconds
