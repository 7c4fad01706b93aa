"""What a soaking server holds, over time: memory, descriptors, what its metrics say."""

import os
import threading
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import RunningServer

Samples = list[tuple[float, dict[str, float]]]  # the second; the MiB of each process
LEFT = ("eenet_queue_depth", "eenet_inflight_samples")


class Slope(NamedTuple):
    """A line through memory over time: MiB per minute, and the standard error of that."""

    mib_per_minute: float
    error: float


class Growth(NamedTuple):
    """Memory of all processes (PSS, MiB) over the second half of a phase.

    Attributes:
        seconds: Length of that half.
        mib: Mean over it.
        slope: Of a line through it.
        by_process: Of lines through the memory of each process, MiB per minute.
    """

    seconds: float
    mib: float
    slope: Slope
    by_process: Mapping[str, float] = {}


@contextmanager
def sampling(
    server: RunningServer, interval_s: float, act: Callable[[int], None]
) -> Iterator[Samples]:
    """Record time and memory at equal intervals, and act after each record."""
    samples: Samples = []
    stop = threading.Event()

    def watch() -> None:
        turn = 0
        while not stop.wait(interval_s):
            samples.append((time.monotonic(), server.memory_mib_of()))
            act(turn)
            turn += 1

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def growth_of(samples: Samples) -> Growth:
    """Return the growth over the second half; a process that is missing in it is left out."""
    half = samples[len(samples) // 2 :]
    times_s = np.array([second for second, _ in half])
    mib = np.array([sum(processes.values()) for _, processes in half])
    by_process = {
        name: round(slope_of(times_s / 60, np.array([mib_of[name] for _, mib_of in half]))[0], 2)
        for name in half[0][1]
        if all(name in mib_of for _, mib_of in half)
    }
    slope = slope_of(times_s / 60, mib)
    return Growth(float(np.ptp(times_s)), float(mib.mean()), slope, by_process)


def slope_of(minutes: NDArray[np.float64], mib: NDArray[np.float64]) -> Slope:
    """Fit a line; fewer than three points tell nothing."""
    if len(minutes) < 3:
        return Slope(0.0, float("inf"))
    x = minutes - minutes.mean()
    slope = float(x @ mib / (x @ x))
    off = mib - mib.mean() - slope * x
    return Slope(slope, float(np.sqrt(off @ off / (len(x) - 2) / (x @ x))))


def descriptors(server: RunningServer, left_out: Collection[str] = ()) -> dict[str, int]:
    """Number of open descriptors of each process, by name."""
    found = {}
    for name, pid in server.processes().items():
        if name in left_out:
            continue
        with suppress(OSError):  # it has ended
            found[name] = len(os.listdir(f"/proc/{pid}/fd"))
    return found


def metrics(url: str) -> dict[str, float]:
    """Every line of a server's metrics, by name and labels."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
        lines: list[str] = response.read().decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
    return {name: float(value) for name, value in pairs}


def total(values: dict[str, float], *names: str) -> float:
    """The sum of the lines of some metrics."""
    return sum(value for name, value in values.items() if name.startswith(names))
