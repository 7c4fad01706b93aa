from pathlib import Path

import numpy as np
import pytest

from models.bundle import load_bundle
from scheduler.policy import exits_taken, replay
from tests.bundles import recorded_of, scheduler_of


def test_it_is_whole_and_at_most_6_mb(shipped_bundle: Path) -> None:
    bundle = load_bundle(shipped_bundle)
    files = [path for path in shipped_bundle.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6_000_000
    assert len(files) == len(bundle.manifest.files) + 1


def test_any_budget_is_kept_as_promised(shipped_bundle: Path) -> None:
    policy, frontier, combiner = scheduler_of(shipped_bundle)
    recorded, costs = recorded_of(shipped_bundle), frontier.costs_ms
    served = [part.combined(combiner) for part in (recorded.calibration, recorded.test)]
    calibration, test = (replay(policy, part.log_probs) for part in served)
    for budget in np.random.default_rng(0).uniform(costs[0], costs[-1], 60):
        point = frontier.at_cost(budget)
        exits = exits_taken(policy, calibration, point.parameter)
        # A price buys only so many costs: between two of them a little is left unspent.
        assert 0.96 * budget <= costs[exits].mean() <= point.expected_cost_ms + 1e-9
        assert point.expected_cost_ms <= budget * (1 + 1e-8)
        exits = exits_taken(policy, test, point.parameter)
        assert costs[exits].mean() <= 1.01 * budget
        right = served[1].correct[np.arange(len(exits)), exits].mean()
        assert right == pytest.approx(point.expected_accuracy, abs=0.025)


def test_its_manifest_tells_the_accuracy_that_is_recorded(shipped_bundle: Path) -> None:
    told = load_bundle(shipped_bundle).manifest.training
    recorded = recorded_of(shipped_bundle)
    assert np.round(recorded.test.correct.mean(0), 4).tolist() == told["test_accuracy"]
    assert (
        np.round(recorded.calibration.correct.mean(0), 4).tolist() == (told["calibration_accuracy"])
    )


def test_all_shipped_bundles_stay_under_45_mb(shipped_bundle: Path) -> None:
    files = [path for path in shipped_bundle.parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 45_000_000


def test_the_text_bundle_is_whole_and_reaches_what_it_was_made_for(
    shipped_text_bundle: Path,
) -> None:
    bundle = load_bundle(shipped_text_bundle)
    assert (bundle.manifest.task, bundle.manifest.num_exits) == ("text", 4)
    trained, measured = bundle.manifest.trained, bundle.variant().entry.measured
    assert trained is not None and measured is not None
    accuracy = recorded_of(shipped_text_bundle).test.correct.mean(0)
    assert accuracy[-1] >= 0.89 and accuracy[0] >= 0.88
    assert np.round(accuracy, 4).tolist() == list(measured.accuracy)
    lost = np.subtract(trained.accuracy, measured.accuracy)
    assert np.abs(lost).max() < 0.003


def test_the_text_bundle_keeps_budgets_on_texts_it_has_not_seen(shipped_text_bundle: Path) -> None:
    policy, frontier, combiner = scheduler_of(shipped_text_bundle)
    recorded, costs = recorded_of(shipped_text_bundle), frontier.costs_ms
    served = [part.combined(combiner) for part in (recorded.calibration, recorded.test)]
    calibration, test = (replay(policy, part.log_probs) for part in served)
    for budget in np.random.default_rng(0).uniform(costs[0], costs[-1], 30):
        parameter = frontier.at_cost(budget).parameter
        seen = costs[exits_taken(policy, calibration, parameter)]
        unseen = costs[exits_taken(policy, test, parameter)]
        assert seen.mean() <= budget * (1 + 1e-8)
        error = np.hypot(seen.std() / len(seen) ** 0.5, unseen.std() / len(unseen) ** 0.5)
        assert unseen.mean() <= 1.01 * budget + 2 * error
