"""Where exits should stand, from what each layer costs."""

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
    """Choose the layers behind which exits stand, for a mean budget.

    With T the latency of the whole network and f that of the first exit, a mean of B leaves room
    for a share (B - f) / (T - f) of the samples to run to the end, the others leaving at once. So f
    must be below B, and how far below is the room that a policy has: half of it, f = B / 2, lets
    at least B / 2T of the samples through. An exit later than T / K would, under a generous budget,
    only crowd the others into the end of the network. Hence the rule: the first exit stands behind
    the last layer that ends by min(B / 2, T / K), or behind the first layer if none does; the
    others divide the latency from there to the end evenly, each behind the layer nearest to its
    share, the last one after the last layer.

    Latencies of exit heads are not counted.

    Args:
        layer_latencies_ms: Of each layer, (L,).
        budget_ms: B, of the mean sample.
        num_exits: K, the last exit included, 2 to L.

    Returns:
        Layers counted from 1, K of them, rising, the last one L.

    Raises:
        ValueError: If a latency is no number above 0, there are not so many layers, or the first
            layer alone takes the budget.
    """
    layers_ms = np.asarray(layer_latencies_ms, dtype=np.float64)
    if layers_ms.ndim != 1 or not np.isfinite(layers_ms).all() or not (layers_ms > 0).all():
        raise ValueError(
            f"layer_latencies_ms is {layers_ms.tolist()}; it must be a list of numbers above 0"
        )
    num_layers = len(layers_ms)
    if not 2 <= num_exits <= num_layers:
        raise ValueError(
            f"num_exits is {num_exits}; it must lie between 2 and the {num_layers} layers there are"
        )
    if not budget_ms > layers_ms[0]:
        raise ValueError(
            f"budget_ms {budget_ms:g} cannot be kept: the first layer alone takes "
            f"{layers_ms[0]:g} ms; raise the budget above that"
        )
    ends_ms = np.cumsum(layers_ms)  # (L,)
    total_ms = ends_ms[-1]
    first_ms = min(budget_ms / 2, total_ms / num_exits)
    by_then = ends_ms <= first_ms * (1 + 1e-9)  # equal layers may differ by rounding
    first = max(int(by_then.sum()), 1)
    exits = [min(first, num_layers - num_exits + 1)]
    for target_ms in np.linspace(ends_ms[exits[0] - 1], total_ms, num_exits)[1:]:
        to_come = num_exits - len(exits) - 1
        nearest = int(np.abs(ends_ms - target_ms).argmin()) + 1
        exits.append(min(max(nearest, exits[-1] + 1), num_layers - to_come))
    return tuple(exits)


def layer_latencies(
    model: MultiExitModel,
    example: State,
    *,
    repeats: int = 20,
    clock: Callable[[], float] = time.perf_counter,
) -> NDArray[np.float64]:
    """Time each stage of a network on this machine, with one thread of torch.

    Repeats go round the whole network, so that a slow spell of the machine falls on all alike.

    Args:
        model: A network of one stage per layer; put into evaluation mode.
        example: One typical input, of one row.
        repeats: Rounds counted, after a few that are not.
        clock: Seconds.

    Returns:
        Medians in ms, (L,). What comes before the first layer is counted with it.
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
    """Seconds of each stage, L of them."""
    seconds, state = [], example
    for stage in model.stages:
        start = clock()
        state = stage(state)
        seconds.append(clock() - start)
    return seconds
