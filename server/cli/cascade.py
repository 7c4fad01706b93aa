"""`eenet cascade`: joins bundles into one whose exits are those of all of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scheduler.policies import DEFAULT_POLICY, POLICIES, describe_policies
from server.cli.options import (
    add_data,
    add_json,
    add_prior,
    add_seed,
    data_of,
    prepare_training,
    print_evaluations,
)
from server.cli.progress import StepLog

if TYPE_CHECKING:
    from server.pipeline.cascade import CascadeResult

EXAMPLE = "eenet cascade small-bundle large-bundle --dataset reviews.csv --out both"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "folders",
        metavar="BUNDLE",
        type=Path,
        nargs="+",
        help="folders of `eenet build`, from the cheapest network to the most expensive",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the new bundle")
    parser.add_argument(
        "--name", help="the model's name in requests (default: the bundle folder's)"
    )
    add_data(
        parser,
        required=False,
        default="none: the predictions that the bundles hold, if they are of the same rows",
    )
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        default=DEFAULT_POLICY,
        help=f"exit policy that a server starts with; {describe_policies()} (default: %(default)s)",
    )
    add_prior(parser)
    add_seed(parser)
    add_json(parser, "the results")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Join the bundles and print what the cascade reaches."""
    prepare_training()
    from server.pipeline.cascade import CascadeOptions, join_bundles

    options = CascadeOptions(
        name=args.name or args.out.resolve().name,
        policy=args.policy,
        data=None if args.dataset is None else data_of(args, seed=args.seed),
        prior=args.prior,
        seed=args.seed,
    )
    joined = join_bundles(args.folders, args.out, options, StepLog())
    _print(joined)
    manifest = joined.bundle.manifest
    return {
        "bundle": str(args.out),
        "cascade": [member.model_dump() for member in manifest.cascade],
        "left_out": joined.left_out,
        "precisions": {
            precision: {
                **entry.model_dump(mode="json", include={"measured", "default_budget_ms"}),
                "evaluations": [row._asdict() for row in joined.evaluations[precision]],
            }
            for precision, entry in manifest.precisions.items()
        },
    }


def _print(joined: CascadeResult) -> None:
    manifest = joined.bundle.manifest
    starts = {member.first_stage: member.name for member in manifest.cascade}
    print(f"{joined.bundle.folder}: {manifest.num_exits} exits of {len(starts)} networks")
    print("precision   exit   test accuracy %   latency ms   network")
    for precision, entry in manifest.precisions.items():
        assert entry.measured is not None, "every precision of a cascade is measured"
        name = ""
        measured = zip(entry.measured.accuracy, entry.measured.latency_ms, strict=True)
        for exit, (share, ms) in enumerate(measured):
            name = starts.get(exit, name)
            print(f"{precision:10} {exit:5d} {100 * share:17.2f} {ms:12.3f}   {name}")
    for reason in joined.left_out:
        print(reason)
    for precision, evaluations in joined.evaluations.items():
        entry = manifest.precisions[precision]
        print(f"{precision}: {entry.policy}, suggested budget {entry.default_budget_ms} ms")
        print_evaluations(evaluations)


def interrupted(args: argparse.Namespace) -> str:
    """Sentence after Ctrl-C."""
    return f"stopped; {args.out} is as it was; the same command joins the bundles from the start"
