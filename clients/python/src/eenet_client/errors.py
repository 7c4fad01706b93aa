"""What may go wrong: a class for each status, with the server's own sentence."""

import email.utils
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

SHOWN_CHARACTERS = 200  # of an answer that is no problem document, such as a proxy's page


class EENetError(Exception):
    """A call that failed."""


class ConnectionFailed(EENetError):
    """The server could not be reached, or the connection broke."""


class TimedOut(ConnectionFailed):
    """The server did not answer in time."""


class AnswerUnreadable(EENetError):
    """The answer is not what an EENet server sends; the address may be another server's."""


class StatusError(EENetError):
    """The server refused the request or failed on it.

    Args:
        status: Of the answer.
        detail: The server's sentence.
        code: The kind of error, for scripts; empty if the answer has none.
        request_id: The request's id, under which the server's log has it; None if unknown.
        retry_after_s: When to try again, as the server says; None if it does not.
    """

    status: int
    known: ClassVar[dict[int, type["StatusError"]]] = {}

    def __init__(
        self,
        status: int,
        detail: str,
        code: str = "",
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(status, detail, code, request_id, retry_after_s)  # so that it pickles
        self.status, self.detail, self.code = status, detail, code
        self.request_id, self.retry_after_s = request_id, retry_after_s

    def __str__(self) -> str:
        named = f"{self.status} {self.code}".rstrip()
        asked = "" if self.request_id is None else f" (request {self.request_id})"
        return f"{named}: {self.detail}{asked}"

    def __init_subclass__(cls, status: int) -> None:
        super().__init_subclass__()
        cls.known[status] = cls


class MalformedRequest(StatusError, status=400):
    """The request could not be read."""


class Unauthorized(StatusError, status=401):
    """The route needs a key, and none or an unknown one was sent."""


class Forbidden(StatusError, status=403):
    """The key is for other routes."""


class NotFound(StatusError, status=404):
    """No such route, model or earlier prediction."""


class MethodNotAllowed(StatusError, status=405):
    """The route does not take the method."""


class RequestTimeout(StatusError, status=408):
    """The request took too long to arrive."""


class BodyTooLarge(StatusError, status=413):
    """The body passes the server's limit."""


class UrlTooLong(StatusError, status=414):
    """The URL passes the server's limit."""


class UnsupportedMedia(StatusError, status=415):
    """The server does not take this type of body."""


class InvalidContent(StatusError, status=422):
    """An unreadable image, an empty text, a bad option."""


class TooManyRequests(StatusError, status=429):
    """Too much is in flight; `retry_after_s` says when to try again."""


class HeadTooLarge(StatusError, status=431):
    """The headers pass the server's limit."""


class ServerFailed(StatusError, status=500):
    """The network failed on this input, or the server has a bug."""


class NotReady(StatusError, status=503):
    """The server starts, drains or is broken."""


class DeadlineExceeded(StatusError, status=504):
    """The deadline passed before the first exit."""


def status_error(status: int, headers: Mapping[str, str], content: bytes) -> StatusError:
    """Return the error that an answer stands for.

    Args:
        status: Of the answer.
        headers: Of the answer; names in any case if it is httpx's mapping.
        content: The body: a problem document, or a proxy's page.
    """
    try:
        problem = json.loads(content)
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or "detail" not in problem:
        text = " ".join(content.decode("utf-8", "replace").split())[:SHOWN_CHARACTERS]
        problem = {"detail": text or "the answer has no body"}
    return problem_error(status, problem, headers)


def problem_error(
    status: int, problem: Mapping[str, Any], headers: Mapping[str, str]
) -> StatusError:
    """Return the error that a problem document describes."""
    kind = StatusError.known.get(status, StatusError)
    return kind(
        status,
        str(problem.get("detail", "")),
        str(problem.get("code", "")),
        problem.get("request_id") or headers.get("x-request-id"),
        parse_retry_after(headers.get("retry-after")),
    )


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds that a `Retry-After` header asks to wait; None if it is not one.

    Args:
        value: The header: seconds, or a date.
        now: The time, with its zone; None: the clock's.
    """
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max((date - (now or datetime.now(UTC))).total_seconds(), 0.0)
