"""Time that exit policies take to fit, and to decide while serving. JSON on the last line.

.venv/bin/python -m benchmarks.policies [--large]
"""

import resource
import time
import timeit
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import make_parser, print_report
from scheduler.fitting.fit import fit_scheduler
from scheduler.policy import ExitPolicy

KINDS = ("stopping", "eenet", "maxprob")
SIZES = ((4, 5000, 10), (4, 2000, 1000))  # exits, rows, classes
LARGE, SMOKE = ((5, 25000, 1000),), ((2, 120, 3),)
REPEATS, ROUNDS = 300, 7


def make_problem(
    exits: int, rows: int, classes: int, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Log-probabilities (K, N, C), surer and better from exit to exit, and labels (N,)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    ease = rng.normal(2.0 + np.log(classes), 2.0, rows).astype(np.float32)
    logits = rng.normal(size=(exits, rows, classes)).astype(np.float32)
    for k in range(exits):
        logits[k, np.arange(rows), labels] += ease * (0.6 + 0.5 * k / exits)
        logits[k] -= np.log(np.exp(logits[k]).sum(-1, keepdims=True))
    return logits, labels


def online_us(policy: ExitPolicy, log_probs: NDArray[np.float32], rows: int) -> float:
    """Microseconds to score and decide `rows` rows at the second exit, best of rounds."""
    first = policy.score(0, log_probs[0, :rows], policy.start(rows))
    parameters = np.full(rows, policy.never_exit_parameter)

    def step() -> None:
        policy.decide(1, policy.score(1, log_probs[1, :rows], first.history), parameters)

    return min(timeit.repeat(step, number=REPEATS, repeat=ROUNDS)) / REPEATS * 1e6


def measure(kind: str, exits: int, rows: int, classes: int) -> dict[str, Any]:
    """Fit a policy to a made-up problem and time it."""
    log_probs, labels = make_problem(exits, rows, classes)
    started = time.perf_counter()
    scheduler = fit_scheduler(kind, log_probs, labels, np.cumsum(np.linspace(1.0, 1.5, exits)))
    seconds = time.perf_counter() - started
    one, many = (online_us(scheduler.policy, log_probs, size) for size in (1, 64))
    print(
        f"K={exits} N={rows} C={classes} {kind:9} fit {seconds:6.1f} s, "
        f"{len(scheduler.frontier)} points; online {one:5.1f} us per row, {many:6.1f} us for 64",
        flush=True,
    )
    return {
        "policy": kind,
        "exits": exits,
        "rows": rows,
        "classes": classes,
        "fit_seconds": seconds,
        "online_1_us": one,
        "online_64_us": many,
    }


def main() -> None:
    """Print a line per policy and size, and the JSON."""
    parser = make_parser(__doc__)
    parser.add_argument("--large", action="store_true", help="also 25,000 rows of 1000 classes")
    args = parser.parse_args()
    sizes = SMOKE if args.smoke else SIZES + (LARGE if args.large else ())
    results = [measure(kind, *size) for size in sizes for kind in KINDS]
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print_report({"peak_mb": peak_mb, "results": results}, smoke=args.smoke)


if __name__ == "__main__":
    main()
