"""What policies cost: deciding online, and fitting. One JSON document last.

.venv/bin/python -m benchmarks.policies [--large]
"""

import json
import resource
import sys
import time
import timeit

import numpy as np
from numpy.typing import NDArray

from profiling.latency import machine_name
from scheduler.fitting.fit import fit_scheduler
from scheduler.policy import ExitPolicy

REPEATS, ROUNDS = 300, 7


def make_problem(exits: int, rows: int, classes: int, seed: int = 0) -> tuple[NDArray, NDArray]:
    """Log-probabilities (K, N, C), surer and better from exit to exit, and labels (N,)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    ease = rng.normal(2.0 + np.log(classes), 2.0, rows).astype(np.float32)
    logits = rng.normal(size=(exits, rows, classes)).astype(np.float32)
    for k in range(exits):
        logits[k, np.arange(rows), labels] += ease * (0.6 + 0.5 * k / exits)
        logits[k] -= np.log(np.exp(logits[k]).sum(-1, keepdims=True))
    return logits, labels


def online_us(policy: ExitPolicy, log_probs: NDArray, rows: int) -> float:
    """Microseconds to score and decide `rows` rows at the second exit, best of rounds."""
    first = policy.score(0, log_probs[0, :rows], policy.start(rows))
    parameters = np.full(rows, policy.never_exit_parameter)

    def step() -> None:
        policy.decide(1, policy.score(1, log_probs[1, :rows], first.history), parameters)

    return min(timeit.repeat(step, number=REPEATS, repeat=ROUNDS)) / REPEATS * 1e6


def main(large: bool) -> None:
    """Print a table and the JSON."""
    results = []
    sizes = [(4, 5000, 10), (4, 2000, 1000)] + ([(5, 25000, 1000)] if large else [])
    for exits, rows, classes in sizes:
        log_probs, labels = make_problem(exits, rows, classes)
        costs = np.cumsum(np.linspace(1.0, 1.5, exits))
        for kind in ("stopping", "eenet", "maxprob"):
            started = time.perf_counter()
            scheduler = fit_scheduler(kind, log_probs, labels, costs)
            seconds = time.perf_counter() - started
            one, many = (online_us(scheduler.policy, log_probs, size) for size in (1, 64))
            print(
                f"K={exits} N={rows} C={classes} {kind:9} fit {seconds:6.1f} s, "
                f"{len(scheduler.frontier)} points; online {one:5.1f} us a row, {many:6.1f} us "
                f"for 64"
            )
            results.append(
                {
                    "policy": kind,
                    "exits": exits,
                    "rows": rows,
                    "classes": classes,
                    "fit_seconds": seconds,
                    "online_1_us": one,
                    "online_64_us": many,
                }
            )
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"machine": machine_name(), "peak_mb": peak_mb, "results": results}))


if __name__ == "__main__":
    main("--large" in sys.argv)
