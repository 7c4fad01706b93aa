"""Audited rows in the engine: answered as ever, then on to the last exit behind everybody."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.backend import HeadOutput, State, gather_arrays
from scheduler.baselines import ConfidencePolicy, PatiencePolicy
from scheduler.policy import ExitPolicy
from scheduler.thresholds import ThresholdTable
from server.engine.active_policy import ActivePolicy
from server.engine.engine import Engine
from server.engine.request import AUDIT, AuditResult, AuditTrace, InferenceRequest, Prediction
from server.engine.shadow import ShadowRunner, record_exit
from server.errors import InferenceFailed
from tests.fakes import RecordingObserver

NEVER, POISON = math.inf, -1.0
TABLE = ThresholdTable(np.array([1.0, 2.0]), np.array([[0.9, 0.8, -NEVER], [NEVER, NEVER, -NEVER]]))
BY_CONFIDENCE = ConfidencePolicy(TABLE, "maxprob")  # parameter 1: 0.9 and 0.8; 2: nothing early
BY_PATIENCE = PatiencePolicy(
    ThresholdTable(TABLE.parameters, np.array([[NEVER, 1.9, -NEVER], [NEVER, NEVER, -NEVER]]))
)


class Backend:
    """Three exits; a row's input is its max probability at every exit, POISON fails there.

    Notes what it runs: ("stage" or "head", its number, the rows' last confidences, as names).
    """

    num_exits = 3
    device = "fake"
    gather = staticmethod(gather_arrays)
    synchronize = staticmethod(lambda: None)

    def __init__(self, on_stage: Callable[[int, list[float]], None] | None = None) -> None:
        self.ran: list[tuple[str, int, list[float]]] = []
        self.on_stage = on_stage or (lambda stage, names: None)

    def run_stage(self, stage: int, state: State) -> State:
        names = state[0][:, -1].tolist()
        self.ran.append(("stage", stage, names))
        self.on_stage(stage, names)
        if (state[0][:, stage] == POISON).any():
            raise RuntimeError("poisoned row")
        return state

    def run_head(self, exit: int, state: State) -> HeadOutput:
        self.ran.append(("head", exit, state[0][:, -1].tolist()))
        best = state[0][:, exit]
        log_probs = np.log(np.stack([best, 1 - best], 1))
        return HeadOutput(log_probs, log_probs)

    def stages(self) -> list[tuple[int, list[float]]]:
        return [(number, names) for kind, number, names in self.ran if kind == "stage"]


def row(
    *confidences: float, name: float = 0.5, trail: AuditTrace | None = None, **wishes: Any
) -> InferenceRequest:
    return InferenceRequest((np.array([[*confidences, name]]),), audit=trail, **wishes)


def engine_of(
    backend: Any,
    on_batch: Callable[[list[InferenceRequest]], None] = lambda completions: None,
    on_audit: Callable[[AuditResult], None] = lambda audited: None,
    *,
    by: ExitPolicy = BY_CONFIDENCE,
    parameter: float = 1.0,
    observer: RecordingObserver | None = None,
    workers: int = 1,
    max_batch: int = 1,
) -> Engine:
    return Engine(
        backend, by, parameter, workers=workers, max_batch=max_batch, observer=observer,
        on_done=on_batch, on_audit=on_audit,
    )  # fmt: skip


def run_to_the_end(engine: Engine, told: Sequence[Any], wanted: int) -> None:
    """Until so much was told; stopping at once would lose what is on its way."""
    engine.start()
    patience = time.monotonic() + 30
    while len(told) < wanted and time.monotonic() < patience:
        time.sleep(0.0005)
    engine.stop()


def shares(audited: AuditResult) -> list[float]:
    assert audited.log_probs is not None
    return pytest.approx(np.exp(audited.log_probs[:, 0]).tolist())


def test_a_row_is_answered_at_its_exit_and_only_then_goes_on() -> None:
    told: list[Any] = []
    backend = Backend(lambda stage, names: told.append(stage))
    trail = AuditTrace(7)
    engine = engine_of(backend, told.extend, told.append)
    engine.submit([row(0.95, 0.6, 0.7, trail=trail)])
    run_to_the_end(engine, told, 5)
    first, completion, second, third, audited = told
    assert (first, second, third) == (0, 1, 2)
    assert completion.result.exit == 0 and completion.result.compute_ms > 0
    assert audited.trace is trail and (trail.exit, trail.parameter) == (0, 1.0)
    assert [0.95, 0.6, 0.7] == shares(audited)


def test_exits_that_no_user_needs_are_asked_only_after_the_answer() -> None:
    told: list[Any] = []
    backend = Backend()
    heads_at_answer: list[int] = []

    def on_batch(completions: list[InferenceRequest]) -> None:
        heads_at_answer.extend(exit for kind, exit, _ in backend.ran if kind == "head")

    engine = engine_of(backend, on_batch, told.append, parameter=2.0, max_batch=4)
    engine.submit(
        [row(0.95, 0.6, 0.7, trail=AuditTrace(0)), row(0.5, 0.5, 0.5), row(0.5, 0.5, 0.5)]
    )
    run_to_the_end(engine, told, 1)
    assert heads_at_answer == [2]
    assert [0.95, 0.6, 0.7] == shares(told[0])
    assert (told[0].trace.exit, told[0].trace.parameter) == (2, 2.0)
    assert [len(names) for _, names in backend.stages()] == [3, 3, 3], "its stages run once"


def test_an_audit_at_once_runs_the_heads_on_the_way_and_every_stage_once() -> None:
    told: list[Any] = []
    backend = Backend()
    engine = engine_of(backend, told.extend, told.append, parameter=2.0, max_batch=4)
    engine.submit([row(0.95, 0.6, 0.7, trail=AuditTrace(0, at_once=True)), row(0.5, 0.5, 0.5)])
    run_to_the_end(engine, told, 3)
    assert [each[:2] for each in backend.ran] == [
        (kind, exit) for exit in range(3) for kind in ("stage", "head")
    ]
    answered, other, audited = told
    assert answered.result.exit == other.result.exit == 2
    assert (audited.trace.exit, audited.trace.parameter) == (2, 2.0)
    assert [0.95, 0.6, 0.7] == shares(audited)


def test_an_audit_at_once_whose_row_leaves_early_goes_on_as_others_do() -> None:
    told: list[Any] = []
    backend = Backend()
    engine = engine_of(backend, on_audit=told.append)  # the promise was renewed meanwhile
    engine.submit([row(0.95, 0.6, 0.7, trail=AuditTrace(0, at_once=True))])
    run_to_the_end(engine, told, 1)
    assert told[0].trace.exit == 0 and [0.95, 0.6, 0.7] == shares(told[0])
    assert [stage for stage, _ in backend.stages()] == [0, 1, 2]


def test_a_row_that_has_come_past_a_left_out_exit_is_asked_there_too() -> None:
    only_second = ThresholdTable(np.array([1.0]), np.array([[NEVER, 0.8, -NEVER]]))
    told: list[Any] = []
    engine = engine_of(Backend(), on_audit=told.append, by=ConfidencePolicy(only_second, "maxprob"))
    engine.submit([row(0.6, 0.95, 0.7, trail=AuditTrace(0))])
    run_to_the_end(engine, told, 1)
    assert told[0].trace.exit == 1
    assert [0.6, 0.95, 0.7] == shares(told[0])


def test_a_row_that_left_under_its_own_parameter_says_so() -> None:
    told: list[Any] = []
    engine = engine_of(Backend(), on_audit=told.append, parameter=2.0)
    engine.submit([row(0.95, 0.6, 0.7, trail=AuditTrace(0), parameter=1.0)])
    run_to_the_end(engine, told, 1)
    assert (told[0].trace.exit, told[0].trace.parameter) == (0, 1.0)


def test_audits_run_when_no_row_of_users_waits_and_share_no_batch_with_them() -> None:
    told: list[Any] = []
    backend = Backend()
    engine = engine_of(backend, on_audit=told.append, max_batch=2)
    audited = [row(0.95, 0.6, 0.7, name=0.1 + i / 100, trail=AuditTrace(i)) for i in range(2)]
    users = [row(0.6, 0.6, 0.7, name=0.9, priority=3) for _ in range(6)]
    engine.submit([*audited, *users])
    run_to_the_end(engine, told, 2)
    stages = backend.stages()
    assert stages[0] == (0, [0.1, 0.11])
    assert all(0.9 in names for _, names in stages[1:-2])
    assert stages[-2:] == [(1, [0.1, 0.11]), (2, [0.1, 0.11])]


def test_audits_of_other_shapes_go_on_apart() -> None:
    told: list[Any] = []
    backend = Backend()
    engine = engine_of(backend, on_audit=told.append, max_batch=4)
    engine.submit(
        [
            row(0.95, 0.6, 0.7, name=0.1, trail=AuditTrace(0)),
            row(0.95, 0.6, 0.7, 0.0, name=0.2, trail=AuditTrace(1)),
            row(0.95, 0.6, 0.7, name=0.3, trail=AuditTrace(2)),
        ]
    )
    run_to_the_end(engine, told, 3)
    for audited in told:
        assert [0.95, 0.6, 0.7] == shares(audited)
    assert sorted(names for stage, names in backend.stages() if stage == 2) == [[0.1, 0.3], [0.2]]


def test_a_user_waits_for_no_more_than_the_stage_that_an_audit_is_in() -> None:
    told: list[Any] = []
    backend = Backend()
    engine = engine_of(backend, on_audit=told.append)

    def come(stage: int, names: list[float]) -> None:
        if (stage, names) == (1, [0.1]):
            engine.submit([row(0.6, 0.85, 0.7, name=0.9)])

    backend.on_stage = come
    engine.submit([row(0.95, 0.6, 0.7, name=0.1, trail=AuditTrace(0))])
    run_to_the_end(engine, told, 1)
    assert backend.stages() == [(0, [0.1]), (1, [0.1]), (0, [0.9]), (1, [0.9]), (2, [0.1])]


def test_audits_that_wait_are_no_pressure_and_no_depth() -> None:
    seen: list[Any] = []
    backend = Backend()
    engine = engine_of(backend, on_audit=seen.append)

    def look(stage: int, names: list[float]) -> None:
        if names == [0.9]:
            seen.append((engine.idle(), engine.queue_depths, engine.oldest_wait_s()))

    backend.on_stage = look
    # The second comes when the first has been answered and waits to go on.
    engine.submit(
        [row(0.95, 0.6, 0.7, name=0.1, trail=AuditTrace(0)), row(0.95, 0.6, 0.7, name=0.9)]
    )
    assert not engine.idle()
    run_to_the_end(engine, seen, 2)
    assert seen[0] == (True, [0, 0, 0], 0.0)
    assert [0.95, 0.6, 0.7] == shares(seen[1])


def test_audit_work_is_in_no_metric_of_batches() -> None:
    told: list[Any] = []
    observer = RecordingObserver()
    engine = engine_of(Backend(), on_audit=told.append, observer=observer)
    engine.submit([row(0.95, 0.6, 0.7, trail=AuditTrace(0)), row(0.6, 0.85, 0.7)])
    run_to_the_end(engine, told, 1)
    assert [(stage, rows) for stage, rows, _ in observer.steps] == [(0, 1), (0, 1), (1, 1)]


def test_an_audit_that_fails_is_told_as_lost_and_hurts_nobody() -> None:
    told: list[Any] = []
    done: list[InferenceRequest] = []
    engine = engine_of(Backend(), done.extend, told.append)
    engine.submit(
        [row(0.95, POISON, 0.7, trail=AuditTrace(0)), row(0.95, 0.6, 0.7, trail=AuditTrace(1))]
    )
    run_to_the_end(engine, told, 2)
    assert [completion.result.exit for completion in done] == [0, 0]  # type: ignore[union-attr]
    lost = {audited.trace.key: audited.log_probs is None for audited in told}
    assert lost == {0: True, 1: False}
    assert not engine.failed


def test_a_row_that_is_never_answered_is_not_told() -> None:
    told: list[Any] = []
    done: list[InferenceRequest] = []
    engine = engine_of(Backend(), done.extend, told.append)
    gone = row(0.6, 0.6, 0.7, trail=AuditTrace(1))
    engine.submit([row(POISON, 0.6, 0.7, trail=AuditTrace(0)), gone])
    engine.cancel([gone])
    run_to_the_end(engine, done, 1)
    assert isinstance(done[0].result, InferenceFailed)
    assert not told and len(done) == 1


def answered(trail: AuditTrace, backend: Any) -> InferenceRequest:
    """A row that left at exit 0, as the engine leaves it."""
    left = row(0.95, 0.6, 0.7, trail=trail)
    record_exit(trail, 0, left.state, None, 1.0)
    said = HeadOutput(*[backend.run_head(0, left.state).logits] * 2)
    left.result = Prediction(0, said, 0, 1.0, 0.0, False, None)
    return left


def test_once_it_is_over_rows_are_lost_wherever_they_are() -> None:
    backend, waiting, told = Backend(), list[InferenceRequest](), list[AuditResult]()
    beyond = ShadowRunner(backend, waiting.extend, told.append)
    beyond.start([answered(AuditTrace(0), backend)])
    assert [each.stage for each in waiting] == [1] and waiting[0].priority == AUDIT
    beyond.stop()
    beyond.advance(waiting)
    beyond.start([answered(AuditTrace(1), backend)])
    assert len(waiting) == 1 and not backend.stages()
    assert [(each.trace.key, each.log_probs) for each in told] == [(0, None), (1, None)]


CONFIDENCE = st.sampled_from([0.6, 0.85, 0.95])
AuditAtOnce = functools.partial(AuditTrace, at_once=True)
SAMPLES = st.tuples(
    st.tuples(CONFIDENCE, CONFIDENCE, CONFIDENCE),
    st.sampled_from([None, None, 0, 1, 2]),  # the stage that fails on it
    st.sampled_from([None, AuditTrace, AuditAtOnce]),
)
STEPS = st.one_of(
    st.tuples(st.just("submit"), st.lists(SAMPLES, min_size=1, max_size=6)),
    st.tuples(st.just("cancel"), st.lists(st.integers(0, 99), min_size=1, max_size=3)),
    st.tuples(st.just("flip"), st.sampled_from([1.0, 2.0])),
    st.tuples(st.just("use"), st.sampled_from([BY_CONFIDENCE, BY_PATIENCE])),
    st.tuples(st.just("pause"), st.sampled_from([0.0, 0.0005, 0.002])),
)


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(STEPS, min_size=1, max_size=16),
    max_batch=st.integers(1, 5),
    workers=st.integers(1, 3),
)
def test_every_audited_row_that_was_answered_is_told_once_whatever_happens(
    steps: list[tuple[str, Any]], max_batch: int, workers: int
) -> None:
    done: list[InferenceRequest] = []
    told: list[AuditResult] = []
    backend = Backend(lambda stage, names: time.sleep(0.0001))
    engine = engine_of(backend, done.extend, told.append, workers=workers, max_batch=max_batch)
    rows: list[InferenceRequest] = []
    given_to: list[Any] = []
    engine.start()
    for kind, what in steps:
        if kind == "submit":
            new = []
            for confidences, poisoned, audit in what:
                shown = [POISON if k == poisoned else sure for k, sure in enumerate(confidences)]
                key = len(rows) + len(new)
                new.append(row(*shown, request_id=key, trail=audit and audit(key)))
            rows += new
            given_to += what
            engine.submit(new)
        elif kind == "cancel" and rows:
            engine.cancel([rows[place % len(rows)] for place in what])
        elif kind == "flip":
            engine.parameter = what
        elif kind == "use":
            engine.active_policy = ActivePolicy(what, 1.0)
        elif kind == "pause":
            time.sleep(what)
    engine.stop()

    names = [completion.request_id for completion in done]
    assert len(set(names)) == len(names), "nobody is answered twice"
    wanted = {
        completion.request_id: completion.result.exit
        for completion in done
        if completion.audit is not None and isinstance(completion.result, Prediction)
    }
    assert sorted(audited.trace.key for audited in told) == sorted(wanted)
    for trail, log_probs in told:
        confidences, poisoned, _ = given_to[trail.key]
        assert trail.exit == wanted[trail.key] and trail.parameter in (1.0, 2.0)
        if log_probs is not None:
            assert poisoned is None
            assert np.exp(log_probs[:, 0]) == pytest.approx(confidences)
    assert engine.queue_depths == [0, 0, 0] and engine.idle()


@settings(max_examples=40, deadline=None)
@given(
    confidences=st.lists(st.tuples(*[CONFIDENCE] * 3), min_size=1, max_size=25),
    audited=st.integers(0, 2**25 - 1),
    by=st.sampled_from([BY_CONFIDENCE, BY_PATIENCE]),
    parameter=st.sampled_from([1.0, 2.0]),
    max_batch=st.integers(1, 9),
)
def test_answers_and_the_work_for_them_are_those_without_an_audit(
    confidences: list[tuple[float, ...]],
    audited: int,
    by: ExitPolicy,
    parameter: float,
    max_batch: int,
) -> None:
    def exits(chosen: int) -> tuple[dict[Any, int], list[tuple[str, int, list[float]]]]:
        done: list[InferenceRequest] = []
        told: list[AuditResult] = []
        backend = Backend()
        options = {"by": by, "parameter": parameter, "max_batch": max_batch}
        engine = engine_of(backend, done.extend, told.append, **options)
        engine.submit(
            [
                row(*each, name=place / 100, request_id=place,
                    trail=AuditTrace(place) if chosen >> place & 1 else None)
                for place, each in enumerate(confidences)
            ]
        )  # fmt: skip
        run_to_the_end(engine, done, len(confidences))
        return {each.request_id: each.result.exit for each in done}, backend.ran  # type: ignore[union-attr]

    with_audit, ran = exits(audited)
    without, plain = exits(0)
    assert with_audit == without
    assert ran[: len(plain)] == plain, "users' batches are the same, and come first"
