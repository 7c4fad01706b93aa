"""POST /predict for one small image or text, answered without ASGI.

FastAPI, tasks and the messages of ASGI take as long as the whole engine. So a request that is whole
when it is looked at goes from the parser straight to the dispatcher, and head and body of its
answer leave in one write. Everything else about POST /predict is in routes/predict.py, which
answers whatever this route does not take.
"""

import base64
import itertools
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Protocol

import numpy as np
import pydantic_core
from pydantic import ValidationError
from starlette.responses import Response

from scheduler.combiner import probabilities
from server.control import DRAINING
from server.dispatch import SMALL_PAYLOAD, Payload
from server.engine.request import ExitTrace, InferenceRequest, Prediction
from server.errors import INTERNAL_DETAIL, InferenceFailed, NotReady, ServeError
from server.front import Front, FrontModel, Modality
from server.gate import Gate, Group, without_root
from server.problems import problem_response
from server.quality.feedback import NOBODY
from server.refusals import RefusalLog
from server.request_context import RequestContext
from server.request_recorder import RequestRecorder
from server.schemas import Options, PredictBody, shown_threshold
from server.trace_records import RequestTrace

log = logging.getLogger(__name__)

PATH = "/predict"
DEFAULTS = Options.model_validate({})
UNNAMED = (None, None)  # a request's model and version
CLIENT_LEFT = 499  # a status
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
MOST_BYTES = 256 * 1024  # of a body; a larger one costs more than the layers that are saved
STATUS_LINES = {s: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
JSON_TYPE, UNNAMED_TYPE = b"application/json", b"application/octet-stream"
Headers = Sequence[tuple[bytes, bytes]]


class Connection(Protocol):
    """Where an answer goes."""

    def write_answer(self, answer: "HotAnswer", data: bytes) -> None:
        """Write the whole response, and go on to the next request."""


class _NoEvent:
    """Replaces the event that uvicorn sets when a part of a body arrives."""

    def set(self) -> None:
        """Do nothing: the request was whole."""


class HotAnswer:
    """A connection's request on this route; to uvicorn's protocol, a cycle of request and response.

    A connection has one for all its requests, since each is answered before the next is read.

    Args:
        connection: Where the answer goes.
        headers: Those that every response has.

    Attributes:
        keep_alive: Whether the connection serves another request.
        disconnected: Whether the client has left.
        response_complete: Whether the answer is out.
    """

    message_event = _NoEvent()
    response_started = False
    more_body = False

    def __init__(self, connection: Connection, headers: Headers) -> None:
        self.connection = connection
        self.headers = headers
        self.body = b""
        self.disconnected = False
        self.request_id = ""
        self.received_s = 0.0
        self.start(keep_alive=True)

    def start(self, *, keep_alive: bool) -> None:
        """Stand for the next request."""
        self.keep_alive = keep_alive
        self.response_complete = False
        self.model: FrontModel | None = None
        self.request: InferenceRequest | None = None
        self.options = DEFAULTS
        self.trace: RequestTrace | None = None


class HotRoute:
    """Answers requests that hold one small image or text. For the event loop's thread.

    Args:
        front: Models, limits and decoding.
        refusals: Records refusals; its counts count every response.
        clock: Seconds, monotonic; the front's.
        gate: The main port's; default: one that is open.
        recorder: Follows requests; default: one that keeps nothing of them.

    Attributes:
        paths: Those of its requests.
    """

    def __init__(
        self,
        front: Front,
        refusals: RefusalLog,
        clock: Callable[[], float] = time.perf_counter,
        gate: Gate | None = None,
        recorder: RequestRecorder | None = None,
    ) -> None:
        self._front, self._clock = front, clock
        self._refusals, self._counts = refusals, refusals.counts
        self._gate = gate or Gate()
        self._recorder = recorder or RequestRecorder()
        # A proxy that shows the server under a path may leave the path there.
        self.paths = frozenset({PATH.encode(), f"{self._gate.root_path}{PATH}".encode()})
        self._open: set[HotAnswer] = set()
        self._prefix = os.urandom(8).hex()  # of the ids; drawing each from the kernel costs 5 us
        self._numbers = itertools.count()

    @property
    def refusal(self) -> ServeError | None:
        """Why no sample is admitted now; None if one is."""
        return self._front.admission.refusal(1)

    def cors_headers(self, url: bytes, headers: Headers) -> Headers:
        """The headers that let a web page read why its request was refused by its head."""
        scope = {"path": url.partition(b"?")[0].decode("latin-1"), "headers": headers}
        without_root(scope, self._gate.root_path)
        return self._gate.cors_headers(scope)

    @staticmethod
    def takes(headers: Headers) -> bool:
        """Whether a POST to this path with these headers may be answered here."""
        length, kind = 0, b""
        for name, value in headers:
            if name == b"content-length":
                length = int(value)
            elif name == b"content-type":
                kind = value.partition(b";")[0].strip().lower()
            elif name in (b"expect", b"transfer-encoding", b"content-encoding", b"origin"):
                return False
        most = SMALL_PAYLOAD if kind == JSON_TYPE else MOST_BYTES
        return 0 < length <= most and (
            kind.startswith(b"image/") or kind == JSON_TYPE or kind == UNNAMED_TYPE
        )

    def begin(self, answer: HotAnswer, headers: Headers, body: bytes) -> bool:
        """Begin to answer a request; return False if the app should.

        Args:
            answer: What its connection waits for.
            headers: The request's.
            body: The whole of it.
        """
        wanted, is_json, authorization = "", False, None
        in_trace = self._recorder.traces
        for name, value in headers:
            if name == b"x-request-id":
                wanted = value.decode("latin-1")
            elif name == b"content-type":
                is_json = value.lower().startswith(JSON_TYPE)
            elif name == b"authorization":
                authorization = value
            elif name == b"traceparent":
                in_trace = True
        modality: Modality = "image"
        payload: Payload = body
        if is_json:
            try:
                parsed = PredictBody.model_validate_json(body)
            except ValidationError:
                return False
            items, is_list = parsed.items
            if is_list or parsed.text_pair is not None:
                return False
            (payload,) = items
            modality = "image" if parsed.text is None else "text"
            chosen = parsed.model_fields_set & Options.model_fields.keys()
            if chosen:
                answer.options = Options(**{name: getattr(parsed, name) for name in chosen})
        answer.received_s = self._clock()
        matches = REQUEST_ID.fullmatch(wanted)
        answer.request_id = wanted if matches else f"{self._prefix}{next(self._numbers):016x}"
        answer.keep_alive &= not self._gate.closing
        if in_trace:
            answer.trace = self._recorder.start_trace(headers)
        return self._start(answer, modality, payload, authorization)

    def abandon(self, answer: HotAnswer) -> None:
        """Drop a request whose client has left."""
        if answer.response_complete or answer not in self._open:
            return
        self._release(answer)
        if answer.model is not None and answer.request is not None:
            answer.model.dispatcher.cancel(answer.request)
        self._counts.observe_request(PATH, CLIENT_LEFT)
        self._record(answer, CLIENT_LEFT)

    def close(self) -> None:
        """Refuse the requests that are still open: the time to drain is over."""
        for answer in list(self._open):
            if answer.model is not None and answer.request is not None:
                answer.model.dispatcher.cancel(answer.request)
            self._fail(answer, NotReady(DRAINING))

    def _start(
        self, answer: HotAnswer, modality: Modality, payload: Payload, authorization: bytes | None
    ) -> bool:
        owner = NOBODY
        try:
            if self._gate.keys:
                owner = self._gate.owner_of(authorization, Group.PREDICTION)
            named = answer.options.model, answer.options.version
            model = self._front.sole.get(modality) if named == UNNAMED else None
            model = model or self._front.select_model(named[0], modality, version=named[1])
            # Masks are drawn on a thread; label sets have fields of their own.
            if model.task == "segmentation" or model.thresholds is not None:
                return False
            self._front.admission.admit(1)
        except ServeError as error:
            self._refuse(answer, error)
            return True
        answer.model = model
        self._open.add(answer)
        answer.request = model.dispatcher.begin(
            payload,
            answer.options,
            answer.received_s,
            answer.request_id,
            lambda request: self._finish(answer, request),
            owner=owner,
            trace=answer.trace,
        )
        return True

    def _finish(self, answer: HotAnswer, request: InferenceRequest) -> None:
        """Answer a request that has its result."""
        if answer not in self._open or answer.request not in (None, request):
            return
        if isinstance(request.result, ServeError):
            self._fail(answer, request.result)
            return
        try:
            head, body = self._response(answer, request)
        except Exception:
            log.exception("request %s failed", answer.request_id, extra=_ids(answer))
            self._fail(answer, InferenceFailed(INTERNAL_DETAIL))
            return
        self._release(answer)
        self._write(answer, HTTPStatus.OK, head, body)

    def _response(self, answer: HotAnswer, request: InferenceRequest) -> tuple[bytes, bytes]:
        """Return the headers and the body of a prediction."""
        model = answer.model
        assert model is not None, "a request with a result has a model"
        fields = {
            "model": model.name,
            "version": model.version,
            **prediction_fields(request, model.classes, model.num_exits, answer.options.top_k),
            "request_id": request.request_id,
            **optional_fields(request, model.classes, model.num_exits, None),
        }
        if answer.options.raw_scores:
            assert isinstance(request.result, Prediction), "only answered requests get here"
            fields["logits"] = request.result.output.logits.tolist()
        times = fields["latency_ms"]
        head = (
            f"content-type: application/json\r\nx-request-id: {answer.request_id}\r\n"
            f"server-timing: total;dur={times['total']:.3f}, queue;dur={times['queue']:.3f}, "
            f"decode;dur={times['decode']:.3f}, compute;dur={times['compute']:.3f}"
            f"{'' if answer.trace is None else answer.trace.timing}\r\n"
        )
        return head.encode("latin-1"), pydantic_core.to_json(fields)

    def _fail(self, answer: HotAnswer, error: ServeError) -> None:
        self._release(answer)
        self._refuse(answer, error)

    def _refuse(self, answer: HotAnswer, error: ServeError) -> None:
        """Answer a request with an error, before or after it was admitted."""
        self._refusals.record_if_refusal(error)
        response: Response = problem_response(
            error.status, error.code, error.detail, answer.request_id, error.headers
        )
        timing = f"total;dur={(self._clock() - answer.received_s) * 1e3:.3f}"
        if answer.trace is not None:
            timing += answer.trace.timing
        fields = [
            *(each for each in response.raw_headers if each[0] != b"content-length"),
            (b"x-request-id", answer.request_id.encode("latin-1")),
            (b"server-timing", timing.encode()),
        ]
        head = b"".join([b"%s: %s\r\n" % field for field in fields])
        self._write(answer, error.status, head, bytes(response.body))

    def _release(self, answer: HotAnswer) -> None:
        self._open.discard(answer)
        self._front.admission.release(1)

    def _write(self, answer: HotAnswer, status: HTTPStatus, head: bytes, body: bytes) -> None:
        self._counts.observe_request(PATH, status)
        if not answer.disconnected:
            self._send(answer, status, head, body)
        self._record(answer, status)

    def _send(self, answer: HotAnswer, status: HTTPStatus, head: bytes, body: bytes) -> None:
        default = b"".join([b"%s: %s\r\n" % field for field in answer.headers])
        close = b"" if answer.keep_alive else b"connection: close\r\n"
        length = b"content-length: %d\r\n" % len(body)
        answer.response_complete = True
        whole = b"".join([STATUS_LINES[status], default, head, length, close, b"\r\n", body])
        answer.connection.write_answer(answer, whole)

    def _record(self, answer: HotAnswer, status: int) -> None:
        if self._recorder.is_on:
            self._recorder.end(_context(answer, status))


def _context(answer: HotAnswer, status: int) -> RequestContext:
    """What is kept of an answered request."""
    samples = []
    if answer.model is not None and answer.request is not None:
        samples = [(answer.model.name, answer.request)]
    return RequestContext(
        answer.request_id, answer.trace, "POST", PATH, answer.received_s, PATH, status, samples
    )


def _ids(answer: HotAnswer) -> dict[str, str | None]:
    """What a log line says of a request."""
    trace = answer.trace
    return {
        "request_id": answer.request_id,
        "trace_id": None if trace is None else trace.trace_id,
    }


def prediction_fields(
    served: InferenceRequest, classes: Sequence[str], num_exits: int, top_k: int
) -> dict[str, Any]:
    """Return the JSON fields that every prediction has.

    Args:
        served: An answered request.
        classes: Names of the C classes.
        num_exits: Number of exits, K.
        top_k: Number of classes to list.
    """
    prediction = served.result
    assert isinstance(prediction, Prediction), "only answered requests have predictions"
    probs = probabilities(prediction.batch_output.log_probs[prediction.place])
    ranking = np.argsort(-probs, kind="stable")[:top_k]
    listed = list(zip(ranking.tolist(), probs[ranking].tolist(), strict=True))
    best, confidence = listed[0]
    return {
        "label": classes[best],
        "class_id": best,
        "confidence": confidence,
        "exit": prediction.exit,
        "num_exits": num_exits,
        "top_k": [
            {"label": classes[c], "class_id": c, "probability": probability}
            for c, probability in listed
        ],
        "latency_ms": latency_fields(served),
    }


def latency_fields(served: InferenceRequest) -> dict[str, float]:
    """Return the latency of a prediction by phase, in milliseconds."""
    prediction = served.result
    assert isinstance(prediction, Prediction), "only answered requests have predictions"
    return {
        "total": round(served.total_ms, 3),
        "queue": round(prediction.queue_ms, 3),
        "decode": round(served.decode_ms or 0.0, 3),
        "compute": round(prediction.compute_ms, 3),
    }


def optional_fields(
    served: InferenceRequest, classes: Sequence[str], num_exits: int, mask: bytes | None
) -> dict[str, Any]:
    """Return the JSON fields that appear only where they apply: trace, mask and marks."""
    prediction = served.result
    assert isinstance(prediction, Prediction), "only answered requests have predictions"
    fields: dict[str, Any] = {}
    if prediction.trace is not None:
        fields["trace"] = [trace_entry(entry, classes, num_exits) for entry in prediction.trace]
    if mask is not None:
        fields["mask"] = base64.b64encode(mask).decode()
    if served.truncated:
        fields["truncated"] = True
    if served.unknown_share:
        fields["unknown_tokens"] = round(served.unknown_share, 3)
    if prediction.late:
        fields["deadline_exceeded"] = True
    return fields


def trace_entry(entry: ExitTrace, classes: Sequence[str], num_exits: int) -> dict[str, Any]:
    """Return the JSON fields of one exit in a trace."""
    probs = probabilities(entry.log_probs)
    best = int(probs.argmax())
    return {
        "exit": entry.exit,
        "label": classes[best],
        "confidence": float(probs[best]),
        "score": entry.score,
        "threshold": shown_threshold(entry.threshold, last=entry.exit == num_exits - 1),
        "elapsed_ms": round(entry.elapsed_ms, 3),
    }
