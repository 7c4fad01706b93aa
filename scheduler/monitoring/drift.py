"""Drift of the exit scores: their distribution now against that of the calibration set."""

from array import array
from bisect import bisect_left, bisect_right

import numpy as np
from numpy.typing import NDArray

from scheduler.frontier import Frontier
from scheduler.policy import ExitPolicy, exits_taken, replay

BINS = 10
WINDOW = 2000
MIN_SCORES = 200
MIN_REFERENCE = 200  # calibration rows; with fewer the noise of the reference dominates
MAX_ROWS = 5000  # of the calibration set
MAX_POINTS = 64  # of the frontier
SMOOTHING = 0.5  # scores added to each bin, so that an empty bin is no infinite drift
SAME = 1e-9  # scores closer than this are equal: rounding differs with the order of a sum


class ScoreDrift:
    """The population stability index of each exit's latest scores against calibration.

    Only rows that did not leave earlier have a score at an exit, and which rows those are depends
    on the policy's parameter. Each score is therefore first ranked among the calibration rows that
    reach the exit under the same parameter: n of them, b smaller, t equal. The rank

        u = (b + U (t + 1)) / (n + 1),    U uniform in [0, 1),

    is exactly uniform, with or without ties, if the score is one more draw of the same
    distribution. With p_i the smoothed share of an exit's last 2,000 ranks in the i-th tenth,

        PSI = sum_i (p_i - 1/10) ln(p_i / (1/10)).

    Without drift it is about 9 (1/2000 + 1/n); above 0.1 counts as some drift, above 0.25 as much.
    A parameter is rounded to the nearest of 64 points spread over the frontier.

    Args:
        policy: The policy that gives the scores.
        frontier: Its points.
        log_probs: The calibration set, (K, N, C) or (K, N, P, C); a sample of 5,000 if it has more
            rows.
        rng: Draws the sample, and spreads ties.
    """

    def __init__(
        self,
        policy: ExitPolicy,
        frontier: Frontier,
        log_probs: NDArray[np.floating],
        rng: np.random.Generator,
    ) -> None:
        rows = log_probs.shape[1]
        if rows > MAX_ROWS:
            log_probs = log_probs[:, np.sort(rng.choice(rows, MAX_ROWS, replace=False))]
        self._policy = policy
        self._replayed = replay(policy, log_probs)
        self._points = frontier.spread(MAX_POINTS)
        self._references: dict[int, list[array[float]]] = {}
        self._rng = rng
        self._seen = [_Ranks() for _ in range(policy.num_exits - 1)]
        self._parameter: float | None = None  # of the latest scores; the next line is its reference
        self._reference: list[array[float]] = []

    def add(self, exit: int, scores: NDArray[np.floating], parameter: float) -> None:
        """Add scores (A,) of rows under one parameter; those of the last exit are ignored."""
        if exit == len(self._seen):
            return
        if parameter != self._parameter:
            self._parameter, self._reference = parameter, self._reference_of(parameter)
        reference = self._reference[exit]
        if len(reference) < MIN_REFERENCE:
            return
        seen, scale = self._seen[exit], BINS / (len(reference) + 1)
        draws = self._rng.random(len(scores)).tolist()
        for score, draw in zip(scores.tolist(), draws, strict=True):
            margin = SAME * max(abs(score), 1.0)
            below = bisect_left(reference, score - margin)
            equal = bisect_right(reference, score + margin, below) - below
            seen.add(int((below + draw * (equal + 1)) * scale))

    def psi(self) -> list[float | None]:
        """Return the index of each exit but the last, (K - 1,); None before 200 scores."""
        return [seen.psi() for seen in self._seen]

    def _reference_of(self, parameter: float) -> list["array[float]"]:
        """Return the sorted scores of the calibration rows that reach each exit, (K - 1,)."""
        point = self._points.nearest(parameter)
        if point not in self._references:
            exits = exits_taken(self._policy, self._replayed, self._points[point].parameter)
            self._references[point] = [
                array("d", np.sort(self._replayed[exit].scores[exits >= exit]).tobytes())
                for exit in range(len(self._seen))
            ]
        return self._references[point]


class _Ranks:
    """Counts of the latest ranks at one exit, by bin."""

    def __init__(self) -> None:
        self._bins = bytearray(WINDOW)
        self._counts = [0] * BINS
        self._added = 0

    def add(self, bin: int) -> None:
        place = self._added % WINDOW
        if self._added >= WINDOW:
            self._counts[self._bins[place]] -= 1
        self._bins[place] = bin
        self._counts[bin] += 1
        self._added += 1

    def psi(self) -> float | None:
        if self._added < MIN_SCORES:
            return None
        shares = np.array(self._counts) + SMOOTHING
        shares /= shares.sum()
        return float(((shares - 1 / BINS) * np.log(shares * BINS)).sum())
