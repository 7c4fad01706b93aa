"""The simulator against the real engine, under the same arrivals, exits and measured costs.

    .venv/bin/python -m benchmarks.validate_simulation [--rounds 7] [--seconds 3] \
        [--only cpu,device]

cpu: the shipped image bundle on ONNX Runtime, two workers, single rows. device: the same engine
over the replay backend with the costs of an accelerator, one worker, batches of up to 16. What
batches of each size cost is measured before and after each spell of traffic, while all workers are
busy; since other processes come and go on a machine, how much faster or slower than that each batch
ran is measured during the spell itself, and simulated batches vary likewise, one after the other.
Figures are medians over the rounds; JSON on the last line.
"""

import argparse
import itertools
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from models.backend import StageBackend, State
from models.bundle import load_bundle
from models.runtime.onnx_backend import OnnxBackend
from models.runtime.replay_backend import ReplayBackend
from models.stage_costs import StageCosts
from profiling.calibration import load_recorded
from profiling.latency import machine_name
from profiling.simulation.arrivals import at_once, poisson
from profiling.simulation.disciplines import DISCIPLINES
from profiling.simulation.simulator import Device, Traffic, simulate
from scheduler.fitted import Scheduler, load_scheduler
from server.engine.engine import Engine
from server.engine.request import Completion, InferenceRequest, Prediction
from server.metrics import Metrics, ModelMetrics

REPO = Path(__file__).resolve().parent.parent
BUNDLE = REPO / "models/zoo/cifar10-resnet56"
IMAGES = REPO / "tests/data/cifar10_test_300.npz"
MAX_PIXELS = 50_000_000
DEVICE_COSTS = StageCosts.of_exits([4.0, 8.0, 12.0], free_rows=16)
DEVICE_SIZES = (1, 4, 8, 16)
LOADS = {"30 %": 0.3, "60 %": 0.6, "80 %": 0.8, "saturated": None}
ENGINE_DISCIPLINE = "urgent"  # what the engine's ready lists do, but for their patience
CALIBRATION_S = 0.4  # of each batch size
Array = NDArray[np.float64]
Figures = dict[str, float]
Loads = dict[str, dict[str, Figures]]


class Batch(NamedTuple):
    """From the begin of its stage until the policy has decided."""

    stage: int
    rows: int
    begin_s: float
    end_s: float

    @property
    def ms(self) -> float:
        """How long."""
        return 1e3 * (self.end_s - self.begin_s)


class Case(NamedTuple):
    """What is run, and the batch sizes that costs are measured at, up to the most of a batch."""

    backend: StageBackend
    inputs: list[State]
    workers: int
    batch_sizes: tuple[int, ...]


class Measured(NamedTuple):
    """What the engine made of traffic; seconds and exits (N,), and the batches of each worker."""

    submitted_s: Array
    answered_s: Array
    exits: NDArray[np.intp]
    batches: list[list[Batch]]

    @property
    def rate_per_s(self) -> float:
        """Samples."""
        return len(self.exits) / float(self.answered_s.max() - self.submitted_s[0])


class Calibration(NamedTuple):
    """Samples a second with full batches; ms of batches of each stage and size, (K, B) both.

    A period lasts until the worker begins its next batch: bookkeeping is part of it.
    """

    rate_per_s: float
    periods_ms: Array
    runs_ms: Array


class Stopwatch:
    """A backend, and a histogram, that note the batches of each thread."""

    def __init__(self, backend: StageBackend) -> None:
        self._backend = backend
        self.batches: dict[int, list[Batch]] = defaultdict(list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def run_stage(self, stage: int, state: State) -> State:
        """Note the begin and run it."""
        begin_s = time.perf_counter()
        self.batches[threading.get_ident()].append(Batch(stage, len(state[0]), begin_s, begin_s))
        return self._backend.run_stage(stage, state)

    def observe(self, seconds: float) -> None:
        """Note the end."""
        batches = self.batches[threading.get_ident()]
        batches[-1] = batches[-1]._replace(end_s=time.perf_counter())


def main() -> None:
    """Compare, print both side by side, and the largest difference."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of traffic at a time")
    parser.add_argument("--only", default="cpu,device")
    parser.add_argument("--discipline", choices=DISCIPLINES, default=ENGINE_DISCIPLINE)
    args = parser.parse_args()
    scheduler = load_scheduler(BUNDLE)
    makers = {"cpu": cpu_case, "device": device_case}
    report: dict[str, Any] = {"machine": machine_name(), "cores": len(os.sched_getaffinity(0))}
    for name in args.only.split(","):
        loads = compare(makers[name](), scheduler, args.rounds, args.seconds, args.discipline)
        show(name, loads)
        report[name] = loads | {"largest_difference": largest_difference(loads)}
    print(json.dumps(report))


def cpu_case() -> Case:
    """The shipped images on ONNX Runtime."""
    bundle = load_bundle(BUNDLE)
    with np.load(IMAGES) as arrays:
        blob, off = arrays["blob"].tobytes(), arrays["off"].tolist()
    preprocess = bundle.preprocessor(MAX_PIXELS)
    inputs = [preprocess(blob[a:b]).state for a, b in itertools.pairwise(off)]
    return Case(OnnxBackend(bundle.stage_files, bundle.head_files), inputs, 2, (1,))


def device_case() -> Case:
    """Recorded rows on a device that sleeps."""
    test = load_recorded(BUNDLE / "calibration.npz").test
    inputs = [(np.array([row]),) for row in range(2000)]
    return Case(ReplayBackend(test.log_probs, DEVICE_COSTS), inputs, 1, DEVICE_SIZES)


def compare(
    case: Case, scheduler: Scheduler, rounds: int, seconds: float, discipline: str
) -> dict[str, Any]:
    """Per load the medians over the rounds of what was measured and what was simulated."""
    parameter = scheduler.frontier.at_cost(float(scheduler.frontier.costs_ms.mean())).parameter
    before = calibrate(case, scheduler, parameter)
    found: dict[str, list[tuple[Figures, Figures]]] = defaultdict(list)
    for seed in range(rounds):
        for name, load in LOADS.items():
            rate_per_s = before.rate_per_s * (load or 1.0)
            count = int(rate_per_s * seconds)
            arrivals_s = at_once(count) if load is None else poisson(rate_per_s, count, seed)
            real = run_engine(case, scheduler, parameter, arrivals_s, case.batch_sizes[-1], seed)
            after = calibrate(case, scheduler, parameter)
            device = device_of(case, before, after, real)
            before = after
            found[name].append(both_sides(real, device, discipline))
    return {name: median_figures(each) for name, each in found.items()}


def run_engine(
    case: Case, scheduler: Scheduler, parameter: float, arrivals_s: Array, max_batch: int, seed: int
) -> Measured:
    """Submit rows as they arrive, in an order drawn with the seed."""
    count, watch = len(arrivals_s), Stopwatch(case.backend)
    submitted_s, answered_s, exits = np.zeros(count), np.zeros(count), np.zeros(count, np.intp)

    def on_batch(completions: list[Completion]) -> None:
        now = time.perf_counter()
        for row, outcome in completions:
            assert isinstance(outcome, Prediction) and isinstance(row.tag, int), (
                "nothing fails here"
            )
            answered_s[row.tag], exits[row.tag] = now, outcome.exit

    metrics = ModelMetrics(Metrics(CollectorRegistry(), ""), "m", case.backend.num_exits)
    metrics.stage_latency = [watch] * case.backend.num_exits  # type: ignore[list-item]
    engine = Engine(
        watch, scheduler.policy, parameter, workers=case.workers, max_batch=max_batch,
        metrics=metrics, on_batch=on_batch,
    )  # fmt: skip
    chosen = np.random.default_rng(seed).integers(0, len(case.inputs), count)
    rows = [InferenceRequest(case.inputs[each], tag=tag) for tag, each in enumerate(chosen)]
    if arrivals_s[-1] == 0:
        engine.submit(rows)
        submitted_s[:] = time.perf_counter()
    engine.start()
    if arrivals_s[-1] > 0:
        submit_in_time(engine, rows, arrivals_s, submitted_s)
    engine.stop()
    return Measured(submitted_s, answered_s, exits, list(watch.batches.values()))


def submit_in_time(
    engine: Engine, rows: list[InferenceRequest], arrivals_s: Array, submitted_s: Array
) -> None:
    """Submit each row when it is due, whatever has become of those before; note when."""
    started = time.perf_counter()
    for place, (row, due_s) in enumerate(zip(rows, arrivals_s.tolist(), strict=True)):
        rest_s = started + due_s - time.perf_counter()
        if rest_s > 0:
            time.sleep(rest_s)
        submitted_s[place] = time.perf_counter()
        engine.submit([row])


def calibrate(case: Case, scheduler: Scheduler, parameter: float) -> Calibration:
    """Run every batch size with all workers busy."""
    rate_per_s, periods_ms, runs_ms = 0.0, list[list[float]](), list[list[float]]()
    for size in case.batch_sizes:
        count = 100 * size if not rate_per_s else int(2 * rate_per_s * CALIBRATION_S)
        result = run_engine(case, scheduler, parameter, at_once(count), size, 0)
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
    """The costs that were measured, brought to the speed and unevenness of the spell itself."""
    periods_ms = (before.periods_ms + after.periods_ms) / 2
    runs = StageCosts(case.batch_sizes, (before.runs_ms + after.runs_ms) / 2)
    batches = sorted((batch for each in real.batches for batch in each), key=lambda b: b.begin_s)
    stages = np.array([batch.stage for batch in batches])
    ratios = np.array([each.ms / runs.batch_ms(each.stage, each.rows) for each in batches])
    speeds = np.array([ratios[stages == stage].mean() for stage in range(len(periods_ms))])
    costs = StageCosts(case.batch_sizes, periods_ms * speeds[:, None])
    jitter = tuple((ratios / speeds[stages]).tolist())
    return Device(costs, case.workers, case.batch_sizes[-1], jitter)


def both_sides(real: Measured, device: Device, discipline: str) -> tuple[Figures, Figures]:
    """Throughput, latency and batches: of the engine, and of the simulator given the same."""
    traffic = Traffic(real.submitted_s - real.submitted_s[0], real.exits)
    result = simulate(traffic, device, discipline=discipline)
    rows: list[list[int]] = [[] for _ in range(device.costs.num_exits)]
    for batch in itertools.chain(*real.batches):
        rows[batch.stage].append(batch.rows)
    latency_ms = 1e3 * (real.answered_s - real.submitted_s)
    measured = (real.rate_per_s, *np.percentile(latency_ms, (50, 99)), *map(np.mean, rows))
    simulated = (result.throughput_per_s, *result.percentiles_ms[[0, 2]], *result.batch_rows)
    stages = (f"rows a batch, stage {stage}" for stage in range(len(rows)))
    names = ("samples/s", "p50 ms", "p99 ms", *stages)
    return dict(zip(names, measured, strict=True)), dict(zip(names, simulated, strict=True))


def median_figures(rounds: Sequence[tuple[Figures, Figures]]) -> dict[str, Figures]:
    """Over rounds: what was measured, what was simulated, and the difference as a share."""
    found = {}
    for name in rounds[0][0]:
        real, simulation = (np.array([both[side][name] for both in rounds]) for side in (0, 1))
        found[name] = {
            "measured": float(np.median(real)),
            "simulated": float(np.median(simulation)),
            "difference": float(np.median(simulation / real) - 1),
        }
    return found


def show(name: str, loads: Loads) -> None:
    """A line a figure."""
    print(f"{name:42s} measured  simulated  difference")
    for load, figures in loads.items():
        for figure, each in figures.items():
            numbers = f"{each['measured']:11.3f} {each['simulated']:10.3f}"
            print(f"{load:>12s}  {figure:24s} {numbers} {100 * each['difference']:9.1f} %")
    print(f"{name}: the largest difference is {100 * largest_difference(loads):.1f} %", flush=True)


def largest_difference(loads: Loads) -> float:
    """Over all loads and figures."""
    return max(abs(each["difference"]) for figures in loads.values() for each in figures.values())


if __name__ == "__main__":
    main()
