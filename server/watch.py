"""Whether a client still waits for its answer."""

import asyncio
from types import TracebackType

from starlette.types import Message, Receive, Send

PATIENCE_S = 0.1


class ClientWatch:
    """Cancels the task that answers a request once the client has gone.

    Most answers are out before it would look: it looks only at requests whose body has been read
    for `patience_s`.

    Args:
        receive: The request's.
        send: The request's.
        patience_s: Before that long nobody is taken to have left.
    """

    def __init__(self, receive: Receive, send: Send, patience_s: float = PATIENCE_S) -> None:
        self.left = False
        self._receive = receive
        self._send = send
        self._patience_s = patience_s
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._answered = False

    async def __aenter__(self) -> "ClientWatch":
        task = asyncio.current_task()
        assert task is not None, "requests are answered by tasks"
        self._task = task
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._answered = True
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    async def receive(self) -> Message:
        """The request's next message."""
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._patience_s, self._begin)
        return message

    async def send(self, message: Message) -> None:
        """Send; once the answer is whole, its end is no departure."""
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._answered = True
        await self._send(message)

    def _begin(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._answered:
            self.left = True
            self._task.cancel()
