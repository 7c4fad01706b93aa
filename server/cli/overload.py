"""`eenet simulate --exceeding`: ways to serve a trace that overloads the server, compared."""

import argparse
from collections.abc import Sequence
from typing import Any

from models.stage_costs import StageCosts
from profiling.simulation.comparison import Result, Subject, compare, read_subject
from profiling.simulation.disciplines import DEFAULT_DISCIPLINE
from profiling.simulation.network import NetworkCosts
from profiling.trace import Replay, read_trace, replay_trace
from server.cli.options import numbers
from server.cli.progress import progress

DEFAULT_SECONDS = 60.0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of overload."""
    parser.add_argument(
        "--exceeding",
        type=numbers,
        metavar="S,S,...",
        help="with --trace: compress it to --seconds, scale its rate until this share of the "
        "seconds exceeds the capacity at full depth, and compare ways to serve it",
    )
    parser.add_argument(
        "--slo-ms",
        type=numbers,
        metavar="MS,MS,...",
        help="with --exceeding: times within which an answer counts as in time",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        help=f"with --exceeding: duration of the replay (default: {DEFAULT_SECONDS:g})",
    )
    parser.add_argument(
        "--capacity",
        type=float,
        metavar="R",
        help="with --exceeding: requests per second at full depth (default: full batches of the "
        "whole network on the simulated device)",
    )


def check(args: argparse.Namespace) -> None:
    """Check that the flags go together.

    Raises:
        ValueError: If they do not; the message names them.
    """
    if args.exceeding is None:
        for flag in ("--slo-ms", "--seconds", "--capacity"):
            if getattr(args, flag[2:].replace("-", "_")) is not None:
                raise ValueError(f"{flag} goes with --exceeding")
        return
    if args.trace is None or args.slo_ms is None or args.folder is None:
        raise ValueError("--exceeding goes with a bundle, --trace and --slo-ms; give all three")
    for slo_ms in args.slo_ms:
        if not 0 < slo_ms < float("inf"):  # NaN fails too
            raise ValueError(f"--slo-ms holds {slo_ms:g}; give milliseconds above 0")
    others = {
        "--budget-ms": args.budget_ms,
        "--exit-rates": args.exit_rates,
        "--samples": args.samples,
        "--discipline": None if args.discipline == DEFAULT_DISCIPLINE else args.discipline,
    }
    if given := [flag for flag, value in others.items() if value is not None]:
        raise ValueError(f"--exceeding decides this itself; leave out {', '.join(given)}")


def run(args: argparse.Namespace, costs: StageCosts | None) -> dict[str, Any]:
    """Compare all ways at all loads and SLOs, and print a table.

    Args:
        args: The flags, checked.
        costs: Costs of stages; None: those of the bundle's profile.
    """
    times_s = read_trace(args.trace)
    network = None if costs is None else NetworkCosts.without_heads(costs)
    subject = read_subject(
        args.folder, args.precision, network, workers=args.workers, max_batch=args.max_batch
    )
    capacity = subject.full_depth_per_s if args.capacity is None else args.capacity
    seconds = DEFAULT_SECONDS if args.seconds is None else args.seconds
    replays = [
        replay_trace(times_s, seconds, capacity, share, args.seed) for share in args.exceeding
    ]
    compared = _compare(subject, replays, args.slo_ms, args.seed)
    for replay, results in zip(replays, compared, strict=True):
        print("\n".join(_lines(replay, capacity, seconds, results)))
    return {
        "bundle": str(args.folder),
        "trace": str(args.trace),
        "seconds": seconds,
        "capacity_per_s": capacity,
        "workers": args.workers,
        "max_batch": args.max_batch,
        "loads": [
            {
                "exceeding": replay.exceeding,
                "compression": replay.compression,
                "scale": replay.scale,
                "requests": len(replay.arrivals_s),
                "results": [result._asdict() for result in results],
            }
            for replay, results in zip(replays, compared, strict=True)
        ],
    }


def _compare(
    subject: Subject, replays: Sequence[Replay], slos_ms: Sequence[float], seed: int
) -> list[list[Result]]:
    """Return the results of each load at every SLO."""
    found: list[list[Result]] = []
    with progress("load", len(replays)) as shown:
        for number, replay in enumerate(replays, start=1):
            offered = subject.offer(replay.arrivals_s, seed)
            found.append([each for ms in slos_ms for each in compare(subject, offered, ms)])
            shown.update(number)
    return found


def _lines(replay: Replay, capacity: float, seconds: float, results: Sequence[Result]) -> list[str]:
    requests = len(replay.arrivals_s)
    lines = [
        f"{requests} requests in {seconds:g} s, {requests / seconds:.1f}/s on average; "
        f"{replay.exceeding:.1%} of the seconds exceed {capacity:.1f}/s",
        f"{'':20s}  SLO ms  in time %  accuracy %  refused %   exits",
    ]
    for each in results:
        rates = " ".join(f"{rate:.3f}" for rate in each.exit_rates)
        lines.append(
            f"{each.policy:20s} {each.slo_ms:7g} {100 * each.attainment:10.2f} "
            f"{100 * each.accuracy:11.2f} {100 * each.refused:10.2f}   {rates}"
        )
    return lines
