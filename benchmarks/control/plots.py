"""Plots of latency, parameter and exit rates while a budget was held."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.control.log import ControlLog
from benchmarks.control.metrics import rolling_of
from profiling.evaluation.figures import STYLE

Array = NDArray[np.float64]
HELD, FROZEN, BUDGET = "#d55e00", "#6b7280", "#000000"
EXITS = ("#440154", "#31688e", "#35b779", "#fde725", "#d3d3d3")  # dark to light
RATE_SAMPLES = 300
LOWEST, HIGHEST = 0.7, 1.7  # times the budget, the range of the plot
POINTS = 300  # of a line: more are not visible


def control_figure(pairs: Sequence[tuple[ControlLog, ControlLog | None]], title: str) -> Figure:
    """Draw a column per scenario: rolling latency and budget, the parameter, the exit rates.

    Args:
        pairs: The log of a budget that was held, and that of the same under a frozen parameter.
        title: Title of the figure.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.3 * len(pairs), 5.4))
        axes = figure.subplots(
            3, len(pairs), squeeze=False, sharex="col", height_ratios=(3, 1.4, 1.6)
        )
        figure.suptitle(title, fontsize=10)
        for column, (log, frozen) in enumerate(pairs):
            _latency(axes[0, column], log, frozen)
            _parameter(axes[1, column], log)
            _rates(axes[2, column], log)
        axes[0, 0].set_ylabel("rolling latency, ms")
        axes[1, 0].set_ylabel("parameter")
        axes[2, 0].set_ylabel("exit rates, %")
        lines, labels = axes[0, 0].get_legend_handles_labels()
        areas, exits = axes[2, 0].get_legend_handles_labels()
        figure.legend(
            [*lines, *areas], [*labels, *exits], fontsize=8, ncols=8, loc="outside lower center"
        )
    return figure


def _latency(axes: Axes, log: ControlLog, frozen: ControlLog | None) -> None:
    window = int(log.about["window"])
    axes.set_title(str(log.about["scenario"]), fontsize=9)
    if frozen is not None:
        _line(axes, frozen.done_s, rolling_of(frozen, window).mean_ms, FROZEN, "frozen", 1.0, ":")
    rolling = rolling_of(log, window)
    _line(axes, log.done_s, rolling.mean_ms, HELD, "held", 1.4)
    mean_budget = "budget, mean of the window's"
    _line(axes, log.done_s, rolling.budget_ms, BUDGET, mean_budget, 0.9, "--")
    _line(axes, log.done_s, log.budget_ms, BUDGET, "budget", 0.4)
    most_ms = HIGHEST * log.budget_ms.max()  # the frozen one may go anywhere
    low_ms, high_ms = axes.get_ylim()
    axes.set_ylim(max(low_ms, LOWEST * log.budget_ms.min()), min(high_ms, most_ms))


def _line(
    axes: Axes,
    times_s: Array,
    values: Array,
    colour: str,
    label: str,
    width: float,
    style: str = "-",
) -> None:
    step = max(len(times_s) // POINTS, 1)
    axes.plot(times_s[::step], values[::step], style, color=colour, lw=width, label=label)


def _parameter(axes: Axes, log: ControlLog) -> None:
    low, high = np.nanpercentile(log.parameter, (2, 98))  # ends of the frontier are far away
    step = max(len(log) // POINTS, 1)
    axes.plot(log.done_s[::step], log.parameter[::step], color=HELD, lw=0.8, drawstyle="steps-post")
    if high > low:
        axes.set_ylim(low - 0.2 * (high - low), high + 0.2 * (high - low))


def _rates(axes: Axes, log: ControlLog) -> None:
    exits = range(len(log.about["costs_ms"]))
    kernel = np.ones(min(RATE_SAMPLES, len(log)))
    full = np.convolve(np.ones(len(log)), kernel, "same")
    step = max(len(log) // POINTS, 1)
    rates = [(100 * np.convolve(log.exit == k, kernel, "same") / full)[::step] for k in exits]
    labels = [f"exit {k}" for k in exits]
    axes.stackplot(log.done_s[::step], rates, colors=EXITS[: len(rates)], labels=labels)
    axes.set(ylim=(0, 100), xlabel="time, s")
    axes.grid(visible=False)
