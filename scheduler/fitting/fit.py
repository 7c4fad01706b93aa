"""Fit any policy of the table with its combiner, and its frontier by cross-fitting."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from scheduler.baselines import ConfidencePolicy
from scheduler.combiner import OWN_OUTPUTS
from scheduler.eenet import EENetPolicy
from scheduler.fitted import Scheduler
from scheduler.fitting.combiner import FittedCombiner, fit_combiner
from scheduler.frontier import Frontier, Reference
from scheduler.pixels import correct_share
from scheduler.policies import POLICIES
from scheduler.policy import CalibrationSet, ExitPolicy, exits_taken, replay
from scheduler.thresholds import ThresholdTable

Array = NDArray[np.float64]

FOLDS, FEW_FOLDS = 5, 3
LARGE_SET = 20_000_000  # probabilities in a calibration set from which on few folds suffice
MIN_ROWS = 10
ABOVE_ZERO = 0.005  # rounding tolerance of a log-probability


def fit_scheduler(
    kind: str,
    log_probs: NDArray[np.floating],
    labels: NDArray[np.int64] | None,
    costs_ms: Array,
    weights: Array | None = None,
    *,
    seed: int = 0,
    published: EENetPolicy | None = None,
    combined: FittedCombiner | None = None,
) -> Scheduler:
    """Fit a combiner, a policy for every budget, and estimate its frontier by cross-fitting.

    The policy is fitted to all rows, each combined by a fit without it: rows that a combiner was
    fitted to look surer than those that are served. Its results on unseen rows are estimated by
    fitting it again without each fifth of the rows (a third if there are very many) and replaying
    that fifth at the same budgets. Each point of the frontier has the higher of the two costs, on
    seen and on unseen rows, with its exit rates, so that a budget is kept on both. Its accuracy is
    always that on unseen rows.

    Args:
        kind: One of `POLICIES`.
        log_probs: Calibration log-probabilities, finite, (K, N, C) or (K, N, P, C).
        labels: (N,) or (N, P); None: the last exit's own predictions, so that the policy is fitted
            to keep them, and the frontier's accuracy is the agreement with them.
        costs_ms: Latency from the start until each exit, (K,).
        weights: How many rows each row stands for, with a mean of 1, (N,), as `Prior.row_weights`
            computes them. Fit and frontier are then those of rows so repeated. None: 1 each.
        seed: Seed of the folds and of networks that are trained.
        published: With `eenet`: take scores and assignment from this policy, fit thresholds only.
            Its scores were learned on the heads' own outputs, so nothing is combined.
        combined: From `fit_combiner` with the same rows, labels and seed, to fit several policies
            without fitting it again; None: it is fitted here.

    Returns:
        The scheduler. For a network with one exit it always has the kind `maxprob` and nothing to
        decide.

    Raises:
        ValueError: If the arrays do not fit together; the message names the one to correct.
    """
    if kind not in POLICIES:
        raise ValueError(f"policy {kind!r} is unknown; give one of {', '.join(POLICIES)}")
    reference: Reference = "labels" if labels is not None else "last_exit"
    target = last_predictions(log_probs) if labels is None else labels
    calibration = CalibrationSet(log_probs, target, np.asarray(costs_ms, np.float64), weights)
    check_calibration(calibration)
    if len(costs_ms) == 1:
        return _single_exit_scheduler(calibration, reference)
    if published is not None:
        combined = FittedCombiner(OWN_OUTPUTS, log_probs)
    elif combined is None:
        combined = fit_combiner(log_probs, labels, weights, seed=seed)
    calibration = calibration._replace(log_probs=combined.log_probs)
    fit = _fitter(kind, seed, published)
    policy = fit(calibration)
    parameters = POLICIES[kind].parameters(policy, calibration)
    fitted = _exits(policy, calibration.log_probs, parameters)
    unseen = _held_out_exits(kind, fit, calibration, parameters, fitted, seed)
    combiner = combined.combiner
    seen = fitted if combiner.empty else _exits(policy, combiner.combine_all(log_probs), parameters)
    frontier = _frontier(calibration, parameters, seen, unseen, reference)
    return Scheduler(policy, frontier, combiner)


def last_predictions(log_probs: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the classes that the last exit predicts, (N,) or (N, P)."""
    if not log_probs.size:  # for `check_calibration` to name
        return np.zeros(log_probs.shape[1:-1], np.int64)
    predictions: NDArray[np.int64] = log_probs[-1].argmax(-1).astype(np.int64)
    return predictions


def check_calibration(calibration: CalibrationSet) -> None:
    """Check that the arrays fit together.

    Raises:
        ValueError: If they do not; the message names the array, the index and the remedy.
    """
    log_probs, labels, costs_ms, weights = calibration
    num_exits, *rows, num_classes = log_probs.shape if log_probs.ndim > 1 else (0, 0, 0)
    if len(rows) not in (1, 2) or num_exits < 1 or num_classes < 2 or 0 in rows[1:]:
        raise ValueError(
            f"the predictions have the shape {log_probs.shape}; give (K, N, C), for a segmentation "
            f"(K, N, P, C), with at least one exit and two classes"
        )
    if labels.shape != tuple(rows):
        each = "" if len(rows) == 1 else f" and each of their {rows[1]} pixels"
        raise ValueError(
            f"the labels have the shape {labels.shape}, the predictions {log_probs.shape}; give "
            f"one label for each of the {rows[0]} rows{each}"
        )
    if rows[0] < MIN_ROWS:
        raise ValueError(
            f"there are {rows[0]} calibration rows; give at least {MIN_ROWS}, better a thousand"
        )
    if weights is not None and (weights.shape != (rows[0],) or not (weights > 0).all()):
        raise ValueError(
            f"the weights have the shape {weights.shape} or are not all above 0; give a positive "
            f"weight for each of the {rows[0]} rows"
        )
    _check_values(log_probs, labels)
    check_costs(costs_ms, num_exits)


def _check_values(log_probs: NDArray[np.floating], labels: NDArray[np.int64]) -> None:
    num_classes = log_probs.shape[-1]
    wrong = np.argwhere((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise ValueError(
            f"label {labels[tuple(wrong[0])]} at row {wrong[0, 0]} is outside the classes 0 to "
            f"{num_classes - 1}; correct the labels or give predictions of all classes"
        )
    bad = np.argwhere(~(np.isfinite(log_probs) & (log_probs < ABOVE_ZERO)))
    if len(bad):
        exit, row = bad[0, :2]
        raise ValueError(
            f"the prediction of exit {exit} for row {row} is no logarithm of probabilities "
            f"(not finite, or above 0); leave the row out or run it again"
        )


def check_costs(costs_ms: Array, num_exits: int) -> None:
    """Check that there is one cost for each exit and that they rise.

    Raises:
        ValueError: If there are too few or too many, or they do not rise.
    """
    if costs_ms.shape != (num_exits,):
        raise ValueError(
            f"there are {costs_ms.size} costs for {num_exits} exits; give one for each exit, the "
            f"latency from the start until that exit"
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


def _fitter(
    kind: str, seed: int, published: EENetPolicy | None
) -> Callable[[CalibrationSet], ExitPolicy]:
    if published is None:
        return lambda calibration: POLICIES[kind].fit(calibration, seed)
    if kind != "eenet":
        raise ValueError(f"published weights belong to the policy 'eenet', not to {kind!r}")
    from scheduler.fitting.eenet import fit_published  # torch takes seconds to import

    return lambda calibration: fit_published(
        published, calibration.log_probs, calibration.costs_ms, calibration.weights
    )


def _single_exit_scheduler(calibration: CalibrationSet, reference: Reference) -> Scheduler:
    correct = correct_share(calibration.log_probs, calibration.labels)
    accuracy = np.average(correct, 0, calibration.weights)
    frontier = Frontier(np.zeros(1), np.ones((1, 1)), accuracy, calibration.costs_ms, reference)
    return Scheduler(ConfidencePolicy(ThresholdTable.closed(1), "maxprob"), frontier)


def _held_out_exits(
    kind: str,
    fit: Callable[[CalibrationSet], ExitPolicy],
    calibration: CalibrationSet,
    parameters: Array,
    fitted: NDArray[np.int8],
    seed: int,
) -> NDArray[np.int8]:
    """Return the exits (G, N) that rows take under fits that have not seen them.

    Their outputs are combined without them too. The combinations of other rows may have seen them,
    which is the usual second level of stacking: the policy sees no label of theirs.

    Args:
        kind: One of `POLICIES`.
        fit: Fits that kind.
        calibration: All rows.
        parameters: Of the fit to all rows, (G,).
        fitted: The exits that rows take under that fit, (G, N).
        seed: Seed of the folds.
    """
    spent = np.average(calibration.costs_ms[fitted], 1, calibration.weights)
    unseen = np.empty_like(fitted)
    num_folds = FOLDS if calibration.log_probs.size < LARGE_SET else FEW_FOLDS
    folds = np.random.default_rng(seed).permutation(len(calibration.labels)) % num_folds
    for fold in range(num_folds):
        rest, held_out = calibration.rows(folds != fold), folds == fold
        policy = fit(rest)
        matched = _matched_parameters(kind, parameters, spent, policy, rest)
        unseen[:, held_out] = _exits(policy, calibration.log_probs[:, held_out], matched)
    return unseen


def _matched_parameters(
    kind: str, parameters: Array, spent: Array, other: ExitPolicy, rows: CalibrationSet
) -> Array:
    """Return the parameters at which another fit spends the same on the rows it was fitted to.

    A budget means the same to every fit; the cost that a price leads to depends on the fit.

    Args:
        kind: The kind of both fits.
        parameters: Of the first fit, (G,).
        spent: Mean cost of its rows at each, (G,).
        other: Another fit of the same kind.
        rows: The rows that the other fit was fitted to.
    """
    if POLICIES[kind].parameter_is_budget:
        return parameters
    own = POLICIES[kind].parameters(other, rows)
    costs = np.average(rows.costs_ms[_exits(other, rows.log_probs, own)], 1, rows.weights)
    rising, first = np.unique(np.maximum.accumulate(costs), return_index=True)
    matched = np.interp(spent, rising, own[first])
    matched[0], matched[-1] = own[0], own[-1]  # the first exit for all rows, the last for all
    return matched


def _exits(
    policy: ExitPolicy, log_probs: NDArray[np.floating], parameters: Array
) -> NDArray[np.int8]:
    """Return the exits (G, N) that rows take at each parameter."""
    replayed = replay(policy, log_probs)
    return np.stack(
        [exits_taken(policy, replayed, value).astype(np.int8) for value in parameters.tolist()]
    )


def _frontier(
    calibration: CalibrationSet,
    parameters: Array,
    seen: NDArray[np.int8],
    unseen: NDArray[np.int8],
    reference: Reference,
) -> Frontier:
    log_probs, labels, costs_ms, weights = calibration
    rates, unseen_rates = (
        np.stack([np.average(taken == k, 1, weights) for k in range(len(costs_ms))], 1)
        for taken in (seen, unseen)
    )
    costlier = (unseen_rates @ costs_ms > rates @ costs_ms)[:, None]
    correct = correct_share(log_probs, labels)
    accuracy = np.average(correct[np.arange(len(correct)), unseen], 1, weights)
    return Frontier(
        parameters, np.where(costlier, unseen_rates, rates), accuracy, costs_ms, reference
    ).pareto()
