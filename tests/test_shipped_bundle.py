from pathlib import Path

import numpy as np
import pytest

from models.bundle import load_bundle
from profiling.calibration import load_recorded
from scheduler.policy import score_all
from scheduler.scheduler import load_scheduler
from scheduler.thresholds import route


def test_it_is_whole_and_at_most_5_mb(shipped_bundle: Path) -> None:
    bundle = load_bundle(shipped_bundle)
    files = [path for path in shipped_bundle.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 5_000_000
    assert len(files) == len(bundle.manifest.files) + 1


def test_any_budget_is_kept_on_the_calibration_set(shipped_bundle: Path) -> None:
    policy, frontier = load_scheduler(shipped_bundle)
    calibration = load_recorded(shipped_bundle / "calibration.npz").calibration
    scores, costs = score_all(policy, calibration.log_probs), frontier.costs_ms
    budgets = np.random.default_rng(0).uniform(costs[0], costs[-1], 100)
    for budget in budgets:
        exits = route(scores, policy.thresholds(budget))
        realised = costs[exits].mean()
        assert 0.99 * budget <= realised <= budget
        assert frontier.at_parameter(budget).expected_cost_ms == pytest.approx(realised)


def test_its_manifest_tells_the_accuracy_that_is_recorded(shipped_bundle: Path) -> None:
    told = load_bundle(shipped_bundle).manifest.training
    recorded = load_recorded(shipped_bundle / "calibration.npz")
    assert np.round(recorded.test.correct.mean(0), 4).tolist() == told["test_accuracy"]
    assert (
        np.round(recorded.calibration.correct.mean(0), 4).tolist() == (told["calibration_accuracy"])
    )
