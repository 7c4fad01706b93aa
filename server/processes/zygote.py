"""The process that all others are forked from, as control sees it.

It is forked right after the imports: children share those pages, and a child is ready to run in
milliseconds. Control may have threads and an event loop afterwards, which no child inherits.
Linux only.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from server.processes.child import ChildSetup, Role
from server.processes.forker import MAX_FDS, MAX_MESSAGE_BYTES, Forker

__all__ = ["ChildSetup", "Role", "StartFailed", "Zygote", "start_zygote"]

log = logging.getLogger(__name__)


class StartFailed(Exception):
    """A child was not started; the message says why."""


def start_zygote(roles: Mapping[str, Role]) -> "Zygote":
    """Fork the zygote.

    Call it before the process has threads, sockets or an event loop. The zygote ends when control
    does, however that ends, and kills all its children first.

    Args:
        roles: What children can be, by name.

    Raises:
        RuntimeError: If this process has threads: a fork would copy their locks, but not them.
    """
    if threading.active_count() > 1:
        names = ", ".join(thread.name for thread in threading.enumerate())
        raise RuntimeError(f"the zygote must be started before other threads; running: {names}")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            forker = Forker(roles, theirs)  # its sockets must outlive all frames
            forker.run()
        except BaseException:
            log.exception("the zygote ended by an unexpected error")
        finally:
            os._exit(1)
    theirs.close()
    ours.setblocking(False)
    return Zygote(pid, ours, frozenset(roles))


class Zygote:
    """Starts children, reports their ends and sends them signals.

    Call it from one event loop.

    Args:
        pid: Of the zygote, a child of this process.
        connection: A packet socket to it.
        roles: The names that it knows.

    Attributes:
        pid: Of the zygote.
        on_exit: Called with the pid and status (see `os.waitpid`) of each child that ended, always
            after `start` has returned its pid to a caller that awaits it directly.
        on_death: Called once when the zygote has ended unasked. The kernel kills its children, of
            which no more ends are reported; nothing can be started any more.
    """

    def __init__(self, pid: int, connection: socket.socket, roles: frozenset[str]) -> None:
        self.pid = pid
        self.on_exit: Callable[[int, int], None] = lambda pid, status: None
        self.on_death: Callable[[], None] = lambda: None
        self._connection = connection
        self._roles = roles
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._answers: deque[asyncio.Future[int]] = deque()
        self._alive: set[int] = set()

    async def start(
        self, role: str, index: int, settings: Mapping[str, Any], fds: Sequence[int]
    ) -> int:
        """Start a child.

        Args:
            role: One of the zygote's roles.
            index: Counts the children of a role.
            settings: Anything that JSON holds.
            fds: Copied to the child; close them here if the child is to be their only owner.

        Returns:
            Its pid.

        Raises:
            ValueError: If there is no such role, or more settings or descriptors than fit.
            StartFailed: If the zygote could not fork, or has ended.
        """
        if role not in self._roles:
            raise ValueError(f"no role {role!r}; the zygote knows {', '.join(sorted(self._roles))}")
        message = json.dumps({"role": role, "index": index, "settings": settings}).encode()
        if len(message) > MAX_MESSAGE_BYTES or len(fds) > MAX_FDS:
            raise ValueError(
                f"{role} {index} has {len(message)} bytes of settings and {len(fds)} descriptors; "
                f"at most {MAX_MESSAGE_BYTES} and {MAX_FDS} fit"
            )
        self._watch()
        self._send(message, fds)
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        try:
            return await answer
        except asyncio.CancelledError:
            if not answer.cancelled() and answer.exception() is None:
                self.kill(answer.result(), signal.SIGKILL)
            raise

    def kill(self, pid: int, signal_number: int) -> None:
        """Send a signal to a child; nothing if it is known to have ended: pids are used again."""
        if pid in self._alive:
            with suppress(ProcessLookupError):  # reaped, and its report is on the way
                os.kill(pid, signal_number)

    def close(self) -> None:
        """End the zygote, which kills all its children, and wait for it. `on_death` is not called.

        Ends of children are no more reported. May be called twice.
        """
        if self._closed:
            return
        self._closed = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._connection.fileno())
        self._connection.close()
        os.kill(self.pid, signal.SIGCONT)  # one that was stopped would not see the end
        os.waitpid(self.pid, 0)
        self._alive.clear()
        for answer in self._answers:
            if not answer.done():
                answer.set_exception(StartFailed("the zygote has ended; restart the server"))
        self._answers.clear()

    def _watch(self) -> None:
        if self._closed:
            raise StartFailed("the zygote has ended; restart the server")
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._connection.fileno(), self._read)

    def _send(self, message: bytes, fds: Sequence[int]) -> None:
        try:
            socket.send_fds(self._connection, [message], fds)
        except BlockingIOError as error:
            raise StartFailed("the zygote answers no requests; restart the server") from error
        except ConnectionError as error:
            raise StartFailed("the zygote has ended; restart the server") from error

    def _read(self) -> None:
        try:
            data = self._connection.recv(MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if data:
            self._take(json.loads(data))
        else:
            self.close()
            self.on_death()

    def _take(self, message: dict[str, Any]) -> None:
        if "ended" in message:
            pid = message["ended"]
            self._alive.discard(pid)
            # Behind the wake-up of a `start` whose answer came just before.
            asyncio.get_running_loop().call_soon(self._report, pid, message["status"])
            return
        answer = self._answers.popleft()
        if "started" in message:
            self._started(answer, message["started"])
        elif not answer.done():
            answer.set_exception(StartFailed(message["failed"]))

    def _started(self, answer: asyncio.Future[int], pid: int) -> None:
        self._alive.add(pid)
        if answer.done():  # its caller was cancelled: nobody would know the child
            self.kill(pid, signal.SIGKILL)
        else:
            answer.set_result(pid)

    def _report(self, pid: int, status: int) -> None:
        self.on_exit(pid, status)
