import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from models.backend import HeadOutput, State, join_states
from models.bundle import load_bundle
from models.onnx_backend import OnnxBackend
from models.preprocess import TextPreprocessor
from scheduler.baselines import ConfidencePolicy
from scheduler.policy import ExitPolicy, replay, take_exits
from scheduler.stopping import StoppingPolicy
from scheduler.stopping_fit import fit_stopping
from scheduler.thresholds import ThresholdTable
from server.engine import Engine
from server.errors import DeadlineExceeded, InferenceFailed
from server.metrics import Metrics, ModelMetrics
from server.row import Answer, Completion, Row


class FakeBackend:
    """Three exits; a row's input is its max probability at every exit; POISON makes a stage fail.

    Counts the rows that each stage has really run.
    """

    num_exits = 3
    POISON = -1.0

    def __init__(self, on_stage: Callable[[int], None] = lambda stage: None) -> None:
        self.stage_rows: Counter[int] = Counter()
        self.batches: list[tuple[int, list[float]]] = []
        self.on_stage = on_stage

    def run_stage(self, stage: int, state: State) -> State:
        self.on_stage(stage)
        self.stage_rows[stage] += len(state[0])
        self.batches.append((stage, state[0][:, stage].tolist()))
        if (state[0] == self.POISON).any():
            raise RuntimeError("poisoned row")
        return state

    def run_head(self, exit: int, state: State) -> HeadOutput:
        best = state[0][:, exit]
        log_probs = np.log(np.stack([best, 1 - best], 1))
        return HeadOutput(log_probs, log_probs)


def sure(*confidences: float) -> State:
    """The input of one row: its confidence at each exit."""
    return (np.array([confidences], np.float32),)


def policy() -> ConfidencePolicy:
    """Parameter 1: exits fire at 0.9 and 0.8; parameter 2: nothing fires early."""
    never = np.inf
    thresholds = np.array([[0.9, 0.8, -never], [never, never, -never]])
    return ConfidencePolicy(ThresholdTable(np.array([1.0, 2.0]), thresholds), "maxprob")


def serve(
    rows: list[Row],
    backend: FakeBackend | None = None,
    *,
    by: ExitPolicy | None = None,
    parameter: float = 1.0,
    max_batch: int = 1,
    workers: int = 1,
    clock: Callable[[], float] | None = None,
) -> dict[int, Completion]:
    """Run rows to completion; completions by the row's place in the list."""
    done: list[Completion] = []
    lock = threading.Lock()

    def on_batch(completions: list[Completion]) -> None:
        with lock:
            done.extend(completions)

    metrics = ModelMetrics(Metrics(CollectorRegistry(), "test"), "fake", 3)
    options = {} if clock is None else {"clock": clock}
    engine = Engine(
        backend or FakeBackend(),
        by or policy(),
        parameter,
        workers=workers,
        max_batch=max_batch,
        metrics=metrics,
        on_batch=on_batch,
        **options,
    )
    engine.submit(rows)
    engine.start()
    engine.stop()
    return {rows.index(completion.row): completion for completion in done}


def test_a_row_leaves_at_the_first_exit_that_fires_and_later_stages_never_run_it() -> None:
    backend = FakeBackend()
    rows = [Row(sure(0.95, 0.99, 0.99)), Row(sure(0.6, 0.85, 0.99)), Row(sure(0.6, 0.6, 0.7))]
    done = serve(rows, backend)
    exits = [done[index].outcome.exit for index in range(3)]  # type: ignore[union-attr]
    assert exits == [0, 1, 2]
    assert backend.stage_rows == {0: 3, 1: 2, 2: 1}


def test_the_answer_is_that_of_the_exit_taken() -> None:
    answer = serve([Row(sure(0.6, 0.85, 0.99))])[0].outcome
    assert isinstance(answer, Answer)
    assert np.exp(answer.said.log_probs) == pytest.approx([0.85, 0.15])
    assert answer.trace is None


def test_a_row_obeys_its_own_parameter_beside_others_in_the_batch() -> None:
    rows = [Row(sure(0.95, 0.95, 0.95)), Row(sure(0.95, 0.95, 0.95), parameter=2.0)]
    done = serve(rows, max_batch=2)
    assert [done[index].outcome.exit for index in range(2)] == [0, 2]  # type: ignore[union-attr]


def test_an_infinite_parameter_runs_everything_to_the_end() -> None:
    done = serve([Row(sure(0.99, 0.99, 0.99))], parameter=float("inf"))
    assert done[0].outcome.exit == 2  # type: ignore[union-attr]


def test_the_trace_has_an_entry_for_every_exit_passed() -> None:
    answer = serve([Row(sure(0.6, 0.85, 0.99), traced=True)])[0].outcome
    assert isinstance(answer, Answer) and answer.trace is not None
    shown = [(e.exit, pytest.approx(e.score), e.threshold) for e in answer.trace]
    assert shown == [(0, 0.6, 0.9), (1, 0.85, 0.8)]
    assert answer.trace[0].elapsed_ms < answer.trace[1].elapsed_ms == answer.compute_ms


def test_only_the_bad_row_of_a_batch_fails() -> None:
    rows = [Row(sure(0.95, 0.9, 0.9)) for _ in range(7)]
    rows[4].state = sure(FakeBackend.POISON, 0.9, 0.9)
    done = serve(rows, max_batch=7)
    failed = [index for index in range(7) if isinstance(done[index].outcome, InferenceFailed)]
    assert failed == [4]


def test_a_failed_batch_is_remembered_for_the_readiness_probe() -> None:
    backend, metrics = FakeBackend(), ModelMetrics(Metrics(CollectorRegistry(), ""), "fake", 3)
    engine = Engine(
        backend,
        policy(),
        1.0,
        workers=1,
        max_batch=1,
        metrics=metrics,
        on_batch=lambda completions: None,
    )
    engine.submit([Row(sure(FakeBackend.POISON, 0.9, 0.9))])
    assert not engine.failed
    engine.start()
    engine.stop()
    assert engine.failed


def test_rows_of_different_requests_share_a_batch_and_refill_the_next() -> None:
    backend = FakeBackend()
    rows = [Row(sure(0.95, 0.9, 0.9)), Row(sure(0.6, 0.6, 0.9)), Row(sure(0.6, 0.6, 0.9))]
    serve(rows, backend, max_batch=8)
    sizes = [(stage, len(batch)) for stage, batch in backend.batches]
    assert sizes == [(0, 3), (1, 2), (2, 2)]


def test_no_batch_passes_the_bound() -> None:
    backend = FakeBackend()
    serve([Row(sure(0.5, 0.5, 0.5)) for _ in range(20)], backend, max_batch=8)
    assert max(len(batch) for _, batch in backend.batches) == 8


def test_lower_priority_numbers_go_first() -> None:
    backend = FakeBackend()
    rows = [Row(sure(0.91, 0.9, 0.9), priority=3), Row(sure(0.92, 0.9, 0.9), priority=0)]
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
    done = serve([Row(sure(0.95, 0.9, 0.9), deadline_s=4.0)], backend, clock=clock)
    assert isinstance(done[0].outcome, DeadlineExceeded)
    assert not backend.stage_rows


def test_a_deadline_that_passes_before_the_first_exit_is_an_error() -> None:
    clock = StepClock()
    done = serve([Row(sure(0.95, 0.9, 0.9), deadline_s=0.5)], FakeBackend(clock.step), clock=clock)
    assert isinstance(done[0].outcome, DeadlineExceeded)


def test_a_row_leaves_early_when_the_next_exit_would_come_too_late() -> None:
    # The first row teaches the engine that a stage takes a second.
    clock = StepClock()
    rows = [Row(sure(0.5, 0.5, 0.5)), Row(sure(0.5, 0.5, 0.5), deadline_s=4.5)]
    done = serve(rows, FakeBackend(clock.step), clock=clock)
    answer = done[1].outcome
    assert isinstance(answer, Answer)
    assert (answer.exit, answer.late) == (0, False)


def test_a_late_answer_says_so() -> None:
    # Nothing is known of stage 1 yet, so the row goes on and the deadline passes there.
    clock = StepClock()
    row = Row(sure(0.5, 0.5, 0.5), deadline_s=1.5)
    answer = serve([row], FakeBackend(clock.step), clock=clock)[0].outcome
    assert isinstance(answer, Answer)
    assert (answer.exit, answer.late) == (1, True)


def test_a_changed_parameter_applies_to_rows_already_on_their_way() -> None:
    done: list[Completion] = []
    metrics = ModelMetrics(Metrics(CollectorRegistry(), ""), "fake", 3)
    backend = FakeBackend()
    engine = Engine(
        backend,
        policy(),
        2.0,
        workers=1,
        max_batch=1,
        metrics=metrics,
        on_batch=done.extend,
    )

    def open_exits(stage: int) -> None:
        if stage == 1:
            engine.parameter = 1.0

    backend.on_stage = open_exits
    engine.submit([Row(sure(0.95, 0.95, 0.95))])
    engine.start()
    engine.stop()
    assert done[0].outcome.exit == 1  # type: ignore[union-attr]


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
    rows = [Row(sure(*each)) for each in confidences]
    done = serve(rows, max_batch=max_batch, workers=workers)
    assert len(done) == len(rows)
    for index, row in enumerate(confidences):
        seen = np.exp(np.log(np.float32(row)).astype(np.float64))
        expected = 0 if seen[0] >= 0.9 else 1 if seen[1] >= 0.8 else 2
        assert done[index].outcome.exit == expected  # type: ignore[union-attr]


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
    exits = {price: take_exits(stopping, scored, price).tolist() for price in PRICES}
    assert {exit for taken in exits.values() for exit in taken} == {0, 1, 2}
    return exits


@pytest.mark.parametrize("max_batch", [1, 7, 60])
def test_rows_that_stop_at_a_price_of_their_own_leave_where_replaying_says(
    stopping: StoppingPolicy, replayed: dict[float, list[int]], max_batch: int
) -> None:
    prices = [PRICES[index % 4] for index in range(60)]
    rows = [
        Row((each[None],), parameter=price) for each, price in zip(CONFIDENCES, prices, strict=True)
    ]
    done = serve(rows, by=stopping, parameter=stopping.run_on, max_batch=max_batch)
    exits = [done[index].outcome.exit for index in range(60)]  # type: ignore[union-attr]
    assert exits == [replayed[price][index] for index, price in enumerate(prices)]


def test_rows_without_a_price_stop_at_the_engines(
    stopping: StoppingPolicy, replayed: dict[float, list[int]]
) -> None:
    rows = [Row((each[None],)) for each in CONFIDENCES]
    done = serve(rows, by=stopping, parameter=0.03, max_batch=9)
    exits = [done[index].outcome.exit for index in range(60)]  # type: ignore[union-attr]
    assert exits == replayed[0.03]


@pytest.mark.parametrize(("at", "exit"), [("stop_at_once", 0), ("run_on", 2)])
def test_at_the_extreme_prices_all_rows_leave_together(
    stopping: StoppingPolicy, at: str, exit: int
) -> None:
    rows = [Row((each[None],)) for each in CONFIDENCES]
    done = serve(rows, by=stopping, parameter=getattr(stopping, at), max_batch=9)
    assert {done[index].outcome.exit for index in range(60)} == {exit}  # type: ignore[union-attr]


def test_the_trace_of_a_stopping_row_has_its_own_continuation_values(
    stopping: StoppingPolicy,
) -> None:
    rows = [Row((each[None],), traced=True) for each in CONFIDENCES]
    done = serve(rows, by=stopping, parameter=0.03, max_batch=9)
    at_first = set()
    for index in range(60):
        answer = done[index].outcome
        assert isinstance(answer, Answer) and answer.trace is not None
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


def text_row(name: int, length: int, priority: int = 1) -> Row:
    ids = np.arange(length)[None] + name
    return Row((ids, np.zeros_like(ids)), tag=name, priority=priority)


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
        assert isinstance(answer, Answer) and isinstance(expected, Answer)
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


def waiting(backend: TextBackend, *, max_batch: int = 8, done: list[Completion]) -> Engine:
    metrics = ModelMetrics(Metrics(CollectorRegistry(), ""), "fake", 3)
    return Engine(
        backend,
        policy(),
        2.0,
        workers=1,
        max_batch=max_batch,
        metrics=metrics,
        on_batch=done.extend,
    )


def test_queue_depths_count_rows_of_all_shapes() -> None:
    done: list[Completion] = []
    engine = waiting(TextBackend(), done=done)
    assert engine.queue_depths == [0, 0, 0] and engine.oldest_wait_s() == 0
    engine.submit([text_row(name, length) for name, length in enumerate((8, 16, 8, 24, 8))])
    assert engine.queue_depths == [5, 0, 0]
    assert engine.oldest_wait_s() > 0
    engine.start()
    engine.stop()
    assert engine.queue_depths == [0, 0, 0] and engine.oldest_wait_s() == 0
    assert len(done) == 5


def test_of_several_shapes_the_row_that_is_first_in_line_chooses_the_batch() -> None:
    backend = TextBackend()
    engine = waiting(backend, done=[])
    given = [(8, 2), (16, 2), (24, 0), (8, 2), (16, 1), (24, 2)]
    engine.submit([text_row(name, length, at) for name, (length, at) in enumerate(given)])
    engine.start()
    engine.stop()
    order = [(length, names) for stage, length, names in backend.batches if stage == 0]
    # Row 2 has priority 0, then row 4 priority 1; each takes the others of its shape along.
    assert order == [(24, [2, 5]), (16, [4, 1]), (8, [0, 3])]


def test_no_shape_waits_for_ever_behind_another() -> None:
    backend, done = TextBackend(), list[Completion]()
    engine = waiting(backend, max_batch=2, done=done)
    engine.submit([text_row(name, 16 if name == 3 else 8) for name in range(9)])
    engine.start()
    engine.stop()
    first = [names for stage, _, names in backend.batches if stage == 0]
    assert first == [[0, 1], [2, 4], [3], [5, 6], [7, 8]]


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
    rows = [Row(state) for state in states]
    done = serve(rows, words.backend, by=by, max_batch=max_batch, workers=workers)  # type: ignore[arg-type]
    assert len(done) == len(rows)
    for index, (ids, mask) in enumerate(states):
        real = int(mask.sum())
        unpadded = (ids[:, :real], mask[:, :real])
        for stage in range(2):
            unpadded = words.backend.run_stage(stage, unpadded)
        expected = words.backend.run_head(1, unpadded).log_probs[0]
        answer = done[index].outcome
        assert isinstance(answer, Answer) and answer.exit == 1
        assert np.exp(answer.said.log_probs) == pytest.approx(np.exp(expected), abs=1e-3)


def test_rows_of_different_shapes_cannot_be_joined(words: Words) -> None:
    with pytest.raises(ValueError, match="dimension"):
        join_states([words.preprocess(text).state for text in ("good", "good " * 30)])
