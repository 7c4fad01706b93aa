"""The client for programs that wait for each answer."""

import contextlib
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
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


class PredictionStream:
    """Yields the output of each exit as it happens; then `prediction` returns the answer."""

    def __init__(self, response: httpx.Response) -> None:
        self._pieces, self._reader = response.iter_bytes(), EventReader()
        self._prediction: Prediction | None = None
        self._outputs = self._read()

    def __iter__(self) -> Iterator[ExitOutput]:
        return self._outputs

    def prediction(self) -> Prediction:
        """Return the prediction, once all exits that the sample passes have been read.

        Raises:
            EENetError: If the server fails, or the connection breaks.
        """
        for _ in self._outputs:
            pass
        if self._prediction is None:
            raise ConnectionFailed(BROKEN_STREAM)
        return self._prediction

    def _read(self) -> Iterator[ExitOutput]:
        try:
            for piece in self._pieces:
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


class Client:
    """A client that waits for each answer; several threads may share it.

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
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._retries, self._sleep = Retries(retries, most_wait_s), sleep
        if uds is not None and transport is None:
            transport = httpx.HTTPTransport(uds=uds)
        self._http = httpx.Client(
            **client_options(base_url, key, timeout_s), verify=verify, transport=transport
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def predict(
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
        return self._send(calls.predict(image, text, options))

    def predict_list(
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
        return self._send(calls.predict_list(images, texts, options))

    @contextlib.contextmanager
    def stream(
        self,
        *,
        image: Image | None = None,
        text: str | None = None,
        **options: Unpack[PredictOptions],
    ) -> Iterator[PredictionStream]:
        """Predict one image or text, and get the output of each exit as it happens.

        Leaving the context early drops the sample on the server.

        Args:
            image: Path of a file, or its bytes.
            text: A text.
            options: See `PredictOptions`.
        """
        call = calls.predict(image, text, options, "/predict/stream")
        response = self._open(call)
        try:
            calls.require_events(response)
            yield PredictionStream(response)
        finally:
            response.close()

    def budget(self, model: str | None = None) -> list[Budget]:
        """Return the budgets of all models, or of one."""
        return self._send(calls.get_budget(model))

    def set_budget(
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
        return self._send(calls.set_budget(budget_ms, measure, max_disagreement, model))

    def feedback(self, request_id: str, label: str | int) -> FeedbackTaken:
        """Send the true label of an earlier prediction, by its name or number."""
        return self._send(calls.feedback(request_id, label))

    def models(self) -> list[Model]:
        """Return the loaded models."""
        return self._send(calls.get_models())

    def metrics(self) -> str:
        """Return the metrics as Prometheus text."""
        return self._send(calls.get_metrics())

    def live(self) -> Health:
        """Return whether the server makes progress."""
        return self._send(calls.get_health("/livez"))

    def ready(self) -> Health:
        """Return whether the server takes requests."""
        return self._send(calls.get_health("/readyz"))

    def _send(self, call: Call[Result]) -> Result:
        response = self._open(call)
        try:
            response.read()
        except httpx.HTTPError as error:
            raise connection_error(error) from error
        finally:
            response.close()
        return call.result(response)

    def _open(self, call: Call[Any]) -> httpx.Response:
        """Send a call until it is answered; the body of the answer is not read."""
        sent = 0
        while True:
            sent += 1
            try:
                return self._try(call)
            except EENetError as error:
                wait_s = self._retries.wait_s(sent, call, error)
                if wait_s is None:
                    raise
            self._sleep(wait_s)

    def _try(self, call: Call[Any]) -> httpx.Response:
        request = self._http.build_request(
            call.method,
            call.path,
            params=call.query or None,
            headers=dict(call.headers),
            content=call.content or None,
        )
        try:
            response = self._http.send(request, stream=True)
            if response.is_success or response.status_code in call.accepted:
                return response
            try:
                content = response.read()
            finally:
                response.close()
        except httpx.HTTPError as error:
            raise connection_error(error) from error
        raise status_error(response.status_code, response.headers, content)
