import json
import logging
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from models.backend import HeadOutput
from server.access_log import AccessLog, is_probe
from server.engine.request import InferenceRequest, Prediction
from server.logs import JsonFormatter, PlainFormatter
from server.process_metrics import ProcessName
from server.request_context import RequestContext
from server.request_recorder import RequestRecorder
from server.trace_records import RequestTrace

TRACE = RequestTrace("a" * 32, "b" * 16, None, 1, "", True)
OUTPUT = HeadOutput(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32))


class Lines(logging.Handler):
    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def lines_of() -> Callable[..., tuple[logging.Logger, list[str]]]:
    """Makes loggers, and the lists that their lines go to."""

    def make(form: type = JsonFormatter) -> tuple[logging.Logger, list[str]]:
        logger = logging.Logger("eenet.access", logging.ERROR)  # the log's own level is no bar
        handler = Lines(form(ProcessName("server", 0)))
        logger.addHandler(handler)
        return logger, handler.lines

    return make


def request(path: str = "/predict", samples: int = 1) -> RequestContext:
    result = Prediction(1, OUTPUT, 0, 1.0, 0.0, False, None)
    each = ("pets", InferenceRequest(result=result))
    return RequestContext("id", TRACE, "POST", path, 10.0, None, 200, [each] * samples)


def test_a_line_tells_what_was_answered(lines_of: Any) -> None:
    logger, lines = lines_of()
    AccessLog(1, logger=logger).note(request(), "/predict", 10.0125)
    (line,) = map(json.loads, lines)
    assert line.pop("time")
    assert line == {
        "level": "info", "logger": "eenet.access", "message": "answered", "role": "server",
        "index": 0, "request_id": "id", "trace_id": TRACE.trace_id, "method": "POST",
        "route": "/predict", "status": 200, "duration_ms": 12.5, "model": "pets", "exit": 1,
    }  # fmt: skip


def test_a_plain_line_has_the_same_fields(lines_of: Any) -> None:
    logger, lines = lines_of(PlainFormatter)
    AccessLog(1, logger=logger).note(request(), "/predict", 10.0125)
    assert lines[0].endswith(
        "INFO eenet.access: answered method=POST route=/predict status=200 duration_ms=12.5 "
        f"model=pets exit=1 request_id=id trace_id={TRACE.trace_id}"
    )


def test_of_a_list_the_number_of_samples_is_told(lines_of: Any) -> None:
    logger, lines = lines_of()
    AccessLog(1, logger=logger).note(request(samples=3), "/predict", 10.1)
    line = json.loads(lines[0])
    assert line["samples"] == 3 and "exit" not in line


def test_a_share_is_drawn(lines_of: Any) -> None:
    logger, lines = lines_of()
    log = AccessLog(0.25, random.Random(0), logger)
    for _ in range(1000):
        log.note(request(), "/predict", 10.1)
    assert 200 < len(lines) < 300


@pytest.mark.parametrize(
    "path",
    ["/livez", "/readyz", "/health", "/healthz", "/health/live", "/ping", "/metrics", "/livez/",
     "/v2/health/live", "/v2/health/ready"],
)  # fmt: skip
def test_probes_have_no_line(path: str, lines_of: Any) -> None:
    assert is_probe(path)
    logger, lines = lines_of()
    RequestRecorder(AccessLog(1, logger=logger)).end(request(path))
    assert not lines


@pytest.mark.parametrize("path", ["/predict", "/v2/models/pets/ready", "/budget", "/", "/pingu"])
def test_other_paths_are_no_probes(path: str) -> None:
    assert not is_probe(path)


def test_the_path_of_no_route_is_not_told(lines_of: Any) -> None:
    logger, lines = lines_of()
    recorder = RequestRecorder(AccessLog(1, logger=logger), clock=lambda: 11.0)
    recorder.end(request("/../etc/passwd"))
    found = request("/v2/models/pets/infer")
    found.route = "/v2/models/{model}/infer"
    recorder.end(found)
    assert [json.loads(line)["route"] for line in lines] == ["other", "/v2/models/{model}/infer"]


def test_a_request_without_an_answer_has_no_line(lines_of: Any) -> None:
    logger, lines = lines_of()
    open_request = request()
    open_request.status = 0
    RequestRecorder(AccessLog(1, logger=logger)).end(open_request)
    assert not lines


def test_nothing_is_on_by_default() -> None:
    recorder = RequestRecorder()
    assert not recorder.is_on and not recorder.traces
    assert recorder.start_trace([]) is None
