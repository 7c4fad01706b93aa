"""Comparison of simulator and engine under the same arrivals, exits and measured costs.

    .venv/bin/python -m benchmarks.validate_simulation [--rounds 7] [--seconds 3] \
        [--only cpu,device]

cpu: the shipped image bundle on ONNX Runtime, two workers, single rows. device: the same engine
over the replay backend with the costs of an accelerator, one worker, batches of up to 16. The cost
of batches of each size is measured before and after each load, while all workers are busy. Since
other processes come and go on a machine, the deviation of each batch from that cost is measured
during the load itself, and simulated batches deviate in the same way, one after the other. Figures
are medians over the rounds. JSON on the last line.
"""

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import (
    IMAGE_BUNDLE,
    Figures,
    image_states,
    make_parser,
    onnx_backend,
    prediction_of,
    print_report,
    recorded_of,
    scheduler_of,
)
from models.backend import StageBackend, State
from models.runtime.replay_backend import ReplayBackend
from models.stage_costs import StageCosts
from profiling.simulation.arrivals import at_once, poisson
from profiling.simulation.disciplines import DISCIPLINES
from profiling.simulation.simulator import Device, Traffic, simulate
from scheduler.fitted import Scheduler
from server.engine.engine import Engine
from server.engine.observer import NullObserver
from server.engine.request import InferenceRequest

DEVICE_COSTS = StageCosts.of_exits([4.0, 8.0, 12.0], free_rows=16)
DEVICE_SIZES = (1, 4, 8, 16)
LOADS = {"30 %": 0.3, "60 %": 0.6, "80 %": 0.8, "saturated": None}
ENGINE_DISCIPLINE = "urgent"  # the engine's own
Array = NDArray[np.float64]
Side = dict[str, float]  # figures of the engine, or of the simulator
Loads = dict[str, dict[str, Side]]


class Sizes(NamedTuple):
    """Rounds, seconds of each load, seconds of calibration per batch size, first batches, loads."""

    rounds: int
    seconds: float
    calibration_s: float = 0.4
    first_batches: int = 100  # of the first calibration, before the rate is known
    loads: tuple[str, ...] = tuple(LOADS)


class Batch(NamedTuple):
    """One batch, from the start of its stage until the policy has decided."""

    stage: int
    rows: int
    begin_s: float
    end_s: float

    @property
    def ms(self) -> float:
        """Its duration."""
        return 1e3 * (self.end_s - self.begin_s)


class Case(NamedTuple):
    """A backend, its inputs, and the batch sizes to measure costs at, up to the largest."""

    backend: StageBackend
    inputs: list[State]
    workers: int
    batch_sizes: tuple[int, ...]


class Measured(NamedTuple):
    """N requests through the engine: times and exits, (N,), and the batches of each worker."""

    submitted_s: Array
    answered_s: Array
    exits: NDArray[np.intp]
    batches: list[list[Batch]]

    @property
    def rate_per_s(self) -> float:
        """Requests per second."""
        return len(self.exits) / float(self.answered_s.max() - self.submitted_s[0])


class Calibration(NamedTuple):
    """Requests per second with full batches; ms of batches of each stage and size, (K, B) both.

    A period lasts until the worker starts its next batch, and so includes bookkeeping.
    """

    rate_per_s: float
    periods_ms: Array
    runs_ms: Array


class Stopwatch:
    """A backend that records the batches of each thread."""

    def __init__(self, backend: StageBackend) -> None:
        self._backend = backend
        self.batches: dict[int, list[Batch]] = defaultdict(list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def run_stage(self, stage: int, state: State) -> State:
        """Record the start and run the stage."""
        begin_s = time.perf_counter()
        self.batches[threading.get_ident()].append(Batch(stage, len(state[0]), begin_s, begin_s))
        return self._backend.run_stage(stage, state)

    def note_end(self) -> None:
        """Record the end of the thread's batch."""
        batches = self.batches[threading.get_ident()]
        batches[-1] = batches[-1]._replace(end_s=time.perf_counter())


class StepObserver(NullObserver):
    """Stops the watch when the engine reports the end of a batch."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch

    def on_step(self, stage: int, rows: int, elapsed_ms: float) -> None:
        """Record the end of the thread's batch."""
        self._watch.note_end()


def main() -> None:
    """Compare; print both sides and the largest difference."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    parser.add_argument("--only", default="cpu,device")
    parser.add_argument("--discipline", choices=DISCIPLINES, default=ENGINE_DISCIPLINE)
    args = parser.parse_args()
    sizes = (
        Sizes(1, 0.5, 0.2, 50, ("saturated",)) if args.smoke else Sizes(args.rounds, args.seconds)
    )
    scheduler = scheduler_of(IMAGE_BUNDLE)
    makers = {"cpu": cpu_case, "device": device_case}
    report: Figures = {}
    for name in args.only.split(","):
        loads = compare(makers[name](), scheduler, sizes, args.discipline)
        print_loads(name, loads)
        report[name] = loads | {"largest_difference": largest_difference(loads)}
    print_report(report, smoke=args.smoke)


def cpu_case() -> Case:
    """The shipped images on ONNX Runtime."""
    return Case(onnx_backend(IMAGE_BUNDLE), image_states(), 2, (1,))


def device_case() -> Case:
    """Recorded rows on a device that sleeps."""
    test = recorded_of(IMAGE_BUNDLE).test
    inputs: list[State] = [(np.array([row]),) for row in range(2000)]
    return Case(ReplayBackend(test.log_probs, DEVICE_COSTS), inputs, 1, DEVICE_SIZES)


def compare(case: Case, scheduler: Scheduler, sizes: Sizes, discipline: str) -> dict[str, Any]:
    """Medians over the rounds of what was measured and what was simulated, by load."""
    parameter = scheduler.frontier.at_cost(float(scheduler.frontier.costs_ms.mean())).parameter
    before = calibrate(case, scheduler, parameter, sizes)
    found: dict[str, list[tuple[Side, Side]]] = defaultdict(list)
    for seed in range(sizes.rounds):
        for name in sizes.loads:
            load = LOADS[name]
            rate_per_s = before.rate_per_s * (load or 1.0)
            count = max(int(rate_per_s * sizes.seconds), 1)
            arrivals_s = at_once(count) if load is None else poisson(rate_per_s, count, seed)
            real = run_traffic(case, scheduler, parameter, arrivals_s, case.batch_sizes[-1], seed)
            after = calibrate(case, scheduler, parameter, sizes)
            device = device_of(case, before, after, real)
            before = after
            found[name].append(both_sides(real, device, discipline))
    return {name: median_figures(each) for name, each in found.items()}


def run_traffic(
    case: Case, scheduler: Scheduler, parameter: float, arrivals_s: Array, max_batch: int, seed: int
) -> Measured:
    """Submit requests as they arrive, in an order drawn with the seed."""
    count, watch = len(arrivals_s), Stopwatch(case.backend)
    submitted_s, answered_s, exits = np.zeros(count), np.zeros(count), np.zeros(count, np.intp)

    places: dict[InferenceRequest, int] = {}

    def keep(done: list[InferenceRequest]) -> None:
        now_s = time.perf_counter()
        for request in done:
            place = places[request]
            answered_s[place], exits[place] = now_s, prediction_of(request).exit

    engine = Engine(
        watch,
        scheduler.policy,
        parameter,
        workers=case.workers,
        max_batch=max_batch,
        on_done=keep,
        observer=StepObserver(watch),
        combiner=scheduler.combiner,
    )
    chosen = np.random.default_rng(seed).integers(0, len(case.inputs), count)
    requests = [InferenceRequest(case.inputs[each]) for each in chosen]
    places.update((request, place) for place, request in enumerate(requests))
    if arrivals_s[-1] == 0:
        engine.submit(requests)
        submitted_s[:] = time.perf_counter()
    engine.start()
    if arrivals_s[-1] > 0:
        submit_in_time(engine, requests, arrivals_s, submitted_s)
    engine.stop()
    return Measured(submitted_s, answered_s, exits, list(watch.batches.values()))


def submit_in_time(
    engine: Engine, requests: list[InferenceRequest], arrivals_s: Array, submitted_s: Array
) -> None:
    """Submit each request when it is due and record the time."""
    started = time.perf_counter()
    for place, (request, due_s) in enumerate(zip(requests, arrivals_s.tolist(), strict=True)):
        rest_s = started + due_s - time.perf_counter()
        if rest_s > 0:
            time.sleep(rest_s)
        submitted_s[place] = time.perf_counter()
        engine.submit([request])


def calibrate(case: Case, scheduler: Scheduler, parameter: float, sizes: Sizes) -> Calibration:
    """Run every batch size with all workers busy."""
    rate_per_s, periods_ms, runs_ms = 0.0, list[list[float]](), list[list[float]]()
    for size in case.batch_sizes:
        count = int(2 * rate_per_s * sizes.calibration_s) or sizes.first_batches * size
        result = run_traffic(case, scheduler, parameter, at_once(count), size, 0)
        rate_per_s = result.rate_per_s
        full = [
            (batch.stage, 1e3 * (following.begin_s - batch.begin_s), batch.ms)
            for batches in result.batches
            for batch, following in itertools.pairwise(batches)
            if batch.rows == size
        ]
        stages, *times_ms = np.transpose(full)
        for each, kept in zip(times_ms, (periods_ms, runs_ms), strict=True):
            kept.append([each[stages == k].mean() for k in range(case.backend.num_exits)])
    return Calibration(rate_per_s, np.array(periods_ms).T, np.array(runs_ms).T)


def device_of(case: Case, before: Calibration, after: Calibration, real: Measured) -> Device:
    """A device with the measured costs, at the speed and jitter of the load itself."""
    periods_ms = (before.periods_ms + after.periods_ms) / 2
    runs = StageCosts(case.batch_sizes, (before.runs_ms + after.runs_ms) / 2)
    batches = sorted((batch for each in real.batches for batch in each), key=lambda b: b.begin_s)
    stages = np.array([batch.stage for batch in batches])
    ratios = np.array([each.ms / runs.batch_ms(each.stage, each.rows) for each in batches])
    speeds = np.array([ratios[stages == stage].mean() for stage in range(len(periods_ms))])
    costs = StageCosts(case.batch_sizes, periods_ms * speeds[:, None])
    jitter = tuple((ratios / speeds[stages]).tolist())
    return Device(costs, case.workers, case.batch_sizes[-1], jitter)


def both_sides(real: Measured, device: Device, discipline: str) -> tuple[Side, Side]:
    """Throughput, latency and batches of the engine, and of the simulator under the same load."""
    traffic = Traffic(real.submitted_s - real.submitted_s[0], real.exits)
    result = simulate(traffic, device, discipline=discipline)
    rows: list[list[int]] = [[] for _ in range(device.costs.num_exits)]
    for batch in itertools.chain(*real.batches):
        rows[batch.stage].append(batch.rows)
    latency_ms = 1e3 * (real.answered_s - real.submitted_s)
    measured = (real.rate_per_s, *np.percentile(latency_ms, (50, 99)), *map(np.mean, rows))
    simulated = (result.throughput_per_s, *result.percentiles_ms[[0, 2]], *result.batch_rows)
    stages = (f"rows per batch, stage {stage}" for stage in range(len(rows)))
    names = ("requests/s", "p50 ms", "p99 ms", *stages)
    return dict(zip(names, measured, strict=True)), dict(zip(names, simulated, strict=True))


def median_figures(rounds: Sequence[tuple[Side, Side]]) -> dict[str, Side]:
    """Medians over rounds of both sides, and of their difference as a share."""
    found = {}
    for name in rounds[0][0]:
        real, simulation = (np.array([both[side][name] for both in rounds]) for side in (0, 1))
        found[name] = {
            "measured": float(np.median(real)),
            "simulated": float(np.median(simulation)),
            "difference": float(np.median(simulation / real) - 1),
        }
    return found


def print_loads(name: str, loads: Loads) -> None:
    """Print a line per figure."""
    print(f"{name:42s} measured  simulated  difference")
    for load, figures in loads.items():
        for figure, each in figures.items():
            numbers = f"{each['measured']:11.3f} {each['simulated']:10.3f}"
            print(f"{load:>12s}  {figure:24s} {numbers} {100 * each['difference']:9.1f} %")
    print(f"{name}: the largest difference is {100 * largest_difference(loads):.1f} %", flush=True)


def largest_difference(loads: Loads) -> float:
    """The largest difference over all loads and figures."""
    return max(abs(each["difference"]) for figures in loads.values() for each in figures.values())


if __name__ == "__main__":
    main()
