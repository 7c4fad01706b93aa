"""Agreement of early exits with the last exit, at every parameter, and a floor under it."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.anytime import RiskAlarm
from scheduler.frontier import Frontier
from scheduler.policy import ExitPolicy, ExitScores, replay

WINDOW = 1000
MAX_POINTS = 64  # points of the frontier that stand for all
CONFIDENCE = 0.95  # of the test that a floor is missed
Z_95 = 1.959963984540054  # two-sided


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

    Attributes:
        added: Number of all rows that were added.
    """

    def __init__(self, policy: ExitPolicy, frontier: Frontier, window: int = WINDOW) -> None:
        self.frontier = frontier.spread(MAX_POINTS)
        self._policy = policy
        points = len(self.frontier)
        # Per row and point: 0 not early, 1 early, 2 early and alike.
        self._outcomes = np.zeros((window, points), np.int8)
        self._early = np.zeros(points, np.int64)
        self._alike = np.zeros(points, np.int64)
        self.added = 0

    @property
    def rows(self) -> int:
        """Number of audited rows that count."""
        return min(self.added, len(self._outcomes))

    def add(self, log_probs: NDArray[np.floating]) -> None:
        """Add rows with the log-probabilities of every exit, (K, n, C) or (K, n, P, C)."""
        if not log_probs.shape[1]:
            return
        for outcomes in self._replay(log_probs):
            place = self.added % len(self._outcomes)
            self._count(self._outcomes[place], -1)
            self._outcomes[place] = outcomes
            self._count(outcomes, 1)
            self.added += 1

    def at(self, parameter: float) -> AgreementCount:
        """Return the agreement at the point nearest to a parameter."""
        point = self.frontier.nearest(parameter)
        return AgreementCount(int(self._alike[point]), int(self._early[point]))

    def latest(self, count: int, parameter: float) -> list[bool]:
        """Return whether the latest rows agree, oldest first, at the point nearest to a parameter.

        Args:
            count: Number of rows; at most the window.
            parameter: Rows that would not leave early there are left out.
        """
        places = np.arange(self.added - min(count, self.rows), self.added) % len(self._outcomes)
        outcomes = self._outcomes[places, self.frontier.nearest(parameter)]
        return [outcome > 1 for outcome in outcomes.tolist() if outcome > 0]

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
        classes = _predicted_classes(log_probs, self.frontier.label_sets)  # (K, n)
        alike = classes[exits, np.arange(rows)[:, None]] == classes[-1][:, None]
        early = exits < len(classes) - 1
        outcomes: NDArray[np.int8] = np.where(early, 1 + alike, 0).astype(np.int8)
        return outcomes

    def _count(self, outcomes: NDArray[np.int8], by: int) -> None:
        self._early += by * (outcomes > 0)
        self._alike += by * (outcomes > 1)


class AgreementFloor:
    """The floor under the parameter that keeps the agreement at or above a minimum.

    The floor is set once the rows since it was last lifted show with confidence that the agreement
    at the budget's own parameter is too low (`RiskAlarm`, which holds at every look: at an
    agreement of exactly the minimum it is ever set with a probability of at most 5 %). It is then
    the cheapest point with enough agreement, and it stays until the budget's own point has enough.

    Args:
        minimum: The least agreement, above 0 and at most 1.

    Attributes:
        held: The parameter of the floor; None if there is none.
    """

    def __init__(self, minimum: float) -> None:
        self.minimum = minimum
        self.held: float | None = None
        self._alarm = RiskAlarm(1 - minimum, CONFIDENCE)
        self._seen = 0  # rows of the curve
        self._wished: float | None = None  # what the budget called for before these rows came

    def judge(self, curve: AgreementCurve, unconstrained: float) -> float | None:
        """Set or lift the floor.

        Args:
            curve: The agreement of the policy in use.
            unconstrained: The parameter that the budget alone calls for.

        Returns:
            The parameter of the floor, no cheaper than `unconstrained`; None if that one has enough
            agreement.
        """
        wished = unconstrained if self._wished is None else self._wished
        alike = curve.latest(curve.added - self._seen, wished)
        self._seen, self._wished = curve.added, unconstrained
        if self.held is None:
            for each in alike:
                self._alarm.add(float(not each))
        if self.held is not None or self._alarm.fired:
            too_low = curve.at(unconstrained).share < self.minimum
            self.held = curve.cheapest(self.minimum, unconstrained) if too_low else None
            if self.held is None:
                self._alarm = RiskAlarm(1 - self.minimum, CONFIDENCE)
        return self.held


def _predicted_classes(log_probs: NDArray[np.floating], label_sets: bool) -> NDArray[np.intp]:
    """Return the class that each exit predicts, (K, n), for P pixels the likeliest on average.

    Of label sets, return a number for each set.
    """
    if label_sets:
        labels = log_probs.argmax(-1)  # (K, n, P)
        _, numbers = np.unique(labels.reshape(-1, labels.shape[-1]), axis=0, return_inverse=True)
        sets: NDArray[np.intp] = numbers.reshape(labels.shape[:2])
        return sets
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
