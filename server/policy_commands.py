"""`eenet fit` and `eenet evaluate`: their flags, and what they print."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.scheduler import DEFAULT_POLICY, POLICIES
from server.commands import command, need_training_extra, numbers, print_evaluations, say


def add_fit(commands: Any) -> None:
    """`eenet fit`."""
    parser = command(
        commands,
        "fit",
        "Fit another policy, or the same for other costs, to a bundle's calibration set.",
        "eenet fit my-bundle --policy eenet --costs 2.3,4.1,4.9",
        _fit,
    )
    parser.add_argument("folder", metavar="BUNDLE", type=Path, help="folder of `eenet build`")
    parser.add_argument(
        "--policy", choices=POLICIES, default=DEFAULT_POLICY, help="default: %(default)s"
    )
    _add_costs(parser, "the bundle's own profile")
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE.npz",
        help="with --policy eenet: scores and assignment of a published fitted scheduler",
    )
    _add_seed(parser)
    parser.add_argument(
        "--json", action="store_true", help="print the results as one JSON document last"
    )


def _fit(args: argparse.Namespace) -> None:
    need_training_extra()
    from server.fit_command import refit

    say(f"fitting {args.policy}")
    refitted = refit(
        args.folder,
        policy=args.policy,
        costs_ms=args.costs,
        weights=args.weights,
        seed=args.seed,
    )
    frontier = refitted.scheduler.frontier
    print(
        f"{args.folder}: {args.policy}, {len(frontier)} points of the frontier, default budget "
        f"{refitted.bundle.manifest.default_budget_ms} ms"
    )
    print_evaluations(refitted.evaluations)
    if args.json:
        evaluations = [row._asdict() for row in refitted.evaluations]
        print(json.dumps({"bundle": str(args.folder), "evaluations": evaluations}))


def add_evaluate(commands: Any) -> None:
    """`eenet evaluate`."""
    parser = command(
        commands,
        "evaluate",
        "Compare exit policies on recorded predictions: a bundle's, or a file of any framework.",
        "eenet evaluate --predictions mine.npz --costs 1,2,3.3,5 --report report",
        _evaluate,
    )
    parser.add_argument("folder", metavar="BUNDLE", type=Path, nargs="?", help="a bundle, or")
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE.npz",
        help="calibration_probs (K, N, C), calibration_labels (N,), test_probs (K, M, C), "
        "test_labels (M,)",
    )
    _add_costs(parser, "those the bundle's scheduler was fitted for")
    parser.add_argument(
        "--budgets", type=_numbers, help="mean costs, 1.5,2,3 (default: seven over the range)"
    )
    parser.add_argument(
        "--policies",
        type=lambda text: list(dict.fromkeys(text.split(","))),
        help="names with commas between (default: all, eenet-per-budget and oracle too)",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures")
    parser.add_argument(
        "--exits", type=Path, metavar="OUT.npz", help="write the exit of every test sample"
    )
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write an HTML page with figures"
    )
    parser.add_argument(
        "--dataset",
        type=Path,
        help="with --report and a bundle: the images it was built from, to show examples",
    )
    _add_seed(parser)


def _evaluate(args: argparse.Namespace) -> None:
    need_training_extra()
    from server.evaluate_command import (
        run_evaluation,
        subject_of,
        table_of,
        test_pictures,
        write_exits,
        write_json,
    )

    _check_outputs(args.json, args.exits, args.report)
    subject = subject_of(args.folder, args.predictions, args.costs)
    pictures = None if args.dataset is None else test_pictures(args.dataset, subject)
    comparison = run_evaluation(
        subject,
        budgets=None if args.budgets is None else list(dict.fromkeys(args.budgets.tolist())),
        policies=args.policies,
        seed=args.seed,
        say=say,
    )
    print("\n".join(table_of(comparison)))
    if args.json is not None:
        write_json(comparison, args.json)
    if args.exits is not None:
        write_exits(comparison, args.exits)
    if args.report is not None:
        from profiling.report import write_report

        page = write_report(
            args.report, subject.name, subject.recorded, comparison, subject.classes, pictures
        )
        print(f"report: {page}")


def _check_outputs(json_file: Path | None, exits_file: Path | None, report: Path | None) -> None:
    """Before any long work: whether the results can be written."""
    for out in (json_file, exits_file, report):
        if out is not None and not out.absolute().parent.is_dir():
            raise ValueError(f"the folder {out.absolute().parent} does not exist; make it first")
    for out in (json_file, exits_file):
        if out is not None and out.is_dir():
            raise ValueError(f"{out} is a folder; give the name of a file")
    if report is not None and report.is_file():
        raise ValueError(f"{report} is a file; give a folder")


def _add_costs(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--costs",
        type=_numbers,
        metavar="MS,MS,...",
        help=f"latency from the start until each exit, rising (default: {default})",
    )


def _add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed", type=int, default=0, help="of everything random (default: %(default)s)"
    )


def _numbers(text: str) -> NDArray[np.float64]:
    return np.array(numbers(text))
