"""A server under overload: requests are refused, hurried or late, and the exits may move."""

import heapq
import itertools
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from profiling.simulation.deadlines import DeadlineForecast
from profiling.simulation.exit_table import ExitTable, Leaves
from profiling.simulation.simulator import Device
from scheduler.batching import BatchPriority, QueuedBatch, choose_batch
from scheduler.control.controller import BudgetController, Sample

Array = NDArray[np.float64]
NEVER = float("inf")
REFUSED = -1
DEADLINE_HORIZON_PASSES = 1.5  # full batches through the whole network, as in the engine


class Offered(NamedTuple):
    """Requests: arrival times, rising, in milliseconds, and the recorded row of each, (N,)."""

    arrivals_ms: Array
    rows: NDArray[np.intp]


class Served(NamedTuple):
    """What became of N requests.

    Attributes:
        exits: The exit that each was answered at, (N,); `REFUSED` if it was not answered.
        latency_ms: From arrival to answer, (N,); inf if it was not answered.
    """

    exits: NDArray[np.int8]
    latency_ms: Array

    def attainment(self, slo_ms: float) -> float:
        """Share of all requests that were answered within a time."""
        return float((self.latency_ms <= slo_ms).mean())

    def accuracy(self, rows: NDArray[np.intp], correct: Array) -> float:
        """Share of all requests that were answered rightly, late or not.

        Args:
            rows: The recorded row of each request, (N,).
            correct: How right each recorded row is at each exit, 0 to 1, (M, K).
        """
        return float(np.where(self.exits == REFUSED, 0.0, correct[rows, self.exits]).mean())


class Admission(NamedTuple):
    """What a server refuses: requests beyond a number in flight, and those that are too late.

    Attributes:
        max_in_flight: Most requests in flight.
        deadline_ms: Deadline of every request; None: they have none.
    """

    max_in_flight: int
    deadline_ms: float | None = None


class ExitControl(Protocol):
    """Decides where rows leave, and learns from those that were answered."""

    def leaves(self, waiting: int) -> Leaves:
        """Return the decisions in force while so many requests wait."""

    def observe(self, samples: Sequence[Sample], now_ms: float) -> None:
        """Learn from requests that were answered together."""


class FrozenExits:
    """Decisions that do not change."""

    def __init__(self, leaves: Leaves) -> None:
        self._leaves = leaves

    def leaves(self, waiting: int) -> Leaves:
        """Return the decisions."""
        return self._leaves

    def observe(self, samples: Sequence[Sample], now_ms: float) -> None:
        """Learn nothing."""


class BudgetedExits:
    """The server's controller moves the parameter to hold a budget of end-to-end latency.

    As in the engine, exits also follow the requests that wait for each worker.
    """

    def __init__(self, table: ExitTable, controller: BudgetController, workers: int) -> None:
        self._table, self._controller, self._workers = table, controller, workers
        self._follow()

    def leaves(self, waiting: int) -> Leaves:
        """Return the decisions at the controller's parameter for so long a queue."""
        place = min(waiting // self._workers, len(self._parameters) - 1)
        return self._table.at(self._parameters[place])

    def observe(self, samples: Sequence[Sample], now_ms: float) -> None:
        """Report answers to the controller; follow its parameter."""
        if self._controller.observe(samples, now_ms / 1e3):
            self._follow()

    def _follow(self) -> None:
        self._parameters = (self._controller.parameter, *self._controller.queued_parameters)


def serve(offered: Offered, device: Device, admission: Admission, control: ExitControl) -> Served:
    """Serve requests as the engine does: stage by stage, batches refilled between stages.

    Args:
        offered: The requests, at least one.
        device: The device; its costs include the head of every exit.
        admission: What is refused.
        control: Decides where rows leave.
    """
    return _Run(offered, device, admission, control).run()


class _Run:
    """The state of one run."""

    def __init__(
        self, offered: Offered, device: Device, admission: Admission, control: ExitControl
    ) -> None:
        self.arrived_ms: list[float] = offered.arrivals_ms.tolist()
        self.rows: list[int] = offered.rows.tolist()
        self.admission, self.control, self.limit = admission, control, device.max_batch
        count, self.last = len(self.rows), device.costs.num_exits - 1
        table_ms = device.costs.table_ms(device.max_batch)
        self.costs_ms: list[list[float]] = table_ms.tolist()
        self.priority = BatchPriority(table_ms)
        self.max_overtake_ms = self.priority.max_overtake_ms
        self.near_ms = DEADLINE_HORIZON_PASSES * self.priority.pass_ms
        self.forecast = DeadlineForecast(device.costs, device.max_batch)
        self.noise = itertools.cycle(device.jitter)
        self.queues: list[deque[int]] = [deque() for _ in range(self.last + 1)]
        self.running: list[tuple[float, float, int, list[int]]] = []  # end, start, stage, batch
        self.free, self.in_flight = device.workers, 0
        self.went_by_deadline = False
        self.ready_ms = self.arrived_ms.copy()
        self.compute_ms, self.waited_ms = [0.0] * count, [0.0] * count
        self.exits = np.full(count, REFUSED, np.int8)
        self.latency_ms = np.full(count, NEVER)

    def run(self) -> Served:
        """Run until the last request has been answered or refused."""
        arrived_ms, running, coming = self.arrived_ms, self.running, 0
        while coming < len(arrived_ms) or running:
            arrival_ms = arrived_ms[coming] if coming < len(arrived_ms) else NEVER
            if running and running[0][0] <= arrival_ms:
                now_ms, started_ms, stage, batch = heapq.heappop(running)
                self.free += 1
                self._finish(now_ms, started_ms, stage, batch)
            else:
                now_ms = arrival_ms
                if self.in_flight < self.admission.max_in_flight:
                    self.in_flight += 1
                    self.queues[0].append(coming)
                coming += 1
            while self.free and any(self.queues):
                self._start(now_ms)
        return Served(self.exits, self.latency_ms)

    def _start(self, now_ms: float) -> None:
        """Let a free worker take the next batch; rows that exit 0 is too late for are refused."""
        stage = self._next_stage(now_ms)
        queue = self.queues[stage]
        batch = [queue.popleft() for _ in range(min(self.limit, len(queue)))]
        if stage == 0 and self.admission.deadline_ms is not None:
            batch = self._fresh(batch, now_ms - self.admission.deadline_ms)
        if batch:
            for row in batch:
                self.waited_ms[row] += now_ms - self.ready_ms[row]
            end_ms = now_ms + self.costs_ms[stage][len(batch)] * next(self.noise)
            heapq.heappush(self.running, (end_ms, now_ms, stage, batch))
            self.free -= 1

    def _fresh(self, batch: list[int], oldest_ms: float) -> list[int]:
        """Return the rows that can reach exit 0 in time, if they arrived after a time at best."""
        fresh, rows, costs_ms = list[int](), len(batch), self.costs_ms[0]
        for row in batch:
            if self.arrived_ms[row] > oldest_ms + costs_ms[rows]:
                fresh.append(row)
            else:
                rows -= 1  # which gives the others time
        self.in_flight -= len(batch) - len(fresh)
        return fresh

    def _next_stage(self, now_ms: float) -> int:
        """Return the stage to run: of the nearest deadline, or of the highest priority."""
        stages = [stage for stage, queue in enumerate(self.queues) if queue]
        arrived_ms = [self.arrived_ms[self.queues[stage][0]] for stage in stages]
        near = self._near(stages, arrived_ms, now_ms)
        starves = self.went_by_deadline and now_ms - min(arrived_ms) > self.max_overtake_ms
        self.went_by_deadline = near is not None and not starves
        if self.went_by_deadline and near is not None:
            return near
        if len(stages) == 1:
            return stages[0]
        queued = [
            QueuedBatch(stage, len(self.queues[stage]), ms)
            for stage, ms in zip(stages, arrived_ms, strict=True)
        ]
        return queued[choose_batch(queued, now_ms, self.priority)].stage

    def _near(
        self, stages: Sequence[int], arrived_ms: Sequence[float], now_ms: float
    ) -> int | None:
        """Return the stage of the first deadline that is near; rows without an answer go first."""
        if self.admission.deadline_ms is None:
            return None
        until_ms = now_ms + self.near_ms - self.admission.deadline_ms
        near = [
            (stage > 0, ms, stage)
            for stage, ms in zip(stages, arrived_ms, strict=True)
            if ms <= until_ms
        ]
        return min(near)[2] if near else None

    def _finish(self, now_ms: float, started_ms: float, stage: int, batch: list[int]) -> None:
        """Answer the rows of a batch that leave here, and let the others wait for the next stage.

        A row that would miss its deadline at the next exit leaves at this one.
        """
        took_ms, ready_ms = now_ms - started_ms, self.ready_ms
        self.forecast.record(stage, now_ms, now_ms - min(ready_ms[row] for row in batch))
        leaves = None
        if stage != self.last:
            waiting = sum([len(queue) for queue in self.queues])
            leaves = self.control.leaves(waiting)[stage]
        deadline_ms, oldest_ms = self.admission.deadline_ms, -NEVER
        if deadline_ms is not None and stage == 0:
            oldest_ms = now_ms - deadline_ms
        samples = []
        for row in batch:
            self.compute_ms[row] += took_ms
            arrived_ms = self.arrived_ms[row]
            if arrived_ms <= oldest_ms:
                self.in_flight -= 1
            elif leaves is None or leaves[self.rows[row]] or self._must_hurry(now_ms, row, stage):
                samples.append(self._answer(now_ms, row, stage))
            else:
                ready_ms[row] = now_ms
                self.queues[stage + 1].append(row)
        if samples:
            self.control.observe(samples, now_ms)

    def _must_hurry(self, now_ms: float, row: int, stage: int) -> bool:
        """Whether a row would miss its deadline at the next exit."""
        if self.admission.deadline_ms is None:
            return False
        next_ms = now_ms + self.forecast.stage_ms(stage + 1, now_ms)
        return next_ms > self.arrived_ms[row] + self.admission.deadline_ms

    def _answer(self, now_ms: float, row: int, stage: int) -> Sample:
        self.in_flight -= 1
        latency_ms = now_ms - self.arrived_ms[row]
        self.exits[row], self.latency_ms[row] = stage, latency_ms
        overhead_ms = max(latency_ms - self.compute_ms[row], 0.0)
        return Sample(stage, latency_ms, overhead_ms, min(self.waited_ms[row], overhead_ms))
