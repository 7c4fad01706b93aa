"""Choose the precision that a bundle is served in: what fits the device, is right and is fast."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from models.backend import StageBackend, State
from models.bundle import Bundle, BundleError, Precision, Variant
from models.known_answers import TOLERANCE, largest_difference, load_known_answers
from models.runtime.instruction_set import integer_instructions
from models.runtime.onnx_backend import CPU, HOST, Device

log = logging.getLogger(__name__)

EXACT: Precision = "float32"
LEAST_GAIN = 0.05  # share of the time that a precision must save against `float32`
MEASURE_S, MOST_ROUNDS = 0.25, 200


class Network(NamedTuple):
    """A variant of a bundle and the backend that runs it."""

    variant: Variant
    backend: StageBackend


Open = Callable[[Variant], StageBackend]


def open_network(
    bundle: Bundle,
    device: Device,
    named: Precision | None,
    example: State,
    open: Open,
    clock: Callable[[], float] = time.perf_counter,
) -> Network:
    """Open the networks that fit a device, keep the fastest and check its answers.

    If they are wrong on this host, `float32` replaces it. The others are released.

    Args:
        bundle: The bundle.
        device: The device that will run it.
        named: The precision that the operator names, or None.
        example: One input row.
        open: Loads a variant.
        clock: Seconds, monotonic.

    Raises:
        ValueError: If the bundle has nothing for this device, a graph cannot be loaded or run, or
            `float32` has wrong answers.
    """
    variants = [bundle.variant(each) for each in fitting_precisions(bundle, device, named)]
    opened = {variant.precision: Network(variant, open(variant)) for variant in variants}
    try:
        times_ms = measure_ms(list(opened.values()), example, clock) if len(opened) > 1 else {}
        network = opened[fastest(times_ms) if times_ms else variants[0].precision]
        if not _is_right(network):
            network = opened.get(EXACT) or _open_exact(bundle, open)
            _is_right(network)
    except ValueError:
        raise
    except Exception as error:  # ONNX Runtime does not export its exception types
        raise ValueError(f"{bundle.folder} holds a network that fails here: {error}") from error
    chosen = network.variant.precision
    log.info(
        "%s runs in %s on %s (%s); integer instructions of this CPU: %s",
        bundle.manifest.name,
        chosen,
        device.name,
        ", ".join(f"{precision} takes {ms:.3f} ms" for precision, ms in times_ms.items())
        or ("as --precision says" if chosen == named else "nothing else in the bundle fits"),
        integer_instructions(),
    )
    return network


def fitting_precisions(
    bundle: Bundle, device: Device, named: Precision | None = None
) -> list[Precision]:
    """Return the precision that is named, or those of a bundle that may suit a device.

    A GPU takes `float16`, else `float32`: int8 graphs are wrong for it. A CPU takes `float32` and
    `int8`, since it converts every value of `float16`.

    Raises:
        BundleError: If none does.
    """
    if named is not None:
        return [named]
    on_gpu = device.memory != HOST
    wanted: list[Precision] = ["float16", EXACT] if on_gpu else [EXACT, "int8"]
    if not on_gpu and device != CPU:  # OpenVINO
        wanted = [EXACT]
    held = [each for each in wanted if each in bundle.precisions]
    if not held:
        raise BundleError(
            f"{bundle.folder} holds only {', '.join(bundle.precisions)}, which {device.name} is "
            f"not given unless --precision names it; name it, or build the bundle with "
            f"`eenet build --precision {EXACT}`"
        )
    return held[:1] if on_gpu else held


def measure_ms(
    networks: Sequence[Network], example: State, clock: Callable[[], float]
) -> dict[Precision, float]:
    """Measure one row through all stages and heads of each network, in turn.

    Returns:
        The lower quartile of each, which other processes and the first runs disturb least.
    """
    rounds: list[list[float]] = []
    started = now = clock()
    lasted = 0.0
    while not rounds or (now + lasted - started <= MEASURE_S and len(rounds) < MOST_ROUNDS):
        marks = [now]
        for network in networks:
            _run(network.backend, example)
            marks.append(clock())
        rounds.append(np.diff(marks).tolist())
        now, lasted = marks[-1], marks[-1] - marks[0]
    times_ms = (np.percentile(rounds, 25, axis=0) * 1e3).tolist()
    return {each.variant.precision: ms for each, ms in zip(networks, times_ms, strict=True)}


def fastest(times_ms: Mapping[Precision, float]) -> Precision:
    """Return the fastest precision, or `float32`, which is more exact, if that loses little."""
    best = min(times_ms, key=lambda precision: times_ms[precision])
    if EXACT in times_ms and times_ms[best] > (1 - LEAST_GAIN) * times_ms[EXACT]:
        return EXACT
    return best


def _is_right(network: Network) -> bool:
    """Compare with the known answers, if there are any; log a warning where they differ.

    Raises:
        ValueError: If `float32` differs, which nothing could replace.
    """
    variant = network.variant
    if variant.known_answers is None:
        return True
    known = load_known_answers(variant.known_answers)
    if known.log_probs.shape[0] != network.backend.num_exits:
        raise BundleError(
            f"{variant.known_answers} has answers of {known.log_probs.shape[0]} exits, the network "
            f"has {network.backend.num_exits}; build the bundle again"
        )
    difference = largest_difference(network.backend, known)
    if difference <= TOLERANCE:
        return True
    fault = (
        f"the {variant.precision} network of {variant.bundle.manifest.name} has other answers on "
        f"this host than it was built with: they differ by {100 * difference:.1f} %, of which "
        f"rounding explains {100 * TOLERANCE:.1f} %"
    )
    if variant.precision == EXACT:
        raise ValueError(f"{fault}; build the bundle again, or install ONNX Runtime again")
    log.warning("%s; serving %s", fault, EXACT)
    return False


def _open_exact(bundle: Bundle, open: Open) -> Network:
    """Open the network that replaces one with wrong answers."""
    if EXACT not in bundle.precisions:
        raise BundleError(
            f"{bundle.folder} holds no {EXACT} network to replace the one that is wrong here; "
            f"build it with `eenet build --precision {EXACT}`"
        )
    variant = bundle.variant(EXACT)
    return Network(variant, open(variant))


def _run(backend: StageBackend, state: State) -> None:
    for exit in range(backend.num_exits):
        state = backend.run_stage(exit, state)
        backend.run_head(exit, state)
    backend.synchronize()
