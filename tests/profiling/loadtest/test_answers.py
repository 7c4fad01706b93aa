import json
from typing import Any

import numpy as np
import pytest

from profiling.loadtest.answers import describe_outcome, read_log
from profiling.loadtest.load import LoadResult

LATENCY = {"total": 4.0, "queue": 1.0, "decode": 0.5, "compute": 2.0}
NONE = np.array([])


def answer(exit: int, **fields: Any) -> bytes:
    told = {"model": "pets", "num_exits": 3, "exit": exit, "class_id": 1, "label": "bee"}
    return json.dumps({**told, "latency_ms": LATENCY, **fields}).encode()


def result(
    bodies: list[bytes],
    outcome: list[str] | None = None,
    due_s: list[float] | None = None,
    beside: tuple[LoadResult, ...] = (),
) -> LoadResult:
    """Calls 0, 1, ... due after 0, 1, ... seconds, sent at once, answered 10 ms later."""
    count = len(bodies)
    times = np.arange(count, dtype=float) if due_s is None else np.array(due_s)
    outcomes = np.array(outcome or ["200"] * count, str)
    latency_ms = np.full(count, 10.0)
    return LoadResult(np.arange(count), times, times, latency_ms, outcomes, bodies, beside)


def log_of(load: LoadResult, **changes: Any) -> Any:
    count = len(load.call)
    given: dict[str, Any] = {
        "inputs": np.arange(count),
        "variants": np.array(["clean"] * count),
        "labels": None,
        "before": [{"model": "other", "budget_ms": 9.0}, {"model": "pets", "budget_ms": None}],
        "budgets_ms": (),
    }
    with_beside = load if load.beside else load._replace(beside=(result([]), result([])))
    return read_log(with_beside, **(given | changes))


def test_rows_come_in_the_order_of_their_times_with_what_their_answers_say() -> None:
    late = answer(2, deadline_exceeded=True, class_id=0, label="ape")
    load = result([answer(1), b"busy", late], ["200", "429", "200"], due_s=[2.0, 1.0, 0.5])
    log, models = log_of(load, inputs=np.array([7, 8, 9]), labels=[None] * 7 + [1, 1, "bee"])
    samples = log.samples
    assert models == ["pets"] and (log.measure, log.num_exits) == ("compute", 3)
    assert samples.due_s.tolist() == [0.5, 1.0, 2.0] and samples.input.tolist() == [9, 8, 7]
    assert samples.exit.tolist() == [2, -1, 1] and samples.class_id.tolist() == [0, -1, 1]
    assert samples.correct.tolist() == [0, -1, 1] and samples.late.tolist() == [1, 0, 0]
    assert samples.outcome.tolist() == ["200", "429", "200"]
    np.testing.assert_array_equal(samples.compute_ms, [2.0, np.nan, 2.0])
    np.testing.assert_array_equal(samples.total_ms, [4.0, np.nan, 4.0])


def test_without_labels_nothing_is_right_or_wrong() -> None:
    log, _ = log_of(result([answer(0)]))
    assert log.samples.correct.tolist() == [-1]


def test_a_budget_holds_for_what_is_sent_once_it_is_answered() -> None:
    puts = result([b""] * 3, ["200", "422", "200"], due_s=[1.0, 2.0, 3.0])
    load = result([answer(0)] * 6, due_s=[0.5, 1.005, 1.5, 2.5, 3.005, 3.5])
    before = [{"model": "pets", "budget_ms": 8.0, "measure": "end_to_end"}]
    log, _ = log_of(
        load._replace(beside=(puts, result([]))), before=before, budgets_ms=(1.0, 2.0, None)
    )
    assert log.first_budget_ms == 8.0 and log.measure == "end_to_end"
    np.testing.assert_array_equal(log.puts.budget_ms, [1.0, 2.0, np.nan])
    np.testing.assert_array_equal(log.samples.budget_ms, [8, 8, 1, 1, 1, np.nan])


def test_looks_at_the_budget_tell_the_state_of_the_model_that_answers() -> None:
    state = {"model": "pets", "rolling_latency_ms": 1.5, "feasible": False, "budget_ms": None}
    bodies = [json.dumps({"models": [{"model": "a"}, state]}).encode(), b"", b'{"models": []}']
    looks = result(bodies, ["200", "timed out", "200"])
    log, _ = log_of(result([answer(0)], beside=(result([]), looks)))
    np.testing.assert_array_equal(log.polls.rolling_latency_ms, [1.5, np.nan])
    np.testing.assert_array_equal(log.polls.feasible, [0, np.nan])
    assert np.isnan(log.polls.budget_ms).all() and log.polls.at_s.tolist() == [0.01, 2.01]


@pytest.mark.parametrize("body", [b"hello", b"[]", b"{}", answer(0, latency_ms=1)])
def test_what_another_server_says_is_one_sentence(body: bytes) -> None:
    with pytest.raises(ValueError, match="not those of eenet serve"):
        log_of(result([body]))


def test_without_an_answer_the_servers_own_sentence_is_told() -> None:
    load = result([b'{"error": "full"}', b"no JSON"], ["429", "500"])
    assert [describe_outcome(load, 0), describe_outcome(load, 1)] == ["429: full", "500"]
    with pytest.raises(ValueError, match="no request was answered; the first: 429: full"):
        log_of(load)
