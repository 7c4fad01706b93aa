"""A front-end's side of an engine, over a pair of sockets whose other end is the test."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import numpy as np
from numpy.typing import NDArray

from models.backend import HeadOutput
from server.engine.request import ExitTrace, InferenceRequest, Prediction
from server.processes.channel import Channel
from server.processes.engine_host import FrontLink
from server.processes.messages import (
    RemoteRequest,
    pack_exits,
    pack_results,
    unpack_requests,
)
from server.processes.remote_engines import RemoteEngines
from server.processes.wire import Message

LOG_PROBS: NDArray[np.float32] = np.log(np.array([0.25, 0.75], np.float32))


class Engine:
    """The other end: takes requests and sends what a test names."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self.link = FrontLink(0)
        self.messages: asyncio.Queue[Message] = asyncio.Queue()
        self.channel = Channel(
            sock, loop, lambda message, fds: self.messages.put_nowait(message), lambda: None
        )

    async def take(self) -> list[RemoteRequest]:
        return unpack_requests(await self.messages.get(), self.link, lambda arrays: arrays)

    def show(self, requests: list[RemoteRequest], exit: int) -> None:
        entry = ExitTrace(exit, LOG_PROBS, 0.5, np.inf, 1.0)
        self.channel.send(pack_exits([(request, entry) for request in requests]))

    def answer(self, requests: list[RemoteRequest], exit: int) -> None:
        for request in requests:
            output = HeadOutput(LOG_PROBS[None], LOG_PROBS[None])
            request.result = Prediction(exit, output, 0, 1.0, 0.0, False, [])
        for message in pack_results(requests, 0.0, 0):
            self.channel.send(message)


def against(engines: int, test: Callable[..., Awaitable[None]]) -> None:
    """Run a test with a front-end that is connected to so many engines."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        front = RemoteEngines(loop, lambda: 0.0)
        others = []
        for index in range(engines):
            here, there = socket.socketpair()
            front.connect(index, here)
            others.append(Engine(loop, there))
        happened: asyncio.Queue[object] = asyncio.Queue()
        client = front.client(0, lambda requests, sent_s: happened.put_nowait("result"))
        try:
            await asyncio.wait_for(test(front, client, happened, *others), 20)
        finally:
            for index, other in enumerate(others):
                front.bury(index, [])
                other.channel.close()

    asyncio.run(run())


def streamed(happened: asyncio.Queue[object]) -> InferenceRequest:
    return InferenceRequest(
        (np.zeros((1, 2), np.uint8),),
        traced=True,
        streamed=True,
        on_exit=lambda entry: happened.put_nowait(entry.exit),
    )


def test_exits_reach_the_request_before_its_result() -> None:
    async def test(front, client, happened, engine) -> None:  # type: ignore[no-untyped-def]
        client.submit([streamed(happened)])
        requests = await engine.take()
        assert [each.streamed for each in requests] == [True]
        for exit in range(3):
            engine.show(requests, exit)
            assert await happened.get() == exit, "at once, not with the result"
        engine.answer(requests, 2)
        assert await happened.get() == "result"

    against(1, test)


def test_exits_of_a_request_whose_client_has_left_are_dropped() -> None:
    async def test(front, client, happened, engine) -> None:  # type: ignore[no-untyped-def]
        leaves, stays = streamed(happened), streamed(happened)
        client.submit([leaves, stays])
        requests = await engine.take()
        client.cancel([leaves])
        engine.show(requests, 0)
        engine.answer(requests, 0)
        assert [await happened.get(), await happened.get()] == [0, "result"]
        assert happened.empty()

    against(1, test)


def test_another_engine_begins_again_with_what_waited_in_one_that_died() -> None:
    async def test(front, client, happened, first, second) -> None:  # type: ignore[no-untyped-def]
        front.set_accepting(1, False)
        client.submit([streamed(happened)])
        first.show(await first.take(), 0)
        assert await happened.get() == 0
        front.set_accepting(1, True)
        front.bury(0, [])
        requests = await second.take()
        second.show(requests, 0)
        assert await happened.get() == 0, "the listener counts the exits"

    against(2, test)
