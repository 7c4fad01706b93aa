from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.backend import HeadOutput
from models.bundle import load_bundle
from models.stage_costs import StageCosts
from scheduler.fitted import Scheduler, load_scheduler
from scheduler.policy import score_all
from server.engine.request import AuditTrace, ExitTrace, InferenceRequest, Prediction
from server.errors import DeadlineExceeded, InferenceFailed
from server.processes.black_box import BlackBox, create
from server.processes.engine_host import FrontLink, runs_on_loop
from server.processes.messages import (
    RemoteRequest,
    facts_fields,
    facts_of,
    pack_answers,
    pack_exits,
    pack_requests,
    pack_results,
    pack_scheduler,
    pack_terms,
    pack_work,
    unpack_answers,
    unpack_exits,
    unpack_requests,
    unpack_results,
    unpack_scheduler,
    unpack_terms,
    unpack_work,
)
from server.processes.wire import Message, MessageReader, encode
from server.reports import Answers, AuditOutcome, EntryTerms, ExitScores, RunnerFacts, Work

FRONT = FrontLink(1)
parameters = st.none() | st.floats(allow_nan=False)


def sent(message: Message) -> Message:
    """What arrives at the other end."""
    (read,) = MessageReader().feed(b"".join(map(bytes, encode(message))))
    return read


def prediction(exit: int, log_probs: NDArray[np.float32], **others: object) -> Prediction:
    output = HeadOutput(log_probs[None] + 1, log_probs[None])
    return Prediction(exit, output, 0, 1.5, 0.25, False, None)._replace(**others)  # type: ignore[arg-type]


def row_of(request: InferenceRequest) -> list[NDArray[np.generic]]:
    """The request's own row of the arrays that it shares with others."""
    return [array[request.place : request.place + 1] for array in request.state]


@given(st.lists(st.tuples(parameters, parameters, st.integers(0, 3), st.booleans()), min_size=1))
def test_requests_keep_what_the_engine_reads(
    wanted: list[tuple[float | None, float | None, int, bool]],
) -> None:
    requests = [
        InferenceRequest(
            (np.full((1, 2), place, np.uint8), np.array([[place]])),
            parameter=parameter,
            deadline_s=deadline_s,
            priority=priority,
            traced=traced,
            streamed=traced and priority > 1,
            policy_version=place,
            audit=AuditTrace(-(2**63) + place, at_once=priority > 1) if traced else None,
        )
        for place, (parameter, deadline_s, priority, traced) in enumerate(wanted)
    ]
    numbers = list(range(5, 5 + len(requests)))
    message = sent(pack_requests(3, numbers, requests, (1.0, 0.5)))
    assert (message.fields["model"], message.fields["delivery"]) == (3, [1.0, 0.5])
    read = unpack_requests(message, FRONT, lambda arrays: arrays)
    assert [each.number for each in read] == numbers
    for mine, theirs in zip(read, requests, strict=True):
        for name in ("parameter", "deadline_s", "priority", "traced", "streamed", "policy_version"):
            assert getattr(mine, name) == getattr(theirs, name)
        assert (mine.audit is None) == (theirs.audit is None)
        if mine.audit is not None and theirs.audit is not None:
            assert mine.audit.key == theirs.audit.key
            assert mine.audit.at_once == theirs.audit.at_once
        for here, there in zip(row_of(mine), theirs.state, strict=True):
            np.testing.assert_array_equal(here, there)
    black_box = BlackBox(create())
    black_box.write([each.mark for each in read])
    assert (black_box.read(FRONT.index), black_box.read(2)) == (set(numbers), set())


def test_inputs_are_turned_into_the_networks_all_at_once() -> None:
    requests = [InferenceRequest((np.full((1, 3), each, np.uint8),)) for each in (1, 2)]
    message = sent(pack_requests(0, [1, 2], requests, None))
    read = unpack_requests(message, FRONT, lambda arrays: (arrays[0].astype(np.float32) / 2,))
    assert [row_of(each)[0].tolist() for each in read] == [[[0.5] * 3], [[1.0] * 3]]
    assert read[0].state is read[1].state


@pytest.mark.parametrize("shape", [(3,), (4, 3)])
def test_exits_keep_what_they_show(shape: tuple[int, ...]) -> None:
    entries = [
        ExitTrace(1, np.full(shape, -number, np.float32), 0.25 * number, np.inf, 2.5)
        for number in (7, 9)
    ]
    shown = [(RemoteRequest(number=n), e) for n, e in zip((7, 9), entries, strict=True)]
    read = dict(unpack_exits(sent(pack_exits(shown))))
    assert list(read) == [7, 9]
    for mine, theirs in zip(read.values(), entries, strict=True):
        np.testing.assert_array_equal(mine.log_probs, theirs.log_probs)
        assert (mine.exit, *mine[2:]) == (theirs.exit, *theirs[2:])


def test_results_keep_no_trace_that_was_streamed() -> None:
    log_probs = np.log(np.array([0.25, 0.75], np.float32))
    result = prediction(0, log_probs, trace=[ExitTrace(0, log_probs, 0.5, np.inf, 2.0)])
    finished = [RemoteRequest(number=3, traced=True, streamed=True, result=result)]
    (message,) = pack_results(finished, 1.0, 0)
    ((_, read),) = unpack_results(sent(message))
    assert isinstance(read, Prediction) and read.trace is None


def test_results_keep_outputs_errors_and_traces() -> None:
    log_probs = np.log(np.array([0.25, 0.75], np.float32))
    trace = [ExitTrace(0, log_probs, 0.5, np.inf, 2.0)]
    results = {
        7: prediction(1, log_probs),
        8: DeadlineExceeded("too late"),
        9: prediction(0, log_probs * 2, late=True, trace=trace),
        10: InferenceFailed("a fixed sentence"),
    }
    finished = [RemoteRequest(number=number, result=result) for number, result in results.items()]
    (message,) = pack_results(finished, 12.5, 4)
    read = sent(message)
    assert (read.fields["sent_s"], read.fields["rows"]) == (12.5, 4)
    unpacked = dict(unpack_results(read))
    assert unpacked.keys() == results.keys()
    for number in (7, 9):
        mine, theirs = unpacked[number], results[number]
        assert isinstance(mine, Prediction) and isinstance(theirs, Prediction)
        assert (mine.exit, mine.late, mine.compute_ms) == (theirs.exit, theirs.late, 1.5)
        np.testing.assert_array_equal(mine.output.logits, theirs.output.logits)
        np.testing.assert_array_equal(mine.output.log_probs, theirs.output.log_probs)
    assert unpacked[7].trace is None  # type: ignore[union-attr]
    (entry,) = unpacked[9].trace  # type: ignore[union-attr]
    assert entry.threshold == np.inf
    np.testing.assert_array_equal(entry.log_probs, log_probs)
    for number in (8, 10):
        mine, theirs = unpacked[number], results[number]
        assert type(mine) is type(theirs) and mine.detail == theirs.detail  # type: ignore[union-attr]


def test_results_of_several_batches_keep_their_order() -> None:
    outputs = [HeadOutput(rows + 1, rows) for rows in np.arange(12.0).reshape(2, 3, 2)]
    left_in = [(0, 2), (0, 0), (1, 1), (0, 1)]
    finished = [
        RemoteRequest(
            number=number,
            result=prediction(0, np.zeros(2), batch_output=outputs[batch], place=place),
        )
        for number, (batch, place) in enumerate(left_in)
    ]
    (message,) = pack_results(finished, 0.0, 0)
    for (number, result), (batch, place) in zip(
        unpack_results(sent(message)), left_in, strict=True
    ):
        assert isinstance(result, Prediction) and number == left_in.index((batch, place))
        np.testing.assert_array_equal(result.output.log_probs, outputs[batch].log_probs[place])
        np.testing.assert_array_equal(result.output.logits, outputs[batch].logits[place])


def test_outputs_of_several_shapes_take_several_messages() -> None:
    finished = [
        RemoteRequest(number=size, result=prediction(0, np.zeros((size, 3), np.float32)))
        for size in (2, 4)
    ]
    messages = pack_results(finished, 0.0, 0)
    assert len(messages) == 2
    shapes = [p.output.log_probs.shape for m in messages for _, p in unpack_results(sent(m))]  # type: ignore[union-attr]
    assert shapes == [(2, 3), (4, 3)]


def test_answers_work_terms_and_facts_survive() -> None:
    whole, real = np.arange(3), np.array([1.0, np.nan, 3.0])
    answers = Answers(whole, whole, whole, real, real, real, real, whole > 0, (), real[:1])
    for mine, theirs in zip(unpack_answers(sent(pack_answers(1, answers))), answers, strict=True):
        np.testing.assert_array_equal(mine, theirs)

    scores = [ExitScores(0, real, 0.5), ExitScores(1, real[:1], np.inf)]
    audits = [AuditOutcome(-5, 2, 1, 0.25, np.zeros((2, 3), np.float32))]
    work = Work(whole, whole, real, scores, audits, 4, 6, 7, 5, whole, 0.125, "a fault", True)
    read = unpack_work(sent(pack_work(0, work)))
    assert read[5:9] == (4, 6, 7, 5) and read[10:] == (0.125, "a fault", True)
    assert read.audits_settled == 14
    assert [each[::2] for each in read.scores] == [(0, 0.5), (1, np.inf)]
    assert read.audits[0][:4] == (-5, 2, 1, 0.25)
    np.testing.assert_array_equal(read.audits[0].log_probs, audits[0].log_probs)
    np.testing.assert_array_equal(read.scores[0].scores, real)

    terms = EntryTerms(3, np.array([1.0, 2.0]), np.array([5.0, 6.0]), 1.5, 0.25, False)
    first = unpack_terms(sent(pack_terms(0, terms)), None)
    assert first.parameter_for(99.0) == 2.0 and first.policy_version == 3
    later = pack_terms(0, terms._replace(slowdown=2.5))._replace(arrays=())
    assert unpack_terms(sent(later), first).slowdown == 2.5
    renewing = pack_terms(0, terms._replace(renews=True))._replace(arrays=())
    assert unpack_terms(sent(renewing), first).renews and not first.renews

    facts = RunnerFacts("int8", "cpu", StageCosts((1, 4), np.array([[1.0, 2.0], [3.0, 4.0]])), 2)
    same = facts_of(facts_fields(facts))
    assert (same.precision, same.device, same.workers) == ("int8", "cpu", 2)
    np.testing.assert_array_equal(same.costs.stages_ms, facts.costs.stages_ms)


@pytest.mark.parametrize("budget_ms", [0.001, 3.0, 1e6])
def test_terms_give_the_parameter_that_control_would_give(
    shipped_bundle: Path, budget_ms: float
) -> None:
    scheduler = scheduler_of(shipped_bundle)
    frontier = scheduler.frontier
    terms = EntryTerms(0, frontier.parameters, frontier.expected_costs_ms, 1.5, 0.25, False)
    expected = frontier.at_cost((budget_ms - 0.25) / 1.5).parameter
    assert terms.parameter_for(budget_ms) == expected


def test_a_scheduler_arrives_as_it_was_fitted(shipped_bundle: Path) -> None:
    scheduler = scheduler_of(shipped_bundle)
    read = unpack_scheduler(sent(pack_scheduler("activate", scheduler, model=1)))
    assert read.policy.kind == scheduler.policy.kind
    np.testing.assert_array_equal(read.frontier.parameters, scheduler.frontier.parameters)
    log_probs = np.log(np.random.default_rng(0).dirichlet(np.ones(10), (3, 5)))
    mine, theirs = (score_all(each.policy, log_probs) for each in (read, scheduler))
    np.testing.assert_array_equal(mine, theirs)


def scheduler_of(bundle: Path) -> Scheduler:
    return load_scheduler(load_bundle(bundle).variant("float32").scheduler())


@pytest.mark.parametrize(
    ("device", "longest_ms", "on_loop"),
    [("cpu", 25.0, True), ("cpu", 26.0, False), ("cuda:0", 1.0, False), ("replay", 0.0, True)],
)
def test_short_batches_of_a_cpu_run_on_the_engines_event_loop(
    device: str, longest_ms: float, on_loop: bool
) -> None:
    costs = StageCosts((1, 8), np.array([[0.0, longest_ms], [0.0, 0.0]]))
    assert runs_on_loop(RunnerFacts("int8", device, costs, 1)) is on_loop
