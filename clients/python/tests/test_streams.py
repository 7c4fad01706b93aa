"""Streams: events in pieces of any size, and ends of every kind."""

import pytest
from fake_server import EXITS, PREDICTION, Both, FakeServer, Pieces, answer, event, events

from eenet_client import AnswerUnreadable, ConnectionFailed, ExitOutput, NotReady, Prediction
from eenet_client.events import EventReader, ServerEvent

WHOLE = b"".join([*[event("exit", each) for each in EXITS], event("prediction", PREDICTION)])


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_outputs_come_in_order_and_then_the_prediction(either: Both, size: int) -> None:
    pieces = [WHOLE[at : at + size] for at in range(0, len(WHOLE), size)]
    server = FakeServer(events(*pieces))
    outputs, got = either.stream(server, image=b"\x89PNG", top_k=2)
    assert outputs == [ExitOutput.parse(each) for each in EXITS]
    assert got == Prediction.parse(PREDICTION)
    (request,) = server.requests
    assert (request.url.path, request.url.query) == ("/predict/stream", b"top_k=2")


def test_leaving_early_closes_the_connection(either: Both) -> None:
    response = events(event("exit", EXITS[0]), event("exit", EXITS[1]))
    pieces = response.stream
    first = either.leave_stream(FakeServer(response), text="x")
    assert first == ExitOutput.parse(EXITS[0])
    assert isinstance(pieces, Pieces) and pieces.is_closed and len(pieces.left) == 1


def test_an_error_event_is_raised_as_its_status(either: Both) -> None:
    problem = {"status": 503, "code": "not_ready", "detail": "draining", "request_id": "abc"}
    server = FakeServer(events(event("exit", EXITS[0]), event("error", problem)))
    with pytest.raises(NotReady, match=r"503 not_ready: draining \(request abc\)"):
        either.stream(server, text="x")


def test_a_stream_without_an_end_is_an_error(either: Both) -> None:
    for pieces in ([], [event("exit", EXITS[0])], [WHOLE[:-1]]):
        with pytest.raises(ConnectionFailed, match="before its prediction"):
            either.stream(FakeServer(events(*pieces)), text="x")


@pytest.mark.parametrize(
    "piece", [event("exit", {}), b"event: prediction\ndata: {\n\n", event("error", [])]
)
def test_events_that_cannot_be_read_are_named(either: Both, piece: bytes) -> None:
    with pytest.raises(AnswerUnreadable, match="an event '"):
        either.stream(FakeServer(events(piece)), text="x")


def test_an_answer_that_is_no_stream_is_named(either: Both) -> None:
    with pytest.raises(AnswerUnreadable, match="application/json in place of events"):
        either.stream(FakeServer(answer(PREDICTION)), text="x")


def test_kinds_of_events_that_come_later_are_passed_over(either: Both) -> None:
    pieces = [b": a comment\n\n", event("progress", {}), WHOLE]
    outputs, _ = either.stream(FakeServer(events(*pieces)), text="x")
    assert len(outputs) == 2


@pytest.mark.parametrize("size", [1, 2, 100])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"data: a\ndata: b\n\n", [("message", "a\nb")]),
        (b"event: x\r\ndata:a\r\n\r\ndata: b\r\n\r\n", [("x", "a"), ("message", "b")]),
        (b"event: x\rdata:a\r\rid: 1\r", [("x", "a")]),
        ("data: \u2028\x85é\n\n".encode(), [("message", "\u2028\x85é")]),
        (b"event: x\n\ndata: a\n\n", [("message", "a")]),
        (b"data\n\n: ping\n\nretry: 1\n", [("message", "")]),
        (b"data: no end", []),
    ],
)
def test_the_format_is_read_as_its_standard_says(
    data: bytes, expected: list[tuple[str, str]], size: int
) -> None:
    reader, found = EventReader(), list[ServerEvent]()
    for at in range(0, len(data), size):
        found += reader.feed(data[at : at + size])
    assert [tuple(each) for each in found] == expected
