"""Errors of requests; each class has its HTTP status and a code for scripts."""

from http import HTTPStatus
from typing import ClassVar


class ServeError(Exception):
    """A known failure; its message is one sentence for the client.

    Args:
        detail: Names the thing, its value and the remedy.
        headers: Further response headers.

    Attributes:
            status: The answer's.
        code: For scripts.
        reason: What metrics call the refusal; None: its code, where refusals are counted at all.
    """

    status: ClassVar[HTTPStatus]
    code: ClassVar[str]
    reason: str | None = None

    def __init__(self, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})


class MalformedRequest(ServeError):
    """The request cannot be read at all."""

    status, code = HTTPStatus.BAD_REQUEST, "malformed"


class Unauthorized(ServeError):
    """The route needs a key, and the request has none or an unknown one."""

    status, code = HTTPStatus.UNAUTHORIZED, "unauthorized"
    reason = "unauthorized"


class Forbidden(ServeError):
    """The key does not open this route, or a web page of another site asks."""

    status, code = HTTPStatus.FORBIDDEN, "forbidden"
    reason = "forbidden"


class NotHere(ServeError):
    """The route is on another port."""

    status, code = HTTPStatus.NOT_FOUND, "not_found"


class UnknownModel(ServeError):
    """No such model is loaded."""

    status, code = HTTPStatus.NOT_FOUND, "unknown_model"


class LoadRefused(ServeError):
    """A model is not loaded, or not unloaded; the models before stay."""

    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "load_refused"


class UnknownAnswer(ServeError):
    """No prediction is stored under the id."""

    status, code = HTTPStatus.NOT_FOUND, "unknown_answer"


class MethodNotAllowed(ServeError):
    """No route takes the method."""

    status, code = HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed"


class RequestTimeout(ServeError):
    """The client took too long to send its request."""

    status, code = HTTPStatus.REQUEST_TIMEOUT, "timeout"


class UrlTooLong(ServeError):
    """The URL passes the limit."""

    status, code = HTTPStatus.REQUEST_URI_TOO_LONG, "url_too_long"


class HeadTooLarge(ServeError):
    """The headers, or the trailers, pass a limit."""

    status, code = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large"


class BodyTooLarge(ServeError):
    """The body exceeds the limit."""

    status, code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large"


class UnsupportedMedia(ServeError):
    """The route does not accept the body's content type."""

    status, code = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"


class InvalidContent(ServeError):
    """The body was read but is invalid: an undecodable image, a bad option."""

    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_content"

    def __init__(self, detail: str, reason: str | None = None) -> None:
        super().__init__(detail)
        self.reason = reason


class TooComplex(ServeError):
    """The body has more parts, or nests deeper, than any honest request."""

    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "too_complex"
    reason = "too_complex"


class QueueFull(ServeError):
    """Too many samples are in flight."""

    status, code = HTTPStatus.TOO_MANY_REQUESTS, "queue_full"
    reason = "queue_full"


class DecodeQueueFull(QueueFull):
    """Too many images that are slow to decode wait."""

    reason = "decode_queue_full"


class BytesFull(ServeError):
    """Too many bytes of bodies are in flight."""

    status, code = HTTPStatus.TOO_MANY_REQUESTS, "bytes_full"
    reason = "bytes_full"


class TooManyConnections(ServeError):
    """Too many connections are open."""

    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "connections"


class NotReady(ServeError):
    """The server is starting, draining or broken."""

    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "not_ready"
    reason = "not_ready"


class DeadlineExceeded(ServeError):
    """The request's deadline passed before the first exit."""

    status, code = HTTPStatus.GATEWAY_TIMEOUT, "deadline_exceeded"


class InferenceFailed(ServeError):
    """The network failed on this sample; the trace is in the log."""

    status, code = HTTPStatus.INTERNAL_SERVER_ERROR, "internal"


INTERNAL_DETAIL = "The server failed on this request; the log has the trace under the request's id."
