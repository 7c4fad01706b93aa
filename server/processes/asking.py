"""Questions from control to its children, and their replies."""

import asyncio
import itertools

from server.processes.links import Process
from server.processes.wire import Message


class ProcessGone(Exception):
    """A child has ended before it replied."""


class Asker:
    """Sends messages that want a reply; for one event loop."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._open: dict[int, tuple[Process, asyncio.Future[Message]]] = {}

    async def ask(self, process: Process, message: Message, timeout_s: float) -> Message:
        """Send a message with a number; return the reply that has the same one.

        Raises:
            ProcessGone: If the process ends before, or does not run.
            TimeoutError: If it does not reply in time.
        """
        if process.channel is None:
            raise ProcessGone
        number = next(self._numbers)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._open[number] = process, future
        try:
            process.send(message._replace(fields={**message.fields, "number": number}))
            return await asyncio.wait_for(future, timeout_s)
        finally:
            self._open.pop(number, None)

    def resolve(self, reply: Message) -> None:
        """Hand over a reply, if somebody still waits for it."""
        _, future = self._open.get(reply.fields["number"], (None, None))
        if future is not None and not future.done():
            future.set_result(reply)

    def give_up(self, process: Process) -> None:
        """Wait no more for a process that has ended."""
        for other, future in self._open.values():
            if other is process and not future.done():
                future.set_exception(ProcessGone())
