"""Memory: what a model needs, and what this server may still take."""

from collections.abc import Iterator
from pathlib import Path

from models.bundle import Bundle

FACTOR = 2.0  # memory of a loaded network over the size of its graphs: read, then rearranged
PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
NO_LIMIT = 1 << 60  # above it, version 1 means none


def needed_bytes(bundle: Bundle, engines: int) -> int:
    """Estimate the memory that a bundle takes once every engine has loaded it."""
    sizes = []
    for precision in bundle.precisions:
        variant = bundle.variant(precision)
        sizes.append(sum(variant.exit_bytes(exit) for exit in range(bundle.manifest.num_exits)))
    return int(FACTOR * max(sizes) * engines)


def available_bytes(proc: Path = PROC, cgroup: Path = CGROUP) -> int | None:
    """Return the memory that can still be taken, by the host and the container's limit.

    Args:
        proc: The kernel's folder of processes.
        cgroup: That of control groups; in a container, its own group is at the top.

    Returns:
        None if neither can be read.
    """
    return min([*_of_host(proc), *_of_group(cgroup)], default=None)


def _of_host(proc: Path) -> Iterator[int]:
    for line in _read(proc / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _of_group(cgroup: Path) -> Iterator[int]:
    for folder, limit, used in (
        (cgroup, "memory.max", "memory.current"),
        (cgroup / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        most, now = _read(folder / limit).strip(), _read(folder / used).strip()
        if most.isdecimal() and now.isdecimal() and int(most) < NO_LIMIT:
            # Files that the kernel keeps for later count as used, and give way.
            yield max(int(most) - int(now) + _inactive_files(folder), 0)


def _inactive_files(folder: Path) -> int:
    for line in _read(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdecimal():
            return int(value)
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
