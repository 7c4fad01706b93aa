import numpy as np
import pytest

from benchmarks.control.metrics import measure_control, rolling_of
from tests.benchmarks.control.control_logs import make_log

WINDOW = 100


def test_the_window_is_of_samples_and_of_seconds() -> None:
    rolling = rolling_of(make_log(np.arange(300.0), 200.0), WINDOW)
    assert rolling.samples[50] == 51
    assert rolling.mean_ms[299] == pytest.approx(np.arange(200, 300).mean())
    old = make_log([1.0, 2.0, 9.0], 5.0, done_s=np.array([0.0, 50.0, 100.0]))
    assert rolling_of(old, WINDOW).mean_ms.tolist() == [1.0, 1.5, 5.5]


def test_a_budget_held_exactly_has_no_fault() -> None:
    figures = measure_control(make_log(np.full(2000, 2.0), 2.0))
    assert (figures.overshoot, figures.above, figures.infeasible) == (0, 0, 0)
    assert figures.under_use == pytest.approx(0)
    assert figures.settle is None  # nothing changed
    assert (figures.mean_ms, figures.accuracy) == (2.0, 1.0)


def test_time_above_and_under_use_are_told_apart() -> None:
    above = measure_control(make_log(np.full(2000, 2.1), 2.0))
    assert above.above == 1 and above.overshoot == pytest.approx(0.05)
    under = measure_control(make_log(np.full(2000, 1.8), 2.0))
    assert under.above == 0 and under.under_use == pytest.approx(0.1)


def test_nobody_need_spend_more_than_running_to_the_end_takes() -> None:
    assert measure_control(make_log(np.full(2000, 10.0), 50.0)).under_use == pytest.approx(0)


def test_what_no_parameter_can_keep_is_counted_apart() -> None:
    hopeless = measure_control(make_log(np.full(2000, 1.0), 0.5))
    assert hopeless.infeasible == 1
    assert hopeless.overshoot is None and hopeless.above is None


def test_settling_is_counted_from_the_change_to_the_last_entry_into_the_band() -> None:
    """The budget drops to half; the samples follow 300 later, the window's mean 98 after that."""
    budget = np.repeat([4.0, 2.0], 2000)
    latency = np.repeat([4.0, 2.0], [2300, 1700])
    log = make_log(latency, budget, phase=np.repeat([0, 1], 2000).astype(np.int8))
    figures = measure_control(log)
    assert figures.settle is not None
    assert 370 <= figures.settle <= 430  # the error is smoothed over 50 samples
    assert figures.overshoot == pytest.approx(1.0)
    never = measure_control(make_log(np.full(4000, 4.0), budget, phase=log.phase))
    assert never.settle == 2000


def test_a_step_is_judged_against_the_budgets_that_its_samples_came_under() -> None:
    """Samples that follow at once leave no trace, though the window's mean is between the two."""
    both = np.repeat([4.0, 2.0], 2000)
    figures = measure_control(make_log(both, both, phase=np.repeat([0, 1], 2000).astype(np.int8)))
    assert (figures.settle, figures.overshoot) == (0, 0)


def test_accuracy_is_judged_by_fixed_parameters_on_the_same_samples() -> None:
    log = make_log(
        np.full(1000, 1.5),
        1.5,
        exit=np.tile([0, 1], 500).astype(np.int8),
        correct=np.tile([1, 1, 1, 0], 250).astype(np.int8),
    )
    about = {**log.about, "static_curves": [[[1.0, 2.0], [0.7, 0.9]]]}
    figures = measure_control(
        make_log(log.latency_ms, 1.5, exit=log.exit, correct=log.correct, about=about)
    )
    assert figures.lost == pytest.approx(0.8 - 0.75)
    assert measure_control(log).lost is None


def test_without_labels_there_is_no_accuracy() -> None:
    assert (
        measure_control(make_log([1.0] * 500, 2.0, correct=np.full(500, -1, np.int8))).accuracy
        is None
    )
