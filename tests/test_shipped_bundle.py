from pathlib import Path

import numpy as np
import pytest

from models.bundle import load_bundle
from profiling.calibration import load_recorded
from scheduler.policy import replay, take_exits
from scheduler.scheduler import load_scheduler


def test_it_is_whole_and_at_most_5_mb(shipped_bundle: Path) -> None:
    bundle = load_bundle(shipped_bundle)
    files = [path for path in shipped_bundle.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 5_000_000
    assert len(files) == len(bundle.manifest.files) + 1


def test_any_budget_is_kept_as_promised(shipped_bundle: Path) -> None:
    policy, frontier = load_scheduler(shipped_bundle)
    recorded, costs = load_recorded(shipped_bundle / "calibration.npz"), frontier.costs_ms
    calibration, test = (replay(policy, part.log_probs) for part in recorded)
    for budget in np.random.default_rng(0).uniform(costs[0], costs[-1], 60):
        point = frontier.at_cost(budget)
        exits = take_exits(policy, calibration, point.parameter)
        # A price buys only so many costs: between two of them a little is left unspent.
        assert 0.96 * budget <= costs[exits].mean() <= point.expected_cost_ms + 1e-9
        assert point.expected_cost_ms <= budget * (1 + 1e-8)
        exits = take_exits(policy, test, point.parameter)
        assert costs[exits].mean() <= 1.01 * budget
        right = recorded.test.correct[np.arange(len(exits)), exits].mean()
        assert right == pytest.approx(point.expected_accuracy, abs=0.025)


def test_its_manifest_tells_the_accuracy_that_is_recorded(shipped_bundle: Path) -> None:
    told = load_bundle(shipped_bundle).manifest.training
    recorded = load_recorded(shipped_bundle / "calibration.npz")
    assert np.round(recorded.test.correct.mean(0), 4).tolist() == told["test_accuracy"]
    assert (
        np.round(recorded.calibration.correct.mean(0), 4).tolist() == (told["calibration_accuracy"])
    )
