"""What Linux lets a process ask for itself: its name, a death with its parent, its orphans."""

import ctypes
import os
import signal

_SET_PDEATHSIG, _SET_NAME, _SET_CHILD_SUBREAPER = 1, 15, 36
_NAME_BYTES = 15


def set_name(base: str, suffix: str = "") -> None:
    """Name the process, as `top` and `ps -o comm` show it.

    Args:
        base: Cut so that the whole has at most 15 bytes.
        suffix: Kept whole.
    """
    kept = base.encode()[: _NAME_BYTES - len(suffix.encode())]
    _prctl(_SET_NAME, kept + suffix.encode())


def die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when the parent's thread that forked it ends.

    Args:
        parent_pid: The parent at the fork; if it is gone already, this process ends here.
    """
    _prctl(_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of descendants that lose theirs, instead of the container's first."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int | bytes) -> None:
    """Call prctl(2).

    Raises:
        OSError: If the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    argument = value if isinstance(value, bytes) else ctypes.c_ulong(value)
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")
