"""The zygote's own loop: forks children on request, reaps them and reports their ends."""

import gc
import json
import os
import select
import signal
import socket
from collections.abc import Mapping
from typing import Any

from server.logs import name_process
from server.processes import prctl
from server.processes.child import ChildSetup, Role, run_child

# Well below the send buffer of a Unix socket, which bounds a message.
MAX_MESSAGE_BYTES = 1 << 17
MAX_FDS = 253  # the kernel's bound for one message
_UNKILLABLE_S = 2


class Forker:
    """Forks children for control, in a process with one thread.

    Messages are JSON objects, one a packet. From control: `role`, `index`, `settings`, with the
    child's descriptors. To control, requests answered in their order: `started` (a pid) or
    `failed` (a sentence); and for each end `ended` (a pid) with `status` (as os.waitpid has it).

    Args:
        roles: By name.
        control: A packet socket; its end is the end of this process and of all children.
    """

    def __init__(self, roles: Mapping[str, Role], control: socket.socket) -> None:
        self._roles = roles
        self._control = control
        self._pid = os.getpid()
        self._children: set[int] = set()
        self._wakeup, self._signalled = socket.socketpair()

    def run(self) -> None:
        """Serve until control has ended; kill all children then."""
        self._take_signals()
        prctl.set_name("eenet-zygote")
        name_process("zygote", 0)
        prctl.adopt_orphans()
        # Keeps the collector from writing to pages that the children share.
        gc.collect()
        gc.freeze()
        try:
            self._serve()
        except ConnectionError:
            return  # control ended while a message was on its way
        finally:
            self._kill_children()

    def _take_signals(self) -> None:
        for ignored in (signal.SIGINT, signal.SIGTERM):
            signal.signal(ignored, signal.SIG_IGN)
        for end in (self._wakeup, self._signalled):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._signalled.fileno(), warn_on_full_buffer=False)

    def _serve(self) -> None:
        # Unlike epoll, poll has no descriptor of its own.
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._wakeup.fileno() in ready:
                self._wakeup.recv(4096)
                self._reap()
            if self._control.fileno() in ready and not self._answer():
                return

    def _answer(self) -> bool:
        """Fork one child; False if control has ended."""
        data, fds, flags, _ = socket.recv_fds(
            self._control, MAX_MESSAGE_BYTES, MAX_FDS, socket.MSG_CMSG_CLOEXEC
        )
        if not data:
            return False
        try:
            if flags & socket.MSG_CTRUNC:
                self._send(failed="the zygote has no room for its descriptors; raise `ulimit -n`")
            else:
                self._fork(ChildSetup(**json.loads(data), fds=tuple(fds)))
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _fork(self, setup: ChildSetup) -> None:
        role = self._roles[setup.role]
        try:
            pid = os.fork()
        except OSError as error:
            self._send(failed=f"fork failed: {error.strerror}; give it more processes or memory")
            return
        if pid == 0:
            run_child(role, setup, self._pid)
        self._children.add(pid)
        self._send(started=pid)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._children:  # else an orphan of one of them
                self._children.remove(pid)
                self._send(ended=pid, status=status)

    def _send(self, **message: Any) -> None:
        self._control.send(json.dumps(message).encode())

    def _kill_children(self) -> None:
        # A child that hangs in a driver outlives SIGKILL and must not hold up this process.
        signal.alarm(_UNKILLABLE_S)
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        for pid in self._children:
            os.waitpid(pid, 0)
