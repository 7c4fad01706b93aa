import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.baselines import ConfidencePolicy, PatiencePolicy
from scheduler.policy import ExitPolicy
from server.engine.active_policy import ActivePolicy
from server.engine.request import InferenceRequest
from tests.fakes import FakeBackend, RecordingObserver
from tests.server.engine.harness import NEVER, engine_of, policy, remembering, run_out, sure, table


def test_a_changed_parameter_applies_to_rows_already_on_their_way() -> None:
    done: list[InferenceRequest] = []
    backend = FakeBackend()
    engine = engine_of(backend, done.extend, parameter=2.0)

    def open_exits(stage: int) -> None:
        if stage == 1:
            engine.parameter = 1.0

    backend.on_stage = open_exits
    engine.submit([InferenceRequest(sure(0.95, 0.95, 0.95))])
    run_out(engine)
    assert done[0].result.exit == 1  # type: ignore[union-attr]


def test_rows_leave_earlier_while_others_wait() -> None:
    done: list[InferenceRequest] = []
    engine = engine_of(FakeBackend(), done.extend, parameter=2.0)
    engine.active_policy.set(2.0, [1.0])
    engine.submit([InferenceRequest(sure(0.95, 0.95, 0.95)) for _ in range(3)])
    run_out(engine)
    exits = [row.result.exit for row in done]  # type: ignore[union-attr]
    assert exits == [0, 0, 2]  # nobody waited for the last one


def test_several_workers_share_the_queue() -> None:
    done: list[InferenceRequest] = []
    engine = engine_of(FakeBackend(), done.extend, parameter=2.0, workers=3)
    engine.active_policy.set(2.0, [1.0])
    engine.submit([InferenceRequest(sure(0.95, 0.95, 0.95)) for _ in range(3)])
    while engine.run_batch():
        pass
    assert {row.result.exit for row in done} == {2}  # type: ignore[union-attr]


def test_rows_that_are_in_keep_their_policy_and_its_last_parameter_when_another_comes() -> None:
    backend, done = FakeBackend(), list[InferenceRequest]()
    engine = engine_of(backend, done.extend)
    before = [InferenceRequest(sure(0.6, 0.85, 0.95)), InferenceRequest(sure(0.6, 0.75, 0.95))]
    after = [InferenceRequest(sure(0.6, 0.85, 0.95))]

    def swap(stage: int) -> None:
        if stage == 1 and engine.policy.kind == "maxprob":
            engine.active_policy = ActivePolicy(PatiencePolicy(table(NEVER, 2.8)), 2.0)
            engine.submit(after)
            engine.parameter = 1.0  # of the new policy alone; 2.0 would let nothing go early

    backend.on_stage = swap
    engine.submit(before)
    run_out(engine)
    exits = {id(row): outcome.exit for row, outcome in ((each, each.result) for each in done)}  # type: ignore[union-attr]
    assert [exits[id(row)] for row in (*before, *after)] == [1, 2, 1]
    assert engine.parameter == 1.0 and engine.policy.kind == "patience"


def test_a_row_made_for_a_policy_enters_under_it_though_another_has_come_since() -> None:
    done: list[InferenceRequest] = []
    engine = engine_of(FakeBackend(), done.extend)
    row = InferenceRequest(sure(0.95, 0.95, 0.95), parameter=1.0, policy=engine.active_policy)
    engine.active_policy = ActivePolicy(ConfidencePolicy(table(NEVER, NEVER), "maxprob"), 1.0)
    engine.submit([row, InferenceRequest(sure(0.95, 0.95, 0.95))])
    run_out(engine)
    assert {completion.result.exit for completion in done if completion is row} == {0}  # type: ignore[union-attr]
    assert {completion.result.exit for completion in done if completion is not row} == {2}  # type: ignore[union-attr]


def test_scores_are_noted_once_a_batch_with_the_parameter_they_met() -> None:
    engine = engine_of(FakeBackend(), max_batch=8, observer=(observer := RecordingObserver()))
    engine.submit(
        [
            InferenceRequest(sure(*each))
            for each in [(0.95, 0.9, 0.9), (0.6, 0.7, 0.9), (0.7, 0.85, 0.9)]
        ]
    )
    run_out(engine)
    assert observer.take_scores() == [(0, [0.95, 0.6, 0.7], 1.0), (1, [0.7, 0.85], 1.0)]
    assert observer.take_scores() == [], "what is taken is gone"


@pytest.mark.parametrize("wish", [{"parameter": 1.0}, {"deadline_s": 1e12}])
def test_scores_of_rows_that_go_by_something_of_their_own_are_not_noted(
    wish: dict[str, Any],
) -> None:
    engine = engine_of(FakeBackend(), max_batch=8, observer=(observer := RecordingObserver()))
    engine.submit(
        [InferenceRequest(sure(0.6, 0.7, 0.9)), InferenceRequest(sure(0.65, 0.7, 0.9), **wish)]
    )
    engine.submit([InferenceRequest(sure(0.66, 0.7, 0.9))])
    run_out(engine)
    assert observer.take_scores() == [(0, [0.6, 0.66], 1.0), (1, [0.7, 0.7], 1.0)]
    engine = engine_of(FakeBackend(), observer=(observer := RecordingObserver()))
    engine.submit([InferenceRequest(sure(0.65, 0.7, 0.9), **wish)])
    run_out(engine)
    assert observer.take_scores() == []


def test_scores_of_rows_with_a_hole_in_their_history_are_not_noted() -> None:
    done: list[InferenceRequest] = []
    backend = FakeBackend()
    engine = engine_of(
        backend,
        done.extend,
        by=remembering(),
        parameter=2.0,
        max_batch=1,
        observer=(observer := RecordingObserver()),
    )
    blind = [
        InferenceRequest(sure(0.85, 0.95, 0.95)),
        InferenceRequest(sure(0.85, 0.96, 0.95), traced=True),
    ]

    def arrange(stage: int) -> None:
        if stage == 1:
            engine.parameter = 1.0

    backend.on_stage = arrange
    engine.submit(blind)
    run_out(engine)
    assert [exit for exit, _, _ in observer.take_scores()] == [0, 1], "the traced row has no hole"


def test_scores_by_a_policy_that_is_no_longer_the_engines_are_not_noted() -> None:
    backend = FakeBackend()
    engine = engine_of(backend, observer=(observer := RecordingObserver()))

    def swap(stage: int) -> None:
        if stage == 1:
            engine.active_policy = ActivePolicy(policy(), 1.0)

    backend.on_stage = swap
    engine.submit([InferenceRequest(sure(0.6, 0.7, 0.9))])
    run_out(engine)
    assert [exit for exit, _, _ in observer.take_scores()] == [0]


def test_rows_of_two_policies_never_share_a_batch() -> None:
    backend = FakeBackend()
    engine = engine_of(backend, max_batch=8)
    engine.submit([InferenceRequest(sure(0.6, 0.6, 0.91)) for _ in range(3)])
    engine.active_policy = ActivePolicy(ConfidencePolicy(table(0.95, 0.95), "maxprob"), 1.0)
    engine.submit([InferenceRequest(sure(0.6, 0.6, 0.92)) for _ in range(2)])
    run_out(engine)
    assert sorted((stage, len(shown)) for stage, shown in backend.batches) == [
        (stage, rows) for stage in range(3) for rows in (2, 3)
    ]


SWAPS: tuple[tuple[ExitPolicy, tuple[float, float]], ...] = (
    (ConfidencePolicy(table(0.9, 0.8), "maxprob"), (0.9, 0.8)),
    (ConfidencePolicy(table(0.6, 0.9), "maxprob"), (0.6, 0.9)),
    (PatiencePolicy(table(NEVER, 1.9)), (NEVER, 0.0)),
)


@settings(max_examples=60, deadline=None)
@given(
    waves=st.lists(
        st.tuples(
            st.sampled_from(SWAPS),
            st.lists(st.tuples(*[st.sampled_from([0.65, 0.85, 0.95])] * 3), max_size=8),
            st.sampled_from([0.0, 0.0005]),
        ),
        min_size=1,
        max_size=8,
    ),
    max_batch=st.integers(1, 9),
    workers=st.integers(1, 3),
)
def test_every_row_leaves_by_the_policy_it_entered_with_however_often_others_come(
    waves: list[tuple[tuple[ExitPolicy, tuple[float, float]], list[Any], float]],
    max_batch: int,
    workers: int,
) -> None:
    done: list[InferenceRequest] = []
    backend = FakeBackend(lambda stage: time.sleep(0.0001))
    engine = engine_of(backend, done.extend, max_batch=max_batch, workers=workers)
    engine.start()
    expected = []
    for (by, least), confidences, pause in waves:
        engine.active_policy = ActivePolicy(by, 1.0)
        engine.submit(
            [
                InferenceRequest(sure(*each), request_id=len(expected) + i)
                for i, each in enumerate(confidences)
            ]
        )
        fires = [[shown >= bar for shown, bar in zip(each, (*least, 0.0), strict=True)]
                 for each in confidences]  # fmt: skip
        expected += [each.index(True) for each in fires]
        time.sleep(pause)
    engine.stop()
    exits = {
        row.request_id: outcome.exit for row, outcome in ((each, each.result) for each in done)
    }  # type: ignore[union-attr]
    assert exits == dict(enumerate(expected))
