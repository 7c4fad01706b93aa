"""Recorded arrivals, and their replay in less time at a rate that overloads a server."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.npz import read_arrays

KEY = "arrival_s"
Array = NDArray[np.float64]


class Replay(NamedTuple):
    """A trace as it is sent: compressed in time and its rate scaled, or as it was recorded.

    Attributes:
        arrivals_s: Arrival times, rising from 0 s or later, (N,).
        compression: Seconds of the trace per second of the replay.
        scale: Arrivals per arrival of the trace.
        exceeding: Share of the seconds whose rate exceeds the capacity; None where it is not known.
        capacity_per_s: The capacity; None where it is not known.
    """

    arrivals_s: Array
    compression: float = 1.0
    scale: float = 1.0
    exceeding: float | None = None
    capacity_per_s: float | None = None


def read_trace(path: Path) -> Array:
    """Read recorded arrivals; (N,) in seconds from the first.

    The file is an npz with the array `arrival_s`, or a text with one time in seconds per line.

    Raises:
        ValueError: If it cannot be read, or its times are not finite or do not rise; the message
            names the file and the fault.
    """
    times = _read_npz(path) if path.suffix == ".npz" else _read_text(path)
    if not len(times):
        raise ValueError(f"{path} holds no arrival; give one time in seconds for each")
    if not np.isfinite(times).all():
        place = int(np.flatnonzero(~np.isfinite(times))[0])
        raise ValueError(f"{path}: time {place + 1} is {times[place]}; give finite seconds")
    falls = np.flatnonzero(np.diff(times) < 0)
    if len(falls):
        raise ValueError(
            f"{path}: time {falls[0] + 2} comes before the one above it; sort the arrivals"
        )
    from_start: Array = times - times[0]
    return from_start


def replay_trace(
    times_s: Array, seconds: float, capacity_per_s: float, exceeding: float, seed: int = 0
) -> Replay:
    """Compress a trace into some seconds, and scale its rate until it overloads a server.

    The trace is compressed to its new length first. Then every arrival stands for `scale` of them:
    the replay is a Poisson process whose rate follows the compressed trace, so that both its slow
    and its sudden changes stay. The scale is the one at which a share of the replay's whole seconds
    expects more arrivals than the capacity.

    Args:
        times_s: The trace, rising from 0, (N,).
        seconds: Length of the replay, of whole seconds.
        capacity_per_s: Requests per second that the server answers at full depth.
        exceeding: Share of the seconds that exceed it.
        seed: Seed of the arrivals.

    Raises:
        ValueError: If the trace or an argument makes this impossible.
    """
    check_replay(seconds, exceeding)
    bins, above = int(seconds), round(exceeding * seconds)
    if not 0 < capacity_per_s < np.inf:
        raise ValueError(f"the capacity is {capacity_per_s} requests/s; give a number above 0")
    if not times_s[-1] > 0:
        raise ValueError("all arrivals of the trace come at one time; give a trace that lasts")
    compressed_s, index = times_s * (seconds / times_s[-1]), np.arange(len(times_s))
    counts = np.diff(np.interp(np.arange(bins + 1), compressed_s, index))
    largest = np.sort(counts)[::-1]
    following = largest[above] if above < bins else 0.0
    scale = 2 * capacity_per_s / float(largest[above - 1] + following)
    rng = np.random.default_rng(seed)
    places = np.sort(rng.uniform(0, index[-1], rng.poisson(scale * index[-1])))
    return Replay(
        np.interp(places, index, compressed_s),
        float(times_s[-1]) / seconds,
        scale,
        float((scale * counts > capacity_per_s).mean()),
        capacity_per_s,
    )


def check_replay(seconds: float, exceeding: float) -> None:
    """Check that a share of the seconds of a replay is at least one whole second.

    Raises:
        ValueError: If it is not, or the arguments make no sense.
    """
    if not 0 < exceeding < 1:
        raise ValueError(f"the exceeding share is {exceeding}; give one between 0 and 1")
    if not (seconds >= 1 and float(seconds).is_integer()):
        raise ValueError(f"the replay lasts {seconds} s; give a whole number of seconds")
    if round(exceeding * seconds) < 1:
        raise ValueError(
            f"{exceeding:.0%} of {seconds:g} s is less than one second; make the replay at least "
            f"{1 / exceeding:.0f} s long"
        )


def _read_npz(path: Path) -> Array:
    arrays = read_arrays(path, KEY.__eq__)
    if KEY not in arrays:
        raise ValueError(f"{path} has no array {KEY}; give one of arrival times in seconds")
    times = arrays[KEY]
    if times.ndim != 1 or times.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: {KEY} has the shape {times.shape} and the type {times.dtype}; give one "
            f"number for each arrival"
        )
    return times.astype(float)


def _read_text(path: Path) -> Array:
    try:
        return np.array([float(line) for line in path.read_text().split()])
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is no trace of arrivals: {error}; give one time in seconds a line"
        ) from error
