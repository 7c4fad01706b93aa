import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from models.backend import HeadOutput, OutOfMemory, Part, State, gather_arrays, join_states
from models.bundle import load_bundle
from models.preprocess import TextPreprocessor
from models.runtime.onnx_backend import OnnxBackend
from models.stage_costs import StageCosts
from scheduler.baselines import ConfidencePolicy, PatiencePolicy
from scheduler.fitting.stopping import fit_stopping
from scheduler.policy import ExitPolicy, ExitScores, exits_taken, replay
from scheduler.stopping import StoppingPolicy
from scheduler.thresholds import ThresholdTable
from server.engine.active_policy import ActivePolicy
from server.engine.engine import Engine
from server.engine.request import Completion, InferenceRequest, Prediction
from server.errors import DeadlineExceeded, InferenceFailed
from server.metrics import Metrics, ModelMetrics

NEVER = math.inf


class FakeBackend:
    """Three exits; a row's input is its max probability at every exit.

    POISON in place of one makes that stage fail, HUGE makes it run out of memory. Counts the rows
    that each stage has run, and notes the heads and what batches were made of.

    Args:
        on_stage: Told before every stage.
        memory: Most rows of a batch that fit.
        multiple: Batches are filled up to multiples of it by copies of the last row.
    """

    num_exits = 3
    device = "fake"
    POISON, HUGE = -1.0, -2.0

    def __init__(
        self,
        on_stage: Callable[[int], None] = lambda stage: None,
        memory: int = 1000,
        multiple: int = 1,
    ) -> None:
        self.stage_rows: Counter[int] = Counter()
        self.batches: list[tuple[int, list[float]]] = []
        self.heads: list[int] = []
        self.parts: list[list[int]] = []  # rows of each part of each batch
        self.on_stage = on_stage
        self.memory = memory
        self.multiple = multiple

    def gather(self, parts: Sequence[Part]) -> State:
        self.parts.append([len(part.rows) for part in parts])
        *others, last = parts
        copies = -sum(len(part.rows) for part in parts) % self.multiple
        return gather_arrays([*others, Part(last.state, [*last.rows, *[last.rows[-1]] * copies])])

    def run_stage(self, stage: int, state: State) -> State:
        self.on_stage(stage)
        shown = state[0][:, stage]
        self.stage_rows[stage] += len(shown)
        self.batches.append((stage, shown.tolist()))
        if len(shown) > self.memory or (shown == self.HUGE).any():
            raise OutOfMemory(f"{len(shown)} rows")
        if (shown == self.POISON).any():
            raise RuntimeError("poisoned row")
        return state

    def run_head(self, exit: int, state: State) -> HeadOutput:
        self.heads.append(exit)
        best = state[0][:, exit]
        log_probs = np.log(np.stack([best, 1 - best], 1))
        return HeadOutput(log_probs, log_probs)

    def synchronize(self) -> None:
        pass


def sure(*confidences: float) -> State:
    """The input of one row: its confidence at each exit."""
    return (np.array([confidences], np.float32),)


def table(first: float, second: float) -> ThresholdTable:
    """Parameter 1: exits fire at these scores; parameter 2: nothing fires early."""
    thresholds = np.array([[first, second, -NEVER], [NEVER, NEVER, -NEVER]])
    return ThresholdTable(np.array([1.0, 2.0]), thresholds)


def policy() -> ConfidencePolicy:
    """At parameter 1 exits fire at confidences of 0.9 and 0.8."""
    return ConfidencePolicy(table(0.9, 0.8), "maxprob")


def remembering() -> PatiencePolicy:
    """Fires as `policy` does, as long as it has seen every exit of a row."""
    return PatiencePolicy(table(1.9, 2.8))


def engine_of(
    backend: Any,
    on_batch: Callable[[list[Completion]], None] = lambda completions: None,
    *,
    by: ExitPolicy | None = None,
    parameter: float = 1.0,
    max_batch: int = 1,
    workers: int = 1,
    registry: CollectorRegistry | None = None,
    **options: Any,
) -> Engine:
    """An engine that has not been started."""
    return Engine(
        backend,
        by or policy(),
        parameter,
        workers=workers,
        max_batch=max_batch,
        metrics=ModelMetrics(Metrics(registry or CollectorRegistry(), "test"), "fake", 3),
        on_batch=on_batch,
        **options,
    )


def run_out(engine: Engine) -> None:
    """Start it, let it answer what is in, end it."""
    engine.start()
    engine.stop()


def cancelled(registry: CollectorRegistry) -> float | None:
    return registry.get_sample_value("eenet_cancelled_total", {"model": "fake"})


def serve(
    rows: list[InferenceRequest], backend: Any = None, **options: Any
) -> dict[int, Completion]:
    """Run rows to completion; completions by the row's place in the list."""
    done: list[Completion] = []
    lock = threading.Lock()

    def on_batch(completions: list[Completion]) -> None:
        with lock:
            done.extend(completions)

    engine = engine_of(backend or FakeBackend(), on_batch, **options)
    engine.submit(rows)
    run_out(engine)
    assert len({id(completion.row) for completion in done}) == len(done)
    return {rows.index(completion.row): completion for completion in done}


def exits_of(done: dict[int, Completion]) -> list[int]:
    """The exits of rows that were all answered, in their order."""
    outcomes = [done[index].outcome for index in range(len(done))]
    assert all(isinstance(outcome, Prediction) for outcome in outcomes), outcomes
    return [outcome.exit for outcome in outcomes]  # type: ignore[union-attr]


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
    answer = serve([InferenceRequest(sure(0.6, 0.85, 0.99))])[0].outcome
    assert isinstance(answer, Prediction)
    assert np.exp(answer.said.log_probs) == pytest.approx([0.85, 0.15])
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
    answer = serve([InferenceRequest(sure(0.6, 0.85, 0.99), traced=True)])[0].outcome
    assert isinstance(answer, Prediction) and answer.trace is not None
    shown = [(e.exit, pytest.approx(e.score), e.threshold) for e in answer.trace]
    assert shown == [(0, 0.6, 0.9), (1, 0.85, 0.8)]
    assert answer.trace[0].elapsed_ms < answer.trace[1].elapsed_ms == answer.compute_ms


def test_only_the_bad_row_of_a_batch_fails() -> None:
    rows = [InferenceRequest(sure(0.95, 0.9, 0.9)) for _ in range(7)]
    rows[4].state = sure(FakeBackend.POISON, 0.9, 0.9)
    done = serve(rows, max_batch=7)
    failed = [index for index in range(7) if isinstance(done[index].outcome, InferenceFailed)]
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


class StepClock:
    """A clock that each stage moves by one second."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def step(self, stage: int) -> None:
        self.now += 1.0


def test_a_deadline_that_passed_in_the_queue_is_an_error_and_costs_no_compute() -> None:
    clock = StepClock()
    clock.now = 5.0
    backend = FakeBackend(clock.step)
    done = serve([InferenceRequest(sure(0.95, 0.9, 0.9), deadline_s=4.0)], backend, clock=clock)
    assert isinstance(done[0].outcome, DeadlineExceeded)
    assert not backend.stage_rows


def test_a_deadline_that_passes_before_the_first_exit_is_an_error() -> None:
    clock = StepClock()
    done = serve(
        [InferenceRequest(sure(0.95, 0.9, 0.9), deadline_s=0.5)],
        FakeBackend(clock.step),
        clock=clock,
    )
    assert isinstance(done[0].outcome, DeadlineExceeded)


def test_a_row_leaves_early_when_the_next_exit_would_come_too_late() -> None:
    # The first row teaches the engine that a stage takes a second.
    clock = StepClock()
    rows = [
        InferenceRequest(sure(0.5, 0.5, 0.5)),
        InferenceRequest(sure(0.5, 0.5, 0.5), deadline_s=4.5),
    ]
    done = serve(rows, FakeBackend(clock.step), clock=clock)
    answer = done[1].outcome
    assert isinstance(answer, Prediction)
    assert (answer.exit, answer.late) == (0, False)


def test_before_any_batch_has_run_the_costs_say_when_the_next_exit_would_come() -> None:
    clock = StepClock()
    row = InferenceRequest(sure(0.5, 0.5, 0.5), deadline_s=1.5)
    costs = StageCosts((1,), np.full((3, 1), 1000.0))
    answer = serve([row], FakeBackend(clock.step), clock=clock, costs=costs)[0].outcome
    assert isinstance(answer, Prediction)
    assert (answer.exit, answer.late) == (0, False)


def test_a_late_answer_says_so() -> None:
    # Nothing is known of stage 1 yet, so the row goes on and the deadline passes there.
    clock = StepClock()
    row = InferenceRequest(sure(0.5, 0.5, 0.5), deadline_s=1.5)
    answer = serve([row], FakeBackend(clock.step), clock=clock)[0].outcome
    assert isinstance(answer, Prediction)
    assert (answer.exit, answer.late) == (1, True)


def test_a_changed_parameter_applies_to_rows_already_on_their_way() -> None:
    done: list[Completion] = []
    backend = FakeBackend()
    engine = engine_of(backend, done.extend, parameter=2.0)

    def open_exits(stage: int) -> None:
        if stage == 1:
            engine.parameter = 1.0

    backend.on_stage = open_exits
    engine.submit([InferenceRequest(sure(0.95, 0.95, 0.95))])
    run_out(engine)
    assert done[0].outcome.exit == 1  # type: ignore[union-attr]


def test_rows_that_are_in_keep_their_policy_and_its_last_parameter_when_another_comes() -> None:
    backend, done = FakeBackend(), list[Completion]()
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
    exits = {id(row): outcome.exit for row, outcome in done}  # type: ignore[union-attr]
    assert [exits[id(row)] for row in (*before, *after)] == [1, 2, 1]
    assert engine.parameter == 1.0 and engine.policy.kind == "patience"


def test_a_row_made_for_a_policy_enters_under_it_though_another_has_come_since() -> None:
    done: list[Completion] = []
    engine = engine_of(FakeBackend(), done.extend)
    row = InferenceRequest(sure(0.95, 0.95, 0.95), parameter=1.0, policy=engine.active_policy)
    engine.active_policy = ActivePolicy(ConfidencePolicy(table(NEVER, NEVER), "maxprob"), 1.0)
    engine.submit([row, InferenceRequest(sure(0.95, 0.95, 0.95))])
    run_out(engine)
    assert {completion.outcome.exit for completion in done if completion.row is row} == {0}  # type: ignore[union-attr]
    assert {completion.outcome.exit for completion in done if completion.row is not row} == {2}  # type: ignore[union-attr]


def noted(engine: Engine) -> list[tuple[int, list[float], float]]:
    return [(note.exit, np.round(note.scores, 6).tolist(), note.parameter)
            for note in engine.metrics.take_scores()]  # fmt: skip


def test_scores_are_noted_once_a_batch_with_the_parameter_they_met() -> None:
    engine = engine_of(FakeBackend(), max_batch=8)
    engine.submit(
        [
            InferenceRequest(sure(*each))
            for each in [(0.95, 0.9, 0.9), (0.6, 0.7, 0.9), (0.7, 0.85, 0.9)]
        ]
    )
    run_out(engine)
    assert noted(engine) == [(0, [0.95, 0.6, 0.7], 1.0), (1, [0.7, 0.85], 1.0)]
    assert noted(engine) == [], "what is taken is gone"


@pytest.mark.parametrize("wish", [{"parameter": 1.0}, {"deadline_s": 1e12}])
def test_scores_of_rows_that_go_by_something_of_their_own_are_not_noted(
    wish: dict[str, Any],
) -> None:
    engine = engine_of(FakeBackend(), max_batch=8)
    engine.submit(
        [InferenceRequest(sure(0.6, 0.7, 0.9)), InferenceRequest(sure(0.65, 0.7, 0.9), **wish)]
    )
    engine.submit([InferenceRequest(sure(0.66, 0.7, 0.9))])
    run_out(engine)
    assert noted(engine) == [(0, [0.6, 0.66], 1.0), (1, [0.7, 0.7], 1.0)]
    engine = engine_of(FakeBackend())
    engine.submit([InferenceRequest(sure(0.65, 0.7, 0.9), **wish)])
    run_out(engine)
    assert noted(engine) == []


def test_scores_of_rows_with_a_hole_in_their_history_are_not_noted() -> None:
    done: list[Completion] = []
    backend = FakeBackend()
    engine = engine_of(backend, done.extend, by=remembering(), parameter=2.0, max_batch=1)
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
    assert [exit for exit, _, _ in noted(engine)] == [0, 1], "the traced row has no hole"


def test_scores_by_a_policy_that_is_no_longer_the_engines_are_not_noted() -> None:
    backend = FakeBackend()
    engine = engine_of(backend)

    def swap(stage: int) -> None:
        if stage == 1:
            engine.active_policy = ActivePolicy(policy(), 1.0)

    backend.on_stage = swap
    engine.submit([InferenceRequest(sure(0.6, 0.7, 0.9))])
    run_out(engine)
    assert [exit for exit, _, _ in noted(engine)] == [0]


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
    done: list[Completion] = []
    backend = FakeBackend(lambda stage: time.sleep(0.0001))
    engine = engine_of(backend, done.extend, max_batch=max_batch, workers=workers)
    engine.start()
    expected = []
    for (by, least), confidences, pause in waves:
        engine.active_policy = ActivePolicy(by, 1.0)
        engine.submit(
            [
                InferenceRequest(sure(*each), tag=len(expected) + i)
                for i, each in enumerate(confidences)
            ]
        )
        fires = [[shown >= bar for shown, bar in zip(each, (*least, 0.0), strict=True)]
                 for each in confidences]  # fmt: skip
        expected += [each.index(True) for each in fires]
        time.sleep(pause)
    engine.stop()
    exits = {row.tag: outcome.exit for row, outcome in done}  # type: ignore[union-attr]
    assert exits == dict(enumerate(expected))


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
        assert done[index].outcome.exit == expected  # type: ignore[union-attr]


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
        return InferenceRequest(sure(*shown), tag=name, parameter=self.own, traced=self.traced)

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
    done: list[Completion] = []
    registry = CollectorRegistry()
    backend = FakeBackend(lambda stage: time.sleep(0.0002), memory, multiple)
    engine = engine_of(
        backend, done.extend, by=by, max_batch=max_batch, workers=workers, registry=registry
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

    names = [completion.row.tag for completion in done]
    assert len(set(names)) == len(names), "nobody is answered twice"
    assert set(range(len(rows))) - set(names) <= left, "nobody is lost who has not left"
    assert cancelled(registry) == len(rows) - len(names)
    assert engine.queue_depths == [0, 0, 0] and engine.oldest_wait_s() == 0
    failed = False
    for row, outcome in done:
        assert isinstance(row.tag, int)
        sample = samples[row.tag]
        if isinstance(outcome, InferenceFailed):
            failed = True
            assert None in sample.outcomes(parameters)
            continue
        assert isinstance(outcome, Prediction)
        assert outcome.exit in sample.outcomes(parameters)
        assert np.exp(outcome.said.log_probs[0]) == pytest.approx(sample.confidences[outcome.exit])
        assert len(outcome.trace or ()) == (outcome.exit + 1 if sample.traced else 0)
    assert engine.failed == failed
    assert all(len(shown) <= max_batch + multiple - 1 for _, shown in backend.batches)


def test_heads_at_which_no_row_can_leave_are_left_out() -> None:
    backend = FakeBackend()
    done = serve(
        [InferenceRequest(sure(0.95, 0.95, 0.95)) for _ in range(5)], backend, parameter=2.0
    )
    assert exits_of(done) == [2] * 5
    assert set(backend.heads) == {2}


@pytest.mark.parametrize(
    ("wish", "exit"),
    [({"traced": True}, 2), ({"deadline_s": 1e12}, 2), ({"parameter": 1.0}, 1)],
    ids=["traced", "with a deadline", "with a parameter of its own"],
)
@pytest.mark.parametrize("by", [policy(), remembering()], ids=["forgetful", "remembering"])
def test_heads_that_one_row_needs_are_computed_for_its_batch(
    by: ExitPolicy, wish: dict[str, Any], exit: int
) -> None:
    backend = FakeBackend()
    rows = [InferenceRequest(sure(0.6, 0.85, 0.95)) for _ in range(3)]
    rows[1] = InferenceRequest(sure(0.6, 0.85, 0.95), **wish)
    done = serve(rows, backend, by=by, parameter=2.0, max_batch=3)
    assert exits_of(done) == [2, exit, 2]
    assert backend.heads == [0, 1, 2]


def test_rows_that_all_want_to_run_on_need_no_head_though_others_would() -> None:
    backend = FakeBackend()
    serve([InferenceRequest(sure(0.95, 0.95, 0.95), parameter=2.0)], backend, parameter=1.0)
    assert backend.heads == [2]


@pytest.mark.parametrize(
    ("by", "heads"),
    [
        (ConfidencePolicy(table(NEVER, 0.8), "maxprob"), [1, 1]),
        (PatiencePolicy(table(NEVER, 2.8)), [0, 0, 1, 1]),
    ],
    ids=["forgetful", "remembering"],
)
def test_an_exit_that_never_fires_is_computed_only_for_what_later_ones_remember(
    by: ExitPolicy, heads: list[int]
) -> None:
    backend = FakeBackend()
    done = serve([InferenceRequest(sure(0.95, 0.95, 0.95)) for _ in range(2)], backend, by=by)
    assert exits_of(done) == [1, 1]
    assert sorted(backend.heads) == heads


class PixelBackend(FakeBackend):
    """The same of four pixels a row."""

    def run_head(self, exit: int, state: State) -> HeadOutput:
        said = super().run_head(exit, state).log_probs
        pixels = said[:, None].repeat(4, 1)  # (A, 4, C)
        return HeadOutput(pixels, pixels)


def opened_late(backend: Any, by: ExitPolicy, closed: float, opened: float) -> list[int]:
    """Exits of three rows, the first traced, where exits open once a row has been through stage 0.

    All batches are then of two rows: the second and third fill one before the first comes further.
    """
    done: list[Completion] = []

    def arrange(stage: int) -> None:
        engine.max_batch = 2
        if stage == 1:
            engine.parameter = opened

    backend.on_stage = arrange
    engine = engine_of(backend, done.extend, by=by, parameter=closed, max_batch=1)
    rows = [
        InferenceRequest(sure(0.85, 0.94 + place / 100, 0.95), traced=place == 0)
        for place in range(3)
    ]
    engine.submit(rows)
    run_out(engine)
    assert backend.stage_rows[0] == backend.stage_rows[1] == 3, "no batch is run twice"
    return exits_of({rows.index(completion.row): completion for completion in done})


@pytest.mark.parametrize("kind", [FakeBackend, PixelBackend], ids=["row", "pixels"])
def test_a_row_with_a_hole_in_its_history_runs_to_the_end_beside_others_without(
    kind: type[FakeBackend],
) -> None:
    backend = kind()
    assert opened_late(backend, remembering(), 2.0, 1.0) == [1, 2, 2]
    assert sorted(backend.heads) == [0, 1, 2], "rows that run on need no head before the last"


def test_what_it_would_do_without_the_hole_does_not_matter(stopping: StoppingPolicy) -> None:
    exits = opened_late(
        FakeBackend(), stopping, stopping.never_exit_parameter, stopping.exit_at_first_parameter
    )
    assert exits == [1, 2, 2]


def test_a_policy_without_memory_may_let_a_row_go_after_a_hole() -> None:
    assert opened_late(FakeBackend(), policy(), 2.0, 1.0) == [1, 1, 1]


@pytest.mark.parametrize("by", [policy(), remembering()], ids=["forgetful", "remembering"])
@pytest.mark.parametrize("traced", [False, True])
def test_rows_that_a_device_adds_to_a_batch_change_no_answer(by: ExitPolicy, traced: bool) -> None:
    confidences = [(0.6, 0.6, 0.95), (0.95, 0.6, 0.6), (0.6, 0.85, 0.6), (0.6, 0.6, 0.6)] * 3
    backend = FakeBackend(multiple=4)
    rows = [InferenceRequest(sure(*each), traced=traced) for each in confidences[:11]]
    done = serve(rows, backend, by=by, max_batch=5)
    assert exits_of(done) == ([2, 0, 1, 2] * 3)[:11]
    for index, answer in enumerate(completion.outcome for completion in map(done.get, range(11))):
        assert isinstance(answer, Prediction)
        assert np.exp(answer.said.log_probs[0]) == pytest.approx(confidences[index][answer.exit])
        assert answer.said.log_probs.shape == answer.said.logits.shape == (2,)
    assert [len(shown) for stage, shown in backend.batches if stage == 0] == [8, 8, 4]
    assert all(len(shown) % 4 == 0 for _, shown in backend.batches)


def test_a_batch_that_is_too_large_for_memory_is_halved_and_so_are_those_after_it() -> None:
    backend = FakeBackend(memory=3)
    engine = engine_of(backend, parameter=1.0, max_batch=16)
    engine.submit([InferenceRequest(sure(0.6, 0.6, 0.95)) for _ in range(50)])
    run_out(engine)
    sizes = [len(shown) for _, shown in backend.batches]
    assert sizes[:3] == [16, 8, 4], "halved until it fits"
    fitting = [size for size in sizes if size <= 3]
    assert sum(fitting) == 150, "no row runs a stage again that it has been through"
    assert max(sizes[-60:]) == 2 and not engine.failed


def test_rows_go_straight_on_behind_an_exit_that_none_of_them_needs() -> None:
    backend = FakeBackend()
    serve(
        [InferenceRequest(sure(0.95, 0.95, 0.95)) for _ in range(4)],
        backend,
        parameter=2.0,
        max_batch=2,
    )
    assert [stage for stage, _ in backend.batches] == [0, 1, 2, 0, 1, 2]
    assert backend.heads == [2, 2]


def test_only_the_row_that_is_too_large_by_itself_fails_for_lack_of_memory() -> None:
    rows = [InferenceRequest(sure(0.6, 0.95, 0.95)) for _ in range(7)]
    rows[4].state = sure(0.6, FakeBackend.HUGE, 0.95)
    done = serve(rows, max_batch=7)
    failed = [index for index in range(7) if isinstance(done[index].outcome, InferenceFailed)]
    assert failed == [4] and len(done) == 7


def test_larger_batches_may_be_allowed_while_it_runs() -> None:
    backend = FakeBackend()
    engine = engine_of(backend, max_batch=1)
    engine.max_batch = 8
    engine.submit([InferenceRequest(sure(0.95, 0.95, 0.95)) for _ in range(16)])
    run_out(engine)
    assert [len(shown) for _, shown in backend.batches] == [8, 8]


class Fragile(ConfidencePolicy):
    """Cannot score a confidence of 0.66."""

    def score(self, exit: int, log_probs: Any, history: Any) -> ExitScores:
        if np.isclose(np.exp(log_probs[:, 0]), 0.66).any():
            raise FloatingPointError("no score")
        return super().score(exit, log_probs, history)


def test_a_row_that_cannot_be_scored_fails_alone_and_the_workers_live_on() -> None:
    done: list[Completion] = []
    engine = engine_of(FakeBackend(), done.extend, by=Fragile(table(0.9, 0.8), "x"), max_batch=4)
    engine.start()
    rows = [InferenceRequest(sure(shown, 0.95, 0.95)) for shown in (0.95, 0.66, 0.6, 0.6)]
    engine.submit(rows)
    while len(done) < 4:
        time.sleep(0.001)
    assert engine.alive
    engine.stop()
    by_row = {rows.index(completion.row): completion.outcome for completion in done}
    assert [getattr(by_row[place], "exit", None) for place in range(4)] == [0, None, 1, 1]


@pytest.mark.parametrize("wish", [{}, {"traced": True}, {"traced": True, "deadline_s": 1e12}])
def test_every_row_leaves_at_the_last_exit_even_if_the_network_says_nan(
    wish: dict[str, Any],
) -> None:
    engine = engine_of(FakeBackend(), (done := list[Completion]()).extend)
    engine.submit([InferenceRequest(sure(math.nan, math.nan, math.nan), **wish)])
    engine.start()
    engine.submit([InferenceRequest(sure(0.95, 0.95, 0.95))])
    engine.stop()
    assert sorted(completion.outcome.exit for completion in done) == [0, 2]  # type: ignore[union-attr]


def test_rows_that_wait_are_dropped_at_once_when_nobody_waits_for_them() -> None:
    backend, registry, done = FakeBackend(), CollectorRegistry(), list[Completion]()
    engine = engine_of(backend, done.extend, max_batch=4, registry=registry)
    rows = [InferenceRequest(sure(0.95, 0.95, 0.95)) for _ in range(3)]
    engine.submit(rows)
    engine.cancel(rows[:2])
    assert engine.queue_depths == [1, 0, 0] and cancelled(registry) == 2
    engine.cancel(rows[:2])
    run_out(engine)
    assert [completion.row for completion in done] == [rows[2]]
    assert backend.stage_rows == {0: 1} and cancelled(registry) == 2
    engine.cancel(rows)
    assert cancelled(registry) == 2, "who was answered is not dropped"


@pytest.mark.parametrize("at", [0, 1, 2])
def test_rows_in_a_batch_are_dropped_at_its_end_when_nobody_waits_for_them(at: int) -> None:
    registry, done = CollectorRegistry(), list[Completion]()
    rows = [InferenceRequest(sure(0.6, 0.6, 0.95)) for _ in range(2)]

    def leave(stage: int) -> None:
        if stage == at:
            engine.cancel([rows[0]])
            assert cancelled(registry) == 0

    backend = FakeBackend(leave)
    engine = engine_of(backend, done.extend, max_batch=2, registry=registry)
    engine.submit(rows)
    run_out(engine)
    assert [completion.row for completion in done] == [rows[1]]
    assert [backend.stage_rows[stage] for stage in range(3)] == [
        2 if stage <= at else 1 for stage in range(3)
    ]
    assert cancelled(registry) == 1


def test_a_row_that_is_cancelled_before_it_comes_never_runs() -> None:
    backend, registry = FakeBackend(), CollectorRegistry()
    engine = engine_of(backend, registry=registry)
    row = InferenceRequest(sure(0.95, 0.95, 0.95))
    engine.cancel([row])
    engine.submit([row])
    run_out(engine)
    assert not backend.batches and cancelled(registry) == 1


def test_workers_with_nothing_to_do_use_no_processor_time() -> None:
    engine = engine_of(FakeBackend(), workers=3)
    engine.start()
    engine.submit([InferenceRequest(sure(0.95, 0.95, 0.95))])
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.05
    engine.stop()


@pytest.fixture(scope="module")
def stopping() -> StoppingPolicy:
    """Fitted to rows whose confidences at the three exits hang together."""
    rng = np.random.default_rng(0)
    confidences = rng.beta([3, 5, 9], 2, (400, 3)).clip(0.01, 0.99)
    log_probs = np.log(np.stack([confidences.T, 1 - confidences.T], -1))
    labels = (rng.uniform(size=400) > confidences[:, 2]).astype(np.int64)
    return fit_stopping(log_probs, labels, np.array([1.0, 2.0, 3.0]))


CONFIDENCES = np.random.default_rng(1).beta([3, 5, 9], 2, (60, 3)).astype(np.float32)
PRICES = (0.3, 0.1, 0.03, 0.0)


@pytest.fixture(scope="module")
def replayed(stopping: StoppingPolicy) -> dict[float, list[int]]:
    """The exits that replaying names for CONFIDENCES, by price; at each exit some leave."""
    columns = CONFIDENCES.T
    log_probs = np.log(np.stack([columns, 1 - columns], -1))
    scored = replay(stopping, log_probs)
    exits = {price: exits_taken(stopping, scored, price).tolist() for price in PRICES}
    assert {exit for taken in exits.values() for exit in taken} == {0, 1, 2}
    return exits


@pytest.mark.parametrize("max_batch", [1, 7, 60])
def test_rows_that_stop_at_a_price_of_their_own_leave_where_replaying_says(
    stopping: StoppingPolicy, replayed: dict[float, list[int]], max_batch: int
) -> None:
    prices = [PRICES[index % 4] for index in range(60)]
    rows = [
        InferenceRequest((each[None],), parameter=price)
        for each, price in zip(CONFIDENCES, prices, strict=True)
    ]
    done = serve(rows, by=stopping, parameter=stopping.never_exit_parameter, max_batch=max_batch)
    assert exits_of(done) == [replayed[price][index] for index, price in enumerate(prices)]


def test_rows_without_a_price_stop_at_the_engines(
    stopping: StoppingPolicy, replayed: dict[float, list[int]]
) -> None:
    rows = [InferenceRequest((each[None],)) for each in CONFIDENCES]
    done = serve(rows, by=stopping, parameter=0.03, max_batch=9)
    assert exits_of(done) == replayed[0.03]


@pytest.mark.parametrize(
    ("at", "exit"), [("exit_at_first_parameter", 0), ("never_exit_parameter", 2)]
)
def test_at_the_extreme_prices_all_rows_leave_together(
    stopping: StoppingPolicy, at: str, exit: int
) -> None:
    rows = [InferenceRequest((each[None],)) for each in CONFIDENCES]
    done = serve(rows, by=stopping, parameter=getattr(stopping, at), max_batch=9)
    assert set(exits_of(done)) == {exit}


def test_the_trace_of_a_stopping_row_has_its_own_continuation_values(
    stopping: StoppingPolicy,
) -> None:
    rows = [InferenceRequest((each[None],), traced=True) for each in CONFIDENCES]
    done = serve(rows, by=stopping, parameter=0.03, max_batch=9)
    at_first = set()
    for index in range(60):
        answer = done[index].outcome
        assert isinstance(answer, Prediction) and answer.trace is not None
        *passed, left = answer.trace
        assert all(entry.score < entry.threshold for entry in passed)
        assert left.score >= left.threshold
        assert (left.threshold == -np.inf) == (left.exit == 2)
        at_first.add(answer.trace[0].threshold)
    assert len(at_first) > 30


class TextBackend:
    """Three exits over ids (A, L) and masks (A, L); a row's first id names it, its mask its stage.

    Refuses rows of different shapes, as stacking them would, and notes what each batch held.
    """

    num_exits = 3
    device = "fake"
    gather = staticmethod(gather_arrays)
    synchronize = staticmethod(lambda: None)

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, list[int]]] = []  # stage, length, names
        self.lock = threading.Lock()

    def run_stage(self, stage: int, state: State) -> State:
        ids, mask = state
        assert ids.shape == mask.shape, "rows of one batch are of one shape"
        assert (mask == stage).all(), "every row was in the stage before"
        with self.lock:
            self.batches.append((stage, ids.shape[1], ids[:, 0].tolist()))
        return ids, mask + 1

    def run_head(self, exit: int, state: State) -> HeadOutput:
        ids, _ = state
        best = (0.5 + 0.49 * np.sin(ids.sum(1) + exit) ** 2).astype(np.float32)
        log_probs = np.log(np.stack([best, 1 - best], 1))
        return HeadOutput(log_probs, log_probs)


def text_row(name: int, length: int, priority: int = 1) -> InferenceRequest:
    ids = np.arange(length)[None] + name
    return InferenceRequest((ids, np.zeros_like(ids)), tag=name, priority=priority)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=60),
    max_batch=st.integers(1, 9),
    workers=st.integers(1, 4),
)
def test_rows_of_any_shapes_complete_once_in_batches_of_one_shape(
    sizes: list[tuple[int, int]], max_batch: int, workers: int
) -> None:
    backend = TextBackend()
    rows = [
        text_row(1000 * name, 8 * length, priority) for name, (length, priority) in enumerate(sizes)
    ]
    alone = [serve([text_row(1000 * name, 8 * length)], TextBackend())[0].outcome
             for name, (length, _) in enumerate(sizes)]  # fmt: skip
    done = serve(rows, backend, max_batch=max_batch, workers=workers)
    assert sorted(done) == list(range(len(rows)))
    exits = []
    for index, expected in enumerate(alone):
        answer = done[index].outcome
        assert isinstance(answer, Prediction) and isinstance(expected, Prediction)
        assert answer.exit == expected.exit
        assert np.array_equal(answer.said.log_probs, expected.said.log_probs)
        exits.append(answer.exit)
    lengths = {1000 * name: 8 * length for name, (length, _) in enumerate(sizes)}
    ran: Counter[int] = Counter()
    for stage, length, names in backend.batches:
        assert 1 <= len(names) <= max_batch
        assert all(lengths[name] == length for name in names)
        ran[stage] += len(names)
    assert [ran[stage] for stage in range(3)] == [
        sum(exit >= stage for exit in exits) for stage in range(3)
    ]


def test_queue_depths_count_rows_of_all_shapes() -> None:
    done: list[Completion] = []
    engine = engine_of(TextBackend(), done.extend, parameter=2.0, max_batch=8)
    assert engine.queue_depths == [0, 0, 0] and engine.oldest_wait_s() == 0
    engine.submit([text_row(name, length) for name, length in enumerate((8, 16, 8, 24, 8))])
    assert engine.queue_depths == [5, 0, 0]
    assert engine.oldest_wait_s() > 0
    run_out(engine)
    assert engine.queue_depths == [0, 0, 0] and engine.oldest_wait_s() == 0
    assert len(done) == 5


def test_of_several_shapes_the_best_priority_chooses_the_batch() -> None:
    backend = TextBackend()
    given = [(8, 2), (16, 2), (24, 0), (8, 2), (16, 1), (24, 2)]
    rows = [text_row(name, length, at) for name, (length, at) in enumerate(given)]
    serve(rows, backend, parameter=2.0, max_batch=8)
    order = [(length, names) for stage, length, names in backend.batches if stage == 0]
    # Row 2 has priority 0, then row 4 priority 1; each takes the others of its shape along.
    assert order == [(24, [2, 5]), (16, [4, 1]), (8, [0, 3])]


class Words(NamedTuple):
    """A real network of texts, and texts of many lengths."""

    backend: OnnxBackend
    preprocess: TextPreprocessor
    texts: list[str]


@pytest.fixture(scope="module")
def words(text_bundle: Path) -> Words:
    bundle, random = load_bundle(text_bundle), np.random.default_rng(0)
    preprocess = bundle.preprocessor(1)
    assert isinstance(preprocess, TextPreprocessor)
    choice = ("good", "bad", "film", "very", "the", "unseen", "zebra", "x y z")
    texts = [" ".join(random.choice(choice, random.integers(1, 60))) for _ in range(50)]
    return Words(OnnxBackend(bundle.stage_files, bundle.head_files), preprocess, texts)


@pytest.mark.parametrize(("max_batch", "workers"), [(8, 3), (1, 2), (50, 1)])
def test_texts_of_mixed_lengths_are_answered_as_alone(
    words: Words, max_batch: int, workers: int
) -> None:
    states = [words.preprocess(text).state for text in words.texts]
    lengths = {state[0].shape[1] for state in states}
    assert len(lengths) == 5 and max(lengths) == 40
    never = ThresholdTable(np.array([1.0]), np.array([[np.inf, -np.inf]]))
    by = ConfidencePolicy(never, "maxprob")
    rows = [InferenceRequest(state) for state in states]
    done = serve(rows, words.backend, by=by, max_batch=max_batch, workers=workers)  # type: ignore[arg-type]
    assert len(done) == len(rows)
    for index, (ids, mask) in enumerate(states):
        real = int(mask.sum())
        unpadded = (ids[:, :real], mask[:, :real])
        for stage in range(2):
            unpadded = words.backend.run_stage(stage, unpadded)
        expected = words.backend.run_head(1, unpadded).log_probs[0]
        answer = done[index].outcome
        assert isinstance(answer, Prediction) and answer.exit == 1
        assert np.exp(answer.said.log_probs) == pytest.approx(np.exp(expected), abs=1e-3)


def test_rows_of_different_shapes_cannot_be_joined(words: Words) -> None:
    with pytest.raises(ValueError, match="dimension"):
        join_states([words.preprocess(text).state for text in ("good", "good " * 30)])
