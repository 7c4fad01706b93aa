"""Figures of how well a budget was held, from the log of its samples."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.control.log import ControlLog
from benchmarks.control.scenarios import SETTLING

Array = NDArray[np.float64]
BAND = 0.02  # around the steady level, as a share of the target, for a settled mean
MOST_UNDER_USE = 0.03  # of a steady level
MAX_AGE_S = 60.0


class Rolling(NamedTuple):
    """The window after each sample, (N,) each.

    Attributes:
        mean_ms: Mean latency.
        target_ms: Mean of the budgets in force when its samples arrived, each at most the latency
            of running to the end.
        budget_ms: Mean of these budgets themselves.
        floor_ms: Mean latency of leaving at exit 0.
        samples: Number of samples in the window.
        first_exit: Share of them that left at exit 0.
        first_exit_ms: Their latency, as a mean over the window: below `mean_ms`.
    """

    mean_ms: Array
    target_ms: Array
    budget_ms: Array
    floor_ms: Array
    samples: NDArray[np.intp]
    first_exit: Array
    first_exit_ms: Array

    @property
    def over(self) -> Array:
        """Excess of the mean over the budget, as a share of it."""
        over: Array = self.mean_ms / self.budget_ms - 1
        return over

    @property
    def feasible(self) -> NDArray[np.bool_]:
        """Whether some parameter could have kept the budget."""
        kept: NDArray[np.bool_] = self.floor_ms <= self.budget_ms
        return kept


class ControlMetrics(NamedTuple):
    """Figures of one log; None where it has no such moment.

    Attributes:
        settle: Samples after a change until the rolling mean stays within 2 % of its new target;
            the slowest of several changes.
        overshoot: Largest excess of the rolling mean over the budget, as a share of it, once a
            window was full.
        above: Share of steady samples at which the rolling mean was above the budget.
        under_use: Share of the available budget left unspent in steady state.
        mean_ms: Mean latency of all samples but the first window.
        budget_ms: Mean budget of these samples.
        accuracy: Accuracy of these samples; None if no labels are known.
        lost: Accuracy lost against a fixed parameter that spends the same on the same samples, by
            phase, on average; None if that is unknown.
        infeasible: Share of the samples at which no parameter could have kept the budget.
        first_exit: Share of the samples that left at exit 0, in the windows above the budget.
        first_exit_ms: Mean latency of these samples, which no parameter could have made shorter.
    """

    settle: int | None
    overshoot: float | None
    above: float | None
    under_use: float | None
    mean_ms: float
    budget_ms: float
    accuracy: float | None
    lost: float | None
    infeasible: float
    first_exit: float | None
    first_exit_ms: float | None


def rolling_of(log: ControlLog, window: int) -> Rolling:
    """Rolling means over the window after each sample of a log."""
    ends = np.arange(1, len(log) + 1)
    young = np.searchsorted(log.done_s, log.done_s - MAX_AGE_S, side="left")
    begins = np.maximum(np.maximum(ends - window, 0), young)

    def mean(values: Array) -> Array:
        sums = np.concatenate([[0.0], np.cumsum(values)])
        means: Array = (sums[ends] - sums[begins]) / (ends - begins)
        return means

    return Rolling(
        mean(log.latency_ms),
        mean(np.minimum(log.budget_ms, log.ceiling_ms)),
        mean(log.budget_ms),
        mean(log.floor_ms),
        ends - begins,
        mean((log.exit == 0).astype(np.float64)),
        mean(np.where(log.exit == 0, log.latency_ms, 0.0)),
    )


def measure_control(log: ControlLog) -> ControlMetrics:
    """Compute the figures of a log."""
    window = int(log.about["window"])
    rolling = rolling_of(log, window)
    changes = _changes(log)
    full = rolling.samples >= 0.8 * rolling.samples.max()
    after_start = np.arange(len(log)) >= min(window, len(log) // 2)
    steady = full & after_start & _steady(log, changes, window)
    counted = full & after_start & rolling.feasible
    labelled = log.correct[after_start]
    return ControlMetrics(
        _slowest(log, rolling, changes, window),
        float(max(rolling.over[counted].max(), 0.0)) if counted.any() else None,
        _share(rolling.over > 0, steady & rolling.feasible),
        _mean(1 - rolling.mean_ms / rolling.target_ms, steady & rolling.feasible),
        float(log.latency_ms[after_start].mean()),
        float(log.budget_ms[after_start].mean()),
        float(labelled.mean()) if (labelled >= 0).all() else None,
        _lost(log),
        float(1 - rolling.feasible[after_start].mean()),
        *_first_exits(rolling, after_start & (rolling.over > 0)),
    )


def _first_exits(
    rolling: Rolling, among: NDArray[np.bool_]
) -> tuple[float, float] | tuple[None, None]:
    """Return the share that left at exit 0 and their mean latency, in these windows."""
    share = _mean(rolling.first_exit, among)
    if not share:
        return None, None
    return share, float(rolling.first_exit_ms[among].mean()) / share


def _lost(log: ControlLog) -> float | None:
    curves = log.about.get("static_curves")
    if curves is None:
        return None
    costs_ms = np.array(log.about["costs_ms"])
    lost = 0.0
    for phase, (curve_ms, accuracy) in enumerate(curves):
        here = log.phase == phase
        spent_ms = float(costs_ms[log.exit[here]].mean())
        static = float(np.interp(spent_ms, curve_ms, accuracy))
        lost += here.mean() * (static - float(log.correct[here].mean()))
    return float(lost)


def _changes(log: ControlLog) -> list[int]:
    """The first sample of each phase but the first."""
    return [int(np.flatnonzero(log.phase == phase)[0]) for phase in np.unique(log.phase)[1:]]


def _steady(log: ControlLog, changes: list[int], window: int) -> NDArray[np.bool_]:
    """Whether every change is far enough in the past."""
    steady = np.ones(len(log), np.bool_)
    for change in changes:
        steady[change : change + window + SETTLING] = False
    return steady


def _slowest(log: ControlLog, rolling: Rolling, changes: list[int], window: int) -> int | None:
    ends = [*changes, len(log)][1:]
    times = [
        _settling(rolling, change, end)
        for change, end in zip(changes, ends, strict=True)
        if end - change >= window + 2 * SETTLING and rolling.feasible[change:end].all()
    ]
    return max(times, default=None)


def _settling(rolling: Rolling, change: int, end: int) -> int:
    """Samples from a change until the mean stays within the band around its steady level."""
    error = _smooth(rolling.mean_ms[change:end] / rolling.target_ms[change:end] - 1)
    level = min(max(float(np.median(error[-SETTLING:])), -MOST_UNDER_USE), 0.0)
    inside = np.abs(error - level) <= BAND
    stays = np.convolve(inside, np.ones(SETTLING), "valid") >= SETTLING
    return int(stays.argmax()) if stays.any() else end - change


def _smooth(values: Array, samples: int = 50) -> Array:
    return np.convolve(values, np.ones(samples) / samples, "same") / np.convolve(
        np.ones(len(values)), np.ones(samples) / samples, "same"
    )


def _share(flags: NDArray[np.bool_], among: NDArray[np.bool_]) -> float | None:
    return float(flags[among].mean()) if among.any() else None


def _mean(values: Array, among: NDArray[np.bool_]) -> float | None:
    return float(values[among].mean()) if among.any() else None
