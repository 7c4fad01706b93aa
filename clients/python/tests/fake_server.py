"""A server without sockets: answers that a test lists, and what was asked for them."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from eenet_client import AsyncClient, Client

PREDICTION: dict[str, Any] = {
    "model": "cifar10-resnet56",
    "version": "1",
    "label": "ship",
    "class_id": 8,
    "confidence": 0.97,
    "exit": 1,
    "num_exits": 3,
    "top_k": [{"label": "ship", "class_id": 8, "probability": 0.97}],
    "latency_ms": {"total": 2.9, "queue": 0.1, "decode": 0.6, "compute": 1.9},
    "request_id": "abc",
}
EXITS: list[dict[str, Any]] = [
    {"exit": k, "label": label, "confidence": sure, "score": sure, "threshold": at,
     "elapsed_ms": k + 1.5}
    for k, (label, sure, at) in enumerate([("truck", 0.4, 0.9), ("ship", 0.97, None)])
]  # fmt: skip


def problem(status: int, code: str, detail: str = "a sentence", **headers: str) -> httpx.Response:
    body = {"status": status, "code": code, "detail": detail, "request_id": "abc", "title": ""}
    kind = {"content-type": "application/problem+json"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, content=json.dumps(body), headers={**kind, **named})


def answer(content: Any) -> httpx.Response:
    return httpx.Response(200, json=content)


def event(name: str, fields: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(fields)}\n\n".encode()


class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that comes in pieces; an exception among them breaks the connection."""

    def __init__(self, pieces: list[bytes | Exception]) -> None:
        self.left = list(pieces)
        self.is_closed = False

    def __iter__(self) -> Any:
        while self.left:
            piece = self.left.pop(0)
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def __aiter__(self) -> Any:
        for piece in self:
            yield piece

    def close(self) -> None:
        self.is_closed = True

    async def aclose(self) -> None:
        self.close()


def events(*pieces: bytes | Exception) -> httpx.Response:
    kind = {"content-type": "text/event-stream"}
    return httpx.Response(200, headers=kind, stream=Pieces(list(pieces)))


class FakeServer(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Gives the listed answers one after the other; an exception in place of one is raised.

    Attributes:
        requests: What was asked.
        waits: Seconds that the client waited between its tries.
    """

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.waits: list[float] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        given = self.answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        return self.handle_request(request)


class Both:
    """Lets one test drive either client: calls are made, and streams read, to their ends."""

    def __init__(self, *, is_async: bool) -> None:
        self.is_async = is_async

    def call(self, server: FakeServer, method: str, *given: Any, **more: Any) -> Any:
        """Return what a method returns."""
        options = {name: more.pop(name) for name in ("client",) if name in more}

        async def of_async(client: AsyncClient) -> Any:
            return await getattr(client, method)(*given, **more)

        def of_sync(client: Client) -> Any:
            return getattr(client, method)(*given, **more)

        return self._run(server, of_sync, of_async, **options)

    def stream(self, server: FakeServer, **given: Any) -> tuple[list[Any], Any]:
        """Return the outputs of a stream and its prediction."""

        async def of_async(client: AsyncClient) -> Any:
            async with client.stream(**given) as exits:
                return [each async for each in exits], await exits.prediction()

        def of_sync(client: Client) -> Any:
            with client.stream(**given) as exits:
                return list(exits), exits.prediction()

        found: tuple[list[Any], Any] = self._run(server, of_sync, of_async)
        return found

    def leave_stream(self, server: FakeServer, **given: Any) -> Any:
        """Return the first output of a stream that is left then."""

        async def of_async(client: AsyncClient) -> Any:
            async with client.stream(**given) as exits:
                async for each in exits:
                    return each

        def of_sync(client: Client) -> Any:
            with client.stream(**given) as exits:
                return next(iter(exits))

        return self._run(server, of_sync, of_async)

    def _run(
        self,
        server: FakeServer,
        of_sync: Callable[[Client], Any],
        of_async: Callable[[AsyncClient], Awaitable[Any]],
        client: dict[str, Any] | None = None,
    ) -> Any:
        options = {"base_url": "http://server:8000", **(client or {})}

        async def sleep(seconds: float) -> None:
            server.waits.append(seconds)

        async def run() -> Any:
            async with AsyncClient(transport=server, sleep=sleep, **options) as made:
                return await of_async(made)

        if self.is_async:
            return asyncio.run(run())
        with Client(transport=server, sleep=server.waits.append, **options) as made:
            return of_sync(made)
