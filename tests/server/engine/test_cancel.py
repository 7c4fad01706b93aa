import pytest

from server.engine.request import InferenceRequest
from tests.fakes import FakeBackend, RecordingObserver
from tests.server.engine.harness import engine_of, run_out, sure


def test_rows_that_wait_are_dropped_at_once_when_nobody_waits_for_them() -> None:
    backend, observer, done = FakeBackend(), RecordingObserver(), list[InferenceRequest]()
    engine = engine_of(backend, done.extend, max_batch=4, observer=observer)
    rows = [InferenceRequest(sure(0.95, 0.95, 0.95)) for _ in range(3)]
    engine.submit(rows)
    engine.cancel(rows[:2])
    assert engine.queue_depths == [1, 0, 0] and observer.cancelled == 2
    engine.cancel(rows[:2])
    run_out(engine)
    assert [completion for completion in done] == [rows[2]]
    assert backend.stage_rows == {0: 1} and observer.cancelled == 2
    engine.cancel(rows)
    assert observer.cancelled == 2, "who was answered is not dropped"


@pytest.mark.parametrize("at", [0, 1, 2])
def test_rows_in_a_batch_are_dropped_at_its_end_when_nobody_waits_for_them(at: int) -> None:
    observer, done = RecordingObserver(), list[InferenceRequest]()
    rows = [InferenceRequest(sure(0.6, 0.6, 0.95)) for _ in range(2)]

    def leave(stage: int) -> None:
        if stage == at:
            engine.cancel([rows[0]])
            assert observer.cancelled == 0

    backend = FakeBackend(leave)
    engine = engine_of(backend, done.extend, max_batch=2, observer=observer)
    engine.submit(rows)
    run_out(engine)
    assert [completion for completion in done] == [rows[1]]
    assert [backend.stage_rows[stage] for stage in range(3)] == [
        2 if stage <= at else 1 for stage in range(3)
    ]
    assert observer.cancelled == 1


def test_a_row_that_is_cancelled_before_it_comes_never_runs() -> None:
    backend, observer = FakeBackend(), RecordingObserver()
    engine = engine_of(backend, observer=observer)
    row = InferenceRequest(sure(0.95, 0.95, 0.95))
    engine.cancel([row])
    engine.submit([row])
    run_out(engine)
    assert not backend.batches and observer.cancelled == 1
