"""What each process of the server uses, as Prometheus metrics."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

TICKS = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
PROC = Path("/proc")


class ProcessName(NamedTuple):
    """What a process does, and which of its role it is."""

    role: str
    number: int


class ProcessUse(NamedTuple):
    """What a process has used.

    Attributes:
        cpu_s: Processor time since its start.
        resident_bytes: Memory; what processes share is counted in each of them.
        open_fds: Open files and sockets.
        started_s: When it started, in seconds since the epoch.
    """

    cpu_s: float
    resident_bytes: int
    open_fds: int
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
        memory = GaugeMetricFamily("process_resident_memory_bytes", "Memory.", labels=labels)
        fds = GaugeMetricFamily("process_open_fds", "Open files and sockets.", labels=labels)
        start = GaugeMetricFamily(
            "process_start_time_seconds", "Start, since the epoch.", labels=labels
        )
        for name, use in self._read():
            values = [name.role, str(name.number)]
            cpu.add_metric(values, use.cpu_s)
            memory.add_metric(values, use.resident_bytes)
            fds.add_metric(values, use.open_fds)
            start.add_metric(values, use.started_s)
        return [cpu, memory, fds, start]

    def _read(self) -> Iterator[tuple[ProcessName, ProcessUse]]:
        for name, pid in self._processes().items():
            with suppress(OSError):  # it has just ended
                yield name, read_use(pid)


def read_use(pid: int | str) -> ProcessUse:
    """Read what a process has used; `self` is this one.

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
        len(os.listdir(folder / "fd")),
        booted + int(fields[19]) / TICKS,
    )
