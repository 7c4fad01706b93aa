import numpy as np

from models.backend import HeadOutput
from server.engine.request import InferenceRequest, Prediction, StageTiming
from server.processes.front_counts import MOST_RECORDS, SpanBuffer
from server.processes.messages import (
    RemoteRequest,
    pack_answers,
    pack_requests,
    pack_results,
    unpack_answers,
    unpack_requests,
)
from server.processes.timings import unpack_records, unpack_timings
from server.processes.wire import Message, MessageReader, encode
from server.reports import Answers, Exemplar
from server.trace_records import RequestRecord, RequestTrace, SampleRecord

TIMINGS = [StageTiming(0, 1.0, 1.5, 2.25, 4), StageTiming(1, 2.25, 2.5, 3.0, 1)]


class Front:
    index = 0


def sent(message: Message) -> Message:
    """The message as it arrives."""
    (arrived,) = MessageReader().feed(b"".join(encode(message)))
    return arrived


def test_an_engine_is_told_whose_times_are_wanted() -> None:
    state = (np.zeros((1, 2), np.float32),)
    requests = [InferenceRequest(state), InferenceRequest(state, timings=[])]
    message = sent(pack_requests(0, [1, 2], requests, None))
    unpacked = unpack_requests(message, Front(), lambda arrays: arrays)
    assert [each.timings for each in unpacked] == [None, []]


def test_times_come_back_with_results() -> None:
    output = HeadOutput(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32))
    finished = [
        RemoteRequest(number=number, timings=timings,
                      result=Prediction(1, output, place, 1.0, 0.5, False, None))
        for place, (number, timings) in enumerate([(7, None), (8, TIMINGS)])
    ]  # fmt: skip
    (message,) = pack_results(finished, 0.0, 0)
    assert list(unpack_timings(sent(message))) == [(8, TIMINGS)]
    (message,) = pack_results(finished[:1], 0.0, 0)
    assert "timings" not in message.fields and not list(unpack_timings(sent(message)))


def test_exemplars_go_with_answers() -> None:
    whole, real = np.arange(2), np.arange(2) / 2
    answers = Answers(whole, whole, whole, real, real, real, real, whole > 0)
    assert "exemplars" not in pack_answers(0, answers).fields
    exemplars = [Exemplar(1, "a" * 32, [(0, 1.5)])]
    unpacked = unpack_answers(sent(pack_answers(0, answers._replace(exemplars=exemplars))))
    ((place, trace_id, stages_ms),) = unpacked.exemplars
    assert (place, trace_id, [tuple(each) for each in stages_ms]) == (1, "a" * 32, [(0, 1.5)])


def test_records_go_to_control_and_what_finds_no_room_is_counted() -> None:
    trace = RequestTrace("1" * 32, "2" * 16, None, 1, "", True)
    samples = [SampleRecord("id", "pets", None, 1.0, 1.0, TIMINGS)]
    record = RequestRecord(trace, "POST", "/", "/", 200, "é", 0.0, 1.0, 9e8, 0, samples, 1)
    spans = SpanBuffer()
    assert not spans.has_news
    for _ in range(MOST_RECORDS + 2):
        spans.add(record)
    records, lost = unpack_records(sent(spans.take()))
    assert records == [record] * MOST_RECORDS
    assert lost == 2 * record.num_spans == 12
    assert not spans.has_news
