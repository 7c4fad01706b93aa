"""Cores that this process may use: its affinity, cpuset, and the quotas of its control groups."""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path("/")
# Version 2 has the first; version 1 the others, of which the last may list more than is granted.
CPUSETS = ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus")
MOST_CORES = 65_536  # a list that names a higher core is damaged


class Cores(NamedTuple):
    """A number of cores, at least 1, and what limits it, as a phrase for the log."""

    usable: int
    reason: str


class _Mount(NamedTuple):
    """A hierarchy of control groups in the file system.

    Attributes:
        folder: Where it is mounted.
        top: The group that this folder shows.
        controllers: Those of version 1; None for version 2, which has all in one hierarchy.
    """

    folder: PurePosixPath
    top: PurePosixPath
    controllers: frozenset[str] | None


def usable_cores(root: Path = ROOT, affinity: int | None = None) -> Cores:
    """Return the least of affinity, cpusets and quotas; a quota is rounded down.

    A file that is absent or makes no sense limits nothing.

    Args:
        root: The file system that holds `proc` and `sys`.
        affinity: Number of cores that this process is bound to; None: ask the kernel.
    """
    bound = len(os.sched_getaffinity(0)) if affinity is None else affinity
    host = max(_cpus(root / "sys/devices/system/cpu/online") or 0, bound)
    limits = [*_group_limits(root), (bound, "the affinity of this process")]
    cores, cause = min(limits, key=lambda limit: limit[0])
    if cores >= host:
        return Cores(host, f"{host} cores: all of this host")
    return Cores(max(cores, 1), f"{max(cores, 1)} of {host} cores: {cause}")


def _group_limits(root: Path) -> Iterator[tuple[int, str]]:
    """Yield each limit of the process's control groups, in cores, with its cause."""
    for folder in _group_folders(root):
        path = root / folder.relative_to("/")
        for name in CPUSETS:
            if (cpus := _cpus(path / name)) is not None:
                yield cpus, f"the cpuset of {folder}"
                break
        if (quota := _quota(path)) is not None:
            yield int(quota), f"the quota of {quota:g} in {folder}"


def _quota(group: Path) -> float | None:
    """Return the cores' worth of time that a group may use; None: no limit."""
    words = _read(group / "cpu.max").split()  # version 2: "QUOTA PERIOD", or "max PERIOD"
    if not words:
        words = [
            *_read(group / "cpu.cfs_quota_us").split(),
            *_read(group / "cpu.cfs_period_us").split(),
        ]
    if len(words) != 2 or not all(re.fullmatch("[0-9]{1,18}", word) for word in words):
        return None  # version 1 says -1 where there is no limit
    quota_us, period_us = map(int, words)
    return quota_us / period_us if quota_us and period_us else None


def _cpus(path: Path) -> int | None:
    """Return how many cores a list such as "0-3,8" names; None if it is empty or no such list."""
    cpus: set[int] = set()
    for part in _read(path).strip().split(","):
        match = re.fullmatch("([0-9]{1,6})(?:-([0-9]{1,6}))?", part)
        if match is None:
            return None
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < MOST_CORES:
            return None
        cpus.update(range(first, last + 1))
    return len(cpus)


def _group_folders(root: Path) -> Iterator[PurePosixPath]:
    """Yield the folders of the process's control groups, each followed by those above it."""
    mounts = list(_mounts(root))
    for line in _read(root / "proc/self/cgroup").splitlines():
        fields = line.split(":", 2)  # number, controllers, path
        if len(fields) != 3 or not fields[2].startswith("/"):
            continue
        controllers, group = frozenset(fields[1].split(",")), PurePosixPath(fields[2])
        own = [mount for mount in mounts if _holds(mount, controllers)]
        # A container may see the host's name of its group beside a mount of that group alone.
        for mount in [each for each in own if _shows(each, group)] or own:
            yield from _upwards(mount, group)


def _holds(mount: _Mount, controllers: frozenset[str]) -> bool:
    if mount.controllers is None:
        return controllers == {""}
    return bool(mount.controllers & controllers & {"cpu", "cpuset"})


def _shows(mount: _Mount, group: PurePosixPath) -> bool:
    return ".." not in group.parts and group.is_relative_to(mount.top)


def _upwards(mount: _Mount, group: PurePosixPath) -> Iterator[PurePosixPath]:
    """Yield a group's folder and those above it, the mount's own last."""
    folder = mount.folder
    if _shows(mount, group):
        folder /= group.relative_to(mount.top)
    yield folder
    while folder != mount.folder:
        folder = folder.parent
        yield folder


def _mounts(root: Path) -> Iterator[_Mount]:
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or not kind or not fields[4].startswith("/"):
            continue
        top, folder = (PurePosixPath(_unescape(field)) for field in fields[3:5])
        if kind[0] == "cgroup2":
            yield _Mount(folder, top, None)
        elif kind[0] == "cgroup":
            yield _Mount(folder, top, frozenset(kind[-1].split(",")))


def _unescape(field: str) -> str:
    """Replace the kernel's octal escapes of spaces and the like."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
