import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Message, Receive, Scope, Send

from server.metrics import Metrics
from server.middleware import ClientWatch, RequestMiddleware, Turn
from server.refusals import RefusalLog

PATIENCE_S = 0.01
LONG_S = 5.0
OK: Message = {"type": "http.response.start", "status": 200, "headers": []}
END: Message = {"type": "http.response.body", "body": b"end"}


class Client:
    """Sends its body in parts, some time apart, and leaves some time after that.

    As servers do it, an answer that is out ends the connection's messages too.

    Args:
        parts: How many the body has.
        part_s: Time before each.
        leaves_s: After the last; never if it is None.
        half_way: It leaves instead of sending the last part.
    """

    def __init__(
        self,
        parts: int = 1,
        part_s: float = 0.0,
        leaves_s: float | None = None,
        half_way: bool = False,
    ) -> None:
        self.parts, self.part_s, self.leaves_s = parts, part_s, leaves_s
        self.half_way = half_way
        self.asked = 0
        self.got: list[Message] = []
        self.over = asyncio.Event()

    async def receive(self) -> Message:
        self.asked += 1
        if self.asked <= self.parts:
            await asyncio.sleep(self.part_s)
            if self.half_way and self.asked == self.parts:
                return {"type": "http.disconnect"}
            more = self.asked < self.parts
            return {"type": "http.request", "body": b"part", "more_body": more}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.leaves_s):
                await self.over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.got.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.over.set()


async def read(receive: Receive) -> None:
    while (await receive()).get("more_body", False):
        pass


def watching(client: Client, work: Callable[[Receive, Send], Awaitable[None]]) -> ClientWatch:
    """What has become of a watch over some work, on which nobody else waits."""

    async def answer() -> ClientWatch:
        watch = ClientWatch(client.receive, client.send, PATIENCE_S)
        try:
            async with watch:
                await work(watch.receive, watch.send)
        except asyncio.CancelledError:
            assert watch.left
        await asyncio.sleep(2 * PATIENCE_S)
        assert asyncio.all_tasks() == {asyncio.current_task()}, "nothing is left behind"
        return watch

    return asyncio.run(answer())


@pytest.mark.parametrize("leaves_s", [0.0, 3 * PATIENCE_S])
def test_work_for_a_client_that_has_left_is_cancelled(leaves_s: float) -> None:
    steps: list[str] = []

    async def work(receive: Receive, send: Send) -> None:
        await read(receive)
        try:
            await asyncio.sleep(LONG_S)
        finally:
            steps.append("put away")

    client = Client(leaves_s=leaves_s)
    assert watching(client, work).left
    assert steps == ["put away"] and client.got == []


def test_nobody_looks_after_a_client_that_is_answered_soon() -> None:
    async def work(receive: Receive, send: Send) -> None:
        await read(receive)
        for _ in range(5):
            await asyncio.sleep(0)
        await send(OK)
        await send(END)

    client = Client(parts=3, leaves_s=0.0)
    assert not watching(client, work).left
    assert client.asked == 3 and client.got == [OK, END]


def test_the_end_of_an_answer_is_no_departure() -> None:
    steps: list[str] = []

    async def work(receive: Receive, send: Send) -> None:
        await read(receive)
        await asyncio.sleep(3 * PATIENCE_S)
        await send(OK)
        await send(END)
        await asyncio.sleep(3 * PATIENCE_S)
        steps.append("done")

    client = Client()
    assert not watching(client, work).left
    assert steps == ["done"] and client.asked == 2


def test_a_client_that_waits_long_is_answered() -> None:
    async def work(receive: Receive, send: Send) -> None:
        await read(receive)
        await asyncio.sleep(5 * PATIENCE_S)
        await send(OK)
        await send(END)

    client = Client()
    assert not watching(client, work).left
    assert client.got == [OK, END]


def test_while_a_body_comes_the_work_alone_reads_it() -> None:
    parts: list[bytes] = []

    async def work(receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            parts.append(message["body"])
            more = message["more_body"]
        await send(OK)
        await send(END)

    client = Client(parts=4, part_s=2 * PATIENCE_S)
    assert not watching(client, work).left
    assert parts == [b"part"] * 4 and client.asked == 4


def test_a_client_that_leaves_half_way_through_its_body_is_the_works_to_notice() -> None:
    seen: list[Message] = []

    async def work(receive: Receive, send: Send) -> None:
        await receive()
        seen.append(await receive())
        await asyncio.sleep(3 * PATIENCE_S)

    assert not watching(Client(parts=2, half_way=True), work).left
    assert seen == [{"type": "http.disconnect"}]


def test_an_answer_in_parts_ends_when_the_client_leaves_in_its_midst() -> None:
    async def work(receive: Receive, send: Send) -> None:
        await read(receive)
        await send(OK)
        while True:
            await send({**END, "more_body": True})
            await asyncio.sleep(PATIENCE_S / 2)

    client = Client(leaves_s=4 * PATIENCE_S)
    assert watching(client, work).left
    assert len(client.got) > 2


def test_a_failure_of_the_work_is_its_own() -> None:
    async def work(receive: Receive, send: Send) -> None:
        await read(receive)
        await asyncio.sleep(2 * PATIENCE_S)
        raise LookupError("of the work")

    with pytest.raises(LookupError):
        watching(Client(), work)


def test_whoever_else_cancels_the_work_is_not_taken_for_the_client() -> None:
    async def answer() -> None:
        client = Client()
        watch = ClientWatch(client.receive, client.send, PATIENCE_S)

        async def work() -> None:
            async with watch:
                await read(watch.receive)
                await asyncio.sleep(LONG_S)

        task = asyncio.create_task(work())
        await asyncio.sleep(3 * PATIENCE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not watch.left
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}, "nothing is left behind"

    asyncio.run(answer())


def test_a_request_whose_client_has_left_is_counted_once() -> None:
    async def works(scope: Scope, receive: Receive, send: Send) -> None:
        await read(receive)
        await asyncio.sleep(LONG_S)

    registry = CollectorRegistry()
    envelope = RequestMiddleware(works, RefusalLog(Metrics(registry, "")), max_body_bytes=100)
    scope = {"type": "http", "path": "/predict", "method": "POST", "headers": []}

    async def serve() -> Client:
        client = Client(leaves_s=0.0)
        await envelope(scope, client.receive, client.send)
        return client

    assert asyncio.run(serve()).got == []
    counted = {
        sample.labels["status"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "eenet_requests_total"
    }
    assert counted == {"499": 1}


def test_a_turn_is_for_one_and_rests_afterwards() -> None:
    async def run() -> None:
        turn, inside, most, ended_s = Turn(), 0, 0, list[float]()
        loop = asyncio.get_running_loop()

        async def work() -> None:
            nonlocal inside, most
            async with turn:
                begun_s, inside = loop.time(), inside + 1
                most = max(most, inside)
                if ended_s:
                    assert begun_s - ended_s[-1] > 0.015, "the loop was left to others"
                await asyncio.sleep(0.01)
                inside -= 1
                ended_s.append(loop.time())

        await asyncio.gather(*[work() for _ in range(3)])
        assert most == 1 and len(ended_s) == 3

    asyncio.run(run())
