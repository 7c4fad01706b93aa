"""Ways to serve the same requests under overload, compared on a simulated server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.bundle import Precision, load_bundle
from models.stage_costs import StageCosts
from profiling.calibration import load_recorded
from profiling.simulation.exit_table import ExitTable, never_leave
from profiling.simulation.network import NetworkCosts, read_network_costs
from profiling.simulation.overload import (
    Admission,
    BudgetedExits,
    FrozenExits,
    Offered,
    Served,
    serve,
)
from profiling.simulation.simulator import Device
from profiling.simulation.slackfit import all_choices, fill_buckets, serve_slackfit
from scheduler.control.controller import BudgetController, ControllerConfig
from scheduler.fitted import load_scheduler

Array = NDArray[np.float64]
MAX_QUEUE = 512  # the server's default
BUCKETS = 3
BUDGET_SHARES = (8, 4, 2)  # of the SLO: the budget is this part of it
JITTER, JITTERS = 0.08, 1000  # of the logarithm of a batch's time, and how many until they repeat


class Result(NamedTuple):
    """What one way to serve made of the requests.

    Attributes:
        policy: Its name.
        slo_ms: The time within which an answer counts as in time.
        attainment: Share of all requests that were answered in time.
        accuracy: Share of all requests that were answered rightly, late or not.
        refused: Share of all requests that were not answered.
        exit_rates: Share of the answered ones at each exit, (K,).
    """

    policy: str
    slo_ms: float
    attainment: float
    accuracy: float
    refused: float
    exit_rates: tuple[float, ...]


@dataclass(frozen=True)
class Subject:
    """A bundle on a simulated device.

    Attributes:
        network: Costs of its stages and heads.
        table: Decisions of its policy about the test rows.
        default_parameter: The policy's at the bundle's suggested budget.
        correct: How right each test row is at each exit that combines the heads so far, (M, K).
        correct_alone: The same of each exit that runs its own head alone, (M, K).
        calibration_accuracy: Accuracy of each head alone on calibration rows, (K,).
        workers: Batches that run at a time.
        max_batch: Most rows in a batch.
    """

    network: NetworkCosts
    table: ExitTable
    default_parameter: float
    correct: Array
    correct_alone: Array
    calibration_accuracy: Array
    workers: int
    max_batch: int

    @cached_property
    def jitter(self) -> tuple[float, ...]:
        """Times of batches as multiples of their costs."""
        normal = np.random.default_rng(0).normal(-(JITTER**2) / 2, JITTER, JITTERS)
        return tuple(np.exp(normal).tolist())

    @property
    def num_exits(self) -> int:
        """K, the number of exits."""
        return self.network.stages.num_exits

    @property
    def full_depth_per_s(self) -> float:
        """Requests per second if all run to the end, in full batches."""
        return self.device(self.network.to_exit(self.num_exits - 1)).capacity_per_s(
            np.full(1, self.num_exits - 1)
        )

    def device(self, costs: StageCosts) -> Device:
        """Return the device, on which a network has these costs."""
        return Device(costs, self.workers, self.max_batch, self.jitter)

    def offer(self, arrivals_s: Array, seed: int = 0) -> Offered:
        """Draw a test row for every arrival."""
        rows = np.random.default_rng([seed, 1]).integers(0, len(self.correct), len(arrivals_s))
        return Offered(arrivals_s * 1e3, rows)


def read_subject(
    folder: Path,
    precision: Precision | None = None,
    network: NetworkCosts | None = None,
    *,
    workers: int,
    max_batch: int,
) -> Subject:
    """Read a bundle's scheduler and recorded predictions.

    Args:
        folder: The bundle.
        precision: Which of its networks; None: the first of its manifest.
        network: Costs on the simulated device; None: those of the bundle's profile.
        workers: Batches that run at a time.
        max_batch: Most rows in a batch.

    Raises:
        ValueError: If a file cannot be read, or the costs are of another number of exits.
    """
    variant = load_bundle(folder).variant(precision)
    if network is None:
        network = read_network_costs(variant.profile)
    policy, frontier, combiner = load_scheduler(variant.scheduler())
    if policy.num_exits != network.stages.num_exits:
        raise ValueError(
            f"{folder} has {policy.num_exits} exits, the costs have {network.stages.num_exits}; "
            f"give one cost for each exit"
        )
    recorded = load_recorded(variant.predictions)
    test = recorded.test.combined(combiner)
    default_ms = variant.entry.default_budget_ms
    default = policy.never_exit_parameter
    if default_ms is not None:
        default = frontier.at_cost(default_ms).parameter
    frontier = frontier.with_costs(network.stages.costs_ms)
    return Subject(
        network,
        ExitTable.of(policy, frontier, test.log_probs),
        default,
        test.correct,
        recorded.test.correct,
        recorded.calibration.correct.mean(0),
        workers,
        max_batch,
    )


def compare(
    subject: Subject, offered: Offered, slo_ms: float, buckets: int = BUCKETS
) -> list[Result]:
    """Serve the same requests in every way under one SLO.

    Without deadlines a server bounds its queue: here to what it can answer within the SLO.

    Args:
        subject: The bundle on its device.
        offered: The requests.
        slo_ms: Deadline of every request.
        buckets: SlackFit's buckets of latency.
    """
    return [
        _judged(name, correct, offered, slo_ms, run())
        for name, correct, run in _ways(subject, offered, slo_ms, buckets)
    ]


def _ways(
    subject: Subject, offered: Offered, slo_ms: float, buckets: int
) -> Sequence[tuple[str, Array, Callable[[], Served]]]:
    """Return each way to serve: its name, how right its exits are (M, K), the function that does.

    A way that chooses the exit beforehand runs no other head, and answers with that one's output.
    """
    alone, combined = subject.correct_alone, subject.correct
    last, shares = subject.num_exits - 1, [slo_ms / part for part in BUDGET_SHARES]
    return [
        ("whole network", alone, lambda: _to_exit(subject, offered, slo_ms, last)),
        *(
            (f"exit {exit}", alone, lambda exit=exit: _to_exit(subject, offered, slo_ms, exit))
            for exit in range(last)
        ),
        ("frozen thresholds", combined, lambda: _frozen(subject, offered, slo_ms)),
        ("SlackFit", alone, lambda: _slackfit(subject, offered, slo_ms, buckets)),
        *(
            (f"budget SLO/{part}", combined, lambda ms=ms: _budgeted(subject, offered, slo_ms, ms))
            for part, ms in zip(BUDGET_SHARES, shares, strict=True)
        ),
    ]


def _to_exit(subject: Subject, offered: Offered, slo_ms: float, exit: int) -> Served:
    device = subject.device(subject.network.to_exit(exit))
    bound = _queue_bound(subject, slo_ms, device.capacity_per_s(np.full(1, exit)))
    control = FrozenExits(never_leave(exit + 1, len(subject.correct)))
    return serve(offered, device, Admission(bound), control)


def _frozen(subject: Subject, offered: Offered, slo_ms: float) -> Served:
    frontier = subject.table.frontier
    cost_ms = frontier.at_parameter(subject.default_parameter).expected_cost_ms
    bound = _queue_bound(subject, slo_ms, 1e3 * subject.workers / cost_ms)
    control = FrozenExits(subject.table.at(subject.default_parameter))
    return serve(offered, subject.device(subject.network.stages), Admission(bound), control)


def _slackfit(subject: Subject, offered: Offered, slo_ms: float, buckets: int) -> Served:
    choices = all_choices(subject.network, subject.calibration_accuracy, subject.max_batch)
    device = subject.device(subject.network.stages)
    return serve_slackfit(offered, device, subject.network, fill_buckets(choices, buckets), slo_ms)


def _budgeted(subject: Subject, offered: Offered, slo_ms: float, budget_ms: float) -> Served:
    controller = BudgetController(subject.table.frontier, budget_ms, ControllerConfig())
    device = subject.device(subject.network.stages)
    control = BudgetedExits(subject.table, controller, subject.workers)
    return serve(offered, device, Admission(MAX_QUEUE, slo_ms), control)


def _queue_bound(subject: Subject, slo_ms: float, capacity_per_s: float) -> int:
    return min(max(int(slo_ms / 1e3 * capacity_per_s), subject.workers), MAX_QUEUE)


def _judged(policy: str, correct: Array, offered: Offered, slo_ms: float, served: Served) -> Result:
    answered = served.exits >= 0
    counts = np.bincount(served.exits[answered], minlength=correct.shape[1])
    return Result(
        policy,
        slo_ms,
        served.attainment(slo_ms),
        served.accuracy(offered.rows, correct),
        float(1 - answered.mean()),
        tuple((counts / max(counts.sum(), 1)).round(4).tolist()),
    )
