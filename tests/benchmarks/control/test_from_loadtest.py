import numpy as np

from benchmarks.control.from_loadtest import log_of_load, static_curves
from benchmarks.control.scenarios import Phase, Scenario
from profiling.loadtest.log import LoadLog, PollLog, PutLog, SampleLog

TWO = Scenario("two", (Phase(20, 10.0), Phase(20, 10.0)))


def make_load(measure: str = "compute") -> LoadLog:
    """Four samples, one a second from 0.5 s on; the second ends last, the third failed."""
    due_s = np.array([0.5, 1.5, 2.5, 3.5])
    samples = SampleLog(
        due_s=due_s,
        sent_s=due_s,
        latency_ms=np.array([10.0, 2500.0, 10.0, 10.0]),
        outcome=np.array(["200", "200", "429", "200"]),
        input=np.array([0, 1, 2, 1], np.int32),
        form=np.full(4, "clean"),
        exit=np.array([0, 1, -1, 1], np.int8),
        class_id=np.array([0, 1, -1, 1], np.int32),
        correct=np.array([1, 0, -1, 1], np.int8),
        late=np.zeros(4, np.int8),
        total_ms=np.array([9.0, 2400.0, np.nan, 8.0]),
        queue_ms=np.zeros(4),
        decode_ms=np.zeros(4),
        compute_ms=np.array([1.0, 2.0, np.nan, 3.0]),
        budget_ms=np.array([2.0, 2.0, 4.0, 4.0]),
    )
    moments = [np.array([0.0, 2.0])] * 3
    puts = PutLog(*moments, np.array(["200", "200"]), np.array([2.0, 4.0]))
    at_s = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    polls = PollLog(*([at_s] * 10))
    return LoadLog(measure, 2, 2.0, samples, puts, polls)


def test_answered_samples_come_in_order_of_completion() -> None:
    log = log_of_load(make_load(), TWO, {"window": 10})
    assert log.latency_ms.tolist() == [1.0, 3.0, 2.0]
    assert log.exit.tolist() == [0, 1, 1]
    assert log.correct.tolist() == [1, 1, 0]
    assert log.budget_ms.tolist() == [2.0, 4.0, 2.0]
    assert log.phase.tolist() == [0, 1, 0]
    assert log.parameter.tolist() == [0.0, 3.0, 4.0]  # of the last look before
    assert log.about["outcomes"] == {"200": 3, "429": 1}
    assert log.about["window"] == 10 and log.about["source"] == "real"


def test_what_came_before_any_budget_was_set_is_left_out() -> None:
    load = make_load()
    unset = np.array([np.nan, 2.0, 4.0, 4.0])
    log = log_of_load(load._replace(samples=load.samples._replace(budget_ms=unset)), TWO, {})
    assert log.latency_ms.tolist() == [3.0, 2.0]


def test_the_measure_says_which_latency_counts() -> None:
    assert log_of_load(make_load("end_to_end"), TWO, {}).latency_ms.tolist() == [9.0, 8.0, 2400.0]


def test_of_a_fake_device_nothing_is_right_or_wrong() -> None:
    assert set(log_of_load(make_load(), TWO, {}, labelled=False).correct.tolist()) == {-1}


def test_fixed_parameters_are_judged_on_the_samples_of_each_phase() -> None:
    static = np.array([[0, 0, 0], [0, 1, 0]], np.int8)
    correct = np.array([[True, True], [False, True], [False, False]])
    curves = static_curves(make_load(), TWO, static, correct, np.array([1.0, 3.0]))
    assert curves == [[[1.0, 2.0], [0.5, 1.0]], [[1.0, 3.0], [0.0, 1.0]]]
