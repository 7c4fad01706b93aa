"""Certificates: a bound on how often a policy differs from the whole network, with confidence.

The answers of the last exit are the reference. A point of the frontier is certified for a share
epsilon if an upper confidence bound of its risk, measured on rows that nothing was fitted to, is at
most epsilon. The points are tested from the most expensive one downwards, and the first that fails
ends the test. This is fixed-sequence testing, which needs no correction for the number of points
(Learn then Test, Angelopoulos et al. 2021; for early exits Jazbec et al., "Fast yet Safe", NeurIPS
2024). All rows count, not only those that leave early.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from scheduler.bounds import MAX_BET, betting_upper_bound, binomial_upper_bound
from scheduler.frontier import Frontier
from scheduler.pixels import correct_share
from scheduler.policy import ExitPolicy, exits_taken, replay

Array = NDArray[np.float64]
Losses = NDArray[np.bool_ | np.float64]
Measure = Literal["disagreement", "accuracy_loss"]

# Points of the frontier that are tested. The certified one keeps its promise with half a step to
# spare, on average, which covers the noise of the rows that it is judged on.
MAX_POINTS = 32
MOST_ROWS = 1e18  # keeps the number of rows that a tiny epsilon needs an integer


@dataclass(frozen=True)
class Promise:
    """The share of samples that a policy may treat worse than the whole network does.

    Attributes:
        measure: `disagreement`: samples whose answer is not the last exit's. `accuracy_loss`:
            accuracy of the last exit minus accuracy of the answers.
        epsilon: The largest risk, above 0 and below 1.
        confidence: Probability over draws of the certification rows with which it holds, above 0
            and below 1.
    """

    measure: Measure
    epsilon: float
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.measure not in get_args(Measure):
            raise ValueError(f"measure {self.measure!r} is none of {', '.join(get_args(Measure))}")
        if not 0 < self.epsilon < 1:  # NaN fails too
            raise ValueError(
                f"max_{self.measure} is {self.epsilon:g}; give a share above 0 and below 1, such "
                f"as 0.01"
            )
        if not 0 < self.confidence < 1:
            raise ValueError(
                f"confidence is {self.confidence:g}; give a share above 0 and below 1, such as 0.95"
            )


class Certificate(NamedTuple):
    """The cheapest certified parameter of a policy.

    Attributes:
        epsilon: The promised largest risk.
        confidence: Of the bound.
        rows: Number of certification rows.
        parameter: The policy's parameter; if nothing is certified, its never-exit parameter.
        bound: Upper confidence bound of the risk at `parameter`; if nothing is certified 0, since
            the whole network does not differ from itself.
        expected_cost_ms: Mean cost at `parameter`, from the frontier.
        certified: Whether samples may leave early; False: every sample runs to the last exit.
    """

    epsilon: float
    confidence: float
    rows: int
    parameter: float
    bound: float
    expected_cost_ms: float
    certified: bool


class FrontierBounds(NamedTuple):
    """Upper confidence bounds along a frontier, which certify it for any epsilon.

    Attributes:
        frontier: The points of the policy's frontier that are tested, G.
        never_exit_parameter: The policy's parameter at which every row runs to the last exit.
        confidence: Of each bound.
        rows: Number of certification rows.
        bounds: Of the risk at each point, (G,); +inf at points that were not reached.
    """

    frontier: Frontier
    never_exit_parameter: float
    confidence: float
    rows: int
    bounds: Array

    def certify(self, epsilon: float) -> Certificate:
        """Certify the cheapest point before the first, from the dear end, that passes epsilon."""
        failed = np.flatnonzero(self.bounds > epsilon)
        place = int(failed[-1]) + 1 if len(failed) else 0
        about = (epsilon, self.confidence, self.rows)
        if place >= len(self.frontier) - 1:  # at the last point nothing leaves early
            cost_ms = float(self.frontier.costs_ms[-1])
            return Certificate(*about, self.never_exit_parameter, 0.0, cost_ms, False)
        point = self.frontier[place]
        bound = float(self.bounds[place])
        return Certificate(*about, point.parameter, bound, point.expected_cost_ms, True)


def certify(
    policy: ExitPolicy,
    frontier: Frontier,
    log_probs: NDArray[np.floating],
    labels: NDArray[np.int64] | None,
    promise: Promise,
) -> Certificate:
    """Certify the cheapest point of a frontier that keeps a promise.

    Args:
        policy: A fitted policy.
        frontier: Its frontier.
        log_probs: Log-probabilities of the certification rows, (K, N, C) or (K, N, P, C). The rows
            are independent draws, in an order that does not depend on them, and nothing was fitted
            to or chosen by them.
        labels: (N,) or (N, P), which only `accuracy_loss` needs.
        promise: What to certify.

    Raises:
        ValueError: If there are too few rows for the promise, even if none of them is a loss.
    """
    losses = exit_losses(promise.measure, log_probs, labels, label_sets=frontier.label_sets)
    check_rows(promise, log_probs.shape[1], exact=losses.dtype == np.bool_)
    return bound_policy(policy, frontier, log_probs, losses, promise).certify(promise.epsilon)


def bound_policy(
    policy: ExitPolicy,
    frontier: Frontier,
    log_probs: NDArray[np.floating],
    losses: Losses,
    promise: Promise,
) -> FrontierBounds:
    """Bound the risk of a policy along its frontier, down to the first point that passes epsilon.

    Args:
        policy: A fitted policy.
        frontier: Its frontier.
        log_probs: Of the certification rows, as in `certify`.
        losses: From `exit_losses`, (K, N).
        promise: The bounds are those of any promise with the same measure and confidence and an
            epsilon that is no larger.
    """
    frontier = frontier.spread(MAX_POINTS)
    replayed, rows = replay(policy, log_probs), np.arange(log_probs.shape[1])

    def losses_at(place: int) -> Losses:
        exits = exits_taken(policy, replayed, float(frontier.parameters[place]))
        return losses[exits, rows]

    bounds = bound_points(len(frontier), losses_at, promise)
    confidence = promise.confidence
    return FrontierBounds(frontier, policy.never_exit_parameter, confidence, len(rows), bounds)


def losses_along(policy: ExitPolicy, points: Frontier, log_probs: NDArray[np.floating]) -> Losses:
    """Return whether the answers differ from the last exit's at each point of a frontier, (G, N).

    Args:
        policy: A fitted policy.
        points: Of its frontier, G.
        log_probs: (K, N, C), or (K, N, P, C), where the loss is a share of the pixels.
    """
    losses = exit_losses("disagreement", log_probs, None, label_sets=points.label_sets)
    replayed, rows = replay(policy, log_probs), np.arange(log_probs.shape[1])
    exits = [exits_taken(policy, replayed, parameter) for parameter in points.parameters.tolist()]
    return losses[np.stack(exits), rows]


def bound_points(points: int, losses_at: Callable[[int], Losses], promise: Promise) -> Array:
    """Bound the risk at each point, from the last but one down to the first that passes epsilon.

    Args:
        points: G, in the order of rising cost. At the last, nothing leaves early.
        losses_at: Returns the losses (N,) of all rows at a point.
        promise: Its epsilon ends the walk.

    Returns:
        Upper confidence bounds (G,), +inf at points that were not reached.
    """
    bounds = np.full(points, np.inf)
    bounds[-1] = 0.0
    for place in range(points - 2, -1, -1):
        bounds[place] = upper_bound(losses_at(place), promise)
        if bounds[place] > promise.epsilon:
            break
    return bounds


def upper_bound(losses: Losses, promise: Promise) -> float:
    """Return the upper confidence bound of a mean loss: binomial for booleans, else by betting."""
    if losses.dtype == np.bool_:
        return binomial_upper_bound(int(losses.sum()), len(losses), promise.confidence)
    low = 0.0 if promise.measure == "disagreement" else -1.0
    return betting_upper_bound(losses.astype(np.float64), promise.confidence, low=low, high=1.0)


def exit_losses(
    measure: Measure,
    log_probs: NDArray[np.floating],
    labels: NDArray[np.int64] | None,
    *,
    label_sets: bool = False,
) -> Losses:
    """Return the loss of each row if it leaves at each exit, compared with the last exit, (K, N).

    Args:
        measure: `disagreement`: whether the answer differs, for a segmentation the share of pixels
            where it does, for label sets whether any label does. `accuracy_loss`: what the last
            exit has right minus what this one has, in [-1, 1].
        log_probs: (K, N, C) or (K, N, P, C).
        labels: (N,) or (N, P), for `accuracy_loss`.
        label_sets: As in `Frontier`.

    Raises:
        ValueError: If labels are needed and missing.
    """
    if measure == "disagreement":
        answers = log_probs.argmax(-1)
        differs: NDArray[np.bool_] = answers != answers[-1]
        if label_sets:
            return np.asarray(differs.any(2))
        return differs if differs.ndim == 2 else differs.mean(2)
    if labels is None:
        raise ValueError("an accuracy loss needs labels; give them, or promise a disagreement")
    correct = correct_share(log_probs, labels).T
    losses: Array = correct[-1] - correct
    return losses


def check_rows(promise: Promise, rows: int, *, exact: bool) -> None:
    """Check that there are enough rows to certify a promise at all.

    Raises:
        ValueError: If there are fewer than `rows_needed`; the message says how many are needed.
    """
    needed = rows_needed(promise, exact=exact)
    if rows < needed:
        name = promise.measure.replace("_", " ")
        raise ValueError(
            f"there are {rows} certification rows; {100 * promise.epsilon:g} % {name} at "
            f"{100 * promise.confidence:g} % confidence needs at least {needed}, even without a "
            f"single loss"
        )


def rows_needed(promise: Promise, *, exact: bool) -> int:
    """Return the least number of rows that can certify a promise: those that show no loss.

    Args:
        promise: What to certify.
        exact: Whether the bound is the binomial one, for which this number suffices. By betting it
            takes a few rows more, since the first bets are small.
    """
    # A row without a loss multiplies the wealth against epsilon by at most 1 + c e / (1 - e); with
    # c = 1 it is 1 / (1 - e), the same as in the binomial bound.
    odds = promise.epsilon / (1 - promise.epsilon)
    gain = math.log1p(odds if exact else MAX_BET * odds)
    return max(math.ceil(min(-math.log1p(-promise.confidence) / gain, MOST_ROWS)), 1)
