"""Log lines: plain text, or one JSON object each.

Whatever a request holds may end up in a line. So no text breaks a line or reaches a terminal as a
command: JSON escapes it, and plain lines have each character that cannot be printed escaped. Only a
traceback takes several plain lines, and each of them but the first is indented.
"""

import json
import logging
import re
import sys
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import IO, Any, Literal

from server.process_metrics import ProcessName
from server.request_context import current_request

LogFormat = Literal["plain", "json"]
FIELDS = "fields"  # attribute of a record: further fields of its line, by name
MASK = "**********"
LEAST_SECRET = 6  # characters: to mask each place of a shorter text would hide other words
# Secret wherever they stand: keys that a header holds, and passwords in addresses.
KEYS = re.compile(r"(?i)\b(bearer|basic) +[a-z0-9._~+/=-]+")
PASSWORDS = re.compile(r"://[^\s/@\"']+@")
log = logging.getLogger("eenet")


class LineFormatter(logging.Formatter):
    """What both formats share.

    Args:
        process: The process that writes the lines.
        secrets: Texts that no line may show.

    Attributes:
        process: As above; another one after a fork.
    """

    def __init__(self, process: ProcessName, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self.process = process
        self._secrets = sorted(
            [each for each in secrets if len(each) >= LEAST_SECRET], key=len, reverse=True
        )

    def mask(self, text: str) -> str:
        """Return a text without the secrets in it."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return PASSWORDS.sub(f"://{MASK}@", KEYS.sub(rf"\1 {MASK}", text))


def message_of(record: logging.LogRecord) -> str:
    """Return a record's message; one whose arguments do not fit it is shown with them."""
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):
        return f"{record.msg} {record.args!r}"


def ids_of(record: logging.LogRecord) -> dict[str, str]:
    """Return the ids of the request and the trace that a record is about."""
    request = current_request.get()
    ids = {}
    request_id = getattr(record, "request_id", None) or (request and request.request_id)
    trace_id = getattr(record, "trace_id", None)
    if trace_id is None and request is not None and request.trace is not None:
        trace_id = request.trace.trace_id
    if request_id:
        ids["request_id"] = str(request_id)
    if trace_id:
        ids["trace_id"] = str(trace_id)
    return ids


class PlainFormatter(LineFormatter):
    """Lines for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, and those of a traceback indented below it."""
        fields = {**getattr(record, FIELDS, {}), **ids_of(record)}
        more = "".join([f" {name}={_shown(value)}" for name, value in fields.items()])
        head = f"{self.formatTime(record)} {record.levelname} {record.name}: "
        lines = [printable(self.mask(f"{head}{message_of(record)}{more}"))]
        for text in traces_of(self, record):
            lines += [f"  {printable(each)}" for each in self.mask(text).split("\n")]
        return "\n".join(lines)


class JsonFormatter(LineFormatter):
    """Lines for machines: one JSON object each, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        time = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self.mask(message_of(record)),
            "role": self.process.role,
            "index": self.process.number,
            **ids_of(record),
            **{name: self._plain(value) for name, value in getattr(record, FIELDS, {}).items()},
        }
        if text := "\n".join(traces_of(self, record)):
            line["exception"] = self.mask(text)
        return json.dumps(line, default=str)

    def _plain(self, value: Any) -> Any:
        return self.mask(value) if isinstance(value, str) else value


def traces_of(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    """Return the traceback of a record, and its stack, if it has them."""
    texts = []
    if record.exc_info and record.exc_info[1] is not None:
        texts.append(formatter.formatException(record.exc_info))
    elif record.exc_text:
        texts.append(record.exc_text)
    if record.stack_info:
        texts.append(formatter.formatStack(record.stack_info))
    return texts


def printable(text: str) -> str:
    """Escape each character that is no part of a line of text."""
    if text.isprintable():
        return text
    return "".join(
        [each if each.isprintable() else repr(each)[1:-1] for each in text]  # as Python writes it
    )


def _shown(value: Any) -> str:
    text = str(value)
    return json.dumps(text) if re.search(r'[\s"=]', text) else text


def start_logging(
    level: str,
    form: LogFormat,
    process: ProcessName,
    secrets: Iterable[str] = (),
    stream: IO[str] | None = None,
) -> None:
    """Log lines of a level and above, and whatever else Python would write to standard error.

    Args:
        level: The least severe.
        form: The format.
        process: This process.
        secrets: Texts that no line may show.
        stream: Default: standard error.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    make = JsonFormatter if form == "json" else PlainFormatter
    handler.setFormatter(make(process, secrets))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_thread
    sys.unraisablehook = _log_unraisable


def name_process(role: str, index: int) -> None:
    """Let the lines of this process, which was forked, bear its own name."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, LineFormatter):
            handler.formatter.process = ProcessName(role, index)


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    log.critical("uncaught exception", exc_info=(kind, error, trace))


def _log_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit or args.exc_value is None:
        return
    name = "a thread" if args.thread is None else args.thread.name
    info = (args.exc_type, args.exc_value, args.exc_traceback)
    log.critical("uncaught exception in %s", name, exc_info=info)


def _log_unraisable(args: "sys.UnraisableHookArgs") -> None:
    info = None
    if args.exc_value is not None:
        info = (args.exc_type, args.exc_value, args.exc_traceback)
    log.error("%s: %r", args.err_msg or "exception ignored in", args.object, exc_info=info)
