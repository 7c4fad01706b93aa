"""`eenet certify`: the cheapest point of a policy that keeps a promise, with confidence."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.bundle import LABEL_FREE, Variant
from profiling.calibration import Predictions, load_certified_predictions
from scheduler.fitted import Scheduler, load_scheduler
from scheduler.guarantee import (
    Certificate,
    Promise,
    bound_policy,
    check_rows,
    exit_losses,
    rows_needed,
)
from scheduler.policies import DEFAULT_POLICY
from scheduler.policy import exits_taken, replay
from server.cli.evaluate import Subject, add_subject, check_outputs, subject_of
from server.cli.options import add_seed
from server.cli.progress import StepLog

EXAMPLE = "eenet certify my-bundle --max-disagreement 0.01"
EPSILONS = (0.005, 0.01, 0.02, 0.05)  # whose costs are shown for comparison
MEANINGS = {
    "disagreement": "at most {:g} % of samples get another answer than the whole network's",
    "accuracy_loss": "accuracy is at most {:g} points below the whole network's",
}


class Certified(NamedTuple):
    """A certificate, what other promises would cost, and the results on the test rows.

    Attributes:
        policy: Name of the scheduler.
        promise: What is certified.
        certificate: The certified point.
        others: The certificates of `EPSILONS`; None where there are too few rows.
        needed: Rows that each of `EPSILONS` needs.
        costs_ms: Latency until each exit, (K,).
        calibration_cost_ms: Mean cost of the calibration rows at the certified point.
        exits: Exit of every test row, (M,).
        answers: Class answered for every test row, (M,), or (M, P) for a segmentation.
        last: Class that the whole network answers, as `answers`.
        accuracy: Share of right answers on the test rows.
        last_accuracy: The same of the whole network.
    """

    policy: str
    promise: Promise
    certificate: Certificate
    others: list[Certificate | None]
    needed: list[int]
    costs_ms: NDArray[np.float64]
    calibration_cost_ms: float
    exits: NDArray[np.intp]
    answers: NDArray[np.intp]
    last: NDArray[np.intp]
    accuracy: float
    last_accuracy: float


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_subject(
        parser,
        "as for `eenet evaluate`, with certification_probs (K, L, C) and "
        "certification_labels (L,), on which nothing was fitted or chosen",
    )
    promises = parser.add_mutually_exclusive_group(required=True)
    promises.add_argument(
        "--max-disagreement",
        type=float,
        metavar="E",
        help="largest share of samples whose answer is not the whole network's; needs no labels",
    )
    promises.add_argument(
        "--max-accuracy-loss",
        type=float,
        metavar="E",
        help="most accuracy that may be lost against the whole network",
    )
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.95,
        help="probability with which the promise holds (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures to this file")
    parser.add_argument(
        "--exits",
        type=Path,
        metavar="OUT.npz",
        help="write exit, answer and the whole network's answer of every test sample",
    )
    add_seed(parser)


def run(args: argparse.Namespace) -> None:
    """Certify, print the result and write the files asked for."""
    if args.max_disagreement is not None:
        promise = Promise("disagreement", args.max_disagreement, args.confidence)
    else:
        promise = Promise("accuracy_loss", args.max_accuracy_loss, args.confidence)
    check_outputs(args.json, args.exits)
    subject = subject_of(
        args.folder,
        args.predictions,
        args.costs,
        args.precision,
        read=load_certified_predictions,
    )
    certified = certify_subject(subject, promise, args.seed)
    print("\n".join(_report(certified)))
    if args.json is not None:
        args.json.write_text(json.dumps(_document(certified, args.exits), indent=1) + "\n")
    if args.exits is not None:
        write_exits(certified, args.exits)


def interrupted(args: argparse.Namespace) -> str:
    """Sentence after Ctrl-C."""
    return "stopped; nothing was written; run the same command again"


def certify_subject(subject: Subject, promise: Promise, seed: int) -> Certified:
    """Certify a bundle's scheduler, or `stopping` fitted to a file's calibration rows.

    Raises:
        ValueError: If there are no certification rows, or too few for the promise.
    """
    rows = _certification_rows(subject, seed)
    sets = subject.label_sets
    one_answer = sets or rows.labels.ndim == 1
    count, exact = len(rows.labels), promise.measure == "disagreement" and one_answer
    check_rows(promise, count, exact=exact)
    name, (policy, frontier, combiner) = _scheduler_of(subject, promise, seed)
    rows = rows.combined(combiner)
    losses = exit_losses(promise.measure, rows.log_probs, rows.labels, label_sets=sets)
    widest = replace(promise, epsilon=max(promise.epsilon, *EPSILONS))
    bounds = bound_policy(policy, frontier, rows.log_probs, losses, widest)
    needed = [rows_needed(replace(promise, epsilon=each), exact=exact) for each in EPSILONS]
    certificate = bounds.certify(promise.epsilon)
    calibration, _, test = subject.recorded
    calibration, test = calibration.combined(combiner), test.combined(combiner)
    calibration_exits, exits = (
        exits_taken(policy, replay(policy, part.log_probs), certificate.parameter)
        for part in (calibration, test)
    )
    answers, test_rows = test.log_probs.argmax(-1), np.arange(len(exits))
    return Certified(
        policy=name,
        promise=promise,
        certificate=certificate,
        others=[
            bounds.certify(epsilon) if count >= least else None
            for epsilon, least in zip(EPSILONS, needed, strict=True)
        ],
        needed=needed,
        costs_ms=frontier.costs_ms,
        calibration_cost_ms=float(frontier.costs_ms[calibration_exits].mean()),
        exits=exits,
        answers=answers[exits, test_rows],
        last=answers[-1],
        accuracy=float(test.correct[test_rows, exits].mean()),
        last_accuracy=float(test.correct[:, -1].mean()),
    )


def _certification_rows(subject: Subject, seed: int) -> Predictions:
    """Return the certification rows in random order, which the bound by betting depends on."""
    rows = subject.recorded.certification
    if rows is None:
        raise ValueError(
            f"{subject.name} holds no certification rows; build it with --certification-size 2000"
        )
    order = np.random.default_rng(seed).permutation(len(rows.labels))
    return Predictions(rows.log_probs[:, order], rows.labels[order])


def _scheduler_of(subject: Subject, promise: Promise, seed: int) -> tuple[str, Scheduler]:
    """Return the scheduler to certify, and its name.

    A disagreement is promised most cheaply by the fit to the last exit's answers, an accuracy by
    the fit to labels. A bundle without it is certified with the scheduler that a server starts
    with.
    """
    label_free = promise.measure == "disagreement"
    if subject.variant is not None:
        name = _name_in(subject.variant, label_free)
        policy, frontier, combiner = load_scheduler(subject.variant.scheduler(name))
        if subject.fitted is None:  # other costs were given
            from scheduler.fitting.fit import check_costs

            check_costs(subject.costs_ms, policy.num_exits)
            frontier = frontier.with_costs(subject.costs_ms)
        return name, Scheduler(policy, frontier, combiner)
    from scheduler.fitting.fit import fit_scheduler

    name = DEFAULT_POLICY + LABEL_FREE if label_free else DEFAULT_POLICY
    StepLog()(f"fitting {name}")
    log_probs, labels = subject.recorded.calibration
    target = None if label_free else labels
    return name, fit_scheduler(DEFAULT_POLICY, log_probs, target, subject.costs_ms, seed=seed)


def _name_in(variant: Variant, label_free: bool) -> str:
    entry = variant.entry
    wanted = entry.policy.removesuffix(LABEL_FREE) + (LABEL_FREE if label_free else "")
    return wanted if wanted in entry.schedulers else entry.policy


def _report(certified: Certified) -> Iterator[str]:
    """Lines for people."""
    promise, found = certified.promise, certified.certificate
    meaning = MEANINGS[promise.measure].format(100 * promise.epsilon)
    about = f"{certified.policy}, {found.rows} certification rows"
    if found.certified:
        yield (
            f"certified: {meaning}, at {100 * promise.confidence:g} % confidence (upper bound "
            f"{100 * found.bound:.3f} %; {about})"
        )
    else:
        yield (
            f"nothing is certified for {100 * promise.epsilon:g} %: every sample runs to the last "
            f"exit ({about})"
        )
    yield f"parameter {found.parameter:.6g}, cost {_cost(found, certified.costs_ms)}"
    differ = (certified.answers != certified.last).mean()
    yield (
        f"on {len(certified.exits)} test rows {100 * differ:.2f} % differ, accuracy "
        f"{100 * certified.accuracy:.2f} % (the whole network {100 * certified.last_accuracy:.2f})"
    )
    if promise.measure == "disagreement" and not certified.policy.endswith(LABEL_FREE):
        yield "`eenet fit --labels none` fits a policy that keeps disagreements at less cost"
    yield "other promises would cost"
    for epsilon, needed, other in zip(EPSILONS, certified.needed, certified.others, strict=True):
        cost = f"needs {needed} rows" if other is None else _cost(other, certified.costs_ms)
        yield f"{100 * epsilon:5g} %   {cost}"


def _cost(found: Certificate, costs_ms: NDArray[np.float64]) -> str:
    share = 100 * found.expected_cost_ms / costs_ms[-1]
    note = "" if found.certified else ", nothing is certified"
    return f"{found.expected_cost_ms:.4g} ms, {share:.1f} % of the whole network's{note}"


def _document(certified: Certified, exits: Path | None) -> dict[str, Any]:
    """Return the document that `--json` writes."""
    found = certified.certificate
    return {
        "measure": certified.promise.measure,
        "policy": certified.policy,
        "epsilon": found.epsilon,
        "confidence": found.confidence,
        "rows": found.rows,
        "certified": found.certified,
        "parameter": found.parameter,
        "bound": found.bound,
        "calibration_cost": certified.calibration_cost_ms,
        "expected_cost": found.expected_cost_ms,
        "costs": certified.costs_ms.tolist(),
        "others": [
            {
                "epsilon": epsilon,
                "rows_needed": needed,
                "expected_cost": None if other is None else other.expected_cost_ms,
            }
            for epsilon, needed, other in zip(
                EPSILONS, certified.needed, certified.others, strict=True
            )
        ],
        "exits": None if exits is None else str(exits),
    }


def write_exits(certified: Certified, path: Path) -> None:
    """Write exits, answers and the whole network's answers of the test rows."""
    with path.open("wb") as file:  # a path without .npz stays as it is
        np.savez_compressed(
            file,
            allow_pickle=False,
            exits=certified.exits.astype(np.int8),
            answers=certified.answers.astype(np.int32),
            last=certified.last.astype(np.int32),
        )
