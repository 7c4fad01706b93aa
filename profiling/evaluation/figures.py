"""Plots of policies on recorded predictions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from profiling.calibration import Predictions
from profiling.evaluation.evaluate import ORACLE, PER_BUDGET, Comparison, oracle_exits
from scheduler.fitted import Scheduler
from scheduler.policies import POLICIES
from scheduler.policy import exits_taken, replay

Array = NDArray[np.float64]

COLOURS = {name: kind.colour for name, kind in POLICIES.items()} | {
    PER_BUDGET: "#60a5fa",
    ORACLE: "#9ca3af",
}
RIGHT, WRONG = "#0f766e", "#be123c"
EXAMPLES = 8
RESAMPLES = 500
BINS = 10
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9,
    "svg.hashsalt": "eenet",
    "figure.constrained_layout.use": True,
}


class Curve(NamedTuple):
    """Results of a policy at many budgets.

    Attributes:
        costs: Mean cost of the test rows, (B,).
        exits: Exit of each, (B, M).
        right: Whether each is answered rightly, for a segmentation a share, (B, M).
    """

    costs: Array
    exits: NDArray[np.intp]
    right: Array

    @property
    def accuracy(self) -> Array:
        """Share of right answers, (B,)."""
        shares: Array = self.right.mean(1)
        return shares


def curve_of(scheduler: Scheduler, test: Predictions, budgets: Sequence[float]) -> Curve:
    """Replay a scheduler at many budgets."""
    test = test.combined(scheduler.combiner)
    replayed = replay(scheduler.policy, test.log_probs)
    exits = np.stack(
        [
            exits_taken(scheduler.policy, replayed, scheduler.frontier.at_cost(budget).parameter)
            for budget in budgets
        ]
    )
    right = test.correct[np.arange(exits.shape[1]), exits]
    return Curve(scheduler.frontier.costs_ms[exits].mean(1), exits, right)


def exits_at(scheduler: Scheduler, test: Predictions, budget: float) -> NDArray[np.intp]:
    """Return the exit (M,) of every test sample under a budget."""
    exits: NDArray[np.intp] = curve_of(scheduler, test, [budget]).exits[0]
    return exits


def accuracy_figure(
    comparison: Comparison, curves: dict[str, Curve], test: Predictions, budgets: Sequence[float]
) -> Figure:
    """Plot accuracy against realised cost, and the difference to an unlearned policy."""
    figure = Figure(figsize=(9.6, 4.2))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for policy, curve in curves.items():
        left.plot(curve.costs, 100 * curve.accuracy, color=COLOURS[policy], lw=1.4, label=policy)
    _plot_intervals(left, comparison, curves)
    if ORACLE in comparison.by_policy:
        _plot_oracle(left, comparison, test, budgets)
    left.plot(comparison.costs_ms, 100 * np.array(comparison.exit_accuracy), "kx", label="one head")
    left.set(xlabel="mean cost, ms", ylabel="test accuracy, %")
    if curves:  # the axes fit the policies; the oracle may leave them
        low = min(curve.accuracy.min() for curve in curves.values())
        high = max(max(curve.accuracy.max() for curve in curves.values()), low + 1e-3)
        left.set_ylim(100 * (low - 0.1 * (high - low)), 100 * (high + 0.25 * (high - low)))
    left.legend(fontsize=8, loc="lower right")
    _plot_differences(right, curves, budgets)
    return figure


def _plot_intervals(axes: Axes, comparison: Comparison, curves: dict[str, Curve]) -> None:
    for policy, rows in comparison.by_policy.items():
        if policy == ORACLE:
            continue
        middle = np.array([row.test_accuracy for row in rows])
        low, high = np.transpose([row.test_accuracy_ci95 for row in rows])
        axes.errorbar(
            [row.test_cost for row in rows],
            100 * middle,
            100 * np.array([middle - low, high - middle]),
            fmt="o",
            ms=3,
            lw=0.8,
            color=COLOURS[policy],
            label=policy if policy not in curves else None,
        )


def _plot_oracle(
    axes: Axes, comparison: Comparison, test: Predictions, budgets: Sequence[float]
) -> None:
    correct = test.combined(comparison.combiner).correct
    exits = [oracle_exits(correct, comparison.costs_ms, budget) for budget in budgets]
    axes.plot(
        [comparison.costs_ms[taken].mean() for taken in exits],
        [100 * correct[np.arange(len(taken)), taken].mean() for taken in exits],
        "--",
        color=COLOURS[ORACLE],
        lw=1,
        label="oracle",
    )


def _plot_differences(axes: Axes, curves: dict[str, Curve], budgets: Sequence[float]) -> None:
    base = next((policy for policy in ("maxprob", "entropy", "patience") if policy in curves), None)
    if base is None:
        axes.set_axis_off()
        return
    reference = curves[base].right
    rng, rows = np.random.default_rng(0), reference.shape[1]
    counts = rng.multinomial(rows, np.full(rows, 1 / rows), RESAMPLES) / rows
    for policy, curve in curves.items():
        if policy == base:
            continue
        gains = 100 * (curve.right - reference)
        axes.plot(budgets, gains.mean(1), color=COLOURS[policy], lw=1.4, label=policy)
        if policy in ("stopping", "eenet"):
            low, high = np.percentile(counts @ gains.T, [2.5, 97.5], axis=0)
            axes.fill_between(budgets, low, high, color=COLOURS[policy], alpha=0.15, lw=0)
    axes.axhline(0, color=COLOURS[base], lw=1)
    axes.set(xlabel="budget, ms", ylabel=f"points above {base}")


def rates_figure(curves: dict[str, Curve], budgets: Sequence[float]) -> Figure:
    """Plot exit rates against budget, one panel for each policy."""
    columns = min(4, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.1 * rows))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
    num_exits = int(max(curve.exits.max() for curve in curves.values())) + 1
    shades = mpl.colormaps["viridis"](np.linspace(0.15, 0.9, num_exits))
    for axes, (policy, curve) in zip(panels, curves.items(), strict=False):
        rates = [(curve.exits == k).mean(1) for k in range(num_exits)]
        axes.stackplot(
            budgets, rates, colors=shades, labels=[f"exit {k}" for k in range(num_exits)]
        )
        axes.set_title(policy, fontsize=9)
        axes.set(ylim=(0, 1), xlim=(budgets[0], max(budgets[-1], budgets[0] * 1.001)))
    for axes in figure.axes[len(curves) :]:
        axes.set_axis_off()
    figure.axes[0].legend(fontsize=7, loc="lower right")
    figure.supxlabel("budget, ms", fontsize=9)
    return figure


def scores_figure(scheduler: Scheduler, test: Predictions, budget: float) -> Figure:
    """Plot the scores of right and wrong predictions at each exit, and the thresholds there."""
    policy, test = scheduler.policy, test.combined(scheduler.combiner)
    parameter = np.array([scheduler.frontier.at_cost(budget).parameter])
    figure = Figure(figsize=(2.4 * policy.num_exits, 2.2))
    panels = figure.subplots(1, policy.num_exits, squeeze=False)[0]
    here, correct = np.ones(len(test.labels), np.bool_), test.correct
    for exit, (axes, scored) in enumerate(zip(panels, replay(policy, test.log_probs), strict=True)):
        axes.set_title(f"exit {exit}: {here.sum()} samples", fontsize=9)
        axes.set_yticks([])
        axes.set_xlabel("score")
        if not here.any():
            continue
        decision = policy.decide(exit, scored, parameter)
        _plot_histograms(axes, scored.scores[here], correct[here, exit])
        _plot_thresholds(axes, np.broadcast_to(decision.thresholds, here.shape)[here])
        here &= ~decision.leave
    figure.legend(
        handles=[
            mpl.patches.Patch(color=RIGHT, label="right", alpha=0.6),
            mpl.patches.Patch(color=WRONG, label="wrong", alpha=0.6),
        ],
        fontsize=7,
        loc="outside right upper",
    )
    return figure


def _plot_histograms(axes: Axes, scores: Array, right: Array) -> None:
    """Plot the scores of right and of wrong rows; a mask counts for both, by its share."""
    bins = np.linspace(scores.min(), max(scores.max(), scores.min() + 1e-6), 31).tolist()
    for share, colour in ((right, RIGHT), (1 - right, WRONG)):
        style: dict[str, Any] = {"weights": share, "color": colour, "log": True}
        axes.hist(scores, bins, histtype="stepfilled", alpha=0.35, **style)
        axes.hist(scores, bins, histtype="step", **style)


def _plot_thresholds(axes: Axes, thresholds: Array) -> None:
    """Mark the median and the middle nine tenths of the finite thresholds."""
    finite = thresholds[np.isfinite(thresholds)]
    if len(finite):
        low, middle, high = np.percentile(finite, [5, 50, 95])
        axes.axvspan(low, high, color="k", alpha=0.12, lw=0)
        axes.axvline(middle, color="k", lw=1)


def reliability_figure(schedulers: dict[str, Scheduler], test: Predictions) -> Figure:
    """Plot the share of right predictions against the score, by exit."""
    num_exits = len(test.log_probs)
    figure = Figure(figsize=(2.4 * num_exits, 2.5))
    panels = figure.subplots(1, num_exits, squeeze=False, sharey=True)[0]
    for exit, axes in enumerate(panels):
        axes.plot([0, 1], [0, 1], color="#d1d5db", lw=1)
        axes.set_title(f"exit {exit}", fontsize=9)
        axes.set_xlabel("score")
    usual = [name for name in ("maxprob", "eenet", "stopping") if name in schedulers]
    for name in usual or schedulers:
        combined = test.combined(schedulers[name].combiner)
        replayed, correct = replay(schedulers[name].policy, combined.log_probs), combined.correct
        for exit, (axes, scored) in enumerate(zip(panels, replayed, strict=True)):
            order = np.array_split(np.argsort(scored.scores, kind="stable"), BINS)
            bins = [part for part in order if len(part)]
            axes.plot(
                [scored.scores[part].mean() for part in bins],
                [correct[part, exit].mean() for part in bins],
                "o-",
                ms=2.5,
                lw=1,
                color=COLOURS[name],
                label=name,
            )
    panels[0].set_ylabel("share right")
    panels[-1].legend(fontsize=7, loc="lower right")
    return figure


def examples_figure(
    test: Predictions,
    exits: NDArray[np.intp],
    classes: Sequence[str],
    images: NDArray[np.uint8],
) -> Figure:
    """Show test images, one row for each exit at which they leave."""
    num_exits = len(test.log_probs)
    figure = Figure(figsize=(1.1 * EXAMPLES, 1.4 * num_exits))
    grid = figure.subplots(num_exits, EXAMPLES, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for exit in range(num_exits):
        for axes, row in zip(grid[exit], chosen_rows(exits, exit), strict=False):
            axes.imshow(images[row], interpolation="nearest")
            text, wrong = answer_text(test, exit, row, classes)
            axes.set_title(text, fontsize=7, color=WRONG if wrong else "k")
        grid[exit][0].text(
            -0.15, 0.5, f"exit {exit}", transform=grid[exit][0].transAxes, rotation=90, va="center"
        )
    return figure


def answer_text(test: Predictions, exit: int, row: int, classes: Sequence[str]) -> tuple[str, bool]:
    """Return an exit's prediction for a row as text, and whether it is wrong.

    The text is the class with its probability. For a mask it is the share of right pixels, which
    does not count as wrong.
    """
    log_probs, label = test.log_probs[exit, row], test.labels[row]
    answer = log_probs.argmax(-1)
    if answer.ndim:
        return f"right {np.mean(answer == label):.2f}", False
    return f"{classes[answer]} {np.exp(float(log_probs[answer])):.2f}", bool(answer != label)


def chosen_rows(exits: NDArray[np.intp], exit: int) -> list[int]:
    """Choose a few rows that leave at an exit, spread over the test set."""
    rows = np.flatnonzero(exits == exit)
    if len(rows) == 0:
        return []
    picked: list[int] = rows[
        np.unique(np.linspace(0, len(rows) - 1, EXAMPLES).astype(int))
    ].tolist()
    return picked
