"""Whether a row with a deadline can still reach the next exit."""

from collections.abc import Sequence

from models.stage_costs import StageCosts
from server.engine.request import InferenceRequest
from server.engine.stage_times import LatencyWindow
from server.errors import DeadlineExceeded

TRIAL_S = 1.0


class Deadlines:
    """What rows with deadlines have to expect; any thread may note and ask.

    Args:
        num_stages: K.
        costs: What to expect of batches before any has run; None: nothing.
        max_batch: Rows of the batches to expect.
    """

    def __init__(self, num_stages: int, costs: StageCosts | None, max_batch: int) -> None:
        self._expected_s = [
            0.0 if costs is None else costs.batch_ms(stage, max_batch) / 1e3
            for stage in range(num_stages)
        ]
        self._tried_s = [-float("inf")] * num_stages
        self._stages = [LatencyWindow() for _ in range(num_stages)]
        self._delivery = LatencyWindow()

    def note_batch(self, rows: Sequence[InferenceRequest], now_s: float) -> None:
        """Take in how long the row of a batch that waited longest took, its waiting included."""
        ready_s = min([row.ready_s for row in rows])
        self._stages[rows[0].stage].add(now_s - ready_s, now_s)

    def note_delivery(self, seconds: float, now_s: float) -> None:
        """Take in how long completed rows took to where they are answered."""
        self._delivery.add(seconds, now_s)

    def would_miss_next_exit(self, row: InferenceRequest, now_s: float) -> bool:
        """Whether a row's deadline would pass if it went on to the next exit, 1 time in 100."""
        if row.deadline_s is None:
            return False
        slow_s = self._p99_s(row.stage + 1, now_s) + (self._delivery.p99_s(now_s) or 0.0)
        return now_s + slow_s > row.deadline_s

    def _p99_s(self, stage: int, now_s: float) -> float:
        """Where nothing is known of a stage, one row a second may try it, and whoever has longer.

        Were what is long past believed for ever, rows with deadlines would never again go where it
        was slow once, and none would learn that it has become quick.
        """
        slow_s = self._stages[stage].p99_s(now_s)
        if slow_s is not None:
            return slow_s
        if now_s - self._tried_s[stage] < TRIAL_S:
            return TRIAL_S
        self._tried_s[stage] = now_s
        return self._expected_s[stage]


def deadline_error() -> DeadlineExceeded:
    """What is told where a deadline passed before the first exit."""
    return DeadlineExceeded(
        "the deadline passed before the first exit; give more time or lower the load"
    )
