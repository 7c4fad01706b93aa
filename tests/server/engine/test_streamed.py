"""Outputs of exits that are handed over while their rows still run."""

import numpy as np
import pytest

from server.engine.request import InferenceRequest, Prediction, Shown
from server.errors import DeadlineExceeded
from tests.fakes import FakeBackend
from tests.server.engine.harness import StepClock, engine_of, run_out, sure


def streamed(*confidences: float, **others: object) -> InferenceRequest:
    return InferenceRequest(sure(*confidences), traced=True, streamed=True, **others)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("confidences", "exits"), [((0.95, 0.9, 0.9), 1), ((0.6, 0.85, 0.9), 2), ((0.6, 0.6, 0.7), 3)]
)
def test_each_exit_is_shown_before_the_next_stage_and_before_the_result(
    confidences: tuple[float, ...], exits: int
) -> None:
    happened: list[str] = []
    backend = FakeBackend(lambda stage: happened.append(f"stage {stage}"))

    def show(shown: Shown) -> None:
        happened.extend(f"exit {entry.exit}" for _, entry in shown)

    engine = engine_of(backend, lambda done: happened.extend(["result"] * len(done)), on_exits=show)
    engine.submit([streamed(*confidences)])
    run_out(engine)
    each = [part for k in range(exits) for part in (f"stage {k}", f"exit {k}")]
    assert happened == [*each, "result"]


def test_what_is_shown_is_the_entry_of_the_trace() -> None:
    seen: Shown = []
    row, engine = streamed(0.6, 0.85, 0.9), None
    engine = engine_of(FakeBackend(), on_exits=seen.extend)
    engine.submit([row])
    run_out(engine)
    assert isinstance(row.result, Prediction)
    assert [entry for _, entry in seen] == row.result.trace
    assert all(each is row for each, _ in seen)
    np.testing.assert_allclose(np.exp(seen[1][1].log_probs), [0.85, 0.15], rtol=1e-5)


def test_only_streamed_rows_of_a_batch_are_shown_and_cost_the_others_no_head() -> None:
    seen: Shown = []
    backend = FakeBackend()
    engine = engine_of(backend, max_batch=4, on_exits=seen.extend, parameter=2.0)
    rows = [InferenceRequest(sure(0.6, 0.6, 0.9)) for _ in range(3)]
    engine.submit(rows)
    run_out(engine)
    assert seen == [] and backend.heads == [2], "nothing leaves early, so no head but the last runs"

    backend.heads.clear()
    engine = engine_of(backend, max_batch=4, on_exits=seen.extend, parameter=2.0)
    rows = [InferenceRequest(sure(0.6, 0.6, 0.9), traced=True), streamed(0.6, 0.6, 0.9)]
    engine.submit(rows)
    run_out(engine)
    assert backend.heads == [0, 1, 2]
    assert [(request, entry.exit) for request, entry in seen] == [(rows[1], k) for k in range(3)]


def test_a_row_that_is_too_late_for_exit_0_is_not_shown() -> None:
    clock, seen = StepClock(), list[object]()
    engine = engine_of(FakeBackend(clock.step), on_exits=seen.extend, clock=clock)
    rows = [streamed(0.95, 0.95, 0.95, deadline_s=0.5), streamed(0.6, 0.6, 0.9, deadline_s=1.5)]
    engine.submit(rows)
    run_out(engine)
    assert isinstance(rows[0].result, DeadlineExceeded)
    assert seen == [] or all(request is rows[1] for request, _ in seen)  # type: ignore[misc]


def test_a_row_whose_client_has_left_is_not_shown() -> None:
    seen: Shown = []
    row = streamed(0.6, 0.6, 0.9)
    engine = engine_of(FakeBackend(lambda stage: stage == 1 and engine.cancel([row])),
                       on_exits=seen.extend)  # fmt: skip
    engine.submit([row])
    run_out(engine)
    assert [entry.exit for _, entry in seen] == [0]


def test_a_batch_that_is_tried_again_shows_each_exit_once() -> None:
    seen: Shown = []
    rows = [streamed(0.6, 0.6, 0.9) for _ in range(4)]
    engine = engine_of(FakeBackend(memory=2), max_batch=4, on_exits=seen.extend)
    engine.submit(rows)
    run_out(engine)
    for row in rows:
        assert [entry.exit for request, entry in seen if request is row] == [0, 1, 2]


def test_rows_are_answered_even_if_their_exits_cannot_be_handed_over() -> None:
    def fail(shown: Shown) -> None:
        raise RuntimeError("the loop is closed")

    row = streamed(0.6, 0.6, 0.9)
    engine = engine_of(FakeBackend(), on_exits=fail)
    engine.submit([row])
    run_out(engine)
    assert isinstance(row.result, Prediction) and not engine.failed
