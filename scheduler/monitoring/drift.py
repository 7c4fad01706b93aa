"""Whether the scores that exits show now are distributed as those of the calibration set."""

from array import array
from bisect import bisect_left, bisect_right

import numpy as np
from numpy.typing import NDArray

from scheduler.frontier import Frontier
from scheduler.policy import ExitPolicy, exits_taken, replay

BINS = 10
WINDOW = 2000
MIN_SCORES = 200
MIN_REFERENCE = 200  # calibration rows; of fewer the ranks say more about them than of the scores
MOST_ROWS = 5000  # of the calibration set
MOST_POINTS = 64  # of the frontier
SMOOTHING = 0.5  # scores added to each bin, so that an empty one is no infinite drift
SAME = 1e-9  # scores that differ by less are equal: the same row, added up in another order


class ScoreDrift:
    """The population stability index of each exit's latest scores against calibration.

    Only rows that no earlier exit let go show a score at an exit, and which those are changes with
    the policy's parameter. Each score is therefore first ranked among the calibration rows that
    reach the exit under the same parameter: n of them, b smaller, t equal, and

        u = (b + U (t + 1)) / (n + 1),    U uniform in [0, 1),

    is uniform exactly, ties or none, where the score is one more draw of the same distribution.
    With p_i the smoothed share of an exit's last 2,000 ranks in the i-th tenth,

        PSI = sum_i (p_i - 1/10) ln(p_i / (1/10)).

    Without drift it is about 9 (1/2000 + 1/n); above 0.1 is read as some drift, above 0.25 as much.
    Parameters are taken for the nearest of 64 points spread over the frontier.

    Args:
        policy: Whose scores.
        frontier: Its points.
        log_probs: Of the calibration set, (K, N, C) or (K, N, P, C); of many rows 5,000 are drawn.
        rng: Draws them, and spreads ties.
    """

    def __init__(
        self,
        policy: ExitPolicy,
        frontier: Frontier,
        log_probs: NDArray[np.floating],
        rng: np.random.Generator,
    ) -> None:
        rows = log_probs.shape[1]
        if rows > MOST_ROWS:
            log_probs = log_probs[:, np.sort(rng.choice(rows, MOST_ROWS, replace=False))]
        self._policy = policy
        self._replayed = replay(policy, log_probs)
        self._points = frontier.spread(MOST_POINTS)
        self._references: dict[int, list[array[float]]] = {}
        self._rng = rng
        self._seen = [_Ranks() for _ in range(policy.num_exits - 1)]
        self._parameter: float | None = None  # of the latest scores, and what it refers to
        self._reference: list[array[float]] = []

    def add(self, exit: int, scores: NDArray[np.floating], parameter: float) -> None:
        """Take scores in, (A,), of rows that obeyed one parameter; the last exit's are ignored."""
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
        """The index of each exit but the last, (K - 1,); None before 200 scores."""
        return [seen.psi() for seen in self._seen]

    def _reference_of(self, parameter: float) -> list["array[float]"]:
        """The sorted scores of calibration rows that reach each exit, (K - 1,)."""
        point = self._points.nearest(parameter)
        if point not in self._references:
            exits = exits_taken(self._policy, self._replayed, self._points[point].parameter)
            self._references[point] = [
                array("d", np.sort(self._replayed[exit].scores[exits >= exit]).tobytes())
                for exit in range(len(self._seen))
            ]
        return self._references[point]


class _Ranks:
    """The bins of the latest ranks at one exit."""

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
