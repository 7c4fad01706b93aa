"""Quality while serving: drift, agreement floor, feedback and refitting.

    .venv/bin/python -m benchmarks.quality.run

Rows are the recorded predictions in benchmarks/control/data (2,000 real test inputs in every
variant, made by benchmarks.record_drift), schedulers and costs those of the shipped bundles. JSON
on the last line.
"""

import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import BUNDLES, make_parser, print_report
from benchmarks.quality.refit import refit_rows
from benchmarks.quality.subjects import CORRUPTED, Row, Subject, halves
from profiling.calibration import Predictions
from scheduler.frontier import FrontierPoint
from scheduler.monitoring.agreement import AgreementCount, AgreementFloor
from scheduler.monitoring.drift import ScoreDrift
from scheduler.policy import exits_taken, replay
from server.quality.feedback import REMEMBERED, PredictionLog, key_of

BATCH = 8  # scores noted at a time
FLOOR_SHARES = (0.25, 0.5)  # from the first exit's cost to the last one's
AUDITED_AT_ONCE = 5
MISSES = (0.02, 0.01, 0.0, -0.01)  # of the floor above the true agreement


class Sizes(NamedTuple):
    """Amount of work.

    Attributes:
        streams: Streams of audited samples.
        splits: Random halves to refit to.
        walks: Random walks of the parameter.
        audited: Audited samples per stream.
        remembered: Predictions that feedback may refer to.
        variants: Number of variants of the inputs; None: all.
    """

    streams: int = 20
    splits: int = 10
    walks: int = 10
    audited: int = 5000
    remembered: int = REMEMBERED
    variants: int | None = None


class Noted(NamedTuple):
    """PSI and number of scores of each exit but the last; microseconds per score."""

    psi: list[float | None]
    scores: list[int]
    us_per_score: float


def main() -> None:
    """Print a table per part, and the JSON."""
    args = make_parser(__doc__).parse_args()
    sizes = Sizes(1, 1, 2, 100, 1000, variants=2) if args.smoke else Sizes()
    names = ["image"] if args.smoke else list(BUNDLES)
    started = time.perf_counter()
    subjects = [Subject.read(name) for name in names]
    results = {
        "drift": [row for subject in subjects for row in drift_rows(subject, sizes)],
        "floor": [row for subject in subjects for row in floor_rows(subject, sizes)],
        "held": [held_row(subject, share) for subject in subjects for share in FLOOR_SHARES],
        "feedback": [feedback_row(sizes.remembered)],
        "refit": [row for subject in subjects for row in refit_rows(subject, sizes.splits)],
    }
    for name, rows in results.items():
        print(f"\n{name}")
        for row in rows:
            print("  " + "  ".join(f"{key} {_text(value)}" for key, value in row.items()))
    seconds = time.perf_counter() - started
    print_report({"seconds": seconds, **results}, smoke=args.smoke)


def drift_rows(subject: Subject, sizes: Sizes) -> Iterator[Row]:
    """PSI of every variant at a middle budget, and of clean rows under a wandering one."""
    middle = subject.scheduler.frontier.at_cost(subject.cost_ms(0.5)).parameter
    rows = len(subject.drift.labels)
    for variant in subject.drift.variants[: sizes.variants]:
        seen = noted(subject, variant, lambda _: middle)
        yield {"subject": subject.name, "variant": variant, **seen._asdict()}
    walks = [wandering(subject, seed, -(-rows // BATCH)) for seed in range(sizes.walks)]
    wandered = [noted(subject, "clean", walk) for walk in walks]
    psis = np.array([each.psi for each in wandered], np.float64)
    yield {
        "subject": subject.name,
        "variant": f"clean, parameter wanders, {sizes.walks} walks",
        "psi": np.median(psis, 0).tolist(),
        "psi_most": psis.max(0).tolist(),
        "us_per_score": float(np.median([each.us_per_score for each in wandered])),
    }


def noted(subject: Subject, variant: str, parameter_of: Callable[[int], float]) -> Noted:
    """PSI of a variant's rows noted batch by batch, and microseconds per score.

    All rows are noted twice: the second time is measured, when the reference tables exist.
    """
    policy, frontier, _ = subject.scheduler
    rng = np.random.default_rng(0)
    drift = ScoreDrift(policy, frontier, subject.answers(subject.calibration), rng)
    replayed = replay(policy, subject.answers(subject.drift.predictions(variant)))
    order = rng.permutation(len(subject.drift.labels))
    parts = []
    for batch, start in enumerate(range(0, len(order), BATCH)):
        rows, parameter = order[start : start + BATCH], parameter_of(batch)
        exits = exits_taken(policy, [_some(scored, rows) for scored in replayed], parameter)
        parts += [
            (k, replayed[k].scores[rows[exits >= k]], parameter) for k in range(len(replayed) - 1)
        ]
    for part in parts:
        drift.add(*part)
    psi, started = drift.psi(), time.perf_counter()
    for part in parts:
        drift.add(*part)
    seconds = time.perf_counter() - started
    counts = np.bincount(
        [exit for exit, _, _ in parts], [len(scores) for _, scores, _ in parts]
    ).astype(int)
    return Noted(psi, counts.tolist(), seconds / float(counts.sum()) * 1e6)


def wandering(subject: Subject, seed: int, batches: int) -> Callable[[int], float]:
    """The parameter of each batch, whose mean cost walks over the middle four fifths."""
    steps = np.random.default_rng(seed).normal(0.0, 0.05, batches).cumsum() + 0.4
    share = 0.1 + np.abs((steps + 0.8) % 1.6 - 0.8)  # reflected at both ends
    points = [subject.scheduler.frontier.at_cost(subject.cost_ms(each)) for each in share]
    return lambda batch: points[batch].parameter


def floor_rows(subject: Subject, sizes: Sizes) -> Iterator[Row]:
    """Number of audited samples until floors around the true agreement are enforced."""
    clean = subject.answers(subject.drift.predictions("clean"))
    wished, true = clean_agreement(subject, FLOOR_SHARES[0])
    floors = [true.share + miss for miss in MISSES]
    held, seconds = zip(
        *(
            watch(subject, clean, wished.parameter, floors, sizes.audited, seed)
            for seed in range(sizes.streams)
        ),
        strict=True,
    )
    for index, miss in enumerate(MISSES):
        ours = np.array([of_stream[:, index] for of_stream in held])  # (streams, judgements)
        first = (ours.argmax(1)[ours.any(1)] + 1) * AUDITED_AT_ONCE
        yield {
            "subject": subject.name,
            "true_agreement": true.share,
            "floor_above_by": miss,
            "streams_that_held": len(first),
            "streams": sizes.streams,
            "samples_until_held": _spread(first),
            "share_of_time_held": float(ours.mean()),
            "ms_a_judgement": float(np.mean(seconds)) * 1e3,
        }


def clean_agreement(subject: Subject, share: float) -> tuple[FrontierPoint, AgreementCount]:
    """The frontier's point for a budget, and the agreement of all clean rows there."""
    clean = subject.answers(subject.drift.predictions("clean"))
    curve = subject.curve(window=clean.shape[1])
    curve.add(clean)
    point = curve.frontier.at_cost(subject.cost_ms(share))
    return point, curve.at(point.parameter)


def watch(
    subject: Subject,
    log_probs: NDArray[np.floating],
    wished: float,
    floors: list[float],
    audited: int,
    seed: int,
) -> tuple[NDArray[np.bool_], float]:
    """Whether each floor is enforced after every few rows, drawn with repeats; seconds each.

    The time is that of adding the rows and of judging one floor.
    """
    rows = np.random.default_rng(seed).integers(0, log_probs.shape[1], audited)
    curve, watched = subject.curve(), [AgreementFloor(each) for each in floors]
    held, seconds = [], 0.0
    for fresh in rows.reshape(-1, AUDITED_AT_ONCE):
        shown = log_probs[:, fresh]
        started = time.perf_counter()
        curve.add(shown)
        first = watched[0].judge(curve, wished)
        seconds += time.perf_counter() - started
        others = [floor.judge(curve, wished) for floor in watched[1:]]
        held.append([each is not None for each in (first, *others)])
    return np.array(held), seconds / len(held)


def held_row(subject: Subject, share: float) -> Row:
    """The point enforced on corrupted rows for a floor that clean rows keep, on other such rows.

    The budget alone asks for the most expensive point that keeps it on the corrupted rows, as the
    controller finds it.
    """
    _, true = clean_agreement(subject, share)
    floor = round(true.share - 0.01, 3)
    audited, others = halves(subject.corrupted, seed=0)
    curve = subject.curve()
    curve.add(subject.answers(audited))
    kept = [
        parameter
        for parameter in curve.frontier.parameters.tolist()
        if at_point(subject, audited, parameter)["cost_ms"] <= subject.cost_ms(share)
    ]
    wished = kept[-1] if kept else curve.frontier[0].parameter
    held = AgreementFloor(floor).judge(curve, wished)
    return {
        "subject": subject.name,
        "variant": CORRUPTED[subject.name],
        "budget_ms": subject.cost_ms(share),
        "clean_agreement": true.share,
        "floor": floor,
        "held": held is not None,
        "wished": at_point(subject, others, wished),
        "in_force": at_point(subject, others, wished if held is None else held),
    }


def at_point(subject: Subject, rows: Predictions, parameter: float) -> Row:
    """Agreement, cost and accuracy of rows at a parameter."""
    policy, frontier, _ = subject.scheduler
    answered = subject.answers(rows)
    exits = exits_taken(policy, replay(policy, answered), parameter)
    answers = answered.argmax(-1)  # (K, N)
    given, early = answers[exits, np.arange(len(exits))], exits < len(answers) - 1
    alike = float((given == answers[-1])[early].mean()) if early.any() else None
    return {
        "parameter": parameter,
        "agreement": alike,
        "early_share": float(early.mean()),
        "cost_ms": float(frontier.costs_ms[exits].mean()),
        "accuracy": float((given == rows.labels).mean()),
    }


def feedback_row(remembered: int) -> Row:
    """Memory and time of the prediction log, after three times as many as it keeps."""
    numbers = np.random.default_rng(0).integers(0, 2**62, 3 * remembered)
    ids = [f"{number:032x}" for number in numbers]

    def remember() -> PredictionLog:
        answers = PredictionLog()
        for number, request_id in enumerate(ids):
            answers.record(key_of(request_id), "cifar10-resnet56", number % 3, number % 10)
        return answers

    held, peak = memory_mb(remember)
    started = time.perf_counter()
    answers = remember()
    noted_at = time.perf_counter()
    found = [answers.find(request_id) is not None for request_id in ids]
    found_at = time.perf_counter()
    return {
        "answers": len(answers),
        "found": sum(found),
        "mb": held,
        "peak_mb": peak,
        "note_us": (noted_at - started) / len(ids) * 1e6,
        "find_us": (found_at - noted_at) / len(ids) * 1e6,
    }


def memory_mb(make: Callable[[], object]) -> tuple[float, float]:
    """Memory that an object keeps, and the peak while it was made."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    made = make()
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del made
    return (after - before) / 1e6, (peak - before) / 1e6


def _some(scored: Any, rows: NDArray[np.intp]) -> Any:
    return scored._replace(
        scores=scored.scores[rows], continuation_values=scored.continuation_values[rows]
    )


def _spread(samples: NDArray[np.integer]) -> Row | None:
    """Least, median and most; None for no samples."""
    if not len(samples):
        return None
    return {
        "least": int(samples.min()),
        "median": float(np.median(samples)),
        "most": int(samples.max()),
    }


def _text(value: object) -> str:
    """Format a value for the table."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return " ".join(_text(each) for each in value)
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_text(each)}" for key, each in value.items()) + ")"
    return str(value)


if __name__ == "__main__":
    main()
