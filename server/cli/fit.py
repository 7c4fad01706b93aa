"""`eenet fit`: fits a policy to a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scheduler.fitted import FILES, load_scheduler
from scheduler.policies import DEFAULT_POLICY, POLICIES, describe_policies
from server.cli.options import (
    add_costs,
    add_json,
    add_seed,
    print_evaluations,
    require_training_extra,
)
from server.cli.progress import StepLog

if TYPE_CHECKING:
    from models.bundle import Bundle
    from server.pipeline.live import LabelledRows, LiveServer

EXAMPLE = "eenet fit my-bundle --policy eenet --costs 2.3,4.1,4.9"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("folder", metavar="BUNDLE", type=Path, help="folder of `eenet build`")
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        help=f"exit policy; {describe_policies()} (default: {DEFAULT_POLICY}; with --from-live "
        f"the bundle's own)",
    )
    add_costs(parser, "the bundle's own profile")
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE.npz",
        help="with --policy eenet: scores and assignment of a published fitted scheduler",
    )
    parser.add_argument(
        "--from-live",
        metavar="URL",
        help="fit to the samples that this server audited, with labels from feedback where there "
        "are any, and let the server use the result",
    )
    parser.add_argument(
        "--model", help="with --from-live: the model's name there (default: the bundle's)"
    )
    add_seed(parser)
    add_json(parser, "the results")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fit the policy and print its results."""
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
    StepLog()(f"fitting {policy}")
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
        result["live"] = _reload_server(server, refitted.bundle, refitted.live)
    return result


def _reload_server(server: LiveServer, bundle: Bundle, live: LabelledRows) -> dict[str, Any]:
    """Let a server use the scheduler that was fitted to its samples; print whether it does."""
    rows = len(live.predictions.labels)
    print(
        f"fitted to {rows} live rows, {live.with_feedback} with feedback; other labels drawn from "
        f"the last exit at temperature {live.temperature:.3g}"
    )
    running = server.reload()
    swapped = running == bundle.manifest.files[FILES[1]].sha256
    if swapped:
        print(f"{server.url} now uses it")
    else:
        print(
            f"{server.url} serves {server.model} from another folder, which has another scheduler; "
            f"copy {bundle.folder} there and POST {server.url}/scheduler/reload"
        )
    return {
        "rows": rows,
        "feedback": live.with_feedback,
        "temperature": live.temperature,
        "swapped": swapped,
    }


def interrupted(args: argparse.Namespace) -> str:
    """Sentence after Ctrl-C."""
    return f"stopped; {args.folder} keeps the scheduler that it had; run the same command again"
