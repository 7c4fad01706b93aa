"""Server-sent events, from bytes as they come."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from eenet_client.errors import AnswerUnreadable, StatusError, problem_error
from eenet_client.results import ExitOutput, Prediction

LINE_END = re.compile(rb"\r\n|\n|\r")


class ServerEvent(NamedTuple):
    """One event: its kind and its data."""

    name: str
    data: str


class EventReader:
    """Puts events together from bytes in pieces of any size."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> Iterator[ServerEvent]:
        """Yield the events that end in a piece."""
        self._rest += piece
        start = 0
        while match := LINE_END.search(self._rest, start):
            if match.end() == len(self._rest) and match.group() == b"\r":
                break  # the \n that belongs to it may come next
            event = self._take(self._rest[start : match.start()].decode("utf-8", "replace"))
            start = match.end()
            if event is not None:
                yield event
        self._rest = self._rest[start:]

    def _take(self, line: str) -> ServerEvent | None:
        """Take a line; an empty one ends an event."""
        if not line:
            name, data = self._name or "message", self._data
            self._name, self._data = "", []
            return ServerEvent(name, "\n".join(data)) if data else None
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)
        return None  # a comment, or a field that this format does not use


def read_event(event: ServerEvent) -> ExitOutput | Prediction | None:
    """Read an event of a prediction; None if it is of a kind that this version does not know.

    Raises:
        StatusError: If it is the server's error.
        AnswerUnreadable: If its data is not what the server sends.
    """
    try:
        if event.name == "exit":
            return ExitOutput.parse(json.loads(event.data))
        if event.name == "prediction":
            return Prediction.parse(json.loads(event.data))
        if event.name == "error":
            raise _error(json.loads(event.data))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AnswerUnreadable(
            f"an event {event.name!r} holds what no EENet server sends ({error!r})"
        ) from error
    return None


def _error(problem: Any) -> StatusError:
    return problem_error(int(problem["status"]), problem, {})
