import threading
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.backend import HeadOutput, State, gather_arrays, join_states
from models.bundle import load_bundle
from models.preprocess import TextPreprocessor
from models.runtime.onnx_backend import OnnxBackend
from scheduler.baselines import ConfidencePolicy
from scheduler.thresholds import ThresholdTable
from server.engine.request import InferenceRequest, Prediction
from tests.server.engine.harness import (
    engine_of,
    run_out,
    serve,
)


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
    return InferenceRequest((ids, np.zeros_like(ids)), request_id=name, priority=priority)


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
    alone = [serve([text_row(1000 * name, 8 * length)], TextBackend())[0].result
             for name, (length, _) in enumerate(sizes)]  # fmt: skip
    done = serve(rows, backend, max_batch=max_batch, workers=workers)
    assert sorted(done) == list(range(len(rows)))
    exits = []
    for index, expected in enumerate(alone):
        answer = done[index].result
        assert isinstance(answer, Prediction) and isinstance(expected, Prediction)
        assert answer.exit == expected.exit
        assert np.array_equal(answer.output.log_probs, expected.output.log_probs)
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
    done: list[InferenceRequest] = []
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
    variant = bundle.variant()
    return Words(OnnxBackend(variant.stage_files, variant.head_files), preprocess, texts)


@pytest.mark.slow
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
        answer = done[index].result
        assert isinstance(answer, Prediction) and answer.exit == 1
        assert np.exp(answer.output.log_probs) == pytest.approx(np.exp(expected), abs=1e-3)


def test_rows_of_different_shapes_cannot_be_joined(words: Words) -> None:
    with pytest.raises(ValueError, match="dimension"):
        join_states([words.preprocess(text).state for text in ("good", "good " * 30)])
