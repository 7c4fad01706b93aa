"""What each process of the server uses, as Prometheus metrics."""

import os
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

TICKS = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
PROC = Path("/proc")
GAUGES = {
    "resident_memory_bytes": "Memory.",
    "virtual_memory_bytes": "Addresses in use.",
    "threads": "Threads.",
    "open_fds": "Open files and sockets.",
    "max_fds": "Most files and sockets that may be open; NaN without a limit.",
    "start_time_seconds": "Start, since the epoch.",
}


class ProcessName(NamedTuple):
    """What a process does, and which of its role it is."""

    role: str
    number: int


class ProcessUse(NamedTuple):
    """What a process has used.

    Attributes:
        cpu_s: Processor time since its start.
        resident_bytes: Memory; what processes share is counted in each of them.
        virtual_bytes: Addresses in use.
        threads: Number of threads.
        open_fds: Open files and sockets.
        max_fds: The most that may be open; NaN if there is no limit.
        started_s: When it started, in seconds since the epoch.
    """

    cpu_s: float
    resident_bytes: int
    virtual_bytes: int
    threads: int
    open_fds: int
    max_fds: float
    started_s: float


class ProcessCollector(Collector):
    """Reads the processes of the server whenever metrics are asked for.

    Processor time of processes that have ended is lost, as with any process that restarts: the
    counter of its place begins again.

    Args:
        processes: Returns the pid of each process that runs.
    """

    def __init__(self, processes: Callable[[], Mapping[ProcessName, int]]) -> None:
        self._processes = processes

    def collect(self) -> Iterable[Metric]:
        """Return the families."""
        labels = ["role", "index"]
        cpu = CounterMetricFamily("process_cpu_seconds", "Processor time.", labels=labels)
        gauges = {
            name: GaugeMetricFamily(f"process_{name}", text, labels=labels)
            for name, text in GAUGES.items()
        }
        for name, use in self._read():
            values = [name.role, str(name.number)]
            cpu.add_metric(values, use.cpu_s)
            shown = use.resident_bytes, use.virtual_bytes, use.threads, use.open_fds, use.max_fds
            for gauge, value in zip(gauges.values(), (*shown, use.started_s), strict=True):
                gauge.add_metric(values, value)
        return [cpu, *gauges.values()]

    def _read(self) -> Iterator[tuple[ProcessName, ProcessUse]]:
        for name, pid in self._processes().items():
            with suppress(OSError):  # it has just ended
                yield name, read_use(pid)


def read_use(pid: int) -> ProcessUse:
    """Read what a process has used.

    Raises:
        OSError: If there is no such process.
    """
    folder = PROC / str(pid)
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    booted = next(
        float(line.split()[1])
        for line in (PROC / "stat").read_text().splitlines()
        if line.startswith("btime")
    )
    return ProcessUse(
        (int(fields[11]) + int(fields[12])) / TICKS,
        int(fields[21]) * PAGE_BYTES,
        int(fields[20]),
        int(fields[17]),
        len(os.listdir(folder / "fd")),
        _max_fds(pid),
        booted + int(fields[19]) / TICKS,
    )


def _max_fds(pid: int) -> float:
    """The most files that a process may open; NaN if there is no limit, or it may not be read."""
    try:
        most, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except PermissionError:
        return float("nan")
    return float("nan") if most == resource.RLIM_INFINITY else float(most)
