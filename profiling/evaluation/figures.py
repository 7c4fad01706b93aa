"""Plots of policies on recorded predictions."""

from collections.abc import Sequence
from itertools import cycle
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
    PER_BUDGET: POLICIES["eenet"].colour,
    ORACLE: "#6b7280",
}
_DASHES = ("-", (0, (5, 1.5)), "-", (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (6, 2, 1, 2)), (0, (2, 2)))
DASHES: dict[str, Any] = dict(zip(POLICIES, cycle(_DASHES), strict=False))
"""Line styles, so that lines differ without colours too."""

MAIN_WIDTH, WIDTH = 2.0, 1.2
RIGHT, WRONG = "#0072b2", "#d55e00"
RIGHT_MARK, WRONG_MARK = "\N{CHECK MARK}", "\N{BALLOT X}"
LEARNED = ("stopping", "eenet")
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
    comparison: Comparison,
    curves: dict[str, Curve],
    test: Predictions,
    budgets: Sequence[float],
    *,
    intervals: bool,
) -> Figure:
    """Plot accuracy against realised cost, and the difference to an unlearned policy.

    The axes fit the policies; the oracle is cut off where it leaves them.
    """
    figure = Figure(figsize=(10.5, 4.6))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for policy, curve in curves.items():
        left.plot(curve.costs, 100 * curve.accuracy, label=policy, **_line(policy))
    if intervals:
        _plot_intervals(left, comparison, curves)
    elif PER_BUDGET in comparison.by_policy:  # it has no curve
        rows = comparison.by_policy[PER_BUDGET]
        costs, shares = ([row.test_cost for row in rows], [100 * row.test_accuracy for row in rows])
        left.plot(costs, shares, "D", ms=4, mfc="none", color=COLOURS[PER_BUDGET], label=PER_BUDGET)
    exits = 100 * np.array(comparison.exit_accuracy)
    left.plot(comparison.costs_ms, exits, "kx", ms=7, mew=1.6, label="all leave at one exit")
    left.set(xlabel="mean cost of a sample, ms", ylabel="test accuracy, %")
    shown = np.concatenate([exits, *(100 * curve.accuracy for curve in curves.values())])
    low, high = shown.min(), max(shown.max(), shown.min() + 0.1)
    top = min(high + 0.15 * (high - low), 100.0)
    left.set_ylim(low - 0.05 * (high - low), top)
    if ORACLE in comparison.by_policy:
        _plot_oracle(left, comparison, test, budgets, top)
    left.legend(fontsize=8, loc="lower right")
    _plot_differences(right, curves, budgets, intervals=intervals)
    return figure


def _line(policy: str) -> dict[str, Any]:
    """How the line of a policy is drawn."""
    width = MAIN_WIDTH if policy in LEARNED else WIDTH
    return {"color": COLOURS[policy], "ls": DASHES[policy], "lw": width}


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
            fmt="o" if policy in curves else "D",
            ms=3,
            lw=0.8,
            capsize=2,
            color=COLOURS[policy],
            label=policy if policy not in curves else None,
        )


def _plot_oracle(
    axes: Axes, comparison: Comparison, test: Predictions, budgets: Sequence[float], top: float
) -> None:
    """Draw the oracle below the top of the axes, in %, and say that it goes on above."""
    correct, costs_ms = test.combined(comparison.combiner).correct, comparison.costs_ms
    taken = [oracle_exits(correct, costs_ms, budget) for budget in (costs_ms[0], *budgets)]
    costs = np.array([costs_ms[exits].mean() for exits in taken])
    shares = [100 * correct[np.arange(len(exits)), exits].mean() for exits in taken]
    cut = max(shares) > top
    label = "oracle (knows the labels)" + (", cut off" if cut else "")
    axes.plot(costs, shares, ":", color=COLOURS[ORACLE], lw=1.2, label=label)
    if cut and shares[0] < top:
        place = (float(np.interp(top, shares, costs)), top)
        text = f"oracle, up to {max(shares):.1f} %"
        style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8}
        axes.annotate(text, place, (4, -10), color=COLOURS[ORACLE], **style)


def _plot_differences(
    axes: Axes, curves: dict[str, Curve], budgets: Sequence[float], *, intervals: bool
) -> None:
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
        axes.plot(budgets, gains.mean(1), label=policy, **_line(policy))
        if intervals and policy in LEARNED:
            low, high = np.percentile(counts @ gains.T, [2.5, 97.5], axis=0)
            axes.fill_between(budgets, low, high, color=COLOURS[policy], alpha=0.15, lw=0)
    axes.axhline(0, color=COLOURS[base], lw=1)
    axes.set(xlabel="budget, ms", ylabel=f"test accuracy above that of {base}, points")


def rates_figure(curves: dict[str, Curve], budgets: Sequence[float]) -> Figure:
    """Plot exit rates against budget, one panel for each policy."""
    columns = min(4, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(2.5 * columns, 2.1 * rows + 0.4))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
    num_exits = int(max(curve.exits.max() for curve in curves.values())) + 1
    shades = mpl.colormaps["viridis"](np.linspace(0.15, 0.9, num_exits))
    for axes, (policy, curve) in zip(panels, curves.items(), strict=False):
        rates = [100 * (curve.exits == k).mean(1) for k in range(num_exits)]
        axes.stackplot(
            budgets, rates, colors=shades, labels=[f"exit {k}" for k in range(num_exits)]
        )
        axes.set_title(policy, fontsize=9)
        axes.set(ylim=(0, 100), xlim=(budgets[0], max(budgets[-1], budgets[0] * 1.001)))
    for axes in figure.axes[len(curves) :]:
        axes.set_axis_off()
    for axes in figure.axes[max(len(curves) - columns, 0) : len(curves)]:
        axes.tick_params(labelbottom=True)  # also above a place that stays empty
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside upper center", ncols=num_exits)
    figure.supxlabel("budget, ms", fontsize=9)
    figure.supylabel("samples that leave at each exit, %", fontsize=9)
    return figure


def scores_figure(scheduler: Scheduler, test: Predictions, budget: float) -> Figure:
    """Plot the scores of right and wrong predictions at each exit, and the thresholds there."""
    policy, test = scheduler.policy, test.combined(scheduler.combiner)
    parameter = np.array([scheduler.frontier.at_cost(budget).parameter])
    figure = Figure(figsize=(2.5 * policy.num_exits, 2.6))
    panels = figure.subplots(1, policy.num_exits, squeeze=False)[0]
    here, correct = np.ones(len(test.labels), np.bool_), test.correct
    for exit, (axes, scored) in enumerate(zip(panels, replay(policy, test.log_probs), strict=True)):
        axes.set_title(f"exit {exit}: {here.sum()} samples arrive", fontsize=9)
        axes.set_xlabel("score")
        if not here.any():
            continue
        decision = policy.decide(exit, scored, parameter)
        _plot_histograms(axes, scored.scores[here], correct[here, exit])
        _plot_thresholds(axes, np.broadcast_to(decision.thresholds, here.shape)[here])
        here &= ~decision.leave
    panels[0].set_ylabel("samples (log scale)")
    own = policy.thresholds(0.0) is None
    marked = (
        "thresholds: median, grey: middle 90 %" if own else "threshold: to its right they leave"
    )
    figure.legend(
        handles=[
            mpl.patches.Patch(fc=f"{RIGHT}59", ec=RIGHT, label="right answers"),
            mpl.patches.Patch(fc=f"{WRONG}59", ec=WRONG, ls="--", label="wrong answers"),
            mpl.lines.Line2D([], [], color="k", lw=1, label=marked),
        ],
        fontsize=8,
        loc="outside upper center",
        ncols=3,
    )
    return figure


def _plot_histograms(axes: Axes, scores: Array, right: Array) -> None:
    """Plot the scores of right and of wrong rows; a mask counts for both, by its share."""
    bins = np.linspace(scores.min(), max(scores.max(), scores.min() + 1e-6), 31).tolist()
    for share, colour, dashes in ((right, RIGHT, "-"), (1 - right, WRONG, "--")):
        style: dict[str, Any] = {"weights": share, "color": colour, "log": True}
        axes.hist(scores, bins, histtype="stepfilled", alpha=0.35, **style)
        axes.hist(scores, bins, histtype="step", ls=dashes, **style)


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
    figure = Figure(figsize=(2.5 * num_exits, 2.9))
    panels = figure.subplots(1, num_exits, squeeze=False, sharey=True)[0]
    for exit, axes in enumerate(panels):
        axes.plot([0, 1], [0, 100], color="#9ca3af", lw=1)
        axes.set_title(f"exit {exit}", fontsize=9)
        axes.set_xlabel("score")
        axes.set_ylim(0, 100)
    usual = [name for name in ("maxprob", "eenet", "stopping") if name in schedulers]
    for name in usual or schedulers:
        combined = test.combined(schedulers[name].combiner)
        replayed, correct = replay(schedulers[name].policy, combined.log_probs), combined.correct
        for exit, (axes, scored) in enumerate(zip(panels, replayed, strict=True)):
            order = np.array_split(np.argsort(scored.scores, kind="stable"), BINS)
            bins = [part for part in order if len(part)]
            axes.plot(
                [scored.scores[part].mean() for part in bins],
                [100 * correct[part, exit].mean() for part in bins],
                marker="o",
                ms=2.5,
                label=name,
                **_line(name) | {"lw": WIDTH},
            )
    panels[0].set_ylabel("right answers, %")
    panels[-1].legend(fontsize=8, loc="lower right")
    return figure


def examples_figure(
    test: Predictions,
    exits: NDArray[np.intp],
    classes: Sequence[str],
    images: NDArray[np.uint8],
) -> Figure:
    """Show test images, one row for each exit at which they leave, right and wrong ones marked."""
    num_exits = len(test.log_probs)
    figure = Figure(figsize=(1.25 * EXAMPLES, 1.75 * num_exits))
    grid = figure.subplots(num_exits, EXAMPLES, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for exit in range(num_exits):
        for axes, row in zip(grid[exit], chosen_rows(exits, exit), strict=False):
            answer = answer_text(test, exit, row, classes)
            if answer.right is False:
                answer = answer._replace(text=f"{answer.text}\nis: {classes[test.labels[row]]}")
            _show_image(axes, images[row], answer)
        grid[exit][0].text(
            -0.15, 0.5, f"exit {exit}", transform=grid[exit][0].transAxes, rotation=90, va="center"
        )
    return figure


class AnswerText(NamedTuple):
    """An exit's answer for a row in words, and whether it is right; None for a mask."""

    text: str
    right: bool | None


def answer_text(test: Predictions, exit: int, row: int, classes: Sequence[str]) -> AnswerText:
    """Describe an exit's answer for a row.

    The text is the class with its probability; for a mask the share of right pixels.
    """
    log_probs, label = test.log_probs[exit, row], test.labels[row]
    answer = log_probs.argmax(-1)
    if answer.ndim:
        return AnswerText(f"{100 * np.mean(answer == label):.0f} % of pixels right", None)
    shown = f"{classes[answer]} {100 * np.exp(float(log_probs[answer])):.0f} %"
    if answer == label:
        return AnswerText(f"{RIGHT_MARK} {shown}", True)
    return AnswerText(f"{WRONG_MARK} {shown}", False)


def _show_image(axes: Axes, image: NDArray[np.uint8], answer: AnswerText) -> None:
    """Show an image under its answer, framed by whether that is right."""
    axes.imshow(image, interpolation="nearest")
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    colour = "k" if answer.right is None else RIGHT if answer.right else WRONG
    axes.set_title(answer.text, fontsize=7, color=colour)
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=2, linestyle="-" if answer.right else "--")


def chosen_rows(exits: NDArray[np.intp], exit: int) -> list[int]:
    """Choose a few rows that leave at an exit, spread over the test set."""
    rows = np.flatnonzero(exits == exit)
    if len(rows) == 0:
        return []
    picked: list[int] = rows[
        np.unique(np.linspace(0, len(rows) - 1, EXAMPLES).astype(int))
    ].tolist()
    return picked
