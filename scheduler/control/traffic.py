"""How often samples complete, and for how long none has; times may jump, estimates must not."""

import math

GAP_SAMPLES = 20  # memory of the usual gap
USUAL_GAPS = 3.0  # without a sample: only one gap in twenty of random traffic is longer
REPORT_S = 0.5  # reports take up to so long, so a shorter gap shows nothing
CURRENT_S = 5.0
LONGEST_S = 1e6


class Traffic:
    """Passes time, which comes from outside, and notices when samples stay away.

    A step back counts as no time.
    """

    def __init__(self) -> None:
        self.now_s = 0.0  # sum of the steps forward since the first time that was told
        self.gap_s = 0.0  # the usual one between two samples
        self._told_s: float | None = None
        self._last_s: float | None = None  # when the last sample completed
        self._rested_s = 0.0  # the rest since then that `pass_time` has returned

    @property
    def is_current(self) -> bool:
        """Whether a sample has completed within the last seconds."""
        return self._last_s is not None and self.now_s - self._last_s <= CURRENT_S

    @property
    def rested_s(self) -> float:
        """How long no sample has completed although one should have."""
        return self._rested_s

    @property
    def long_gap_s(self) -> float:
        """A gap longer than nearly all of those between samples."""
        return USUAL_GAPS * self.gap_s

    def pass_time(self, now_s: float) -> float:
        """Go on to a time; return how much of the step was rest, in seconds."""
        if not math.isfinite(now_s):
            return 0.0
        step_s = 0.0 if self._told_s is None else now_s - self._told_s
        self._told_s = now_s
        self.now_s += min(max(step_s, 0.0), LONGEST_S)
        if self._last_s is None:
            return 0.0
        busy_s = max(self.long_gap_s, REPORT_S)
        rest_s = max(self.now_s - self._last_s - busy_s, self._rested_s)
        newly_s, self._rested_s = rest_s - self._rested_s, rest_s
        return newly_s

    def add(self, samples: int) -> None:
        """Count samples that complete now."""
        if self._last_s is not None:
            gap_s = (self.now_s - self._last_s) / samples
            self.gap_s += min(samples / GAP_SAMPLES, 1.0) * (gap_s - self.gap_s)
        self._last_s, self._rested_s = self.now_s, 0.0
