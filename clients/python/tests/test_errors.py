"""Errors of the server and of the connection, and what is sent again after them."""

import pickle
from datetime import UTC, datetime

import httpx
import pytest
from fake_server import EXITS, PREDICTION, Both, FakeServer, answer, event, events, problem

from eenet_client import (
    ConnectionFailed,
    DeadlineExceeded,
    InvalidContent,
    NotReady,
    StatusError,
    TimedOut,
    TooManyRequests,
    Unauthorized,
)
from eenet_client.errors import parse_retry_after

BUSY = ("queue_full", "512 samples are in flight")
REFUSED = httpx.ConnectError("refused")
BROKEN = httpx.RemoteProtocolError("Server disconnected without sending a response.")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, Unauthorized), (422, InvalidContent), (504, DeadlineExceeded), (418, StatusError)],
)
def test_an_error_has_the_servers_sentence_and_the_requests_id(
    either: Both, status: int, kind: type[StatusError]
) -> None:
    server = FakeServer(problem(status, "some_code", "name a model"))
    with pytest.raises(kind) as caught:
        either.call(server, "predict", text="x")
    error = caught.value
    assert type(error) is kind and len(server.requests) == 1, "it is not sent again"
    assert (error.status, error.code, error.detail) == (status, "some_code", "name a model")
    assert str(error) == f"{status} some_code: name a model (request abc)"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == str(error)


def test_a_proxys_page_is_shown_in_short(either: Both) -> None:
    page = httpx.Response(502, html="<h1>Bad\n Gateway</h1>" + "x" * 1000)
    with pytest.raises(StatusError, match=r"^502: <h1>Bad Gateway</h1>xxx") as caught:
        either.call(FakeServer(page), "predict", text="x")
    assert len(caught.value.detail) == 200 and caught.value.request_id is None


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_when_it_says(either: Both, status: int) -> None:
    busy = problem(status, *BUSY, retry_after="2")
    server = FakeServer(busy, problem(status, *BUSY), answer(PREDICTION))
    got = either.call(server, "predict", text="x")
    assert got.label == "ship"
    assert 2 <= server.waits[0] <= 2.5 and 0.2 <= server.waits[1] <= 0.25
    assert len({each.headers["x-request-id"] for each in server.requests}) == 1
    assert len({each.content for each in server.requests}) == 1


def test_tries_are_bounded_in_number_and_in_time(either: Both) -> None:
    server = FakeServer(*[problem(429, *BUSY, retry_after="1")] * 3)
    with pytest.raises(TooManyRequests) as caught:
        either.call(server, "predict", text="x", client={"retries": 2})
    assert len(server.waits) == 2 and caught.value.retry_after_s == 1
    server = FakeServer(problem(429, *BUSY, retry_after="31"))
    with pytest.raises(TooManyRequests):
        either.call(server, "predict", text="x")
    assert server.waits == [], "the server asks for more than most_wait_s"
    server = FakeServer(problem(503, "not_ready"))
    with pytest.raises(NotReady):
        either.call(server, "predict", text="x", client={"retries": 0})


@pytest.mark.parametrize("error", [REFUSED, BROKEN, httpx.ReadError("reset")])
def test_predictions_are_sent_again_over_another_connection(
    either: Both, error: httpx.HTTPError
) -> None:
    server = FakeServer(error, answer(PREDICTION))
    assert either.call(server, "predict", image=b"x").label == "ship"
    assert len(server.requests) == 2


def test_feedback_is_sent_again_only_if_the_server_cannot_have_it(either: Both) -> None:
    taken = answer({"model": "m", "exit": 0, "correct": True})
    for first in (REFUSED, problem(429, *BUSY), problem(503, "not_ready")):
        assert either.call(FakeServer(first, taken), "feedback", "abc", "ship").correct
    for first in (BROKEN, httpx.ReadError("reset"), httpx.ReadTimeout("slow")):
        server = FakeServer(first, taken)
        with pytest.raises(ConnectionFailed):
            either.call(server, "feedback", "abc", "ship")
        assert len(server.requests) == 1


def test_nothing_is_sent_again_after_a_timeout(either: Both) -> None:
    server = FakeServer(httpx.ReadTimeout("slow"), answer(PREDICTION))
    with pytest.raises(TimedOut, match="http://server:8000/predict did not answer in time"):
        either.call(server, "predict", text="x")
    assert len(server.requests) == 1


def test_an_address_in_a_message_shows_no_option(either: Both) -> None:
    server = FakeServer(*[REFUSED] * 4)
    with pytest.raises(ConnectionFailed, match=r"^http://server:8000/predict: refused$"):
        either.call(server, "predict", image=b"x", model="secret")
    assert len(server.waits) == 3


@pytest.mark.parametrize(
    ("value", "expected_s"),
    [
        ("3", 3.0),
        (" 0 ", 0.0),
        ("Mon, 02 Nov 2026 10:00:30 GMT", 30.0),
        ("Mon, 02 Nov 2026 09:00:00 GMT", 0.0),
        ("soon", None),
        ("-1", None),
        (None, None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(
    value: str | None, expected_s: float | None
) -> None:
    assert parse_retry_after(value, datetime(2026, 11, 2, 10, tzinfo=UTC)) == expected_s


def test_a_stream_is_tried_again_before_it_begins_and_not_later(either: Both) -> None:
    whole = events(event("exit", EXITS[0]), event("prediction", PREDICTION))
    server = FakeServer(problem(429, *BUSY, retry_after="1"), BROKEN, whole)
    outputs, got = either.stream(server, text="x")
    assert [each.exit for each in outputs] == [0] and got.label == "ship"
    server = FakeServer(events(event("exit", EXITS[0]), httpx.ReadError("reset")))
    with pytest.raises(ConnectionFailed, match="reset"):
        either.stream(server, text="x")
    assert len(server.requests) == 1
