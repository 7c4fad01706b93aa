"""What the processes tell each other: requests, results, reports, terms and schedulers."""

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.backend import HeadOutput, Part, State, gather_arrays
from models.stage_costs import StageCosts
from scheduler.fitted import Scheduler, dump_scheduler, parse_scheduler
from server import errors
from server.bundle_folders import BundleSource
from server.engine.request import AuditTrace, ExitTrace, InferenceRequest, Prediction
from server.errors import ServeError
from server.gate import Group
from server.keys import KeySet
from server.processes import black_box
from server.processes.timings import pack_timings
from server.processes.wire import Message
from server.reports import (
    Answers,
    AuditOutcome,
    EntryTerms,
    Exemplar,
    ExitScores,
    RunnerFacts,
    Work,
)

KNOWN_ERRORS = {
    each.code: each for each in vars(errors).values() if isinstance(each, type)
    and issubclass(each, ServeError) and each is not ServeError
}  # fmt: skip
NO_AUDIT = 0
TRACED, AUDITED, AT_ONCE, STREAMED, TIMED = 1, 2, 4, 8, 16  # bits of a request's flags
TERMS = "policy_version", "slowdown", "overhead_ms", "renews"  # all but the frontier


class Sender(Protocol):
    """A front-end, to an engine."""

    @property
    def index(self) -> int:
        """Which front-end it is."""


@dataclass(slots=True, eq=False)
class RemoteRequest(InferenceRequest):
    """A request that came from another process.

    Attributes:
        number: The front-end's number for it.
        front: The front-end that sent it.
        mark: What the black box notes of it.
    """

    number: int = 0
    front: Any = None
    mark: int = 0


def pack_requests(
    model: int,
    numbers: Sequence[int],
    requests: Sequence[InferenceRequest],
    delivery: tuple[float, float] | None,
) -> Message:
    """Pack requests of one model whose inputs have one shape.

    Args:
        model: Index of the model.
        numbers: A number for each request, by which its result comes back.
        requests: The requests.
        delivery: When the latest result was delivered, and how long that took, in seconds.
    """
    whole = np.empty((len(requests), 5), np.int64)
    real = np.empty((len(requests), 2), np.float64)
    for place, (number, request) in enumerate(zip(numbers, requests, strict=True)):
        key, flags = NO_AUDIT, TRACED * request.traced + STREAMED * request.streamed
        if request.timings is not None:
            flags += TIMED
        if request.audit is not None:
            key = request.audit.key
            flags += AUDITED + AT_ONCE * request.audit.at_once
        whole[place] = number, request.policy_version, request.priority, flags, key
        real[place] = (
            math.nan if request.parameter is None else request.parameter,
            math.nan if request.deadline_s is None else request.deadline_s,
        )
    if len(requests) == 1:
        inputs = tuple(requests[0].state)
    else:
        states = [request.state for request in requests]
        inputs = tuple([np.concatenate(arrays) for arrays in zip(*states, strict=True)])
    fields = {"model": model, "delivery": delivery}
    return Message("requests", fields, (whole, real, *inputs))


def unpack_requests(
    message: Message, front: Sender, network_input: Callable[[State], State]
) -> list[RemoteRequest]:
    """Unpack what `pack_requests` packed; the requests share the arrays of their inputs.

    Args:
        message: The message.
        front: The front-end that it came from.
        network_input: Turns the arrays of all rows into what the network takes.
    """
    whole, real, *arrays = message.arrays
    inputs = network_input(tuple(arrays))
    marks = black_box.marks(front.index, whole[:, 0]).tolist()
    requests = []
    for place, (
        mark,
        (number, version, priority, flags, key),
        (parameter, deadline_s),
    ) in enumerate(zip(marks, whole.tolist(), real.tolist(), strict=True)):
        requests.append(
            RemoteRequest(
                inputs,
                None if math.isnan(parameter) else parameter,
                None if math.isnan(deadline_s) else deadline_s,
                priority,
                traced=bool(flags & TRACED),
                streamed=bool(flags & STREAMED),
                policy_version=version,
                timings=[] if flags & TIMED else None,
                audit=AuditTrace(key, bool(flags & AT_ONCE)) if flags & AUDITED else None,
                place=place,
                number=number,
                front=front,
                mark=mark,
            )
        )
    return requests


def pack_results(finished: Sequence[RemoteRequest], sent_s: float, rows: int) -> list[Message]:
    """Pack the results of one batch; those with outputs of another shape take another message.

    Args:
        finished: Requests with results.
        sent_s: The time now.
        rows: Requests of all front-ends that the engine still holds.
    """
    by_output: list[tuple[HeadOutput, list[int]]] = []  # the rows of each batch that they left in
    whole: list[tuple[int, int, bool]] = []
    real: list[tuple[float, float]] = []
    failed: list[tuple[int, str, str]] = []
    traces: dict[str, list[list[Any]]] = {}
    output: HeadOutput | None = None
    for each in finished:
        result = each.result
        if isinstance(result, ServeError):
            failed.append((each.number, result.code, result.detail))
            continue
        assert result is not None, "finished requests have a result"
        exit, left_in, place, compute_ms, queue_ms, late, trace = result
        if left_in is not output:
            output, places = left_in, list[int]()
            by_output.append((output, places))
        places.append(place)
        whole.append((each.number, exit, late))
        real.append((compute_ms, queue_ms))
        if trace and not each.streamed:  # what was streamed is there already
            traces[str(each.number)] = _plain(trace)
    if len({each.log_probs.shape[1:] + each.logits.shape[1:] for each, _ in by_output}) > 1:
        return [message for each in finished for message in pack_results([each], sent_s, rows)]
    fields: dict[str, Any] = {"sent_s": sent_s, "rows": rows}
    if failed:
        fields["failed"] = failed
    if traces:
        fields["traces"] = traces
    if timings := pack_timings(finished):
        fields["timings"] = timings
    arrays: tuple[NDArray[Any], ...] = ()
    if whole:
        arrays = np.array(whole, np.int64), np.array(real), *_outputs(by_output)
    return [Message("results", fields, arrays)]


def unpack_results(message: Message) -> Iterable[tuple[int, Prediction | ServeError]]:
    """Yield the number of each request and its result."""
    if message.arrays:
        whole, real, logits, log_probs = message.arrays
        output = HeadOutput(logits, log_probs)
        traces = message.fields.get("traces", {})
        rows = zip(whole.tolist(), real.tolist(), strict=True)
        for place, ((number, exit, late), (compute_ms, queue_ms)) in enumerate(rows):
            trace = traces.get(str(number)) if traces else None
            traced = trace and _traced(trace)
            yield (
                number,
                Prediction(exit, output, place, compute_ms, queue_ms, bool(late), traced),
            )
    for number, code, detail in message.fields.get("failed", ()):
        yield number, KNOWN_ERRORS[code](detail)


def pack_exits(shown: Sequence[tuple[RemoteRequest, ExitTrace]]) -> Message:
    """Pack the outputs of one exit for streamed requests of one batch."""
    numbers = np.array([request.number for request, _ in shown], np.int64)
    entries = [entry for _, entry in shown]
    real = np.array([(each.score, each.threshold, each.elapsed_ms) for each in entries])
    log_probs = np.stack([each.log_probs for each in entries])  # (A, C) or (A, P, C)
    return Message("exits", {"exit": entries[0].exit}, (numbers, real, log_probs))


def unpack_exits(message: Message) -> Iterable[tuple[int, ExitTrace]]:
    """Yield the number of each request and the output of the exit that it has passed."""
    numbers, real, log_probs = message.arrays
    for place, (number, numbers_of_exit) in enumerate(
        zip(numbers.tolist(), real.tolist(), strict=True)
    ):
        yield number, ExitTrace(message.fields["exit"], log_probs[place], *numbers_of_exit)


def _outputs(parts: Sequence[tuple[HeadOutput, list[int]]]) -> HeadOutput:
    """Return the rows of several outputs, one after the other."""
    return HeadOutput(*gather_arrays([Part(output, rows) for output, rows in parts]))


def _plain(trace: Sequence[ExitTrace]) -> list[list[Any]]:
    return [
        [each.exit, each.log_probs.tolist(), each.score, each.threshold, each.elapsed_ms]
        for each in trace
    ]


def _traced(trace: Sequence[Sequence[Any]]) -> list[ExitTrace]:
    return [
        ExitTrace(exit, np.array(log_probs, np.float32), score, threshold, elapsed_ms)
        for exit, log_probs, score, threshold, elapsed_ms in trace
    ]


def pack_answers(model: int, answers: Answers) -> Message:
    """Pack what a front-end has answered."""
    fields: dict[str, Any] = {"model": model}
    if answers.exemplars:
        fields["exemplars"] = answers.exemplars
    columns = answers._asdict()
    del columns["exemplars"]
    return Message("answers", fields, tuple(map(np.asarray, columns.values())))


def unpack_answers(message: Message) -> Answers:
    """Unpack what `pack_answers` packed."""
    exemplars = [Exemplar(*each) for each in message.fields.get("exemplars", ())]
    *columns, failed_ms = message.arrays
    answers: Any = (*columns, exemplars, failed_ms)
    return Answers(*answers)


def pack_work(model: int, work: Work) -> Message:
    """Pack what an engine has done."""
    fields = {
        "model": model,
        "scores": [(each.exit, each.parameter) for each in work.scores],
        "audits": [
            (each.key, each.policy_version, each.exit, each.parameter) for each in work.audits
        ],
        "audits_skipped": work.audits_skipped,
        "audits_cancelled": work.audits_cancelled,
        "audits_lost": work.audits_lost,
        "cancelled": work.cancelled,
        "oldest_wait_s": work.oldest_wait_s,
        "fault": work.fault,
        "stalled": work.stalled,
    }
    arrays: tuple[NDArray[Any], ...] = (
        work.stages,
        work.rows,
        work.elapsed_ms,
        work.queue_depths,
        *[each.scores for each in work.scores],
        *[each.log_probs for each in work.audits],
    )
    return Message("work", fields, arrays)


def unpack_work(message: Message) -> Work:
    """Unpack what `pack_work` packed."""
    fields = message.fields
    stages, rows, elapsed_ms, queue_depths, *others = message.arrays
    scores, outputs = others[: len(fields["scores"])], others[len(fields["scores"]) :]
    return Work(
        stages,
        rows,
        elapsed_ms,
        [
            ExitScores(exit, array.copy(), parameter)  # so that no read buffer is kept
            for (exit, parameter), array in zip(fields["scores"], scores, strict=True)
        ],
        [
            AuditOutcome(key, version, exit, parameter, log_probs.copy())
            for (key, version, exit, parameter), log_probs in zip(
                fields["audits"], outputs, strict=True
            )
        ],
        fields["audits_skipped"],
        fields["audits_cancelled"],
        fields["audits_lost"],
        fields["cancelled"],
        queue_depths,
        fields["oldest_wait_s"],
        fields["fault"],
        fields["stalled"],
    )


def pack_terms(model: int, terms: EntryTerms) -> Message:
    """Pack the terms under which requests enter."""
    numbers = {name: getattr(terms, name) for name in TERMS}
    return Message("terms", {"model": model, **numbers}, (terms.parameters, terms.costs_ms))


def unpack_terms(message: Message, before: EntryTerms | None) -> EntryTerms:
    """Unpack what `pack_terms` packed.

    Args:
        message: The message; without arrays if the frontier is still that of the terms before.
        before: The terms before, if there are any.
    """
    numbers = {name: message.fields[name] for name in TERMS}
    if not message.arrays:
        assert before is not None, "the first terms have a frontier"
        return before._replace(**numbers)
    parameters, costs_ms = (array.copy() for array in message.arrays)
    return EntryTerms(parameters=parameters, costs_ms=costs_ms, **numbers)


def pack_source(source: BundleSource) -> dict[str, str]:
    """Return where a bundle lies, as fields of a message or of a child's settings."""
    return {**source._asdict(), "folder": str(source.folder)}


def unpack_source(fields: Mapping[str, str]) -> BundleSource:
    """Return what `pack_source` was given."""
    return BundleSource(**{**fields, "folder": Path(fields["folder"])})  # type: ignore[arg-type]


def pack_keys(keys: Mapping[Group, KeySet]) -> Message:
    """Pack the hashes of the keys that each group of routes needs."""
    hashes = {group: [each.hex() for each in known.digests] for group, known in keys.items()}
    return Message("keys", {"hashes": hashes})


def unpack_keys(message: Message) -> dict[Group, KeySet]:
    """Unpack what `pack_keys` packed."""
    return {
        Group(name): KeySet(map(bytes.fromhex, hashes))
        for name, hashes in message.fields["hashes"].items()
    }


def facts_fields(facts: RunnerFacts) -> dict[str, Any]:
    """Return what an engine found out, as fields of a message or of a child's settings."""
    return {
        "precision": facts.precision,
        "device": facts.device,
        "batch_sizes": list(facts.costs.batch_sizes),
        "stages_ms": facts.costs.stages_ms.tolist(),
        "workers": facts.workers,
    }


def facts_of(fields: dict[str, Any]) -> RunnerFacts:
    """Return what `facts_fields` was given."""
    costs = StageCosts(tuple(fields["batch_sizes"]), np.array(fields["stages_ms"]))
    return RunnerFacts(fields["precision"], fields["device"], costs, fields["workers"])


def pack_scheduler(kind: str, scheduler: Scheduler, **fields: Any) -> Message:
    """Pack a fitted scheduler, as its two files hold it."""
    head, numbers = dump_scheduler(scheduler)
    return Message(kind, {"head": head, **fields}, (np.frombuffer(numbers, np.uint8),))


def unpack_scheduler(message: Message) -> Scheduler:
    """Unpack what `pack_scheduler` packed."""
    (numbers,) = message.arrays
    return parse_scheduler(message.fields["head"], io.BytesIO(numbers.tobytes()))
