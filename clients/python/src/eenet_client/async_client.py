"""The client for programs on an event loop."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack

import httpx

from eenet_client import calls
from eenet_client.calls import UNCHANGED, Call, Image, PredictOptions, Unchanged
from eenet_client.errors import ConnectionFailed, EENetError, status_error
from eenet_client.events import EventReader, read_event
from eenet_client.results import (
    Budget,
    ExitOutput,
    FeedbackTaken,
    Health,
    ItemError,
    Model,
    Prediction,
)
from eenet_client.retry import Retries, connection_error
from eenet_client.settings import BROKEN_STREAM, client_options

Result = TypeVar("Result")


class AsyncPredictionStream:
    """Yields the output of each exit as it happens; then `prediction` returns the answer."""

    def __init__(self, response: httpx.Response) -> None:
        self._pieces, self._reader = response.aiter_bytes(), EventReader()
        self._prediction: Prediction | None = None
        self._outputs = self._read()

    def __aiter__(self) -> AsyncIterator[ExitOutput]:
        return self._outputs

    async def prediction(self) -> Prediction:
        """Return the prediction, once all exits that the sample passes have been read.

        Raises:
            EENetError: If the server fails, or the connection breaks.
        """
        async for _ in self._outputs:
            pass
        if self._prediction is None:
            raise ConnectionFailed(BROKEN_STREAM)
        return self._prediction

    async def _read(self) -> AsyncIterator[ExitOutput]:
        try:
            async for piece in self._pieces:
                for event in self._reader.feed(piece):
                    known = read_event(event)
                    if isinstance(known, Prediction):
                        self._prediction = known
                        return
                    if known is not None:
                        yield known
        except httpx.HTTPError as error:
            raise connection_error(error) from error
        raise ConnectionFailed(BROKEN_STREAM)


class AsyncClient:
    """A client for an event loop; any number of its tasks may share it.

    Args:
        base_url: The server's, with the path under which a proxy shows it, if there is one.
        key: Sent as `Authorization: Bearer KEY`.
        timeout_s: Longest silence of the server, and longest wait for a connection.
        retries: Most times that a call is sent again after a 429, a 503 or a broken connection.
        most_wait_s: Longest wait before that; a server that asks for a longer one gets no more.
        uds: Path of the Unix socket that the server listens on.
        verify: Whether to check the server's certificate; or which ones to trust.
        transport: Sends requests in place of a connection.
        sleep: Waits so many seconds.

    Every method raises a `StatusError` with the server's sentence if the server refuses or fails,
    and `ConnectionFailed` if it cannot be reached.
    """

    def __init__(
        self,
        base_url: str = "http://localhost:8000",
        *,
        key: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 3,
        most_wait_s: float = 30.0,
        uds: str | None = None,
        verify: bool | ssl.SSLContext = True,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._retries, self._sleep = Retries(retries, most_wait_s), sleep
        if uds is not None and transport is None:
            transport = httpx.AsyncHTTPTransport(uds=uds)
        self._http = httpx.AsyncClient(
            **client_options(base_url, key, timeout_s), verify=verify, transport=transport
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def predict(
        self,
        *,
        image: Image | None = None,
        text: str | None = None,
        **options: Unpack[PredictOptions],
    ) -> Prediction:
        """Predict one image or one text.

        Args:
            image: Path of a file, or its bytes.
            text: A text.
            options: See `PredictOptions`.
        """
        return await self._send(calls.predict(image, text, options))

    async def predict_list(
        self,
        *,
        images: Sequence[Image] | None = None,
        texts: Sequence[str] | None = None,
        **options: Unpack[PredictOptions],
    ) -> list[Prediction | ItemError]:
        """Predict several images or texts; an item that fails affects no other.

        Args:
            images: Paths of files, or their bytes.
            texts: Texts.
            options: See `PredictOptions`.
        """
        return await self._send(calls.predict_list(images, texts, options))

    @contextlib.asynccontextmanager
    async def stream(
        self,
        *,
        image: Image | None = None,
        text: str | None = None,
        **options: Unpack[PredictOptions],
    ) -> AsyncIterator[AsyncPredictionStream]:
        """Predict one image or text, and get the output of each exit as it happens.

        Leaving the context early drops the sample on the server.

        Args:
            image: Path of a file, or its bytes.
            text: A text.
            options: See `PredictOptions`.
        """
        call = calls.predict(image, text, options, "/predict/stream")
        response = await self._open(call)
        try:
            calls.require_events(response)
            yield AsyncPredictionStream(response)
        finally:
            await response.aclose()

    async def budget(self, model: str | None = None) -> list[Budget]:
        """Return the budgets of all models, or of one."""
        return await self._send(calls.get_budget(model))

    async def set_budget(
        self,
        budget_ms: float | Unchanged | None = UNCHANGED,
        *,
        measure: Literal["compute", "end_to_end"] | Unchanged = UNCHANGED,
        max_disagreement: float | Unchanged = UNCHANGED,
        model: str | None = None,
    ) -> list[Budget]:
        """Change the budget or the promise of all models, or of one.

        Args:
            budget_ms: Mean latency of a sample; None: no budget, the promise about answers holds.
            measure: The latency that the budget limits.
            max_disagreement: Without a budget, the promised largest share of samples that get
                another answer than from the whole network.
            model: Name of the one model to change.
        """
        return await self._send(calls.set_budget(budget_ms, measure, max_disagreement, model))

    async def feedback(self, request_id: str, label: str | int) -> FeedbackTaken:
        """Send the true label of an earlier prediction, by its name or number."""
        return await self._send(calls.feedback(request_id, label))

    async def models(self) -> list[Model]:
        """Return the loaded models."""
        return await self._send(calls.get_models())

    async def metrics(self) -> str:
        """Return the metrics as Prometheus text."""
        return await self._send(calls.get_metrics())

    async def live(self) -> Health:
        """Return whether the server makes progress."""
        return await self._send(calls.get_health("/livez"))

    async def ready(self) -> Health:
        """Return whether the server takes requests."""
        return await self._send(calls.get_health("/readyz"))

    async def _send(self, call: Call[Result]) -> Result:
        response = await self._open(call)
        try:
            await response.aread()
        except httpx.HTTPError as error:
            raise connection_error(error) from error
        finally:
            await response.aclose()
        return call.result(response)

    async def _open(self, call: Call[Any]) -> httpx.Response:
        """Send a call until it is answered; the body of the answer is not read."""
        sent = 0
        while True:
            sent += 1
            try:
                return await self._try(call)
            except EENetError as error:
                wait_s = self._retries.wait_s(sent, call, error)
                if wait_s is None:
                    raise
            await self._sleep(wait_s)

    async def _try(self, call: Call[Any]) -> httpx.Response:
        request = self._http.build_request(
            call.method,
            call.path,
            params=call.query or None,
            headers=dict(call.headers),
            content=call.content or None,
        )
        try:
            response = await self._http.send(request, stream=True)
            if response.is_success or response.status_code in call.accepted:
                return response
            try:
                content = await response.aread()
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise connection_error(error) from error
        raise status_error(response.status_code, response.headers, content)
