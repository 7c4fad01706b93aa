"""Choose the layers that get an exit, from the latency of each layer."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from models.networks.multi_exit import MultiExitModel, State

WARM_UP = 3


def suggest_exits(
    layer_latencies_ms: Sequence[float] | NDArray[np.float64], budget_ms: float, num_exits: int
) -> tuple[int, ...]:
    """Choose the layers that get an exit, for a budget of the mean latency.

    Let T be the latency of the whole network, f that of the first exit, and B the budget. If every
    request leaves at the first or the last exit, a share (B - f) / (T - f) can run to the end. With
    f = B / 2, that is at least B / 2T of the requests. Under a large budget, a first exit later
    than T / K would only crowd the other exits into the end of the network.

    Hence the rule: the first exit follows the last layer that ends by min(B / 2, T / K), or the
    first layer if none does. The other exits divide the remaining latency evenly, each after the
    layer nearest to its share, the last one after the last layer.

    Latencies of exit heads are not counted.

    Args:
        layer_latencies_ms: Latency of each layer, (L,).
        budget_ms: Budget of the mean latency, B.
        num_exits: Number of exits including the last, K, from 2 to L.

    Returns:
        K layer numbers, counted from 1, increasing; the last is L.

    Raises:
        ValueError: If a latency is not a number above 0, there are fewer layers than exits, or the
            first layer alone takes the budget.
    """
    layers_ms = np.asarray(layer_latencies_ms, dtype=np.float64)
    if layers_ms.ndim != 1 or not np.isfinite(layers_ms).all() or not (layers_ms > 0).all():
        raise ValueError(
            f"layer_latencies_ms is {layers_ms.tolist()}; it must be a list of numbers above 0"
        )
    num_layers = len(layers_ms)
    if not 2 <= num_exits <= num_layers:
        raise ValueError(
            f"num_exits is {num_exits}; it must lie between 2 and the {num_layers} layers of "
            f"the network"
        )
    if not budget_ms > layers_ms[0]:
        raise ValueError(
            f"budget_ms {budget_ms:g} cannot be kept: the first layer alone takes "
            f"{layers_ms[0]:g} ms; raise the budget above that"
        )
    ends_ms = np.cumsum(layers_ms)  # (L,)
    total_ms = ends_ms[-1]
    first_ms = min(budget_ms / 2, total_ms / num_exits)
    in_time = ends_ms <= first_ms * (1 + 1e-9)  # equal layers may differ by rounding
    first = max(int(in_time.sum()), 1)
    exits = [min(first, num_layers - num_exits + 1)]
    for target_ms in np.linspace(ends_ms[exits[0] - 1], total_ms, num_exits)[1:]:
        later_exits = num_exits - len(exits) - 1  # each needs a layer of its own
        nearest = int(np.abs(ends_ms - target_ms).argmin()) + 1
        exits.append(min(max(nearest, exits[-1] + 1), num_layers - later_exits))
    return tuple(exits)


def layer_latencies(
    model: MultiExitModel,
    example: State,
    *,
    repeats: int = 20,
    clock: Callable[[], float] = time.perf_counter,
) -> NDArray[np.float64]:
    """Time each stage of a network on this machine, with one torch thread.

    Each round runs the whole network, so that a slow spell of the machine affects all stages alike.

    Args:
        model: A network of one stage per layer; it is put into evaluation mode.
        example: A typical input of one row.
        repeats: Number of timed rounds, after a few warm-up rounds.
        clock: Returns seconds.

    Returns:
        Median latency of each layer in ms, (L,). Work before the first layer counts as part of it.
    """
    model.eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rounds = [_one_round(model, example, clock) for _ in range(WARM_UP + repeats)]
    finally:
        torch.set_num_threads(threads)
    medians: NDArray[np.float64] = np.median(rounds[WARM_UP:], axis=0) * 1e3
    return medians


@torch.inference_mode()
def _one_round(model: MultiExitModel, example: State, clock: Callable[[], float]) -> list[float]:
    """Run the network once, and return the seconds of each of its L stages."""
    seconds, state = [], example
    for stage in model.stages:
        start = clock()
        state = stage(state)
        seconds.append(clock() - start)
    return seconds
