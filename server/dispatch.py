"""Both directions of a request: bytes to the engine, and its result back to the client."""

import asyncio
import base64
import binascii
import functools
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from models.backend import State
from models.postprocess import mask_png
from models.preprocess import ImagePreprocessor, InvalidInput, ModelInput, TextPreprocessor
from server.engine.engine import Engine
from server.engine.observer import EngineObserver
from server.engine.request import InferenceRequest, Prediction
from server.errors import INTERNAL_DETAIL, InferenceFailed, InvalidContent, ServeError
from server.quality.auditor import Auditor
from server.schemas import Options

log = logging.getLogger(__name__)

Payload = bytes | str
"""The bytes of an image file, an image file in base64, or a text; the model knows which."""

SMALL_PAYLOAD = 16 * 1024  # bytes or characters: larger ones are never decoded on the event loop
REPORT_REQUESTS = 16  # well below a controller's period


class Dispatcher:
    """Decodes, submits, resolves and answers the requests of one model.

    All methods but `on_done` belong to the event loop's thread.

    Args:
        preprocess: The model's own.
        decode_pool: Decodes large payloads; small ones are decoded on the event loop.
        auditor: Chooses the requests to audit.
        observer: Receives departures of clients whose request was not in the engine yet.
        parameter_for: Returns the policy parameter of a request's own budget in ms.
        on_answered: Receives answered requests, many at a time, for accounting.
        clock: Seconds, monotonic; the engine's.
    """

    engine: Engine
    loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        preprocess: ImagePreprocessor | TextPreprocessor,
        decode_pool: Executor,
        *,
        auditor: Auditor,
        observer: EngineObserver,
        parameter_for: Callable[[float], float],
        on_answered: Callable[[list[InferenceRequest]], None],
        clock: Callable[[], float],
    ) -> None:
        # The model decides which of the two it is, and routes send it no other payload.
        self._preprocess: Any = preprocess
        self._reads_images = isinstance(preprocess, ImagePreprocessor)
        self._decode_pool = decode_pool
        self._auditor = auditor
        self._observer = observer
        self._parameter_for = parameter_for
        self._on_answered = on_answered
        self._clock = clock
        self._answered: list[InferenceRequest] = []
        self._audit_gap = auditor.draw_gap()  # requests that pass before the next audit

    @property
    def example(self) -> State:
        """An input of one row."""
        example: State = self._preprocess.example
        return example

    def start(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        """Send requests to an engine and their results to an event loop."""
        self.engine, self.loop = engine, loop

    async def infer(
        self,
        payload: Payload,
        options: Options,
        received_s: float,
        request_id: str,
        *,
        may_block: bool = True,
    ) -> InferenceRequest:
        """Answer one sample.

        Args:
            payload: The sample.
            options: The request's.
            received_s: When its headers arrived, on the model's clock.
            request_id: The request's; of a list's item, followed by its place.
            may_block: Whether a small payload may be decoded on the event loop.

        Returns:
            The finished request; its `result` is a Prediction.

        Raises:
            ServeError: If the input is invalid, the deadline passes before the first exit, or the
                network fails.
        """
        request = self._request(options, received_s, request_id)
        future: asyncio.Future[None] = self.loop.create_future()
        request.on_done = functools.partial(_resolve, future)
        try:
            if not self._decode_small(request, payload, may_block):
                self._decode_pool.submit(self._decode_and_submit, request, payload)
            await future
            if isinstance(request.result, ServeError):
                raise request.result
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                self.engine.cancel([request])
            if request.audit is not None:
                self._auditor.give_up(request.audit)
            request.result = None  # the error's traceback holds the request: leave no cycle
            raise
        return request

    async def submit(self, request: InferenceRequest) -> None:
        """Run a request whose `state` is there already; return once it has its result."""
        future: asyncio.Future[None] = self.loop.create_future()
        request.on_done = functools.partial(_resolve, future)
        self.engine.submit([request])
        await future

    async def draw_mask(self, request: InferenceRequest) -> bytes | None:
        """Draw a segmentation's answer as a PNG of the image's size, on a decode thread."""
        assert isinstance(request.result, Prediction), "only answers have masks"
        if request.image_size is None:
            return None
        logits = request.result.output.logits
        mask = await self.loop.run_in_executor(
            self._decode_pool, mask_png, logits, request.image_size
        )
        request.total_ms = (self._clock() - request.received_s) * 1e3
        return mask

    def on_done(self, requests: list[InferenceRequest]) -> None:
        """Hand a batch's finished requests to the event loop in one call; workers call this."""
        self.loop.call_soon_threadsafe(self._deliver, requests, self._clock())

    def take_answered(self) -> list[InferenceRequest]:
        """Return the requests answered since the last accounting."""
        answered, self._answered = self._answered, []
        return answered

    def _request(self, options: Options, received_s: float, request_id: str) -> InferenceRequest:
        deadline_s = None
        if options.deadline_ms is not None:
            deadline_s = received_s + options.deadline_ms / 1e3
        # A parameter belongs to one policy, so both are read together.
        parameter = None if options.budget_ms is None else self._parameter_for(options.budget_ms)
        request = InferenceRequest(
            parameter=parameter,
            deadline_s=deadline_s,
            priority=options.priority,
            traced=options.trace,
            policy=self.engine.active_policy,
            request_id=request_id,
            received_s=received_s,
            counts_for_budget=parameter is None,
        )
        if deadline_s is None and self._audit_gap is not None:
            if self._audit_gap == 0:
                request.audit = self._auditor.choose(request_id, self.engine.idle)
                self._audit_gap = self._auditor.draw_gap()
            else:
                self._audit_gap -= 1
        return request

    def _decode_small(self, request: InferenceRequest, payload: Payload, may_block: bool) -> bool:
        """Decode a small payload and submit it; return whether it was small.

        Handing a small payload to a thread and back costs more than decoding it.
        """
        if not may_block or len(payload) > SMALL_PAYLOAD:
            return False
        return self._decode(request, payload, self._preprocess.decode_if_small)

    def _decode_and_submit(self, request: InferenceRequest, payload: Payload) -> None:
        """Decode thread: turn a payload into the request's state and submit it."""
        if request.cancelled:
            self._observer.on_cancelled(1)
            return
        try:
            self._decode(request, payload, self._preprocess)
        except ServeError as error:
            self._fail(request, error)
        except Exception:  # A bug in our code: answer the request, keep the thread.
            log.exception("request %s: decoding failed", request.request_id)
            self._fail(request, InferenceFailed(INTERNAL_DETAIL))

    def _fail(self, request: InferenceRequest, error: ServeError) -> None:
        request.result = error
        assert request.on_done is not None, "requests that are decoded here have a callback"
        self.loop.call_soon_threadsafe(request.on_done)

    def _decode(
        self,
        request: InferenceRequest,
        payload: Payload,
        preprocess: Callable[[Any], ModelInput | None],
    ) -> bool:
        started_s = self._clock()
        if self._reads_images and isinstance(payload, str):
            payload = decode_base64(payload)
        try:
            model_input = preprocess(payload)
        except InvalidInput as error:
            raise InvalidContent(str(error)) from error
        if model_input is None:
            return False
        request.state, request.truncated, request.image_size = model_input
        request.decode_ms = (self._clock() - started_s) * 1e3
        if request.cancelled:
            self._observer.on_cancelled(1)
        else:
            self.engine.submit([request])
        return True

    def _deliver(self, requests: list[InferenceRequest], done_s: float) -> None:
        """Answer the requests of a batch, then account for many at a time."""
        now_s = self._clock()
        self.engine.deadlines.delivery.times.append((now_s, now_s - done_s))
        for request in requests:
            request.total_ms = (now_s - request.received_s) * 1e3
            if isinstance(request.result, Prediction):
                if request.deadline_s is not None and now_s >= request.deadline_s:
                    request.result = request.result._replace(late=True)
                self._answered.append(request)
            if request.on_done is not None:
                request.on_done()
        if len(self._answered) >= REPORT_REQUESTS:
            self._on_answered(self.take_answered())


def decode_base64(text: str) -> bytes:
    """Decode an image file sent as base64, or as a `data:` URL.

    Raises:
        InvalidContent: If it is not base64.
    """
    data = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidContent(f"the image is not base64: {error}") from error


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():  # it is when the client has left
        future.set_result(None)
