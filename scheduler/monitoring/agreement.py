"""How often early exits answer as the last one would, at every parameter, and a floor under it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.frontier import Frontier
from scheduler.policy import ExitPolicy, ExitScores, replay

WINDOW = 1000
MOST_POINTS = 64  # of the frontier
MIN_EARLY = 30  # rows; fewer never violate a floor
Z_ONE_SIDED_99 = 2.326348


class Agreed(NamedTuple):
    """Of audited rows that would leave before the last exit, those that it would answer alike."""

    alike: int
    early: int

    @property
    def share(self) -> float:
        """The agreement; 1 where no row leaves early, since then none can disagree."""
        return self.alike / self.early if self.early else 1.0


class AgreementCurve:
    """The agreement at points over the whole frontier, replayed on the latest audited rows.

    An audited row shows what all exits say of it, so that it tells what any parameter would have
    done with it, not only the one in force. The cost of a row does not depend on the window.

    Args:
        policy: Decides.
        frontier: Its points; of many, 64 spread over the cost stand for all.
        window: Rows that count.
    """

    def __init__(self, policy: ExitPolicy, frontier: Frontier, window: int = WINDOW) -> None:
        self.frontier = frontier.spread(MOST_POINTS)
        self._policy = policy
        points = len(self.frontier)
        self._kinds = np.zeros((window, points), np.int8)  # 0 not early, 1 early, 2 and alike
        self._early = np.zeros(points, np.int64)
        self._alike = np.zeros(points, np.int64)
        self._added = 0

    @property
    def rows(self) -> int:
        """Audited rows that count."""
        return min(self._added, len(self._kinds))

    def add(self, log_probs: NDArray[np.floating]) -> None:
        """Take in rows that show every exit, (K, n, C) or (K, n, P, C)."""
        if not log_probs.shape[1]:
            return
        for kinds in self._replay(log_probs):
            place = self._added % len(self._kinds)
            self._count(self._kinds[place], -1)
            self._kinds[place] = kinds
            self._count(kinds, 1)
            self._added += 1

    def at(self, parameter: float) -> Agreed:
        """The agreement at the point nearest to a parameter."""
        point = self.frontier.nearest(parameter)
        return Agreed(int(self._alike[point]), int(self._early[point]))

    def cheapest(self, minimum: float, parameter: float) -> float:
        """The parameter of the cheapest point, from that of `parameter` on, whose share suffices.

        At the most expensive point no row leaves early, so that there is always one.
        """
        start = self.frontier.nearest(parameter)
        enough = self._alike[start:] >= minimum * self._early[start:]
        point = start + int(enough.argmax()) if enough.any() else len(self.frontier) - 1
        return self.frontier[point].parameter

    def _replay(self, log_probs: NDArray[np.floating]) -> NDArray[np.int8]:
        """What each row does at each point, (n, G)."""
        points, rows = self.frontier.parameters, log_probs.shape[1]
        parameters = np.tile(points, rows)
        leave = np.stack(
            [
                self._policy.decide(exit, _repeated(scored, len(points)), parameters).leave
                for exit, scored in enumerate(replay(self._policy, log_probs))
            ]
        )
        exits = leave.argmax(0).reshape(rows, len(points))
        answers = _answers(log_probs)  # (K, n)
        alike = answers[exits, np.arange(rows)[:, None]] == answers[-1][:, None]
        kinds: NDArray[np.int8] = np.where(exits < len(answers) - 1, 1 + alike, 0).astype(np.int8)
        return kinds

    def _count(self, kinds: NDArray[np.int8], by: int) -> None:
        self._early += by * (kinds > 0)
        self._alike += by * (kinds > 1)


class AgreementFloor:
    """Which point to hold, so that the agreement stays at or above a minimum.

    It is held on to only once the agreement where the budget alone would go is too low with
    confidence: the upper end of the one-sided 99 % interval is below the minimum. Then it is the
    cheapest point whose agreement suffices, until that of the budget's own point does. So neither a
    few rows nor rows about the minimum make it come and go.

    Args:
        minimum: The least agreement, above 0 and at most 1.
    """

    def __init__(self, minimum: float) -> None:
        self.minimum = minimum
        self.held: float | None = None

    def judge(self, curve: AgreementCurve, wished: float) -> float | None:
        """Work out what to hold now.

        Args:
            curve: Of the policy in force.
            wished: The parameter that the budget alone asks for.

        Returns:
            The parameter to hold, no cheaper than `wished`; None where the wish is good enough.
        """
        agreed = curve.at(wished)
        if self.held is None:
            upper = wilson(agreed.alike, agreed.early, Z_ONE_SIDED_99).high
            keep = agreed.early >= MIN_EARLY and upper < self.minimum
        else:
            keep = agreed.share < self.minimum
        self.held = curve.cheapest(self.minimum, wished) if keep else None
        return self.held


def _answers(log_probs: NDArray[np.floating]) -> NDArray[np.intp]:
    """What each exit answers, (K, n): of P pixels the class of the largest share."""
    shares = log_probs if log_probs.ndim == 3 else np.exp(log_probs, dtype=np.float64).mean(2)
    answers: NDArray[np.intp] = shares.argmax(-1)
    return answers


def _repeated(scored: ExitScores, times: int) -> ExitScores:
    """Each row so many times in a row."""
    return ExitScores(
        scored.scores.repeat(times),
        np.empty((0, 0)),
        scored.continuation_values.repeat(times, axis=0),
    )
