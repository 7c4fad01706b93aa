import time
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.stage_costs import StageCosts
from scheduler.policy import ExitPolicy
from server.engine.request import InferenceRequest, Prediction
from server.errors import DeadlineExceeded, InferenceFailed
from tests.fakes import FakeBackend, RecordingObserver
from tests.server.engine.harness import (
    StepClock,
    engine_of,
    exits_of,
    policy,
    remembering,
    run_out,
    serve,
    sure,
)


def test_a_row_leaves_at_the_first_exit_that_fires_and_later_stages_never_run_it() -> None:
    backend = FakeBackend()
    rows = [
        InferenceRequest(sure(0.95, 0.99, 0.99)),
        InferenceRequest(sure(0.6, 0.85, 0.99)),
        InferenceRequest(sure(0.6, 0.6, 0.7)),
    ]
    done = serve(rows, backend)
    assert exits_of(done) == [0, 1, 2]
    assert backend.stage_rows == {0: 3, 1: 2, 2: 1}


def test_the_answer_is_that_of_the_exit_taken() -> None:
    answer = serve([InferenceRequest(sure(0.6, 0.85, 0.99))])[0].result
    assert isinstance(answer, Prediction)
    assert np.exp(answer.output.log_probs) == pytest.approx([0.85, 0.15])
    assert answer.trace is None


def test_a_row_obeys_its_own_parameter_beside_others_in_the_batch() -> None:
    rows = [
        InferenceRequest(sure(0.95, 0.95, 0.95)),
        InferenceRequest(sure(0.95, 0.95, 0.95), parameter=2.0),
    ]
    done = serve(rows, max_batch=2)
    assert exits_of(done) == [0, 2]


def test_an_infinite_parameter_runs_everything_to_the_end() -> None:
    done = serve([InferenceRequest(sure(0.99, 0.99, 0.99))], parameter=float("inf"))
    assert exits_of(done) == [2]


def test_the_trace_has_an_entry_for_every_exit_passed() -> None:
    answer = serve([InferenceRequest(sure(0.6, 0.85, 0.99), traced=True)])[0].result
    assert isinstance(answer, Prediction) and answer.trace is not None
    shown = [(e.exit, pytest.approx(e.score), e.threshold) for e in answer.trace]
    assert shown == [(0, 0.6, 0.9), (1, 0.85, 0.8)]
    assert answer.trace[0].elapsed_ms < answer.trace[1].elapsed_ms == answer.compute_ms


def test_only_the_bad_row_of_a_batch_fails() -> None:
    rows = [InferenceRequest(sure(0.95, 0.9, 0.9)) for _ in range(7)]
    rows[4].state = sure(FakeBackend.POISON, 0.9, 0.9)
    done = serve(rows, max_batch=7)
    failed = [index for index in range(7) if isinstance(done[index].result, InferenceFailed)]
    assert failed == [4]


def test_a_failed_batch_is_remembered_for_the_readiness_probe() -> None:
    engine = engine_of(FakeBackend())
    engine.submit([InferenceRequest(sure(FakeBackend.POISON, 0.9, 0.9))])
    assert not engine.failed
    run_out(engine)
    assert engine.failed


def test_rows_of_different_requests_share_a_batch_and_refill_the_next() -> None:
    backend = FakeBackend()
    rows = [
        InferenceRequest(sure(0.95, 0.9, 0.9)),
        InferenceRequest(sure(0.6, 0.6, 0.9)),
        InferenceRequest(sure(0.6, 0.6, 0.9)),
    ]
    serve(rows, backend, max_batch=8)
    sizes = [(stage, len(batch)) for stage, batch in backend.batches]
    assert sizes == [(0, 3), (1, 2), (2, 2)]


def test_a_row_that_is_answered_holds_nothing_of_its_batch() -> None:
    rows = [InferenceRequest(sure(0.95, 0.9, 0.9)), InferenceRequest(sure(0.6, 0.6, 0.9))]
    assert exits_of(serve(rows, max_batch=2)) == [0, 2]
    assert [row.state for row in rows] == [(), ()]


def test_rows_that_stay_together_are_gathered_as_one_part_of_their_batch() -> None:
    backend = FakeBackend()
    confidences = [(0.6, 0.6), (0.6, 0.95), (0.95, 0.6), (0.6, 0.6), (0.6, 0.6)]
    serve([InferenceRequest(sure(*each, 0.9)) for each in confidences], backend, max_batch=5)
    assert backend.parts == [[1] * 5, [4], [3]]


def test_requests_may_share_the_arrays_that_they_came_in() -> None:
    backend = FakeBackend()
    rows = np.concatenate([sure(c, c, 0.9)[0] for c in (0.95, 0.6, 0.6, 0.96)])
    state = (rows,)
    requests = [InferenceRequest(state, place=place) for place in (0, 1, 3)]
    assert exits_of(serve(requests, backend, max_batch=4)) == [0, 2, 0]
    assert backend.parts[0] == [3], "they are one part of one batch"


def test_without_threads_the_caller_runs_batches_and_is_told_when() -> None:
    done: list[InferenceRequest] = []
    waiting: list[int] = []
    engine = engine_of(
        FakeBackend(), done.extend, workers=0, max_batch=2, on_put=lambda: waiting.append(1)
    )
    engine.start()
    assert not engine.run_batch() and not waiting
    engine.submit([InferenceRequest(sure(0.6, 0.6, 0.9)) for _ in range(3)])
    assert waiting == [1] and not done
    runs = 0
    while engine.run_batch():
        runs += 1
    assert len(done) == 3 and runs == 6 and engine.idle()
    engine.submit([InferenceRequest(sure(0.95, 0.6, 0.9))])
    engine.stop()
    assert len(done) == 4, "what is in is answered before it stops"


def test_no_batch_passes_the_bound() -> None:
    backend = FakeBackend()
    serve([InferenceRequest(sure(0.5, 0.5, 0.5)) for _ in range(20)], backend, max_batch=8)
    assert max(len(batch) for _, batch in backend.batches) == 8


def test_lower_priority_numbers_go_first() -> None:
    backend = FakeBackend()
    rows = [
        InferenceRequest(sure(0.91, 0.9, 0.9), priority=3),
        InferenceRequest(sure(0.92, 0.9, 0.9), priority=0),
    ]
    serve(rows, backend)
    assert [batch for _, batch in backend.batches] == [
        pytest.approx([0.92]),
        pytest.approx([0.91]),
    ]


def test_a_deadline_that_passed_in_the_queue_is_an_error_and_costs_no_compute() -> None:
    clock = StepClock()
    clock.now = 5.0
    backend = FakeBackend(clock.step)
    done = serve([InferenceRequest(sure(0.95, 0.9, 0.9), deadline_s=4.0)], backend, clock=clock)
    assert isinstance(done[0].result, DeadlineExceeded)
    assert not backend.stage_rows


def test_a_deadline_that_passes_before_the_first_exit_is_an_error() -> None:
    clock = StepClock()
    done = serve(
        [InferenceRequest(sure(0.95, 0.9, 0.9), deadline_s=0.5)],
        FakeBackend(clock.step),
        clock=clock,
    )
    assert isinstance(done[0].result, DeadlineExceeded)


def test_a_row_leaves_early_when_the_next_exit_would_come_too_late() -> None:
    # The first row teaches the engine that a stage takes a second.
    clock = StepClock()
    rows = [
        InferenceRequest(sure(0.5, 0.5, 0.5)),
        InferenceRequest(sure(0.5, 0.5, 0.5), deadline_s=4.5),
    ]
    done = serve(rows, FakeBackend(clock.step), clock=clock)
    answer = done[1].result
    assert isinstance(answer, Prediction)
    assert (answer.exit, answer.late) == (0, False)


def test_before_any_batch_has_run_the_costs_say_when_the_next_exit_would_come() -> None:
    clock = StepClock()
    row = InferenceRequest(sure(0.5, 0.5, 0.5), deadline_s=1.5)
    costs = StageCosts((1,), np.full((3, 1), 1000.0))
    answer = serve([row], FakeBackend(clock.step), clock=clock, costs=costs)[0].result
    assert isinstance(answer, Prediction)
    assert (answer.exit, answer.late) == (0, False)


def test_a_late_answer_says_so() -> None:
    # Nothing is known of stage 1 yet, so the row goes on and the deadline passes there.
    clock = StepClock()
    row = InferenceRequest(sure(0.5, 0.5, 0.5), deadline_s=1.5)
    answer = serve([row], FakeBackend(clock.step), clock=clock)[0].result
    assert isinstance(answer, Prediction)
    assert (answer.exit, answer.late) == (1, True)


@settings(max_examples=30, deadline=None)
@given(
    confidences=st.lists(
        st.tuples(*[st.floats(0.5, 0.99)] * 3),
        min_size=1,
        max_size=40,
    ),
    max_batch=st.integers(1, 9),
    workers=st.integers(1, 3),
)
def test_every_row_completes_once_at_the_exit_its_own_confidences_name(
    confidences: list[tuple[float, float, float]], max_batch: int, workers: int
) -> None:
    rows = [InferenceRequest(sure(*each)) for each in confidences]
    done = serve(rows, max_batch=max_batch, workers=workers)
    assert len(done) == len(rows)
    for index, row in enumerate(confidences):
        seen = np.exp(np.log(np.float32(row)).astype(np.float64))
        expected = 0 if seen[0] >= 0.9 else 1 if seen[1] >= 0.8 else 2
        assert done[index].result.exit == expected  # type: ignore[union-attr]


class Sample(NamedTuple):
    """A row to be made: what it is sure of, and what happens to it."""

    confidences: tuple[float, float, float]
    own: float | None = None
    traced: bool = False
    poisoned: int | None = None  # the stage that fails on it

    def row(self, name: int) -> InferenceRequest:
        shown = [
            FakeBackend.POISON if stage == self.poisoned else sure
            for stage, sure in enumerate(self.confidences)
        ]
        return InferenceRequest(
            sure(*shown), request_id=name, parameter=self.own, traced=self.traced
        )

    def outcomes(self, parameters: set[float]) -> set[int | None]:
        """The exits that it may take while these are in force; None: it fails."""
        possible: set[int | None] = set()
        for exit, least in enumerate((0.9, 0.8, 0.0)):
            if exit == self.poisoned:
                return possible | {None}
            fires = self.confidences[exit] >= least
            may = [fires and (at == 1.0 or exit == 2)
                   for at in ({self.own} if self.own else parameters)]  # fmt: skip
            if any(may):
                possible.add(exit)
            if all(may):
                break
        return possible


SAMPLES = st.builds(
    Sample,
    st.tuples(*[st.sampled_from([0.6, 0.85, 0.95])] * 3),
    own=st.sampled_from([None, None, None, 1.0, 2.0]),
    traced=st.sampled_from([False, False, True]),
    poisoned=st.sampled_from([None] * 6 + [0, 1, 2]),
)


SUBMIT = st.tuples(st.just("submit"), st.lists(SAMPLES, min_size=1, max_size=8))


CANCEL = st.tuples(st.just("cancel"), st.lists(st.integers(0, 99), min_size=1, max_size=4))


FLIP = st.tuples(st.just("flip"), st.sampled_from([1.0, 2.0]))


PAUSE = st.tuples(st.just("pause"), st.sampled_from([0.0, 0.0005, 0.002]))


@settings(max_examples=120, deadline=None)
@given(
    steps=st.lists(SUBMIT | SUBMIT | CANCEL | FLIP | PAUSE, min_size=1, max_size=20),
    by=st.sampled_from([policy(), remembering()]),
    max_batch=st.integers(1, 9),
    workers=st.integers(1, 3),
    multiple=st.sampled_from([1, 1, 4]),
    memory=st.integers(4, 9) | st.just(1000),
)
def test_no_row_is_lost_or_answered_twice_whatever_happens_while_it_runs(
    steps: list[tuple[str, Any]],
    by: ExitPolicy,
    max_batch: int,
    workers: int,
    multiple: int,
    memory: int,
) -> None:
    done: list[InferenceRequest] = []
    observer = RecordingObserver()
    backend = FakeBackend(lambda stage: time.sleep(0.0002), memory, multiple)
    engine = engine_of(
        backend, done.extend, by=by, max_batch=max_batch, workers=workers, observer=observer
    )
    samples: list[Sample] = []
    rows: list[InferenceRequest] = []
    left: set[int] = set()
    parameters = {1.0}
    engine.start()
    for kind, what in steps:
        if kind == "submit":
            new = [sample.row(len(rows) + place) for place, sample in enumerate(what)]
            samples += what
            rows += new
            engine.submit(new)
        elif kind == "cancel" and rows:
            chosen = [place % len(rows) for place in what]
            left.update(chosen)
            engine.cancel([rows[place] for place in chosen])
        elif kind == "flip":
            parameters.add(what)
            engine.parameter = what
        elif kind == "pause":
            time.sleep(what)
    engine.stop()

    names = [completion.request_id for completion in done]
    assert len(set(names)) == len(names), "nobody is answered twice"
    assert set(range(len(rows))) - set(names) <= left, "nobody is lost who has not left"
    assert observer.cancelled == len(rows) - len(names)
    assert engine.queue_depths == [0, 0, 0] and engine.oldest_wait_s() == 0
    failed = False
    for row, outcome in ((each, each.result) for each in done):
        assert isinstance(row.request_id, int)
        sample = samples[row.request_id]
        if isinstance(outcome, InferenceFailed):
            failed = True
            assert None in sample.outcomes(parameters)
            continue
        assert isinstance(outcome, Prediction)
        assert outcome.exit in sample.outcomes(parameters)
        assert np.exp(outcome.output.log_probs[0]) == pytest.approx(
            sample.confidences[outcome.exit]
        )
        assert len(outcome.trace or ()) == (outcome.exit + 1 if sample.traced else 0)
    assert engine.failed == failed
    assert all(len(shown) <= max_batch + multiple - 1 for _, shown in backend.batches)


def test_workers_with_nothing_to_do_use_no_processor_time() -> None:
    engine = engine_of(FakeBackend(), workers=3)
    engine.start()
    engine.submit([InferenceRequest(sure(0.95, 0.95, 0.95))])
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.05
    engine.stop()
