"""`eenet fit` and `eenet evaluate`: their flags, and what they print."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scheduler.fitted import FILES, load_scheduler
from scheduler.policies import DEFAULT_POLICY, POLICIES, describe_policies
from server.cli.options import command, log_step, numbers, print_evaluations, require_training_extra

if TYPE_CHECKING:
    from models.bundle import Bundle
    from server.pipeline.live import LabelledRows, LiveServer


def add_fit(commands: Any) -> None:
    """`eenet fit`."""
    parser = command(
        commands,
        "fit",
        "Fit a policy to a bundle's calibration set or to what a server saw.",
        "eenet fit my-bundle --policy eenet --costs 2.3,4.1,4.9",
        _fit,
    )
    parser.add_argument("folder", metavar="BUNDLE", type=Path, help="folder of `eenet build`")
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        help=f"when a row leaves; {describe_policies()} (default: {DEFAULT_POLICY}; with "
        f"--from-live the bundle's own)",
    )
    _add_costs(parser, "the bundle's own profile")
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE.npz",
        help="with --policy eenet: scores and assignment of a published fitted scheduler",
    )
    parser.add_argument(
        "--from-live",
        metavar="URL",
        help="fit to the samples that this server audited, labels from feedback where they came, "
        "and let it go on with the result",
    )
    parser.add_argument(
        "--model", help="with --from-live: the model's name there (default: the bundle's)"
    )
    _add_seed(parser)
    parser.add_argument(
        "--json", action="store_true", help="print the results as one JSON document last"
    )


def _fit(args: argparse.Namespace) -> None:
    require_training_extra()
    from models.bundle import load_bundle
    from server.pipeline.live import LiveServer
    from server.pipeline.refit import refit

    policy, server, rows = args.policy or DEFAULT_POLICY, None, None
    if args.from_live is not None:
        manifest = load_bundle(args.folder).manifest
        server = LiveServer(args.from_live, args.model or manifest.name)
        policy = args.policy or load_scheduler(args.folder).policy.kind
        rows = server.rows(manifest)
    elif args.model is not None:
        raise ValueError("--model names a model of a server; give --from-live URL too")
    log_step(f"fitting {policy}")
    refitted = refit(
        args.folder,
        policy=policy,
        costs_ms=args.costs,
        weights=args.weights,
        live=rows,
        seed=args.seed,
    )
    frontier = refitted.scheduler.frontier
    print(
        f"{args.folder}: {policy}, {len(frontier)} points of the frontier, default budget "
        f"{refitted.bundle.manifest.default_budget_ms} ms"
    )
    print_evaluations(refitted.evaluations)
    evaluations = [row._asdict() for row in refitted.evaluations]
    result: dict[str, Any] = {"bundle": str(args.folder), "evaluations": evaluations}
    if server is not None and refitted.live is not None:
        result["live"] = _go_on(server, refitted.bundle, refitted.live)
    if args.json:
        print(json.dumps(result))


def _go_on(server: "LiveServer", bundle: "Bundle", live: "LabelledRows") -> dict[str, Any]:
    """Let a server go on with the scheduler that was fitted to its samples, and tell."""
    rows = len(live.predictions.labels)
    print(
        f"fitted to {rows} live rows, {live.told} with feedback; other labels drawn from the last "
        f"exit at temperature {live.temperature:.3g}"
    )
    running = server.reload()
    swapped = running == bundle.manifest.files[FILES[1]].sha256
    if swapped:
        print(f"{server.url} goes on with it")
    else:
        print(
            f"{server.url} serves {server.model} from another folder, which has another scheduler; "
            f"copy {bundle.folder} there and POST {server.url}/scheduler/reload"
        )
    return {
        "rows": rows,
        "feedback": live.told,
        "temperature": live.temperature,
        "swapped": swapped,
    }


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
    require_training_extra()
    from server.cli.evaluate import (
        run_evaluation,
        subject_of,
        table_of,
        test_images,
        write_exits,
        write_json,
    )

    _check_outputs(args.json, args.exits, args.report)
    subject = subject_of(args.folder, args.predictions, args.costs)
    images = None if args.dataset is None else test_images(args.dataset, subject)
    comparison = run_evaluation(
        subject,
        budgets=None if args.budgets is None else list(dict.fromkeys(args.budgets.tolist())),
        policies=args.policies,
        seed=args.seed,
        say=log_step,
    )
    print("\n".join(table_of(comparison)))
    if args.json is not None:
        write_json(comparison, args.json)
    if args.exits is not None:
        write_exits(comparison, args.exits)
    if args.report is not None:
        from profiling.evaluation.report import write_report

        page = write_report(
            args.report, subject.name, subject.recorded, comparison, subject.classes, images
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
