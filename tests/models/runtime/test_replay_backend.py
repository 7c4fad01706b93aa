import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.backend import Part, StageBackend
from models.runtime.replay_backend import MAX_LATENESS_S, ReplayBackend
from models.stage_costs import StageCosts

FREE = StageCosts.of_exits([0.0, 0.0])
RNG = np.random.default_rng(0)
LOG_PROBS = np.log(RNG.dirichlet(np.ones(3), (2, 7)))  # (K, N, C)


class Watch:
    """A clock that advances only by its own sleep, which oversleeps by `late_s`."""

    def __init__(self, late_s: float = 0.0) -> None:
        self.now, self.late_s, self.asked = 0.0, late_s, list[float]()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.asked.append(seconds)
        self.now += seconds + self.late_s


def test_recorded_rows_answer_with_their_recording_at_every_exit() -> None:
    backend: StageBackend = ReplayBackend(LOG_PROBS, FREE)
    assert (backend.num_exits, backend.device) == (2, "replay")
    state = backend.run_stage(0, (np.array([6, 0, 6]),))
    for exit in (0, 1):
        output = backend.run_head(exit, state)
        assert np.array_equal(output.log_probs, LOG_PROBS[exit, [6, 0, 6]].astype(np.float32))
        assert output.logits.dtype == output.log_probs.dtype == np.float32
        state = backend.run_stage(1, state)


def test_rows_of_several_batches_are_joined() -> None:
    backend = ReplayBackend(LOG_PROBS, FREE)
    first, second = (backend.run_stage(0, (np.array(rows),)) for rows in ([1, 2, 3], [4, 5]))
    joined = backend.gather([Part(first, [0, 2]), Part(second, [1])])
    assert joined[0].tolist() == [1, 3, 5]


@given(st.integers(0, 2**32), st.integers(1, 5))
def test_an_input_stands_for_the_same_row_whatever_its_batch(seed: int, rows: int) -> None:
    backend = ReplayBackend(LOG_PROBS, FREE)
    images = np.random.default_rng(seed).normal(size=(rows, 3, 4, 4)).astype(np.float32)
    together = backend.run_stage(0, (images,))[0]
    alone = [backend.run_stage(0, (image[None],))[0].item() for image in images]
    assert together.tolist() == alone
    assert together.dtype == np.int64


def test_all_arrays_of_an_input_count_and_inputs_spread_over_the_recording() -> None:
    backend = ReplayBackend(LOG_PROBS, FREE)
    ids = RNG.integers(0, 1000, (200, 12))
    masks = np.ones((200, 12), np.int64)
    rows = backend.run_stage(0, (ids, masks))[0]
    assert set(rows.tolist()) == set(range(7))
    assert not np.array_equal(rows, backend.run_stage(0, (ids, masks * 2))[0])


def test_a_batch_takes_what_the_table_says() -> None:
    watch = Watch()
    costs = StageCosts.of_exits([2.0, 5.0], free_rows=4)
    backend = ReplayBackend(LOG_PROBS, costs, watch.sleep, watch)
    for stage, rows in ((0, 1), (0, 4), (1, 3), (1, 8)):
        backend.run_stage(stage, (np.zeros(rows, np.int64),))
    assert watch.asked == pytest.approx([0.002, 0.002, 0.003, 0.006])


def test_at_no_cost_nothing_sleeps() -> None:
    watch = Watch()
    backend = ReplayBackend(LOG_PROBS, FREE, watch.sleep, watch)
    backend.run_stage(0, (np.zeros(3, np.int64),))
    assert watch.asked == []


@pytest.mark.parametrize(("cost_ms", "batches"), [(1.0, 50), (0.03, 1000)])
def test_oversleeping_is_made_up_for(cost_ms: float, batches: int) -> None:
    watch = Watch(late_s=80e-6)
    backend = ReplayBackend(
        LOG_PROBS[:1], StageCosts.of_exits([cost_ms]), sleep=watch.sleep, clock=watch
    )
    for _ in range(batches):
        backend.run_stage(0, (np.zeros(1, np.int64),))
    assert watch.now == pytest.approx(batches * cost_ms / 1e3, abs=120e-6)


def test_a_pause_of_the_machine_is_not() -> None:
    watch = Watch(late_s=5.0)
    backend = ReplayBackend(LOG_PROBS[:1], StageCosts.of_exits([10.0]), watch.sleep, watch)
    for _ in range(2):
        backend.run_stage(0, (np.zeros(1, np.int64),))
    assert watch.asked == pytest.approx([0.010, 0.010 - MAX_LATENESS_S])


def test_the_device_runs_one_batch_at_a_time() -> None:
    inside, most, lock = 0, 0, threading.Lock()

    def sleep(seconds: float) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(seconds)
        with lock:
            inside -= 1

    backend = ReplayBackend(LOG_PROBS, StageCosts.of_exits([2.0, 4.0]), sleep)
    with ThreadPoolExecutor(4) as pool:
        states = list(pool.map(lambda row: backend.run_stage(0, (np.array([row]),)), range(7)))
    assert most == 1
    assert [int(state[0][0]) for state in states] == list(range(7))


@pytest.mark.parametrize("shape", [(2, 7, 4, 3), (2, 0, 3), (2, 7)])
def test_a_recording_that_is_no_classifiers_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"log_probs has the shape .*classifier"):
        ReplayBackend(np.zeros(shape), FREE)


def test_recording_and_costs_must_have_the_same_exits() -> None:
    with pytest.raises(ValueError, match="2 exits, the costs have 3 stages"):
        ReplayBackend(LOG_PROBS, StageCosts.of_exits([1.0, 2.0, 3.0]))
