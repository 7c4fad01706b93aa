"""Both directions of a request: bytes to the engine, and its result back to the client."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from models.backend import State
from models.images import SLOW_MS, Postponed
from models.postprocess import mask_png
from models.preprocess import ImagePreprocessor, InvalidInput, ModelInput, TextPreprocessor
from scheduler.combiner import probabilities
from server.base64_image import decode_base64
from server.decoders import QUICK_MS, Decoders
from server.engine.client import EngineClient
from server.engine.request import AuditTrace, ExitTrace, InferenceRequest, Prediction, Shown
from server.errors import INTERNAL_DETAIL, InferenceFailed, InvalidContent, ServeError
from server.quality.auditor import MOST_IN_FLIGHT, AuditSampler
from server.quality.feedback import NOBODY, key_of
from server.reports import Answers, EntryTerms, Exemplar
from server.request_context import current_request
from server.schemas import Options
from server.trace_records import RequestTrace

log = logging.getLogger(__name__)

Payload = bytes | str | tuple[str, str]
"""The bytes of an image file, an image file in base64, or a text; the model knows which."""

SMALL_PAYLOAD = 16 * 1024  # bytes or characters: larger ones are never decoded on the event loop
REPORT_REQUESTS = 16  # well below a controller's period
MOST_FAILURES = 10_000  # between two reports
UNKNOWN = Postponed(0, float("inf"))


class Dispatcher:
    """Decodes, submits, resolves and answers the requests of one model.

    All methods but `on_done` belong to the event loop's thread.

    Args:
        preprocess: The model's own.
        decoders: Decode large payloads; small ones are decoded on the event loop.
        sampler: Draws the requests to audit.
        clock: Seconds, monotonic; the engine's.

    Attributes:
        terms: The terms under which requests enter; control replaces them.
        name: The model's; its owner sets it.
    """

    name = ""
    client: EngineClient
    loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        preprocess: ImagePreprocessor | TextPreprocessor,
        decoders: Decoders,
        sampler: AuditSampler,
        clock: Callable[[], float],
    ) -> None:
        # The model decides which of the two it is, and routes send it no other payload.
        self._preprocess: Any = preprocess
        self._reads_images = isinstance(preprocess, ImagePreprocessor)
        self._decoders = decoders
        self._sampler = sampler
        self._audit_gap = sampler.draw_gap()  # requests that pass before the next audit
        self._renewing: set[InferenceRequest] = set()  # drawn to renew the promise, not answered
        self._clock = clock
        self._answered: list[InferenceRequest] = []
        self._failed_ms: list[float] = []
        self._open: set[InferenceRequest] = set()  # begun, and neither answered nor cancelled
        self._reserved = 0
        self.terms: EntryTerms | None = None

    def start(
        self,
        client: EngineClient,
        loop: asyncio.AbstractEventLoop,
        on_answers: Callable[[], None],
    ) -> None:
        """Send requests to engines and their results to an event loop.

        Args:
            client: Takes the requests.
            loop: Answers them.
            on_answers: Called once many answers wait to be taken.
        """
        self.client, self.loop, self._on_answers = client, loop, on_answers

    async def infer(
        self,
        payload: Payload,
        options: Options,
        received_s: float,
        request_id: str,
        *,
        may_block: bool = True,
        owner: int = NOBODY,
    ) -> InferenceRequest:
        """Answer one sample.

        Args:
            payload: The sample.
            options: The request's.
            received_s: When its headers arrived, on the model's clock.
            request_id: The request's; of a list's item, followed by its place.
            may_block: Whether a small payload may be decoded on the event loop.
            owner: Who may give feedback on the answer.

        Returns:
            The finished request; its `result` is a Prediction.

        Raises:
            ServeError: If the input is invalid, the deadline passes before the first exit, or the
                network fails.
        """
        future: asyncio.Future[None] = self.loop.create_future()
        context = current_request.get()
        request = self.begin(
            payload,
            options,
            received_s,
            request_id,
            lambda request: _resolve(future),
            may_block=may_block,
            owner=owner,
            trace=None if context is None else context.trace,
        )
        if context is not None:
            context.samples.append((self.name, request))
        try:
            await future
            if isinstance(request.result, ServeError):
                raise request.result
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                self.cancel(request)
            request.result = None  # the error's traceback holds the request: leave no cycle
            raise
        return request

    def begin(
        self,
        payload: Payload,
        options: Options,
        received_s: float,
        request_id: str,
        on_done: Callable[[InferenceRequest], None],
        *,
        on_exit: Callable[[ExitTrace], None] | None = None,
        may_block: bool = True,
        owner: int = NOBODY,
        trace: RequestTrace | None = None,
    ) -> InferenceRequest:
        """Begin to answer one sample.

        Args:
            payload: As `infer`.
            options: As `infer`.
            received_s: As `infer`.
            request_id: As `infer`.
            on_done: Called on the event loop with the request once it has its result, perhaps
                before this returns; never for one that was cancelled.
            on_exit: Called on the event loop at every exit, before `on_done`; where the engine has
                died and another one begins again, for the first exits once more. None: the request
                is not streamed.
            may_block: As `infer`.
            owner: As `infer`.
            trace: The HTTP request's place in a trace.
        """
        request = self._request(options, received_s, request_id, owner)
        if trace is not None:
            request.trace_id = trace.sampled_id
            request.timings = [] if trace.recorded else None
        request.on_done = functools.partial(on_done, request)
        if on_exit is not None:
            request.on_exit, request.streamed, request.traced = on_exit, True, True
        self._open.add(request)
        try:
            if not self._decode_small(request, payload, may_block):
                self._decoders.quick.submit(self._decode_and_submit, request, payload)
        except ServeError as error:
            self._fail_now(request, error)
        except Exception:  # A bug in our code: answer the request.
            log.exception("request %s: decoding failed", request_id, extra=_ids(request))
            self._fail_now(request, InferenceFailed(INTERNAL_DETAIL))
        return request

    def begin_rows(
        self,
        state: State,
        options: Options,
        received_s: float,
        request_ids: Sequence[str],
        on_done: Callable[[InferenceRequest], None],
        *,
        on_exit: Callable[[ExitTrace], None] | None = None,
        owner: int = NOBODY,
    ) -> list[InferenceRequest]:
        """Begin to answer rows that came as arrays; they are submitted together.

        Args:
            state: Arrays of N rows each, as the preprocessor makes them.
            options: As `infer`.
            received_s: As `infer`.
            request_ids: One of each row, N.
            on_done: As `begin`.
            on_exit: As `begin`; of a stream there is one row.
            owner: As `infer`.
        """
        requests = []
        size = self._preprocess.size if self._reads_images else None
        for place, request_id in enumerate(request_ids):
            request = self._request(options, received_s, request_id, owner)
            request.on_done = functools.partial(on_done, request)
            if on_exit is not None:
                request.on_exit, request.streamed, request.traced = on_exit, True, True
            request.state = tuple([array[place : place + 1] for array in state])
            request.image_size = size
            requests.append(request)
        self._open.update(requests)
        self.client.submit(requests)
        return requests

    def cancel(self, request: InferenceRequest) -> None:
        """Drop a request that nobody waits for any more."""
        request.on_done = request.on_exit = None
        self._renewing.discard(request)
        self._open.discard(request)
        self.client.cancel([request])

    async def draw_mask(self, request: InferenceRequest) -> bytes | None:
        """Draw a segmentation's answer as a PNG of the image's size, on a decode thread."""
        assert isinstance(request.result, Prediction), "only answers have masks"
        if request.image_size is None:
            return None
        logits = request.result.output.logits
        mask = await self.loop.run_in_executor(
            self._decoders.quick, mask_png, logits, request.image_size
        )
        request.total_ms = (self._clock() - request.received_s) * 1e3
        return mask

    def on_done(self, requests: list[InferenceRequest]) -> None:
        """Hand a batch's finished requests to the event loop in one call; workers call this."""
        self.loop.call_soon_threadsafe(self.deliver, requests, self._clock())

    def on_exits(self, shown: Shown) -> None:
        """Hand what streamed requests passed to the event loop in one call; workers call this."""
        self.loop.call_soon_threadsafe(deliver_exits, shown)

    @contextlib.contextmanager
    def reserve(self) -> Iterator[None]:
        """Keep the model in place for an HTTP request whose body is still being read."""
        self._reserved += 1
        try:
            yield
        finally:
            self._reserved -= 1

    @property
    def idle(self) -> bool:
        """Whether no request waits for its answer, or is about to come."""
        return not (self._open or self._reserved)

    @property
    def has_answers(self) -> bool:
        """Whether anything was answered since `take_answers`."""
        return bool(self._answered or self._failed_ms)

    def take_answers(self) -> Answers:
        """Return what was answered since the last call."""
        answered, self._answered = self._answered, []
        failed_ms, self._failed_ms = self._failed_ms, []
        # A handler that was cancelled between result and answer has dropped the result.
        answers = _columns([each for each in answered if each.result is not None])
        return answers._replace(failed_ms=np.array(failed_ms)) if failed_ms else answers

    def _request(
        self, options: Options, received_s: float, request_id: str, owner: int
    ) -> InferenceRequest:
        deadline_s = None
        if options.deadline_ms is not None:
            deadline_s = received_s + options.deadline_ms / 1e3
        terms = self.terms  # a parameter belongs to one policy, so both are read together
        assert terms is not None, "control sets the terms before the first request"
        parameter = None if options.budget_ms is None else terms.parameter_for(options.budget_ms)
        request = InferenceRequest(
            parameter=parameter,
            deadline_s=deadline_s,
            priority=options.priority,
            traced=options.trace,
            policy_version=terms.policy_version,
            request_id=request_id,
            owner=owner,
            received_s=received_s,
            counts_for_budget=parameter is None,
        )
        if deadline_s is None:
            draws_all = terms.renews and parameter is None
            if self._draw_to_renew(request) if draws_all else self._draw():
                request.audit = AuditTrace(key_of(request_id, owner), at_once=draws_all)
        return request

    def _draw(self) -> bool:
        """Draw a share of the requests; return whether this one is drawn."""
        if self._audit_gap is None:
            return False
        if self._audit_gap:
            self._audit_gap -= 1
            return False
        self._audit_gap = self._sampler.draw_gap()
        return True

    def _draw_to_renew(self, request: InferenceRequest) -> bool:
        """Draw every request, unless too many are on their way.

        This is decided here, in the order of arrival: an engine sees those first that are decoded
        quickly, and with a limit there these would be audited more often.
        """
        if len(self._renewing) >= MOST_IN_FLIGHT:
            return False
        self._renewing.add(request)
        return True

    def _decode_small(self, request: InferenceRequest, payload: Payload, may_block: bool) -> bool:
        """Decode a small payload and submit it; return whether it was small.

        Handing a small payload to a thread and back costs more than decoding it.
        """
        if not may_block or isinstance(payload, tuple) or len(payload) > SMALL_PAYLOAD:
            return False
        decode = self._preprocess.decode_if_small
        return self._decode(request, payload, lambda each: decode(each) or UNKNOWN) is None

    def _decode_and_submit(self, request: InferenceRequest, payload: Payload) -> None:
        """Decode thread: turn a payload into the request's state and submit it."""
        decode, decoders = self._preprocess, self._decoders
        if not self._reads_images:
            self._decode_on_thread(request, payload, decode)
            return
        file = payload

        def quickly(data: Payload) -> ModelInput | Postponed:
            nonlocal file  # base64 is decoded once, whichever lane decodes the image
            file = data
            decoded: ModelInput | Postponed = decode.decode_if_fast(data, most_ms=QUICK_MS)
            return decoded

        postponed = self._decode_on_thread(request, payload, quickly)
        if postponed is None:
            return
        rest = request, file, postponed.pixels
        if postponed.expected_ms <= SLOW_MS:
            decoders.large.submit(self._decode_large, *rest, decode)
            return
        slowly = functools.partial(decode.decode_by, decoders.helper.decode)
        try:
            decoders.helper.submit(self._decode_large, *rest, slowly)
        except ServeError as error:
            self._fail(request, error)

    def _decode_large(
        self,
        request: InferenceRequest,
        payload: Payload,
        pixels: int,
        decode: Callable[[Any], ModelInput],
    ) -> None:
        """Decode and submit once there is room for so many pixels."""
        with self._decoders.room.hold(pixels):
            self._decode_on_thread(request, payload, decode)

    def _decode_on_thread(
        self,
        request: InferenceRequest,
        payload: Payload,
        decode: Callable[[Any], ModelInput | Postponed],
    ) -> Postponed | None:
        """Decode and submit, or answer with an error; return what `decode` has postponed."""
        if request.cancelled:
            self.client.note_cancelled(1)
            return None
        try:
            return self._decode(request, payload, decode)
        except ServeError as error:
            self._fail(request, error)
        except Exception:  # A bug in our code: answer the request, keep the thread.
            name = request.request_id
            log.exception("request %s: decoding failed", name, extra=_ids(request))
            self._fail(request, InferenceFailed(INTERNAL_DETAIL))
        return None

    def _fail(self, request: InferenceRequest, error: ServeError) -> None:
        self.loop.call_soon_threadsafe(self._fail_now, request, error)

    def _fail_now(self, request: InferenceRequest, error: ServeError) -> None:
        request.result = error
        self._note_failure(request, self._clock())
        self._renewing.discard(request)
        self._open.discard(request)
        if request.on_done is not None:  # its client may have left
            request.on_done()

    def _decode(
        self,
        request: InferenceRequest,
        payload: Payload,
        preprocess: Callable[[Any], ModelInput | Postponed],
    ) -> Postponed | None:
        started_s = self._clock()
        if self._reads_images and isinstance(payload, str):
            payload = decode_base64(payload)
        try:
            model_input = preprocess(payload)
        except InvalidInput as error:
            raise InvalidContent(str(error), error.bound) from error
        if isinstance(model_input, Postponed):
            return model_input
        request.state, request.truncated = model_input.state, model_input.truncated
        request.image_size = model_input.size
        request.unknown_share, request.tokens = model_input.unknown_share, model_input.tokens
        request.decoded_s = self._clock()
        request.decode_ms = (request.decoded_s - started_s) * 1e3
        if request.cancelled:
            self.client.note_cancelled(1)
        else:
            self.client.submit([request])
        return None

    def deliver(self, requests: list[InferenceRequest], done_s: float) -> None:
        """Answer requests that had their results at a time; then account for many at a time."""
        now_s = self._clock()
        self.client.note_delivery(now_s, now_s - done_s)
        for request in requests:
            request.total_ms = (now_s - request.received_s) * 1e3
            if isinstance(request.result, Prediction):
                if request.deadline_s is not None and now_s >= request.deadline_s:
                    request.result = request.result._replace(late=True)
                self._answered.append(request)
            else:
                self._note_failure(request, now_s)
            self._renewing.discard(request)
            self._open.discard(request)
            if request.on_done is not None:
                request.on_done()
        if len(self._answered) >= REPORT_REQUESTS:
            self._on_answers()

    def _note_failure(self, request: InferenceRequest, now_s: float) -> None:
        if len(self._failed_ms) < MOST_FAILURES:  # refusals may come faster than reports
            self._failed_ms.append((now_s - request.received_s) * 1e3)


def deliver_exits(shown: Shown) -> None:
    """Call back those who watch requests pass an exit; for the event loop's thread."""
    for request, entry in shown:
        if request.on_exit is not None:  # its client may have left
            request.on_exit(entry)


def _columns(answered: list[InferenceRequest]) -> Answers:
    keys = [key_of(each.request_id, each.owner) if each.request_id else 0 for each in answered]
    predictions = [each.result for each in answered if isinstance(each.result, Prediction)]
    return Answers(
        np.array(keys, np.int64),
        np.array([each.exit for each in predictions], np.int64),
        np.array([_class_id(each) for each in predictions], np.int64),
        np.array([each.compute_ms for each in predictions], np.float64),
        np.array([each.queue_ms for each in predictions], np.float64),
        np.array([each.total_ms for each in answered], np.float64),
        np.array([each.decode_ms for each in answered], np.float64),  # None becomes NaN
        np.array([each.counts_for_budget for each in answered], np.bool_),
        [_exemplar(place, each) for place, each in enumerate(answered) if each.trace_id],
    )


def _exemplar(place: int, request: InferenceRequest) -> Exemplar:
    assert request.trace_id is not None, "requests without a trace are no exemplars"
    stages = request.timings or ()
    stages_ms = [(each.stage, (each.ended_s - each.started_s) * 1e3) for each in stages]
    return Exemplar(place, request.trace_id, stages_ms)


def _ids(request: InferenceRequest) -> dict[str, str | None]:
    """What a log line says of a request."""
    return {"request_id": request.request_id, "trace_id": request.trace_id}


def _class_id(prediction: Prediction) -> np.intp:
    return probabilities(prediction.batch_output.log_probs[prediction.place]).argmax()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():  # it is when the client has left
        future.set_result(None)
