"""What several bundles reach at equal latency, measured in turns in one run: ratios hold.

    .venv/bin/python -m benchmarks.networks PLAIN_BUNDLE BUNDLE...

Budgets are shares of the first bundle's whole latency on this machine.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.bundle import load_bundle
from models.runtime.onnx_backend import OnnxBackend
from profiling.calibration import load_recorded
from profiling.evaluation.evaluate import evaluate
from profiling.latency import measure_latency
from scheduler.fitted import Scheduler, load_scheduler

TURNS = 12
MAX_PIXELS = 50_000_000
SHARES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)


def main(folders: list[str]) -> None:
    """Print the latency until each exit, and a table of accuracies at equal latency."""
    costs_ms = measure_in_turns([Path(folder) for folder in folders])
    whole_ms = float(costs_ms[0][-1])
    print(
        "bundle, its exits' latency as a share of", folders[0], f"({whole_ms:.3f} ms), accuracy %"
    )
    for folder, costs in zip(folders, costs_ms, strict=True):
        accuracy = load_recorded(Path(folder) / "calibration.npz").test.correct.mean(0)
        print(folder, (costs / whole_ms).round(2).tolist(), (100 * accuracy).round(2).tolist())
    print("accuracy % at a mean latency of", " ".join(f"{share:6.2f}" for share in SHARES))
    for folder, costs in zip(folders, costs_ms, strict=True):
        print(folder, " ".join(accuracies_at(Path(folder), costs, whole_ms)))


def measure_in_turns(folders: list[Path]) -> list[NDArray[np.float64]]:
    """Cumulative medians in ms, one row at a time, one thread; (K,) for each bundle."""
    backends, costs = [], []
    for folder in folders:
        bundle = load_bundle(folder)
        backend = OnnxBackend(bundle.stage_files, bundle.head_files)
        backends.append((backend, bundle.preprocessor(MAX_PIXELS).example))
        costs.append(list[NDArray[np.float64]]())
    for _ in range(TURNS):
        for (backend, example), turns in zip(backends, costs, strict=True):
            profile = measure_latency(backend, example, batch_sizes=(1,), warm_up=10, repeats=50)
            turns.append(profile.costs_ms)
    return [np.median(turns, axis=0) for turns in costs]


def accuracies_at(folder: Path, costs_ms: NDArray[np.float64], whole_ms: float) -> list[str]:
    """Test accuracy in % at each share of the first bundle's latency; `-` below the first exit."""
    policy, frontier = load_scheduler(folder)
    here = Scheduler(policy, frontier.with_costs(costs_ms))
    budgets = [share * whole_ms for share in SHARES]
    rows = evaluate(here, load_recorded(folder / "calibration.npz"), budgets)
    return [
        f"{100 * row.test_accuracy:6.2f}" if row.budget >= costs_ms[0] else "     -" for row in rows
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
