import io
import json
import logging
import sys
import threading
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.logs import (
    FIELDS,
    MASK,
    JsonFormatter,
    LineFormatter,
    LogFormat,
    PlainFormatter,
    name_process,
    start_logging,
)
from server.process_metrics import ProcessName
from server.request_context import RequestContext, current_request
from server.trace_records import RequestTrace

PROCESS = ProcessName("front-end", 1)
TRACE = RequestTrace("a" * 32, "b" * 16, None, 1, "", True)


def started(form: LogFormat, *secrets: str) -> io.StringIO:
    stream = io.StringIO()
    start_logging("info", form, PROCESS, secrets, stream)
    return stream


def record(message: str, *args: object, **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("server.x", logging.WARNING, "x.py", 1, message, args, None)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def in_json(made: logging.LogRecord, *secrets: str) -> dict[str, Any]:
    line = JsonFormatter(PROCESS, secrets).format(made)
    assert line.isascii() and len(line.splitlines()) == 1
    parsed: dict[str, Any] = json.loads(line)
    return parsed


def failure(text: str) -> Any:
    try:
        raise ValueError(text)
    except ValueError:
        return sys.exc_info()


def test_a_json_line_has_its_fields() -> None:
    line = in_json(record("%d of %s", 3, "four", **{FIELDS: {"status": 200}}, request_id="r"))
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning", "logger": "server.x", "message": "3 of four", "role": "front-end",
        "index": 1, "request_id": "r", "status": 200,
    }  # fmt: skip


def test_lines_of_a_task_have_the_ids_of_its_request() -> None:
    token = current_request.set(RequestContext("mine", TRACE))
    try:
        line, plain = in_json(record("x")), PlainFormatter(PROCESS).format(record("x"))
    finally:
        current_request.reset(token)
    assert (line["request_id"], line["trace_id"]) == ("mine", TRACE.trace_id)
    assert plain.endswith(f"WARNING server.x: x request_id=mine trace_id={TRACE.trace_id}")
    assert "request_id" not in in_json(record("x"))


@pytest.mark.parametrize("formatter", [JsonFormatter(PROCESS), PlainFormatter(PROCESS)])
@given(text=st.text(), more=st.text())
def test_no_text_breaks_a_line(formatter: LineFormatter, text: str, more: str) -> None:
    made = record("%s", text, **{FIELDS: {"x": more}}, request_id=text)
    line = formatter.format(made)
    assert len(line.splitlines()) == 1
    assert line.isprintable()


FORGED = "\n2026-01-01 00:00:00,000 ERROR server.x: forged\r\x1b[2J\u2028\x85"


def test_a_traceback_is_a_field_or_indented() -> None:
    made = record("failed", exc_info=failure(FORGED))
    line = in_json(made)
    assert line["message"] == "failed"
    assert line["exception"].startswith("Traceback") and FORGED in line["exception"]
    first, *others = PlainFormatter(PROCESS).format(made).split("\n")
    assert first.endswith("failed") and any("ValueError" in each for each in others)
    for each in others:
        assert each.startswith("  ") and each.isprintable()


def test_a_line_whose_arguments_do_not_fit_is_shown_all_the_same() -> None:
    assert in_json(record("%d things", "three"))["message"] == "%d things ('three',)"
    assert "%d things" in PlainFormatter(PROCESS).format(record("%d things", "three"))


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("the password is hunter22", "hunter22"),
        ("Authorization: Bearer abc.def-123=", "abc.def"),
        ("authorization: basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ("export to http://user:pa55@collector:4318/v1/traces", "pa55"),
    ],
)
def test_secrets_are_masked_wherever_they_stand(text: str, hidden: str) -> None:
    made = record("%s", text, **{FIELDS: {"x": text}}, exc_info=failure(text))
    for form in (JsonFormatter, PlainFormatter):
        line = form(PROCESS, ["hunter22"]).format(made)
        assert hidden not in line and line.count(MASK) >= 3


def test_an_address_without_a_password_stays() -> None:
    text = "http://collector:4318/v1/traces is gone: HTTPConnectionPool(host='a', port=1)"
    assert in_json(record(text), "")["message"] == text


def test_warnings_threads_and_uncaught_errors_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("uvicorn", "uvicorn.error"):  # as in a process in which nobody configured them
        uvicorn = logging.getLogger(name)
        uvicorn.setLevel(logging.NOTSET)
        monkeypatch.setattr(uvicorn, "propagate", True)
        monkeypatch.setattr(uvicorn, "disabled", False)
    stream = started("json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old\nnews", DeprecationWarning, stacklevel=1)
    thread = threading.Thread(target=lambda: 1 / 0, name="mine")
    thread.start()
    thread.join()
    sys.excepthook(*failure("end"))
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(each["logger"], each["level"]) for each in lines] == [
        ("py.warnings", "warning"), ("eenet", "critical"), ("eenet", "critical"),
        ("uvicorn.error", "warning"),
    ]  # fmt: skip
    assert lines[1]["message"] == "uncaught exception in mine"
    assert "ZeroDivisionError" in lines[1]["exception"] and "end" in lines[2]["exception"]


def test_a_forked_process_bears_its_own_name() -> None:
    stream = started("json")
    name_process("engine", 7)
    logging.getLogger("server").info("x")
    logging.getLogger("server").debug("hidden by the level")
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert (line["role"], line["index"]) == ("engine", 7)
