"""Servers on an event loop that somebody else runs: a front-end's, and that of --admin-port."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.types import ASGIApp

from server.forwarded import proxy_options
from server.http_protocol import http_config
from server.settings import Settings
from server.tls import tls_options

TICK_S = 0.5  # well below the second that the Date header counts in
ADMIN_DRAIN_S, ADMIN_STOP_S = 1, 0.3  # uvicorn's, in whole seconds, and what `stop` waits


class Listener(uvicorn.Server):
    """Leaves signals to its owner, which alone decides when to drain.

    The owner calls `on_tick` about once a second, which keeps the time that responses state.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.began = asyncio.Event()
        self._ending = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self.began.set()

    def end(self) -> None:
        """Drain."""
        self.should_exit = True
        self._ending.set()

    async def main_loop(self) -> None:
        """Wait until the server ends."""
        await self.on_tick(0)
        await self._ending.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class AdminListener:
    """Answers on --admin-port, beside whatever else its event loop does.

    Args:
        app: Answers the requests.
        settings: The server's.
        sockets: Where it listens.
    """

    def __init__(self, app: ASGIApp, settings: Settings, sockets: Sequence[socket.socket]) -> None:
        options = {**tls_options(settings), **proxy_options(settings)}
        self._server = Listener(http_config(app, ADMIN_DRAIN_S, lifespan="off", **options))
        self._sockets = list(sockets)

    async def start(self) -> None:
        """Begin to answer; raise what keeps it from that."""
        self._serving = asyncio.create_task(self._server.serve(self._sockets))
        began = asyncio.create_task(self._server.began.wait())
        await asyncio.wait([self._serving, began], return_when=asyncio.FIRST_COMPLETED)
        if self._serving.done():
            began.cancel()
            self._serving.result()
        self._ticking = asyncio.create_task(self._tick())

    async def stop(self) -> None:
        """Take no more connections, and answer what is in; requests are short."""
        self._server.end()
        await asyncio.wait([self._serving], timeout=ADMIN_STOP_S)
        for task in (self._serving, self._ticking):
            task.cancel()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            await self._server.on_tick(0)
