"""A simulated server under a budget: recorded predictions, a table of costs, workers, arrivals."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.control.from_loadtest import static_curve
from benchmarks.control.log import ControlLog
from benchmarks.control.recorded_samples import RecordedSamples
from benchmarks.control.scenarios import Phase, Scenario
from scheduler.control.controller import Sample
from scheduler.frontier import Frontier

Array = NDArray[np.float64]
# While neighbours share the host: stages take longer, and vary more (standard deviation of the
# logarithm).
SHARED_SLOWDOWN, SHARED_JITTER = 1.6, 0.5


class ControlPolicy(Protocol):
    """Decides which samples leave, and learns from their latencies."""

    @property
    def parameter(self) -> float:
        """The parameter in force, for plots."""

    def set_budget(self, budget_ms: float) -> None:
        """Set the budget from now on."""

    def leaves(self, exit: int, row: int, waiting: float) -> bool:
        """Decide whether a recorded sample leaves at an exit now.

        Args:
            exit: The exit; never the last one.
            row: The sample.
            waiting: Samples that wait for each worker.
        """

    def observe(self, sample: Sample, now_s: float) -> None:
        """Learn from a finished sample."""


@dataclass(frozen=True)
class Host:
    """A host that runs each stage of each sample by itself.

    Attributes:
        costs_ms: Cost until each exit, rising, (K,).
        workers: Samples that run at a time.
        jitter: Standard deviation of the logarithm of a stage's time.
        decode_ms: Mean time before a sample is ready; counts under `end_to_end`.
    """

    costs_ms: Array
    workers: int = 2
    jitter: float = 0.08
    decode_ms: float = 0.6

    def budget_ms(self, share: float, overhead_ms: float = 0.0) -> float:
        """The budget at a position between floor and ceiling."""
        floor, ceiling = float(self.costs_ms[0]), float(self.costs_ms[-1])
        return floor + share * (ceiling - floor) + overhead_ms


class Reference(NamedTuple):
    """The results that accuracy and use of the budget are judged by.

    Attributes:
        static_exits: Exit of every sample at G fixed parameters, in order of rising cost, (G, N).
        frontier: The policy's frontier: time that the policy cannot use need not be spent.
    """

    static_exits: NDArray[np.int8]
    frontier: Frontier


class ArrivalTrace(NamedTuple):
    """Arrivals of a run in order of time: when, which recorded sample, in which phase."""

    at_s: list[float]
    rows: list[int]
    phases: list[int]


def run(
    scenario: Scenario,
    rows: RecordedSamples,
    host: Host,
    law: ControlPolicy,
    about: Mapping[str, object],
    seed: int = 0,
    reference: Reference | None = None,
) -> ControlLog:
    """Send a scenario's samples through a host; the law decides at every exit.

    Workers take the sample that arrived first and run one stage of it, as the engine does with
    batches of one.

    Args:
        scenario: Its phases.
        rows: Recorded samples to draw from.
        host: Runs the samples.
        law: Decides which samples leave.
        about: Goes into the log.
        seed: Seed of arrivals, samples and jitter.
        reference: Judges accuracy and use of the budget, if given.
    """
    rng = np.random.default_rng(seed)
    arrivals = _draw_arrivals(scenario, rows, rng)
    budgets_ms = [_budget_ms(scenario, host, phase) for phase in scenario.phases]
    log = _Run(scenario, rows, host, law, arrivals, budgets_ms, rng).run(about)
    return log if reference is None else _judged(log, reference, arrivals, rows, host)


class _Run:
    """The state of one run."""

    def __init__(
        self,
        scenario: Scenario,
        rows: RecordedSamples,
        host: Host,
        law: ControlPolicy,
        arrivals: ArrivalTrace,
        budgets_ms: list[float],
        rng: np.random.Generator,
    ) -> None:
        self.scenario, self.rows, self.host, self.law = scenario, rows, host, law
        self.arrivals, self.budgets_ms = arrivals, budgets_ms
        count, stages = len(arrivals.rows), len(host.costs_ms)
        steps = np.diff(host.costs_ms, prepend=0.0)
        stretch = rows.stretch[arrivals.rows][:, None]
        present = _neighbours_present(scenario, arrivals)
        slow = np.array([phase.slowdown for phase in scenario.phases])[arrivals.phases]
        self.slow = np.where(present, SHARED_SLOWDOWN, slow)
        jitter = np.where(present, SHARED_JITTER, host.jitter)[:, None]
        noise = np.exp(jitter * rng.normal(size=(count, stages)) - jitter**2 / 2)
        self.times_ms: list[list[float]] = (steps * stretch * self.slow[:, None] * noise).tolist()
        decode = rng.exponential(host.decode_ms / 4, count) + 0.75 * host.decode_ms
        self.decode_ms: list[float] = decode.tolist()
        self.compute_ms, self.stage = [0.0] * count, [0] * count
        self.ready: list[int] = []  # a heap: the sample that arrived first goes first
        self.running: list[tuple[float, int]] = []
        self.done: list[tuple[int, float, float, float]] = []  # sample, time, latency, parameter

    def run(self, about: Mapping[str, object]) -> ControlLog:
        """Run all samples and return the log."""
        begins, coming, count = self.scenario.begins_s, 0, len(self.arrivals.rows)
        phase = -1
        while coming < count or self.running:
            arrival_s = self.arrivals.at_s[coming] if coming < count else float("inf")
            if self.running and self.running[0][0] <= arrival_s:
                now_s, sample = heapq.heappop(self.running)
                self._end(sample, now_s)
            else:
                now_s = arrival_s
                while phase + 1 < len(begins) and begins[phase + 1] <= now_s:
                    phase += 1
                    self.law.set_budget(self.budgets_ms[phase])
                heapq.heappush(self.ready, coming)
                coming += 1
            while self.ready and len(self.running) < self.host.workers:
                self._begin(heapq.heappop(self.ready), now_s)
        return self._log(about)

    def _begin(self, sample: int, now_s: float) -> None:
        ms = self.times_ms[sample][self.stage[sample]]
        self.compute_ms[sample] += ms
        heapq.heappush(self.running, (now_s + ms / 1e3, sample))

    def _end(self, sample: int, now_s: float) -> None:
        exit = self.stage[sample]
        last = len(self.host.costs_ms) - 1
        waiting = len(self.ready) / self.host.workers
        if exit < last and not self.law.leaves(exit, self.arrivals.rows[sample], waiting):
            self.stage[sample] += 1
            heapq.heappush(self.ready, sample)
            return
        compute_ms = self.compute_ms[sample]
        total_ms = (now_s - self.arrivals.at_s[sample]) * 1e3 + self.decode_ms[sample]
        counts = self.scenario.measure == "end_to_end"
        latency_ms = total_ms if counts else compute_ms
        overhead_ms = total_ms - compute_ms if counts else 0.0
        waiting_ms = max(overhead_ms - self.decode_ms[sample], 0.0)
        self.law.observe(Sample(exit, latency_ms, overhead_ms, waiting_ms), now_s)
        self.done.append((sample, now_s, latency_ms, self.law.parameter))

    def _log(self, about: Mapping[str, object]) -> ControlLog:
        samples, done_s, latency_ms, parameter = map(np.array, zip(*self.done, strict=True))
        rows = np.array(self.arrivals.rows)[samples]
        exits = np.array(self.stage)[samples]
        phases = np.array(self.arrivals.phases)[samples]
        slow = self.slow[samples]
        mean_stretch = np.array(
            [self.rows.stretch[self.rows.of(phase)].mean() for phase in self.scenario.phases]
        )[phases]
        overhead_ms = np.zeros(len(samples))
        if self.scenario.measure == "end_to_end":
            overhead_ms = _smooth(latency_ms - np.array(self.compute_ms)[samples])
        return ControlLog(
            np.array(self.arrivals.at_s)[samples],
            done_s,
            latency_ms,
            exits.astype(np.int8),
            self.rows.correct[rows, exits].astype(np.int8),
            np.array(self.budgets_ms)[phases],
            parameter,
            self.host.costs_ms[0] * slow * mean_stretch + overhead_ms,
            self.host.costs_ms[-1] * slow * mean_stretch + overhead_ms,
            phases.astype(np.int8),
            {**about, "scenario": self.scenario.name, "measure": self.scenario.measure,
             "drifts": self.scenario.drifts, "source": "simulated",
             "costs_ms": self.host.costs_ms.tolist()},
        )  # fmt: skip


def _draw_arrivals(
    scenario: Scenario, rows: RecordedSamples, rng: np.random.Generator
) -> ArrivalTrace:
    at_s: list[float] = []
    chosen: list[int] = []
    phases: list[int] = []
    for number, (phase, begin_s) in enumerate(zip(scenario.phases, scenario.begins_s, strict=True)):
        count = rng.poisson(phase.samples)
        times_s = np.sort(rng.uniform(0.0, phase.seconds, count))
        if (pulse_s := phase.pulse_s) is not None:  # the second half of each period comes sooner
            begun_s = times_s // (2 * pulse_s) * 2 * pulse_s
            times_s = begun_s + (times_s - begun_s) / 2
        at_s += (begin_s + times_s).tolist()
        chosen += rng.choice(rows.of(phase), count).tolist()
        phases += [number] * count
    return ArrivalTrace(at_s, chosen, phases)


def _neighbours_present(scenario: Scenario, arrivals: ArrivalTrace) -> NDArray[np.bool_]:
    """Whether other processes share the host when each sample arrives, (N,)."""
    at_s = np.array(arrivals.at_s)
    present = np.zeros(len(at_s), np.bool_)
    for number, (phase, begin_s) in enumerate(zip(scenario.phases, scenario.begins_s, strict=True)):
        for come_s, go_s in phase.visits(number):
            present |= (at_s >= begin_s + come_s) & (at_s < begin_s + go_s)
    return present


def _budget_ms(scenario: Scenario, host: Host, phase: Phase) -> float:
    """The budget of a phase, at the costs of the scenario's start."""
    overhead_ms = host.decode_ms if scenario.measure == "end_to_end" else 0.0
    return host.budget_ms(phase.budget, overhead_ms)


def _smooth(values: Array, samples: int = 200) -> Array:
    """Mean of the latest samples up to each."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - samples, 0)
    smooth: Array = (sums[ends] - sums[begins]) / (ends - begins)
    return smooth


def _judged(
    log: ControlLog, reference: Reference, arrivals: ArrivalTrace, rows: RecordedSamples, host: Host
) -> ControlLog:
    """Add the curves of fixed parameters; lower ceilings to the time that the policy can use."""
    drawn, phases = np.array(arrivals.rows), np.array(arrivals.phases)
    chosen = [drawn[phases == phase] for phase in np.unique(phases)]
    curves = [
        static_curve(reference.static_exits[:, each], rows.correct[each], host.costs_ms)
        for each in chosen
    ]
    spread = float(host.costs_ms[-1] - host.costs_ms[0])
    ratio = (log.ceiling_ms - log.floor_ms) / spread
    overhead_ms = log.floor_ms - ratio * host.costs_ms[0]
    cost_ms = (log.budget_ms - overhead_ms) / ratio
    kinds, places = np.unique(cost_ms.round(4), return_inverse=True)
    worth_ms = np.array([reference.frontier.useful_budget_ms(float(each)) for each in kinds])[
        places
    ]
    return replace(
        log,
        ceiling_ms=np.minimum(log.ceiling_ms, overhead_ms + ratio * np.maximum(worth_ms, 0.0)),
        about={**log.about, "static_curves": curves},
    )
