"""What one model has done since the start, in the shape of Triton's statistics."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from server.reports import Answers, Floats, Work

NS_PER_MS = 1e6
NOTHING = {"count": 0, "ns": 0}


class InferenceStatistics:
    """Sums over one model's samples and batches; a batch is one of the first stage.

    Args:
        wall_clock: Seconds since 1970.
    """

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self._last_ms = 0
        self._samples = self._failed = 0
        self._ms = {"success": 0.0, "fail": 0.0, "queue": 0.0, "input": 0.0, "infer": 0.0}
        self._batches: dict[int, tuple[int, float]] = {}  # by rows: how many, and their ms

    def note_answers(self, answers: Answers) -> None:
        """Add answered samples, and those that failed."""
        samples, failed = len(answers.exits), len(answers.failed_ms)
        if samples + failed:
            self._last_ms = int(self._wall_clock() * 1e3)
        self._samples += samples
        self._failed += failed
        for name, column in (
            ("success", answers.total_ms),
            ("fail", answers.failed_ms),
            ("queue", answers.queue_ms),
            ("input", answers.decode_ms),
            ("infer", answers.compute_ms),
        ):
            self._ms[name] += _sum(column)

    def note_work(self, work: Work) -> None:
        """Add the batches of the first stage."""
        first = work.stages == 0
        for rows, elapsed_ms in zip(work.rows[first].tolist(), work.elapsed_ms[first], strict=True):
            count, total_ms = self._batches.get(rows, (0, 0.0))
            self._batches[rows] = count + 1, total_ms + float(elapsed_ms)

    def to_json(self, model: str, version: str) -> dict[str, Any]:
        """Return the entry of the model in `model_stats`."""
        ms, samples = self._ms, self._samples
        output_ms = max(ms["success"] - ms["queue"] - ms["input"] - ms["infer"], 0.0)
        return {
            "name": model,
            "version": version,
            "last_inference": self._last_ms,
            "inference_count": samples,
            "execution_count": sum([count for count, _ in self._batches.values()]),
            "inference_stats": {
                "success": _duration(samples, ms["success"]),
                "fail": _duration(self._failed, ms["fail"]),
                "queue": _duration(samples, ms["queue"]),
                "compute_input": _duration(samples, ms["input"]),
                "compute_infer": _duration(samples, ms["infer"]),
                "compute_output": _duration(samples, output_ms),
                "cache_hit": NOTHING,
                "cache_miss": NOTHING,
            },
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": NOTHING,
                    "compute_infer": _duration(count, total_ms),
                    "compute_output": NOTHING,
                }
                for rows, (count, total_ms) in sorted(self._batches.items())
            ],
        }


def _sum(column: Floats) -> float:
    return float(np.nansum(column))  # NaN: the sample came as arrays


def _duration(count: int, ms: float) -> dict[str, int]:
    return {"count": count, "ns": int(ms * NS_PER_MS)}
