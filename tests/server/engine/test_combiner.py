"""Combined answers in the engine: the same as offline, whatever ways rows take."""

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.backend import HeadOutput, State, gather_arrays
from scheduler.combiner import Combiner
from scheduler.policy import ExitPolicy, exits_taken, replay
from server.engine.active_policy import ActivePolicy
from server.engine.request import AuditResult, AuditTrace, InferenceRequest, Prediction
from tests.combiners import EXITS, FORMS, SEEDS, random_combiner, random_log_probs
from tests.server.engine.harness import engine_of, policy, remembering, run_out, serve

CLASSES = 4


class RecordedHeads:
    """A row's input is its number among the recorded outputs (K, N, C); notes the heads it runs."""

    num_exits, device = EXITS, "fake"
    gather = staticmethod(gather_arrays)

    def __init__(self, log_probs: NDArray[np.floating]) -> None:
        self.log_probs = log_probs.astype(np.float32)
        self.heads: list[int] = []

    def run_stage(self, stage: int, state: State) -> State:
        return (state[0].copy(),)

    def run_head(self, exit: int, state: State) -> HeadOutput:
        self.heads.append(exit)
        log_probs = self.log_probs[exit, state[0]]
        return HeadOutput(2 * log_probs, log_probs)

    def synchronize(self) -> None:
        pass


def requests_of(rows: int, **options: Any) -> list[InferenceRequest]:
    return [InferenceRequest((np.array([row]),), **options) for row in range(rows)]


def exits_offline(by: ExitPolicy, answers: NDArray[np.floating], parameter: float) -> list[int]:
    return exits_taken(by, replay(by, answers), parameter).tolist()


def prediction_of(request: InferenceRequest) -> Prediction:
    assert isinstance(request.result, Prediction)
    return request.result


@given(FORMS, SEEDS, st.integers(1, 5), st.sampled_from([policy, remembering]))
@settings(max_examples=30, deadline=None)
def test_answers_and_exits_are_those_of_a_replay_of_combined_outputs(
    forms: list[str], seed: int, max_batch: int, by: Any
) -> None:
    combiner, log_probs = random_combiner(forms, CLASSES, seed), random_log_probs(8, CLASSES, seed)
    backend = RecordedHeads(log_probs)
    answers = combiner.combine_all(backend.log_probs)
    done = serve(requests_of(8), backend, by=by(), max_batch=max_batch, combiner=combiner)
    found = [prediction_of(done[row]) for row in range(8)]
    assert [each.exit for each in found] == exits_offline(by(), answers, 1.0)
    for row, each in enumerate(found):
        assert each.output.log_probs == pytest.approx(answers[each.exit, row], abs=1e-5)
        own = combiner.weights[each.exit] is None
        logits = 2 * backend.log_probs[each.exit, row] if own else each.output.log_probs
        assert np.array_equal(each.output.logits, logits)


@given(
    FORMS,
    SEEDS,
    st.lists(st.sampled_from([1.0, 2.0]), min_size=3, max_size=6),
    st.sampled_from([policy, remembering]),
)
@settings(max_examples=30, deadline=None)
def test_answers_are_combined_however_parameters_move_and_heads_are_skipped(
    forms: list[str], seed: int, parameters: list[float], by: Any
) -> None:
    combiner, log_probs = random_combiner(forms, CLASSES, seed), random_log_probs(9, CLASSES, seed)
    backend, done = RecordedHeads(log_probs), list[InferenceRequest]()
    moves = iter(parameters)
    engine = engine_of(
        backend, done.extend, by=by(), parameter=2.0, max_batch=2, workers=0, combiner=combiner
    )
    rows = requests_of(9)
    for row in rows[6:]:
        row.deadline_s = time.perf_counter() + 600
    rows[8].traced = True
    rows[0].parameter = 1.0
    engine.submit(rows)
    while engine.run_batch():
        engine.parameter = next(moves, 1.0)
    answers = combiner.combine_all(backend.log_probs)
    for row, request in enumerate(rows):
        found = prediction_of(request)
        assert found.output.log_probs == pytest.approx(answers[found.exit, row], abs=1e-5)
    trace = prediction_of(rows[8]).trace
    assert trace is not None
    for entry in trace:
        assert entry.log_probs == pytest.approx(answers[entry.exit, 8], abs=1e-5)


@pytest.mark.parametrize(
    ("forms", "run"),
    [
        (["none", "none", "none"], [2]),
        (["powers", "none", "none"], [2]),
        (["none", "powers", "none"], [0, 2]),
        (["none", "none", "both"], [0, 1, 2]),
    ],
)
@pytest.mark.parametrize("by", [policy, remembering])
def test_heads_that_no_exit_needs_are_run_just_where_a_combination_reads_them(
    forms: list[str], run: list[int], by: Any
) -> None:
    backend = RecordedHeads(random_log_probs(1, CLASSES))
    combiner = random_combiner(forms, CLASSES)
    serve(requests_of(1), backend, by=by(), parameter=2.0, combiner=combiner)
    assert backend.heads == run


def test_a_row_that_runs_to_the_end_still_gets_heads_that_are_combined() -> None:
    # Its first head was skipped, so the policy is not asked again; exit 2 answers from 1 and 2.
    powers = (None, np.array([0.0, 1.0]), np.array([0.0, 0.5, 0.5]))
    log_probs = random_log_probs(1, CLASSES)
    backend, done = RecordedHeads(log_probs), list[InferenceRequest]()
    (row,) = requests_of(1)
    engine = engine_of(backend, done.extend, by=remembering(), workers=0, combiner=Combiner(powers))
    engine.submit([row])
    row.run_to_end = True
    while engine.run_batch():
        pass
    found = prediction_of(row)
    assert (found.exit, backend.heads) == (2, [0, 1, 2])
    expected = Combiner(powers).combine_all(backend.log_probs)[2, 0]
    assert found.output.log_probs == pytest.approx(expected, abs=1e-5)


def test_rows_keep_the_combiner_that_they_entered_with() -> None:
    log_probs = random_log_probs(2, CLASSES)
    backend, done = RecordedHeads(log_probs), list[InferenceRequest]()
    first, second = random_combiner(["both"] * 3, CLASSES, 0), random_combiner(["powers"] * 3, 4, 1)
    engine = engine_of(backend, done.extend, parameter=2.0, max_batch=2, workers=0, combiner=first)
    rows = requests_of(2)
    engine.submit(rows[:1])
    engine.run_batch()
    engine.active_policy = ActivePolicy(policy(), 2.0, second)
    engine.submit(rows[1:])
    while engine.run_batch():
        pass
    for place, (row, combiner) in enumerate(zip(rows, (first, second), strict=True)):
        expected = combiner.combine_all(backend.log_probs)[2, place]
        assert prediction_of(row).output.log_probs == pytest.approx(expected, abs=1e-5)


def test_audits_get_the_own_outputs_of_the_heads() -> None:
    log_probs, audits = random_log_probs(3, CLASSES), list[AuditResult]()
    backend = RecordedHeads(log_probs)
    engine = engine_of(
        backend, max_batch=3, on_audit=audits.append, combiner=random_combiner(["both"] * 3, 4)
    )
    engine.submit([InferenceRequest((np.array([row]),), audit=AuditTrace(row)) for row in range(3)])
    run_out_with_audits(engine)
    assert len(audits) == 3
    for trace, found in audits:
        assert found is not None and np.array_equal(found, backend.log_probs[:, trace.key])


def run_out_with_audits(engine: Any) -> None:
    """Answer the requests and finish their audits."""
    while engine.run_batch():
        pass
    run_out(engine)


def test_a_batch_that_is_retried_in_halves_remembers_each_head_once() -> None:
    class FailsOnce(RecordedHeads):
        failed = False

        def run_head(self, exit: int, state: State) -> HeadOutput:
            if exit == 1 and not self.failed:
                self.failed = True
                raise RuntimeError("once")
            return super().run_head(exit, state)

    backend = FailsOnce(random_log_probs(2, CLASSES))
    combiner = random_combiner(["none", "powers", "both"], CLASSES)
    done = serve(requests_of(2), backend, parameter=2.0, max_batch=2, combiner=combiner)
    answers = combiner.combine_all(backend.log_probs)
    for row in range(2):
        expected = answers[2, row]
        assert prediction_of(done[row]).output.log_probs == pytest.approx(expected, abs=1e-5)
