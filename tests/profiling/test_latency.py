import json
from pathlib import Path

import numpy as np
import pytest

from models.backend import HeadOutput, State, gather_arrays
from profiling.latency import BatchLatency, LatencyProfile, measure_latency, save_profile

EXAMPLE = (np.zeros((1, 2), np.float32),)


class ClockedBackend:
    """Stage k takes 2 (k + 1) ms a row and head k 1 ms a row, on its own clock."""

    num_exits = 2
    device = "fake"
    gather = staticmethod(gather_arrays)
    synchronize = staticmethod(lambda: None)

    def __init__(self, slow_rounds: int = 0, steps_ms: tuple[float, ...] = (0.0,)) -> None:
        self.now_s = 0.0
        self.rounds = 0
        self.shapes: list[tuple[int, ...]] = []
        self.slow_rounds = slow_rounds
        self.steps_ms = steps_ms

    def clock(self) -> float:
        return self.now_s

    def run_stage(self, stage: int, state: State) -> State:
        if stage == 0:
            self.rounds += 1
            self.shapes.append(state[0].shape)
        extra_ms = self.steps_ms[(self.rounds - 1) % len(self.steps_ms)]
        slow = 100 if self.rounds <= self.slow_rounds else 1
        self.now_s += slow * (2 * (stage + 1) * len(state[0]) + extra_ms) / 1e3
        return (state[0] + 1,)

    def run_head(self, exit: int, state: State) -> HeadOutput:
        assert (state[0] == exit + 1).all(), "a head reads the state behind its own stage"
        self.now_s += len(state[0]) / 1e3
        return HeadOutput(state[0], state[0])


def test_stages_and_heads_are_timed_apart_for_every_batch_size() -> None:
    backend = ClockedBackend()
    profile = measure_latency(
        backend, EXAMPLE, batch_sizes=(1, 4), warm_up=1, repeats=5, clock=backend.clock
    )
    assert list(profile.by_batch) == [1, 4]
    for rows, latency in profile.by_batch.items():
        assert latency.stages_ms == pytest.approx(rows * np.array([[2.0] * 3, [4.0] * 3]))
        assert latency.heads_ms == pytest.approx(rows * np.ones((2, 3)))
    assert backend.shapes == [(1, 2)] * 6 + [(4, 2)] * 6


def test_costs_add_up_stages_and_all_heads_until_each_exit() -> None:
    backend = ClockedBackend()
    profile = measure_latency(
        backend, EXAMPLE, batch_sizes=(1, 2), warm_up=0, repeats=3, clock=backend.clock
    )
    assert profile.costs_ms == pytest.approx([3.0, 8.0])


def test_warm_up_rounds_do_not_count() -> None:
    backend = ClockedBackend(slow_rounds=3)
    profile = measure_latency(
        backend, EXAMPLE, batch_sizes=(1,), warm_up=3, repeats=4, clock=backend.clock
    )
    assert profile.by_batch[1].stages_ms.max() == pytest.approx(4.0)


def test_percentiles_are_those_of_the_rounds() -> None:
    backend = ClockedBackend(steps_ms=tuple(float(step) for step in range(101)))
    profile = measure_latency(
        backend, EXAMPLE, batch_sizes=(1,), warm_up=0, repeats=101, clock=backend.clock
    )
    expected = [[52.0, 92.0, 101.0], [54.0, 94.0, 103.0]]
    assert profile.by_batch[1].stages_ms == pytest.approx(np.array(expected))
    assert profile.costs_ms == pytest.approx([53.0, 108.0])


def test_the_saved_profile_holds_every_figure(tmp_path: Path) -> None:
    latency = BatchLatency(
        np.array([[1.0, 2, 3], [4, 5, 6]]), np.array([[0.5, 1, 2]] * 2), np.ones((2, 3))
    )
    save_profile(LatencyProfile({1: latency}), tmp_path / "profile.json")
    held = json.loads((tmp_path / "profile.json").read_text())
    assert held["percentiles"] == [50, 90, 99]
    assert held["latency_ms"] == {
        "1": {
            "stages": [[1, 2, 3], [4, 5, 6]],
            "heads": [[0.5, 1, 2], [0.5, 1, 2]],
            "exits": [[1, 1, 1], [1, 1, 1]],
        }
    }
    assert held["costs_ms"] == [1.5, 6.0]
    assert held["threads"] == 1
    assert held["machine"]
