"""Read the responses of a load test into its log, sample by sample."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profiling.loadtest.inputs import Label
from profiling.loadtest.load import OK, LoadResult
from profiling.loadtest.log import LoadLog, PollLog, PutLog, SampleLog

State = dict[str, Any]
TIMES = ("total_ms", "queue_ms", "decode_ms", "compute_ms")
UNKNOWN: State = {
    "num_exits": 0,
    "exit": -1,
    "class_id": -1,
    "late": 0,
    **dict.fromkeys(TIMES, np.nan),
}


def read_log(
    result: LoadResult,
    inputs: NDArray[np.intp],
    variants: NDArray[np.str_],
    labels: Sequence[Label] | None,
    before: Sequence[State],
    budgets_ms: Sequence[float | None],
) -> tuple[LoadLog, list[str]]:
    """Make the log of a load; also return the models that answered.

    Args:
        result: The load, with bodies; its side calls are the changes of the budget, then the polls.
        inputs: Input that each call sends.
        variants: Variant of this input.
        labels: True class of each input, by number or by name.
        before: States of GET /budget before the load.
        budgets_ms: Budgets that were set, in turn; None took the budget off.

    Raises:
        ValueError: If no request was answered, or not by `eenet serve`.
    """
    order = np.argsort(result.due_s, kind="stable")
    answers = _read_answers(result, order)
    models = sorted({each["model"] for each in answers if each is not UNKNOWN})
    state = next((each for each in before if each.get("model") in models), {})
    puts, polls = result.beside
    first_ms = np.nan if state.get("budget_ms") is None else float(state["budget_ms"])
    put_log = _read_puts(puts, budgets_ms)
    rows, sent_s = inputs[result.call[order]], result.sent_s[order]
    samples = SampleLog(
        due_s=result.due_s[order],
        sent_s=sent_s,
        latency_ms=result.latency_ms[order],
        outcome=result.outcome[order],
        input=rows.astype(np.int32),
        form=variants[result.call[order]],
        exit=np.array([each["exit"] for each in answers], np.int8),
        class_id=np.array([each["class_id"] for each in answers], np.int32),
        correct=_judged(answers, None if labels is None else [labels[row] for row in rows]),
        late=np.array([each["late"] for each in answers], np.int8),
        **{name: np.array([each[name] for each in answers], float) for name in TIMES},
        budget_ms=_in_force(put_log, sent_s, first_ms),
    )
    log = LoadLog(
        str(state.get("measure", "compute")),
        max(each["num_exits"] for each in answers),
        first_ms,
        samples,
        put_log,
        _read_polls(polls, models[0]),
    )
    return log, models


def describe_outcome(result: LoadResult, row: int) -> str:
    """An outcome, with the server's error message if there is one."""
    assert result.bodies is not None, "the load keeps its bodies"
    try:
        message = json.loads(result.bodies[row])["error"]
    except (ValueError, KeyError, TypeError):
        return str(result.outcome[row])
    return f"{result.outcome[row]}: {message}"


def _read_answers(result: LoadResult, order: NDArray[np.intp]) -> list[State]:
    """Read the responses in this order; `UNKNOWN` if the status is not 200."""
    assert result.bodies is not None, "the load keeps its bodies"
    if not result.ok.any():
        raise ValueError(f"no request was answered; the first: {describe_outcome(result, 0)}")
    try:
        return [_read(result.bodies[row]) if result.ok[row] else UNKNOWN for row in order]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("the answers are not those of eenet serve; give its address") from error


def _read(body: bytes) -> State:
    answer = json.loads(body)
    latency_ms = answer["latency_ms"]
    return {
        "model": str(answer["model"]),
        "num_exits": int(answer["num_exits"]),
        "exit": int(answer["exit"]),
        "class_id": int(answer["class_id"]),
        "names": (answer["class_id"], answer["label"]),
        "late": int(answer.get("deadline_exceeded", False)),
        **{name: float(latency_ms[name.removesuffix("_ms")]) for name in TIMES},
    }


def _judged(answers: Sequence[State], labels: Sequence[Label] | None) -> NDArray[np.int8]:
    """Compare answers and labels: 1 right, 0 wrong, -1 unknown, (N,)."""
    if labels is None:
        return np.full(len(answers), -1, np.int8)
    right = [
        -1 if each is UNKNOWN else int(label in each["names"])
        for each, label in zip(answers, labels, strict=True)
    ]
    return np.array(right, np.int8)


def _read_puts(result: LoadResult, budgets_ms: Sequence[float | None]) -> PutLog:
    order = np.argsort(result.due_s, kind="stable")
    wanted = [np.nan if ms is None else ms for ms in budgets_ms]
    return PutLog(
        result.due_s[order],
        result.sent_s[order],
        result.latency_ms[order],
        result.outcome[order],
        np.array([wanted[call] for call in result.call[order]], float),
    )


def _in_force(puts: PutLog, sent_s: NDArray[np.float64], first_ms: float) -> NDArray[np.float64]:
    """The budget that the server had confirmed when each sample was sent, (N,)."""
    confirmed = puts.outcome == OK
    answered_s = (puts.due_s + puts.latency_ms / 1e3)[confirmed]
    budgets = np.array([first_ms, *puts.budget_ms[confirmed]])
    in_force: NDArray[np.float64] = budgets[np.searchsorted(answered_s, sent_s, side="right")]
    return in_force


def _read_polls(result: LoadResult, model: str) -> PollLog:
    """Read the state of one model from each poll that was answered."""
    assert result.bodies is not None, "side calls keep their bodies"
    rows = np.argsort(result.due_s, kind="stable")
    rows = rows[result.ok[rows]]
    states: list[State] = [
        next(
            (each for each in json.loads(result.bodies[row])["models"] if each["model"] == model),
            {},
        )
        for row in rows
    ]
    fields = PollLog._fields[2:]
    columns = {name: [each.get(name) for each in states] for name in fields}
    numbers = {name: np.array(values, float) for name, values in columns.items()}  # null is NaN
    at_s = result.due_s[rows] + result.latency_ms[rows] / 1e3
    return PollLog(at_s, result.latency_ms[rows], **numbers)
