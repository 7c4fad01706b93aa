"""Fitting any policy, and its frontier by cross-fitting."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.baselines import ConfidencePolicy
from scheduler.eenet import EENetPolicy
from scheduler.fitted import POLICIES, Scheduler
from scheduler.fitting.eenet import fit_eenet, fit_published
from scheduler.fitting.stopping import fit_stopping, price_ladder
from scheduler.fitting.thresholds import fit_confidence, fit_patience
from scheduler.frontier import Frontier
from scheduler.pixels import correct_share
from scheduler.policy import ExitPolicy, exits_taken, replay
from scheduler.stopping import StoppingPolicy
from scheduler.thresholds import ThresholdPolicy, ThresholdTable

Array = NDArray[np.float64]

FOLDS, FEW_FOLDS = 5, 3
LARGE_PROBLEM = 20_000_000  # probabilities; from here on few folds
MIN_ROWS = 10
ABOVE_ZERO = 0.005  # how far rounding may take the logarithm of a probability


class Problem(NamedTuple):
    """What a policy is fitted to.

    Attributes:
        log_probs: Calibration log-probabilities, (K, N, C); of a segmentation (K, N, P, C).
        labels: (N,); of a segmentation (N, P).
        costs_ms: Latency from the start until each exit, rising, (K,).
    """

    log_probs: NDArray[np.floating]
    labels: NDArray[np.int64]
    costs_ms: Array

    def rows(self, chosen: NDArray[np.bool_]) -> "Problem":
        """The problem of some of the rows, chosen by a mask (N,)."""
        return Problem(self.log_probs[:, chosen], self.labels[chosen], self.costs_ms)


def fit_scheduler(
    kind: str,
    log_probs: NDArray[np.floating],
    labels: NDArray[np.int64],
    costs_ms: Array,
    *,
    seed: int = 0,
    published: EENetPolicy | None = None,
) -> Scheduler:
    """Fit a policy for every budget, and what to expect of it by cross-fitting.

    The policy is fitted to all rows. What it will do to others is measured by fitting it again
    without each fifth of them (a third of very many) and sending those through at the same budgets.
    Of the two costs, on the rows it was fitted to and on those it was not, each point of the
    frontier shows the higher one with its exit rates, so that a budget is kept on both; accuracy is
    always that on rows it was not fitted to.

    Args:
        kind: One of `POLICIES`.
        log_probs: Calibration log-probabilities, finite, (K, N, C) or (K, N, P, C).
        labels: (N,) or (N, P).
        costs_ms: Latency from the start until each exit, (K,).
        seed: Of folds and of networks that are trained.
        published: With `eenet`: scores and assignment are these, only thresholds are fitted.

    Returns:
        The scheduler; of a network with one exit, whatever the kind, one that has nothing to
        decide.

    Raises:
        ValueError: If the arrays do not fit together; the sentence names the one to mend.
    """
    if kind not in POLICIES:
        raise ValueError(f"policy {kind!r} is unknown; give one of {', '.join(POLICIES)}")
    problem = Problem(log_probs, labels, np.asarray(costs_ms, np.float64))
    check_problem(problem)
    if len(costs_ms) == 1:
        return _nothing_to_decide(problem)
    fit = _fitter(kind, seed, published)
    policy = fit(problem)
    parameters = _parameters(policy, problem)
    seen = _exits(policy, problem.log_probs, parameters)
    spent = problem.costs_ms[seen].mean(1)
    unseen = np.empty_like(seen)
    num_folds = FOLDS if log_probs.size < LARGE_PROBLEM else FEW_FOLDS
    folds = np.random.default_rng(seed).permutation(len(labels)) % num_folds
    for fold in range(num_folds):
        rest = problem.rows(folds != fold)
        other = fit(rest)
        like = _parameters_like(parameters, spent, other, rest)
        unseen[:, folds == fold] = _exits(other, log_probs[:, folds == fold], like)
    return Scheduler(policy, _frontier(problem, parameters, seen, unseen))


def check_problem(problem: Problem) -> None:
    """Check that the arrays fit together.

    Raises:
        ValueError: A sentence that names the array, the index and the remedy.
    """
    log_probs, labels, costs_ms = problem
    num_exits, *rows, num_classes = log_probs.shape if log_probs.ndim > 1 else (0, 0, 0)
    if len(rows) not in (1, 2) or num_exits < 1 or num_classes < 2 or 0 in rows[1:]:
        raise ValueError(
            f"the predictions have the shape {log_probs.shape}; give (K, N, C), of a segmentation "
            f"(K, N, P, C), with at least one exit and two classes"
        )
    num_rows = rows[0]
    if labels.shape != tuple(rows):
        each = "" if len(rows) == 1 else f" and each of their {rows[1]} pixels"
        raise ValueError(
            f"the labels have the shape {labels.shape}, the predictions {log_probs.shape}; give "
            f"one label for each of the {num_rows} rows{each}"
        )
    if num_rows < MIN_ROWS:
        raise ValueError(
            f"there are {num_rows} calibration rows; give at least {MIN_ROWS}, better a thousand"
        )
    wrong = np.argwhere((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise ValueError(
            f"label {labels[tuple(wrong[0])]} at row {wrong[0, 0]} is outside the classes 0 to "
            f"{num_classes - 1}; mend the labels or give predictions of all classes"
        )
    bad = np.argwhere(~(np.isfinite(log_probs) & (log_probs < ABOVE_ZERO)))
    if len(bad):
        exit, row = bad[0, :2]
        raise ValueError(
            f"the prediction of exit {exit} for row {row} is no logarithm of probabilities "
            f"(not finite, or above 0); leave the row out or run it again"
        )
    check_costs(costs_ms, num_exits)


def check_costs(costs_ms: Array, num_exits: int) -> None:
    """Check that there is one cost for each exit and that they rise.

    Raises:
        ValueError: If not.
    """
    if costs_ms.shape != (num_exits,):
        raise ValueError(
            f"there are {costs_ms.size} costs for {num_exits} exits; give one for each exit, the "
            f"latency from the start until it"
        )
    if not np.isfinite(costs_ms).all() or costs_ms[0] <= 0:
        raise ValueError(
            f"the costs {costs_ms.tolist()} are not all finite and above 0; give milliseconds"
        )
    flat = np.flatnonzero(np.diff(costs_ms) <= 0)
    if len(flat):
        k = int(flat[0]) + 1
        raise ValueError(
            f"cost {k} is {costs_ms[k]:g}, no more than cost {k - 1}, {costs_ms[k - 1]:g}; costs "
            f"count from the start until each exit and must rise"
        )


def _fitter(kind: str, seed: int, published: EENetPolicy | None) -> Callable[[Problem], ExitPolicy]:
    if published is not None:
        if kind != "eenet":
            raise ValueError(f"published weights are a policy 'eenet', not {kind!r}")
        return lambda problem: fit_published(published, problem.log_probs, problem.costs_ms)
    if kind == "stopping":
        return lambda problem: fit_stopping(*problem, seed=seed)
    if kind == "eenet":
        return lambda problem: fit_eenet(*problem, seed=seed)
    if kind == "patience":
        return lambda problem: fit_patience(problem.log_probs, problem.costs_ms)
    return lambda problem: fit_confidence(kind, *problem)


def _nothing_to_decide(problem: Problem) -> Scheduler:
    accuracy = correct_share(problem.log_probs, problem.labels).mean(0)
    frontier = Frontier(np.zeros(1), np.ones((1, 1)), accuracy, problem.costs_ms)
    return Scheduler(ConfidencePolicy(ThresholdTable.closed(1), "maxprob"), frontier)


def _parameters(policy: ExitPolicy, problem: Problem) -> Array:
    """Parameters over the range of costs, in the order of rising cost, (G,)."""
    if isinstance(policy, ThresholdPolicy):
        return policy.table.parameters
    assert isinstance(policy, StoppingPolicy), f"no parameters are known for {policy.kind}"
    return price_ladder(policy, problem.log_probs, problem.costs_ms)


def _parameters_like(parameters: Array, spent: Array, other: ExitPolicy, rows: Problem) -> Array:
    """The parameters at which another fit means the same budgets on the rows it was fitted to.

    A budget is one for every fit; a price buys what the fit makes of it.

    Args:
        parameters: Of the first fit, (G,).
        spent: Mean cost of its rows at each, (G,).
        other: Another fit of the same kind.
        rows: What it was fitted to.
    """
    if isinstance(other, ThresholdPolicy):
        return parameters
    prices = _parameters(other, rows)
    costs = rows.costs_ms[_exits(other, rows.log_probs, prices)].mean(1)
    rising, first = np.unique(np.maximum.accumulate(costs), return_index=True)
    like = np.interp(spent, rising, prices[first])
    like[0], like[-1] = prices[0], prices[-1]  # all leave, all run on: whatever the rows
    return like


def _exits(
    policy: ExitPolicy, log_probs: NDArray[np.floating], parameters: Array
) -> NDArray[np.int8]:
    """The exits (G, N) that rows take at each parameter."""
    replayed = replay(policy, log_probs)
    return np.stack(
        [exits_taken(policy, replayed, value).astype(np.int8) for value in parameters.tolist()]
    )


def _frontier(
    problem: Problem, parameters: Array, seen: NDArray[np.int8], unseen: NDArray[np.int8]
) -> Frontier:
    exits = range(len(problem.costs_ms))
    rates, unseen_rates = (
        np.stack([(taken == k).mean(1) for k in exits], 1) for taken in (seen, unseen)
    )
    dearer = (unseen_rates @ problem.costs_ms > rates @ problem.costs_ms)[:, None]
    correct = correct_share(problem.log_probs, problem.labels)
    accuracy = correct[np.arange(len(correct)), unseen].mean(1)
    return Frontier(
        parameters, np.where(dearer, unseen_rates, rates), accuracy, problem.costs_ms
    ).pareto()
