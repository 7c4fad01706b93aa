"""Logs made by hand."""

import numpy as np

from benchmarks.control.log import ControlLog


def make_log(
    latency_ms: list[float] | np.ndarray, budget_ms: list[float] | np.ndarray, **columns: object
) -> ControlLog:
    """One sample a hundredth of a second, all at exit 0, right, between 1 and 10 ms."""
    latency = np.asarray(latency_ms, float)
    count = len(latency)
    times = 0.01 * np.arange(1, count + 1)
    given = {
        "admitted_s": times,
        "done_s": times,
        "exit": np.zeros(count, np.int8),
        "correct": np.ones(count, np.int8),
        "parameter": np.zeros(count),
        "floor_ms": np.ones(count),
        "ceiling_ms": np.full(count, 10.0),
        "phase": np.zeros(count, np.int8),
        "about": {"window": 100, "scenario": "made", "costs_ms": [1.0, 2.0], "drifts": False,
                  "subject": "image", "policy": "maxprob", "law": "controller", "source": "made"},
    }  # fmt: skip
    return ControlLog(
        latency_ms=latency,
        budget_ms=np.broadcast_to(np.asarray(budget_ms, float), (count,)).copy(),
        **{**given, **columns},  # type: ignore[arg-type]
    )
