import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.networks.multi_exit import MultiExitModel
from models.training.exit_placement import layer_latencies, suggest_exits


@pytest.mark.parametrize(
    ("budget_ms", "num_exits", "exits"),
    [
        (100.0, 4, (3, 6, 9, 12)),  # generous: spread over the whole network
        (12.0, 4, (3, 6, 9, 12)),
        (6.0, 4, (3, 6, 9, 12)),
        (4.0, 4, (2, 5, 9, 12)),  # half the budget, then evenly
        (2.0, 4, (1, 5, 8, 12)),
        (1.5, 4, (1, 5, 8, 12)),  # less than half is left, yet it can be kept
        (6.0, 2, (3, 12)),
        (6.0, 12, tuple(range(1, 13))),
        (6.0, 11, (1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12)),
    ],
)
def test_exits_of_a_network_of_equal_layers(
    budget_ms: float, num_exits: int, exits: tuple[int, ...]
) -> None:
    assert suggest_exits([1.0] * 12, budget_ms, num_exits) == exits


def test_equal_layers_may_differ_by_rounding() -> None:
    for layer_ms in (0.1, 0.7, 1 / 3):
        assert suggest_exits([layer_ms] * 12, 99.0, 4) == (3, 6, 9, 12)


def test_exits_are_spread_in_latency_not_in_layers() -> None:
    layers_ms = [1.0, 1.0, 1.0, 1.0, 4.0, 4.0, 1.0, 1.0, 1.0, 1.0]  # ends: 1 2 3 4 8 12 13 .. 16
    assert suggest_exits(layers_ms, 8.0, 4) == (4, 5, 6, 10)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0.01, 100), min_size=2, max_size=30).flatmap(
        lambda layers: st.tuples(
            st.just(layers), st.integers(2, len(layers)), st.floats(1.001, 50, allow_nan=False)
        )
    )
)
def test_a_budget_above_the_first_layer_can_always_be_kept(
    case: tuple[list[float], int, float],
) -> None:
    layers_ms, num_exits, times_first = case
    budget_ms = layers_ms[0] * times_first
    exits = suggest_exits(np.array(layers_ms), budget_ms, num_exits)
    assert len(exits) == num_exits and exits[-1] == len(layers_ms)
    assert exits[0] >= 1 and all(a < b for a, b in itertools.pairwise(exits))
    first_ms = sum(layers_ms[: exits[0]])
    assert first_ms < budget_ms
    assert exits[0] == 1 or first_ms <= budget_ms / 2 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("layers_ms", "budget_ms", "num_exits", "message"),
    [
        ([2.0, 3.0], 2.0, 2, "budget_ms 2 cannot be kept: the first layer alone takes 2 ms; raise"),
        ([2.5, 3.0], 1.0, 2, "budget_ms 1 cannot be kept: the first layer alone takes 2.5 ms"),
        ([2.0, 3.0], float("nan"), 2, "budget_ms nan cannot be kept"),
        ([2.0, 3.0], 4.0, 1, "num_exits is 1; it must lie between 2 and the 2 layers of the"),
        ([2.0, 3.0], 4.0, 3, "num_exits is 3; it must lie between 2 and the 2 layers of the"),
        ([2.0, 0.0], 4.0, 2, r"layer_latencies_ms is \[2.0, 0.0\]; it must be a list of numbers a"),
        ([2.0, float("inf")], 4.0, 2, r"layer_latencies_ms is \[2.0, inf\]; it must be a list"),
    ],
)
def test_what_cannot_be_placed_is_told(
    layers_ms: list[float], budget_ms: float, num_exits: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        suggest_exits(layers_ms, budget_ms, num_exits)


class Clock:
    """A clock that only layers advance."""

    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


class Layer(nn.Module):
    """A layer that takes some seconds, and ten times as many in every fifth round."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds, self.rounds = clock, seconds, 0

    def forward(self, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        assert not self.training and torch.is_inference_mode_enabled()
        assert torch.get_num_threads() == 1
        self.rounds += 1
        self.clock.now += self.seconds * (10 if self.rounds % 5 == 0 else 1)
        return state[0] + 1, state[1]


class NeverRun(nn.Module):
    def forward(self, state: tuple[Tensor, Tensor]) -> Tensor:
        raise AssertionError("heads are not timed")


def test_latencies_are_medians_of_each_stage_in_milliseconds() -> None:
    clock = Clock()
    layers = [Layer(clock, 0.004), Layer(clock, 0.001), Layer(clock, 0.002)]
    model = MultiExitModel(layers, [NeverRun()] * 3).train()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        example = torch.zeros(1, 4), torch.ones(1, 4)
        latencies_ms = layer_latencies(model, example, repeats=9, clock=clock)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(latencies_ms, [4.0, 1.0, 2.0])
    assert [layer.rounds for layer in layers] == [12, 12, 12]


def test_threads_are_given_back_after_a_failure() -> None:
    model = MultiExitModel([NeverRun()], [NeverRun()])
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(AssertionError):
            layer_latencies(model, torch.zeros(1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
