"""The log of a load test: every sample, every change of the budget and every poll of it."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.npz import read_arrays

Floats = NDArray[np.float64]


class SampleLog(NamedTuple):
    """N requests in the order in which they were due; times count from the load's start.

    Attributes:
        due_s: Time at which each was due.
        sent_s: Time of sending; NaN if no connection was free in time.
        latency_ms: From due to answered or failed, at the client.
        outcome: Status of the response, or the reason why there is none.
        input: Index of the input in its file.
        form: Variant of the input, "clean" or another.
        exit: Exit it took; -1 without a prediction, as the next two.
        class_id: Predicted class.
        correct: 1 right, 0 wrong; -1 also if no label is known.
        late: 1 if the response came after its deadline, else 0.
        total_ms: Latency at the server, NaN without a prediction, as the next three.
        queue_ms: Waiting time in it.
        decode_ms: Decoding time in it.
        compute_ms: Time in the stages.
        budget_ms: The server's budget at the time of sending; NaN: none.
    """

    due_s: Floats
    sent_s: Floats
    latency_ms: Floats
    outcome: NDArray[np.str_]
    input: NDArray[np.int32]
    form: NDArray[np.str_]
    exit: NDArray[np.int8]
    class_id: NDArray[np.int32]
    correct: NDArray[np.int8]
    late: NDArray[np.int8]
    total_ms: Floats
    queue_ms: Floats
    decode_ms: Floats
    compute_ms: Floats
    budget_ms: Floats


class PutLog(NamedTuple):
    """M changes of the budget; NaN: it was taken off."""

    due_s: Floats
    sent_s: Floats
    latency_ms: Floats
    outcome: NDArray[np.str_]
    budget_ms: Floats


class PollLog(NamedTuple):
    """P responses of GET /budget; NaN stands for null; feasible is 0 or 1."""

    at_s: Floats
    latency_ms: Floats
    budget_ms: Floats
    rolling_latency_ms: Floats
    effective_budget_ms: Floats
    parameter: Floats
    floor_ms: Floats
    ceiling_ms: Floats
    samples: Floats
    feasible: Floats


class LoadLog(NamedTuple):
    """A load test.

    Attributes:
        measure: Latency that the budget is about.
        num_exits: K.
        first_budget_ms: Budget before any change; NaN: none.
        samples: All requests.
        puts: All changes of the budget.
        polls: All polls of the budget.
    """

    measure: str
    num_exits: int
    first_budget_ms: float
    samples: SampleLog
    puts: PutLog
    polls: PollLog

    @property
    def measured_ms(self) -> Floats:
        """Latency of each sample in the budget's measure, NaN without a prediction, (N,)."""
        return self.samples.total_ms if self.measure == "end_to_end" else self.samples.compute_ms


class Phase(NamedTuple):
    """A period in which neither the budget nor the variant of the inputs changed.

    Attributes:
        begin_s: Start, counted from the load's start.
        end_s: Start of the next phase, or the time at which the last sample was due.
        form: Variant of the inputs.
        budget_ms: Budget; None if there was none.
        samples: Number of answered samples.
        mean_ms: Mean latency in the budget's measure; None without an answer.
        budget_error: Excess of the mean over the budget, as a share of it.
        accuracy: Accuracy over the samples with a known label.
        exit_rates: Share of each exit, (K,).
    """

    begin_s: float
    end_s: float
    form: str
    budget_ms: float | None
    samples: int
    mean_ms: float | None
    budget_error: float | None
    accuracy: float | None
    exit_rates: list[float] | None


def phases(log: LoadLog) -> list[Phase]:
    """Summarise each phase.

    A sample belongs to the phase in which it was due, although a new budget is in force only a
    moment later.
    """
    samples = log.samples
    if not len(samples.due_s):
        return []
    set_s = log.puts.due_s[log.puts.outcome == "200"]
    new_form = samples.due_s[1:][samples.form[1:] != samples.form[:-1]]
    begins_s = np.unique([0.0, *set_s, *new_form])
    begins_s = begins_s[begins_s <= samples.due_s[-1]]
    ends_s = [*begins_s[1:], np.nextafter(samples.due_s[-1], np.inf)]
    return [
        _phase(log, begin_s, end_s)
        for begin_s, end_s in zip(begins_s.tolist(), ends_s, strict=True)
        if ((samples.due_s >= begin_s) & (samples.due_s < end_s)).any()
    ]


def save_log(log: LoadLog, path: Path) -> None:
    """Write one npz file: samples by field name, the others with the prefixes put_ and poll_."""
    np.savez_compressed(
        path,
        allow_pickle=False,
        measure=np.array(log.measure),
        num_exits=np.array(log.num_exits),
        first_budget_ms=np.array(log.first_budget_ms),
        **log.samples._asdict(),
        **{f"put_{name}": array for name, array in log.puts._asdict().items()},
        **{f"poll_{name}": array for name, array in log.polls._asdict().items()},
    )


def load_log(path: Path) -> LoadLog:
    """Read what `save_log` wrote.

    Raises:
        ValueError: If the file cannot be read or lacks an array.
    """
    arrays = read_arrays(path, lambda _: True)
    try:
        return LoadLog(
            str(arrays["measure"]),
            int(arrays["num_exits"]),
            float(arrays["first_budget_ms"]),
            SampleLog(*(arrays[name] for name in SampleLog._fields)),
            PutLog(*(arrays[f"put_{name}"] for name in PutLog._fields)),
            PollLog(*(arrays[f"poll_{name}"] for name in PollLog._fields)),
        )
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}; make it with eenet loadtest --log") from error


def _phase(log: LoadLog, begin_s: float, end_s: float) -> Phase:
    samples = log.samples
    due = (samples.due_s >= begin_s) & (samples.due_s < end_s)
    answered = due & (samples.exit >= 0)
    judged = answered & (samples.correct >= 0)
    set_ms = log.puts.budget_ms[(log.puts.outcome == "200") & (log.puts.due_s <= begin_s)]
    budget_ms = _none_if_nan(set_ms[-1] if len(set_ms) else log.first_budget_ms)
    mean_ms = float(log.measured_ms[answered].mean()) if answered.any() else None
    error = None if mean_ms is None or budget_ms is None else mean_ms / budget_ms - 1
    counts = np.bincount(samples.exit[answered], minlength=log.num_exits)
    return Phase(
        begin_s,
        float(end_s),
        str(samples.form[due][0]),
        budget_ms,
        int(answered.sum()),
        mean_ms,
        error,
        float(samples.correct[judged].mean()) if judged.any() else None,
        (counts / counts.sum()).tolist() if answered.any() else None,
    )


def _none_if_nan(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
