"""`eenet fit`: fits a policy to a bundle."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scheduler.policies import DEFAULT_POLICY, POLICIES, describe_policies
from server.cli.fit_predictions import fit_predictions
from server.cli.options import (
    add_costs,
    add_json,
    add_precision,
    add_prior,
    add_seed,
    log_to_stderr,
    print_evaluations,
    require_training_extra,
)
from server.cli.progress import StepLog
from server.client_key import add_key_file, read_key

if TYPE_CHECKING:
    from models.bundle import Variant
    from server.pipeline.live import LabelledRows, LiveServer, Reloaded

EXAMPLE = "eenet fit my-bundle --policy eenet --costs 2.3,4.1,4.9"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "folder",
        metavar="BUNDLE",
        type=Path,
        nargs="?",
        help="folder of `eenet build`; or give --predictions",
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE.npz",
        help="fit to predictions of any framework: calibration_probs (exits, rows, classes) and "
        "calibration_labels (rows), to compare with also test_probs and test_labels; needs --costs "
        "and --out",
    )
    parser.add_argument(
        "--out", type=Path, help="with --predictions: folder to write the scheduler to"
    )
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        help=f"exit policy; {describe_policies()} (default: {DEFAULT_POLICY}; with --from-live "
        f"the one that is served)",
    )
    add_precision(parser, "all; with --from-live the one that is served")
    parser.add_argument(
        "--labels",
        choices=("calibration", "none"),
        help="what to fit to; none: the last exit's answers in place of labels, kept beside the "
        "policy that is fitted to labels, which stays the one a server starts with (default: "
        "calibration; with --from-live and no --policy as the fit that is served)",
    )
    add_prior(parser)
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
    add_key_file(parser, "one of administration; with --from-live")
    add_seed(parser)
    add_json(parser, "the results")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fit the policy and print its results."""
    require_training_extra()
    log_to_stderr("warning")
    if args.predictions is not None:
        return fit_predictions(args, args.policy or DEFAULT_POLICY)
    if args.folder is None or args.out is not None:
        raise ValueError(
            "give either a bundle, which keeps the scheduler, or --predictions FILE.npz and --out"
        )
    from models.bundle import LABEL_FREE, load_bundle
    from server.pipeline.live import LiveServer
    from server.pipeline.refit import refit

    bundle, server, rows = load_bundle(args.folder), None, None
    label_free = args.labels == "none"
    precisions = bundle.precisions if args.precision is None else (args.precision,)
    policy = args.policy or DEFAULT_POLICY
    if args.from_live is not None:
        key = read_key(args.key_file, os.environ)
        server = LiveServer(args.from_live, args.model or bundle.manifest.name, key)
        rows = server.rows(bundle.manifest)
        if args.precision not in (None, rows.precision):
            raise ValueError(
                f"{args.from_live} serves {rows.precision}, not {args.precision}; leave "
                f"--precision out"
            )
        precisions = (rows.precision,)
        if args.policy is None:
            served = server.policy()
            policy = served.removesuffix(LABEL_FREE)
            label_free = label_free or (args.labels is None and served.endswith(LABEL_FREE))
            if policy not in POLICIES:
                raise ValueError(f"{server.url} serves {served}; name a policy with --policy")
    elif args.model is not None:
        raise ValueError("--model names a model of a server; give --from-live URL too")
    elif args.key_file is not None:
        raise ValueError("--key-file holds a key of a server; give --from-live URL too")
    elif args.costs is not None and len(precisions) > 1:
        raise ValueError(
            f"--costs are those of one precision, and {args.folder} holds "
            f"{', '.join(precisions)}; name one with --precision"
        )
    name = policy + (LABEL_FREE if label_free else "")
    log_step, result = StepLog(), dict[str, Any]()
    for precision in precisions:
        log_step(f"fitting {name} for {precision}")
        refitted = refit(
            args.folder,
            policy=policy,
            precision=precision,
            costs_ms=args.costs,
            weights=args.weights,
            live=rows,
            label_free=label_free,
            prior=args.prior,
            seed=args.seed,
        )
        entry = refitted.variant.entry
        print(
            f"{args.folder}: {name} for {precision}, {len(refitted.scheduler.frontier)} points "
            f"of the frontier; a server starts with {entry.policy}, suggested budget "
            f"{entry.default_budget_ms} ms"
        )
        if args.prior != "observed":
            print(
                f"fitted for the class shares of --prior {args.prior}; the table shows the test "
                f"rows in their own shares"
            )
        if label_free:
            print(
                "fitted to the last exit's answers: the accuracy that its frontier expects is the "
                "agreement with them; the table shows true accuracy on the test rows"
            )
        print_evaluations(refitted.evaluations)
        evaluations = [row._asdict() for row in refitted.evaluations]
        result[precision] = {"evaluations": evaluations}
        if server is not None and refitted.live is not None:
            named = None if args.policy is None or label_free else policy
            reloaded = server.reload(named)
            result[precision]["live"] = _describe_live(
                server, reloaded, name, refitted.variant, refitted.live
            )
    return {"bundle": str(args.folder), **result[precisions[0]], "precisions": result}


def _describe_live(
    server: LiveServer, reloaded: Reloaded, name: str, variant: Variant, live: LabelledRows
) -> dict[str, Any]:
    """Print what a scheduler was fitted to, and whether the server has it."""
    from models.bundle import SCHEDULER_FILES

    rows = len(live.predictions.labels)
    print(
        f"fitted to {rows} live rows, {live.with_feedback} with feedback; other labels drawn from "
        f"the last exit at temperature {live.temperature:.3g}"
    )
    ours = None
    if reloaded.policy in variant.entry.schedulers:
        ours = variant.bundle.listed(variant.scheduler(reloaded.policy) / SCHEDULER_FILES[1])
    swapped = ours is not None and reloaded.sha256 == ours.sha256
    if swapped and reloaded.policy == name:
        print(f"{server.url} now uses it")
    elif swapped:
        print(
            f"{server.url} has reloaded this folder, and its budget or promise calls for "
            f"{reloaded.policy}; POST {server.url}/scheduler/reload and PUT {server.url}/budget "
            f"choose {name}"
        )
    else:
        print(
            f"{server.url} serves {server.model} from another folder, which has another scheduler; "
            f"copy {variant.bundle.folder} there and POST {server.url}/scheduler/reload"
        )
    return {
        "rows": rows,
        "feedback": live.with_feedback,
        "temperature": live.temperature,
        "swapped": swapped,
    }


def interrupted(args: argparse.Namespace) -> str:
    """Sentence after Ctrl-C."""
    if args.folder is None:
        return "stopped; nothing was written; run the same command again"
    return f"stopped; {args.folder} keeps the scheduler that it had; run the same command again"
