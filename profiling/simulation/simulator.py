"""A discrete-event simulation of the engine, on a device of any costs."""

import heapq
import itertools
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.stage_costs import StageCosts
from profiling.simulation.disciplines import DEFAULT_DISCIPLINE, DISCIPLINES, BatchingPolicy, Ready

Array = NDArray[np.float64]
MODES = ("run-to-completion", "compaction", "refill")
PERCENTILES = (50, 90, 99)
NEVER = float("inf")


class Traffic(NamedTuple):
    """Arrival times of samples, rising, in seconds, (N,), and the exit of each, (N,)."""

    arrivals_s: Array
    exits: NDArray[np.intp]


@dataclass(frozen=True)
class Device:
    """A device that runs batches.

    Attributes:
        costs: Cost of a batch at each stage.
        workers: Batches that run at a time, each at the full cost: cores; an accelerator has one.
        max_batch: Most rows in a batch.
        jitter: Times of batches as multiples of their costs, used in turn, over and over.
    """

    costs: StageCosts
    workers: int = 1
    max_batch: int = 16
    jitter: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.workers < 1 or self.max_batch < 1:
            raise ValueError(
                f"workers is {self.workers}, max_batch {self.max_batch}; give 1 or more of both"
            )

    def capacity_per_s(self, exits: NDArray[np.intp]) -> float:
        """Samples per second if every batch of every stage is full."""
        full_ms = [self.costs.batch_ms(k, self.max_batch) for k in range(self.costs.num_exits)]
        reach = [float((exits >= stage).mean()) for stage in range(self.costs.num_exits)]
        sample_ms = sum(
            share * times / self.max_batch for share, times in zip(reach, full_ms, strict=True)
        )
        return 1e3 * self.workers / sample_ms


@dataclass(frozen=True)
class Simulated:
    """The result of a simulation.

    Attributes:
        latency_ms: From arrival to prediction, (N,).
        span_ms: From the first arrival to the last prediction.
        busy_ms: Busy time of all workers together.
        batches: Number of batches at each stage, (K,).
        rows: Number of rows that needed the stage, over all its batches, (K,).
        in_flight: Most samples at a time that had left the queue and were not finished.
        device: The device.
    """

    latency_ms: Array
    span_ms: float
    busy_ms: float
    batches: NDArray[np.intp]
    rows: NDArray[np.intp]
    in_flight: int
    device: Device

    @property
    def throughput_per_s(self) -> float:
        """Samples per second; inf if nothing took time."""
        return 1e3 * len(self.latency_ms) / self.span_ms if self.span_ms else NEVER

    @property
    def percentiles_ms(self) -> Array:
        """Percentiles of latency: 50, 90, 99."""
        percentiles: Array = np.percentile(self.latency_ms, PERCENTILES)
        return percentiles

    @property
    def batch_rows(self) -> Array:
        """Mean rows per batch that needed the stage, (K,); 0 if no batch ran."""
        means: Array = self.rows / np.maximum(self.batches, 1)
        return means

    @property
    def occupancy(self) -> Array:
        """These rows as a share of `max_batch`, (K,)."""
        return self.batch_rows / self.device.max_batch

    @property
    def utilisation(self) -> float:
        """Share of the time in which workers are busy."""
        return self.busy_ms / (self.span_ms * self.device.workers) if self.span_ms else 0.0


def simulate(
    traffic: Traffic, device: Device, mode: str = "refill", discipline: str = DEFAULT_DISCIPLINE
) -> Simulated:
    """Simulate the traffic under one of the three batching modes.

    Args:
        traffic: N samples, at least one.
        device: The device.
        mode: One of `MODES`. In `run-to-completion` a batch formed at the first stage costs its
            full size until its last row leaves; in `compaction` only the remaining rows; in
            `refill` the remaining rows wait at the next stage and are batched with others there.
        discipline: Which batch goes next under `refill`, one of `DISCIPLINES`.

    Raises:
        ValueError: If the traffic does not fit the device.
    """
    _check_traffic(traffic, device)
    if mode == "refill":
        return run_refill(traffic, device, DISCIPLINES[discipline](device.costs, device.max_batch))
    return run_together(traffic, device, compact=mode == "compaction")


class _Recorder:
    """Records the events of a simulation."""

    def __init__(self, traffic: Traffic, num_exits: int) -> None:
        self.arrivals_ms: list[float] = (traffic.arrivals_s * 1e3).tolist()
        self.exits: list[int] = traffic.exits.tolist()
        self.answered_ms = [0.0] * len(self.exits)
        self.batches, self.rows = [0] * num_exits, [0] * num_exits
        self.busy_ms = 0.0
        self.begun_ms: list[float] = []  # times at which samples leave the queue

    def run(self, now_ms: float, stage: int, rows: int, cost_ms: float) -> None:
        """Record the start of a batch."""
        self.batches[stage] += 1
        self.rows[stage] += rows
        self.busy_ms += cost_ms
        if stage == 0:
            self.begun_ms += [now_ms] * rows

    def answer(self, now_ms: float, stage: int, batch: list[int]) -> list[int]:
        """Record the end of a batch; return the rows that continue."""
        exits, continuing = self.exits, []
        for row in batch:
            if exits[row] <= stage:
                self.answered_ms[row] = now_ms
            else:
                continuing.append(row)
        return continuing

    def close(self, device: Device) -> Simulated:
        answered_ms = np.array(self.answered_ms)
        return Simulated(
            answered_ms - np.array(self.arrivals_ms),
            float(answered_ms.max() - self.arrivals_ms[0]),
            self.busy_ms,
            np.array(self.batches),
            np.array(self.rows),
            _most_in_flight(np.array(self.begun_ms), answered_ms),
            device,
        )


class _ReadyLists:
    """Rows before each stage, in the order in which they became ready there."""

    def __init__(self, arrivals_ms: list[float], num_exits: int) -> None:
        self._arrivals_ms = arrivals_ms
        self._since_ms = arrivals_ms.copy()
        self._queues: list[deque[int]] = [deque() for _ in range(num_exits)]

    def put(self, now_ms: float, stage: int, rows: list[int]) -> None:
        for row in rows:
            self._since_ms[row] = now_ms
        self._queues[stage].extend(rows)

    def take(self, stage: int, limit: int) -> list[int]:
        queue = self._queues[stage]
        return [queue.popleft() for _ in range(min(limit, len(queue)))]

    def __bool__(self) -> bool:
        return any(self._queues)

    def view(self, now_ms: float) -> Ready:
        heads = [queue[0] if queue else None for queue in self._queues]
        return Ready(
            now_ms,
            [len(queue) for queue in self._queues],
            [NEVER if row is None else self._since_ms[row] for row in heads],
            [NEVER if row is None else self._arrivals_ms[row] for row in heads],
        )


def run_refill(traffic: Traffic, device: Device, choose: BatchingPolicy) -> Simulated:
    """Rows that continue wait at the next stage; a free worker runs the stage `choose` returns."""
    costs_ms, limit = device.costs.table_ms(device.max_batch).tolist(), device.max_batch
    recorder = _Recorder(traffic, len(costs_ms))
    ready = _ReadyLists(recorder.arrivals_ms, len(costs_ms))
    running: list[tuple[float, int, int, list[int]]] = []  # end, order, stage, rows
    coming = deque(enumerate(recorder.arrivals_ms))
    started, factors = 0, itertools.cycle(device.jitter)
    while coming or running:
        now = min(coming[0][1] if coming else NEVER, running[0][0] if running else NEVER)
        while coming and coming[0][1] <= now:
            row, arrived_ms = coming.popleft()
            ready.put(arrived_ms, 0, [row])
        while running and running[0][0] <= now:
            _, _, stage, batch = heapq.heappop(running)
            if continuing := recorder.answer(now, stage, batch):
                ready.put(now, stage + 1, continuing)
        while len(running) < device.workers and ready:
            stage = choose(ready.view(now))
            batch = ready.take(stage, limit)
            cost_ms = costs_ms[stage][len(batch)] * next(factors)
            recorder.run(now, stage, len(batch), cost_ms)
            heapq.heappush(running, (now + cost_ms, started, stage, batch))
            started += 1
    return recorder.close(device)


def run_together(traffic: Traffic, device: Device, *, compact: bool) -> Simulated:
    """A batch stays together until its last row leaves; rows finish as they leave."""
    costs_ms = device.costs.table_ms(device.max_batch).tolist()
    recorder = _Recorder(traffic, len(costs_ms))
    arrivals_ms, factors = recorder.arrivals_ms, itertools.cycle(device.jitter)
    free_ms, first = [-NEVER] * device.workers, 0
    while first < len(arrivals_ms):
        now = max(heapq.heappop(free_ms), arrivals_ms[first])
        batch = [first]
        for row in range(first + 1, min(first + device.max_batch, len(arrivals_ms))):
            if arrivals_ms[row] <= now:
                batch.append(row)
        first, size, stage = first + len(batch), len(batch), 0
        while batch:
            cost_ms = costs_ms[stage][len(batch) if compact else size] * next(factors)
            recorder.run(now, stage, len(batch), cost_ms)
            now += cost_ms
            batch = recorder.answer(now, stage, batch)
            stage += 1
        heapq.heappush(free_ms, now)
    return recorder.close(device)


def _check_traffic(traffic: Traffic, device: Device) -> None:
    arrivals_s, exits = traffic
    if len(arrivals_s) != len(exits) or not len(exits):
        raise ValueError(
            f"there are {len(arrivals_s)} arrivals and {len(exits)} exits; give one exit a sample"
        )
    if exits.min() < 0 or exits.max() >= device.costs.num_exits:
        raise ValueError(
            f"exits run from {exits.min()} to {exits.max()}, the costs have "
            f"{device.costs.num_exits} stages; give costs of the same exits"
        )
    if (np.diff(arrivals_s) < 0).any():
        raise ValueError("the arrivals do not rise; sort them")


def _most_in_flight(begun_ms: Array, answered_ms: Array) -> int:
    times_ms = np.concatenate([answered_ms, begun_ms])  # at a tie the end counts first
    steps = np.repeat([-1, 1], [len(answered_ms), len(begun_ms)])
    return int(steps[np.argsort(times_ms, kind="stable")].cumsum().max())
