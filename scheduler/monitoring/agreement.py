"""Agreement of early exits with the last exit, at every parameter, and a floor under it."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.frontier import Frontier
from scheduler.policy import ExitPolicy, ExitScores, replay

WINDOW = 1000
MAX_POINTS = 64  # points of the frontier that stand for all
MIN_EARLY = 30  # rows; fewer never violate a floor
Z_95 = 1.959963984540054  # two-sided
Z_ONE_SIDED_99 = 2.326348


class Interval(NamedTuple):
    """The confidence interval of a share."""

    low: float
    high: float


def wilson(successes: int, samples: int, z: float = Z_95) -> Interval:
    """Return Wilson's score interval of a share; without samples it is (0, 1).

    Args:
        successes: Number of successes among the samples.
        samples: n.
        z: Quantile of the standard normal distribution for the confidence.
    """
    if samples == 0:
        return Interval(0.0, 1.0)
    share, spread = successes / samples, z * z / samples
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / samples + spread / (4 * samples)) / (1 + spread)
    # Rounding must not move an end outside [0, 1].
    low = 0.0 if successes == 0 else max(middle - half, 0.0)
    return Interval(low, 1.0 if successes == samples else min(middle + half, 1.0))


class AgreementCount(NamedTuple):
    """The audited rows that would leave early, and those of them that the last exit predicts alike.

    Attributes:
        alike: Rows whose early prediction is that of the last exit.
        early: Rows that would leave before the last exit.
    """

    alike: int
    early: int

    @property
    def share(self) -> float:
        """The agreement; 1 if no row leaves early, since then none can disagree."""
        return self.alike / self.early if self.early else 1.0


class AgreementCurve:
    """The agreement at points over the whole frontier, replayed on the latest audited rows.

    An audited row has the predictions of all exits. It therefore shows the result of every
    parameter, not only of the one in use. The cost of adding a row does not depend on the window.

    Args:
        policy: The policy to replay.
        frontier: Its points; if there are many, 64 spread over the cost stand for all.
        window: Number of latest rows that count.
    """

    def __init__(self, policy: ExitPolicy, frontier: Frontier, window: int = WINDOW) -> None:
        self.frontier = frontier.spread(MAX_POINTS)
        self._policy = policy
        points = len(self.frontier)
        # Per row and point: 0 not early, 1 early, 2 early and alike.
        self._outcomes = np.zeros((window, points), np.int8)
        self._early = np.zeros(points, np.int64)
        self._alike = np.zeros(points, np.int64)
        self._added = 0

    @property
    def rows(self) -> int:
        """Number of audited rows that count."""
        return min(self._added, len(self._outcomes))

    def add(self, log_probs: NDArray[np.floating]) -> None:
        """Add rows with the log-probabilities of every exit, (K, n, C) or (K, n, P, C)."""
        if not log_probs.shape[1]:
            return
        for outcomes in self._replay(log_probs):
            place = self._added % len(self._outcomes)
            self._count(self._outcomes[place], -1)
            self._outcomes[place] = outcomes
            self._count(outcomes, 1)
            self._added += 1

    def at(self, parameter: float) -> AgreementCount:
        """Return the agreement at the point nearest to a parameter."""
        point = self.frontier.nearest(parameter)
        return AgreementCount(int(self._alike[point]), int(self._early[point]))

    def cheapest(self, minimum: float, parameter: float) -> float:
        """Return the parameter of the cheapest point with enough agreement, from `parameter` on.

        There always is one: at the most expensive point no row leaves early.
        """
        start = self.frontier.nearest(parameter)
        enough = self._alike[start:] >= minimum * self._early[start:]
        point = start + int(enough.argmax()) if enough.any() else len(self.frontier) - 1
        return self.frontier[point].parameter

    def _replay(self, log_probs: NDArray[np.floating]) -> NDArray[np.int8]:
        """Return the outcome of each row at each point, (n, G)."""
        points, rows = self.frontier.parameters, log_probs.shape[1]
        parameters = np.tile(points, rows)
        leave = np.stack(
            [
                self._policy.decide(exit, _repeated(scored, len(points)), parameters).leave
                for exit, scored in enumerate(replay(self._policy, log_probs))
            ]
        )
        exits = leave.argmax(0).reshape(rows, len(points))
        classes = _predicted_classes(log_probs)  # (K, n)
        alike = classes[exits, np.arange(rows)[:, None]] == classes[-1][:, None]
        early = exits < len(classes) - 1
        outcomes: NDArray[np.int8] = np.where(early, 1 + alike, 0).astype(np.int8)
        return outcomes

    def _count(self, outcomes: NDArray[np.int8], by: int) -> None:
        self._early += by * (outcomes > 0)
        self._alike += by * (outcomes > 1)


class AgreementFloor:
    """The floor under the parameter that keeps the agreement at or above a minimum.

    The floor is set once the agreement at the budget's own parameter is too low with confidence:
    the upper end of the one-sided 99 % interval is below the minimum. It is then the cheapest point
    with enough agreement, and it stays until the budget's own point has enough. Neither a few rows
    nor an agreement close to the minimum make it flicker.

    Args:
        minimum: The least agreement, above 0 and at most 1.

    Attributes:
        held: The parameter of the floor; None if there is none.
    """

    def __init__(self, minimum: float) -> None:
        self.minimum = minimum
        self.held: float | None = None

    def judge(self, curve: AgreementCurve, unconstrained: float) -> float | None:
        """Set or lift the floor.

        Args:
            curve: The agreement of the policy in use.
            unconstrained: The parameter that the budget alone calls for.

        Returns:
            The parameter of the floor, no cheaper than `unconstrained`; None if that one has enough
            agreement.
        """
        count = curve.at(unconstrained)
        if self.held is None:
            upper = wilson(count.alike, count.early, Z_ONE_SIDED_99).high
            too_low = count.early >= MIN_EARLY and upper < self.minimum
        else:
            too_low = count.share < self.minimum
        self.held = curve.cheapest(self.minimum, unconstrained) if too_low else None
        return self.held


def _predicted_classes(log_probs: NDArray[np.floating]) -> NDArray[np.intp]:
    """Return the class that each exit predicts, (K, n), for P pixels the likeliest on average."""
    shares = log_probs if log_probs.ndim == 3 else np.exp(log_probs, dtype=np.float64).mean(2)
    classes: NDArray[np.intp] = shares.argmax(-1)
    return classes


def _repeated(scored: ExitScores, times: int) -> ExitScores:
    """Repeat each row, copies next to each other."""
    return ExitScores(
        scored.scores.repeat(times),
        np.empty((0, 0)),
        scored.continuation_values.repeat(times, axis=0),
    )
