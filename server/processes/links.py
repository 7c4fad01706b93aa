"""Control's side of each child: its connection, and what it has reported."""

import asyncio
import socket
from collections import Counter
from collections.abc import Sequence
from typing import Any

from server.processes.black_box import BlackBox, create
from server.processes.channel import Channel
from server.processes.supervisor import Child
from server.processes.wire import Message
from server.reports import Work


class Process:
    """A child, and control's connection to it.

    Attributes:
        index: Its place among the children of its role.
        child: The run of it that is going on; None while there is none.
        channel: The connection; None while there is none.
        ready: Set while it does its work.
        loop_lag_s: How late its event loop's latest beat was.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.child: Child | None = None
        self.channel: Channel | None = None
        self.ready = asyncio.Event()
        self.loop_lag_s = 0.0

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message, if it is there to hear it."""
        if self.channel is not None:
            self.channel.send(message, fds)

    def lose(self) -> None:
        """Forget a run that has ended."""
        self.ready.clear()
        self.child, self.loop_lag_s = None, 0.0
        if self.channel is not None:
            self.channel.close()
            self.channel = None


class EngineProcess(Process):
    """An engine.

    Attributes:
        black_box: What it executes; the memory is kept over restarts.
        work: Its last report on each model.
        audits_settled: Samples of each model that it drew for the audit and told the end of.
        installed: Numbers of the models that it has loaded.
        given_up: Whether it is not started any more.
    """

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.descriptor = create()
        self.black_box = BlackBox(self.descriptor)
        self.work: dict[int, Work] = {}
        self.audits_settled = Counter[int]()
        self.installed = set[int]()
        self.given_up = False

    def lose(self) -> None:
        """Forget a run that has ended, and what it had loaded."""
        super().lose()
        self.installed.clear()

    def take_lost_audits(self, model: int) -> int:
        """Return how many samples of a model it drew for the audit and died with."""
        return self.black_box.take_drawn(model) - self.audits_settled.pop(model, 0)


class FrontProcess(Process):
    """A front-end.

    Attributes:
        listening: Its sockets, kept over restarts, so that connections that wait are not lost.
        counts: Its last report.
    """

    def __init__(self, index: int, listening: list[socket.socket]) -> None:
        super().__init__(index)
        self.listening = listening
        self.counts: dict[str, Any] = {"inflight": 0}
