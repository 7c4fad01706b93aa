import numpy as np
import pytest

from profiling.calibration import Predictions, Recorded
from profiling.evaluation.combined import combine_recorded, fit_and_combine
from scheduler.combiner import Combiner, log_softmax


def independent(rows: int, seed: int) -> Predictions:
    """Three heads of evidence of their own, so that all together are better than the last."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, rows)
    logits = 1.5 * (rng.normal(size=(3, rows, 4)) + 1.5 * np.eye(4)[labels])
    return Predictions(np.stack([log_softmax(each) for each in logits]), labels)


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded(independent(600, 0), independent(300, 1), independent(3000, 2))


def test_every_set_is_combined_as_a_server_would(recorded: Recorded) -> None:
    combiner = Combiner((None, np.array([0.5, 0.5]), np.array([0.2, 0.3, 0.5])))
    combined = combine_recorded(recorded, combiner)
    for part, before in zip(combined, recorded, strict=True):
        assert part is not None and before is not None
        assert np.array_equal(part.labels, before.labels)
        assert np.array_equal(part.log_probs, combiner.combine_all(before.log_probs))
    assert combine_recorded(recorded._replace(certification=None), combiner).certification is None


def test_calibration_rows_are_combined_by_fits_that_have_not_seen_them(recorded: Recorded) -> None:
    combiner, combined = fit_and_combine(recorded, seed=0)
    served = combine_recorded(recorded, combiner)
    assert np.array_equal(combined.test.log_probs, served.test.log_probs)
    assert not np.array_equal(combined.calibration.log_probs, served.calibration.log_probs)
    unseen, seen = (np.exp(each.calibration.log_probs) for each in (combined, served))
    assert unseen == pytest.approx(seen, abs=0.2)
