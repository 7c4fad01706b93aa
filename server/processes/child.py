"""What a forked child does: close what is not its own, run its role, end."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from server.logs import name_process
from server.processes import prctl

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChildSetup:
    """What a child is started with.

    Attributes:
        role: The name of its role.
        index: Counts the children of a role from 0.
        settings: As control sent them, by way of JSON (a tuple arrives as a list).
        fds: Descriptors for this child, in the order in which control gave them. They are closed
            on exec, and the child's to close.
    """

    role: str
    index: int
    settings: dict[str, Any]
    fds: tuple[int, ...]


# Runs a child from beginning to end. SIGINT and SIGTERM are ignored, also by what it executes,
# until it installs handlers: a Ctrl-C reaches the whole process group, and control alone decides
# about draining. It ends by returning (status 0) or by `sys.exit(status)`.
Role = Callable[[ChildSetup], None]


def run_child(role: Role, setup: ChildSetup, parent_pid: int) -> NoReturn:
    """Run a role in a process that was just forked, and end the process."""
    status = 1
    try:
        _prepare(setup, parent_pid)
        role(setup)
        status = 0
    except SystemExit as end:
        status = _status_of(end)
    except BaseException:
        log.exception("%s %d ended by an unexpected error", setup.role, setup.index)
    finally:
        # The interpreter is not unwound: the frames above belong to the zygote and to control.
        _flush()
        os._exit(status)


def _prepare(setup: ChildSetup, parent_pid: int) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    close_all_but(setup.fds)
    prctl.die_with(parent_pid)
    prctl.set_name(f"eenet-{setup.role}", f"-{setup.index}")
    name_process(setup.role, setup.index)


def close_all_but(fds: Iterable[int]) -> None:
    """Close every descriptor but 0, 1, 2 and these, so that peers of the others see their end."""
    kept = {0, 1, 2, *fds}
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd not in kept:
            with suppress(OSError):  # the listing's own descriptor is closed by now
                os.close(fd)


def _status_of(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return (end.code or 0) & 0xFF
    log.error("%s", end.code)
    return 1


def _flush() -> None:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or its reader is gone
            stream.flush()
