"""Convert the log of a load test, to judge the real server like a simulation."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.control.log import ControlLog
from benchmarks.control.scenarios import Scenario
from profiling.loadtest.log import LoadLog

Array = NDArray[np.float64]


def log_of_load(
    load: LoadLog, scenario: Scenario, about: Mapping[str, Any], *, labelled: bool = True
) -> ControlLog:
    """Take the answered samples that arrived under a budget, in order of completion.

    Args:
        load: The log of the load test, with polls.
        scenario: The scenario that was sent.
        about: Goes into the log.
        labelled: Whether predictions can be right: a fake device returns those of other inputs.
    """
    samples, polls = load.samples, load.polls
    done_s = samples.due_s + samples.latency_ms / 1e3
    order = np.argsort(done_s, kind="stable")
    order = order[(samples.exit[order] >= 0) & ~np.isnan(samples.budget_ms[order])]
    looks = np.clip(np.searchsorted(polls.at_s, done_s[order], side="right") - 1, 0, None)
    kinds, counts = np.unique(samples.outcome, return_counts=True)
    return ControlLog(
        samples.due_s[order],
        done_s[order],
        load.measured_ms[order],
        samples.exit[order],
        samples.correct[order] if labelled else np.full(len(order), -1, np.int8),
        samples.budget_ms[order],
        polls.parameter[looks],
        polls.floor_ms[looks],
        polls.ceiling_ms[looks],
        _phases(load, scenario)[order].astype(np.int8),
        {
            **about,
            "scenario": scenario.name,
            "measure": scenario.measure,
            "drifts": scenario.drifts,
            "source": "real",
            "outcomes": dict(zip(kinds.tolist(), counts.tolist(), strict=True)),
            "puts_ms": load.puts.latency_ms.round(1).tolist(),
        },
    )


def static_curves(
    load: LoadLog,
    scenario: Scenario,
    static_exits: NDArray[np.int8],
    correct: NDArray[np.bool_],
    costs_ms: Array,
) -> list[list[list[float]]]:
    """Mean cost and accuracy of the samples of each phase at each fixed parameter.

    Args:
        load: The log with the samples.
        scenario: The scenario with the phases.
        static_exits: Exit of each of M inputs at G fixed parameters, (G, M).
        correct: Whether each exit is right, (M, K).
        costs_ms: Cost until each exit, (K,).
    """
    phases = _phases(load, scenario)
    curves = []
    for phase in range(len(scenario.phases)):
        rows = load.samples.input[(phases == phase) & (load.samples.exit >= 0)]
        curves.append(static_curve(static_exits[:, rows], correct[rows], costs_ms))
    return curves


def static_curve(
    exits: NDArray[np.int8], correct: NDArray[np.bool_], costs_ms: Array
) -> list[list[float]]:
    """Mean costs and accuracies of N samples whose exits at G parameters are given, (G, N)."""
    accuracy = correct[np.arange(len(correct)), exits].mean(1)
    return [costs_ms[exits].mean(1).round(5).tolist(), accuracy.round(5).tolist()]


def _phases(load: LoadLog, scenario: Scenario) -> NDArray[np.intp]:
    """Phase of the scenario in which each sample was due."""
    phases: NDArray[np.intp] = (
        np.searchsorted(np.array(scenario.begins_s), load.samples.due_s, side="right") - 1
    )
    return phases
