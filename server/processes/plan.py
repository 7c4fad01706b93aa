"""How many processes a server consists of, and what each of them runs on."""

from collections.abc import Sequence
from typing import NamedTuple

from server.cores import Cores
from server.settings import Settings

CORES_PER_FRONT_END = 4  # where the engines need the other cores
CORES_PER_FRONT_END_OF_DEVICE = 2
MOST_FRONT_ENDS_OF_DEVICE = 8  # the default; more are rarely the bottleneck
BUSY_SHARE = 0.25  # of an engine's interpreter; beyond it, workers wait for each other
LEAST_PYTHON_MS = 1e-3  # below what a clock resolves


class ProcessPlan(NamedTuple):
    """The processes of a server.

    Attributes:
        front_ends: Number of front-ends; 0: one process does everything.
        engines: Number of engines; None: `fill_cores` decides after a measurement.
        engine_workers: Threads of each engine; None as for `engines`.
        devices: One per engine, or one that all of them run on.
        runs: Runs of a network that the cores take at a time.
        reason: What limits the numbers, as a phrase for the log.
    """

    front_ends: int
    engines: int | None
    engine_workers: int | None
    devices: tuple[str, ...]
    runs: int
    reason: str


def make_plan(settings: Settings, cores: Cores, devices: Sequence[str]) -> ProcessPlan:
    """Plan the processes that the settings ask for, and by default those that fit the host.

    Args:
        settings: The server's.
        cores: Those that all processes share.
        devices: What `--device` comes to on this host, such as `cpu` or `cuda:0`, `cuda:1`; the
            replay backend's is `replay`.

    Raises:
        ValueError: If the settings contradict each other or do not fit the host.
    """
    _check(settings, cores, devices)
    on_cpu = devices[0] == "cpu"
    runs = cores.usable // settings.threads_per_run
    front_ends = settings.front_ends
    if front_ends is None:
        front_ends = _front_ends(cores.usable, on_cpu)
    engines, workers = settings.engines, settings.engine_workers
    if front_ends == 0:
        engines = 1
    if not on_cpu:
        engines, workers = engines or len(devices), workers or 1
    elif engines:
        workers = workers or max(1, runs // engines)
    elif workers:
        engines = engines_for(runs, workers)
    reason = f"{cores.reason}; {', '.join(devices)}"
    return ProcessPlan(front_ends, engines, workers, tuple(devices), runs, reason)


def workers_per_engine(stage_ms: float, python_ms: float, cores: int) -> int:
    """Return how many threads keep an engine's interpreter at most a quarter busy.

    One thread of a process runs Python at a time, while all of them share the weights.

    Args:
        stage_ms: What the shortest stage takes.
        python_ms: The Python that runs for each stage.
        cores: The most threads that are of use.
    """
    return max(1, min(int(BUSY_SHARE * stage_ms / max(python_ms, LEAST_PYTHON_MS)), cores))


def engines_for(cores: int, workers: int) -> int:
    """Return the fewest engines that fill the cores with at most so many threads each."""
    return -(-cores // workers)


def fill_cores(plan: ProcessPlan, workers: int) -> ProcessPlan:
    """Return the plan with what it left to a measurement: engines, and threads of each.

    All threads together are at most the cores, so an engine may get fewer than it could keep busy.

    Args:
        plan: A plan of `make_plan`.
        workers: What `workers_per_engine` returned.
    """
    if plan.engines is not None:
        return plan
    engines = engines_for(plan.runs, workers)
    return plan._replace(engines=engines, engine_workers=plan.runs // engines)


def _front_ends(cores: int, on_cpu: bool) -> int:
    if on_cpu:
        return max(1, cores // CORES_PER_FRONT_END)
    return min(MOST_FRONT_ENDS_OF_DEVICE, max(1, cores // CORES_PER_FRONT_END_OF_DEVICE))


def _check(settings: Settings, cores: Cores, devices: Sequence[str]) -> None:
    engines, threads = settings.engines, settings.threads_per_run
    if threads > cores.usable:
        raise ValueError(
            f"--threads-per-run {threads} is more than this server has, {cores.reason}; give at "
            f"most {cores.usable}"
        )
    if settings.front_ends == 0:
        if engines is not None:
            raise ValueError(
                f"--engines {engines} contradicts --front-ends 0, which serves in one process; "
                f"leave one of them out"
            )
        if len(devices) > 1:
            raise ValueError(
                f"--device {settings.device} needs an engine per device, but --front-ends 0 serves "
                f"in one process; name one device, or leave out --front-ends"
            )
    if engines is not None and devices[0] not in ("cpu", "replay") and engines != len(devices):
        raise ValueError(
            f"--engines {engines} does not fit --device {settings.device}, which gets "
            f"{len(devices)}, one per device; leave out --engines"
        )
    if (engines or len(devices)) > cores.usable:
        asked = f"--engines {engines}" if engines else f"--device {settings.device}"
        raise ValueError(
            f"{asked} asks for {engines or len(devices)} engines, but each needs a core of its own "
            f"and this server has {cores.reason}; ask for at most {cores.usable}"
        )
