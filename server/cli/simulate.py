"""`eenet simulate`: simulates the engine on a device of another cost table."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import Precision, load_bundle
from models.stage_costs import StageCosts, read_stage_costs
from profiling.calibration import load_recorded
from profiling.simulation.arrivals import at_once, bursts, poisson
from profiling.simulation.disciplines import DEFAULT_DISCIPLINE, DISCIPLINES
from profiling.simulation.simulator import MODES, PERCENTILES, Device, Simulated, Traffic, simulate
from profiling.trace import read_trace
from scheduler.fitted import load_scheduler
from scheduler.policy import exits_taken, replay
from server.cli import overload
from server.cli.options import add_json, add_precision, numbers
from server.cli.progress import progress

EXAMPLE = """eenet simulate my-bundle --costs 2.3,4.1,4.9 --free-rows 16 --budget-ms 3 --rate 2000
  eenet simulate my-bundle --trace arrivals.npz --exceeding 0.05,0.1,0.2 --slo-ms 20,50"""
DEFAULT_SAMPLES = 20_000
SUM_TOLERANCE = 0.01


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "folder", metavar="BUNDLE", type=Path, nargs="?", help="bundle whose exits are simulated"
    )
    add_precision(parser)
    _add_device(parser)
    exits = parser.add_mutually_exclusive_group()
    exits.add_argument(
        "--budget-ms",
        type=float,
        help="budget of the bundle's scheduler, which decides on its test predictions (default: "
        "the trade-off of the bundle's suggested budget)",
    )
    exits.add_argument(
        "--exit-rates", type=numbers, metavar="P,P,...", help="share of samples at each exit"
    )
    _add_traffic(parser)
    overload.add_flags(parser)
    add_json(parser, "the results")


def _add_device(parser: argparse.ArgumentParser) -> None:
    costs = parser.add_mutually_exclusive_group()
    costs.add_argument(
        "--costs",
        type=numbers,
        metavar="MS,MS,...",
        help="latency of one row from the start until each exit, rising (default: those of the "
        "bundle's profile)",
    )
    costs.add_argument(
        "--cost-table",
        type=Path,
        metavar="FILE.json",
        help="batch_sizes (B,) and stages_ms (K, B), or a profile.json",
    )
    parser.add_argument(
        "--free-rows",
        type=int,
        metavar="N",
        help="with --costs: a batch of up to N rows costs as much as one row (default: 1, a CPU)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="cores, or 1 for an accelerator (default: %(default)s)",
    )
    parser.add_argument(
        "--max-batch", type=int, default=16, help="largest batch (default: %(default)s)"
    )
    parser.add_argument(
        "--discipline",
        choices=DISCIPLINES,
        default=DEFAULT_DISCIPLINE,
        help="which stage a free worker takes when refilling (default: %(default)s)",
    )


def _add_traffic(parser: argparse.ArgumentParser) -> None:
    arrivals = parser.add_mutually_exclusive_group()
    arrivals.add_argument("--rate", type=float, help="Poisson arrivals per second")
    arrivals.add_argument(
        "--saturated", action="store_true", help="all samples wait from the start (default)"
    )
    arrivals.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="recorded arrivals: one time in seconds per line, or an npz with arrival_s",
    )
    parser.add_argument(
        "--bursts",
        type=float,
        metavar="FACTOR",
        help="with --rate: a tenth of every second has FACTOR times the mean rate",
    )
    parser.add_argument(
        "--samples",
        type=int,
        help=f"number of samples (default: {DEFAULT_SAMPLES}, or all of the trace)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of arrivals and exits (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Simulate all modes and print a table; with --exceeding, all ways to serve an overload."""
    overload.check(args)
    if args.exceeding is not None:
        own = (args.costs, args.cost_table, args.free_rows)
        return overload.run(args, None if own == (None,) * 3 else _costs(args))
    costs = _costs(args)
    device = Device(costs, args.workers, args.max_batch)
    arrivals_s = _arrivals(args)
    exits = _exits(args, costs, len(arrivals_s))
    traffic = Traffic(arrivals_s, exits)
    results = {}
    with progress("mode", len(MODES)) as shown:
        for number, mode in enumerate(MODES, start=1):
            results[mode] = simulate(traffic, device, mode, args.discipline)
            shown.update(number)
    rates = np.bincount(exits, minlength=costs.num_exits) / len(exits)
    print(
        f"{len(exits)} samples, exit rates {' '.join(f'{rate:.3f}' for rate in rates)}; full "
        f"batches would do {device.capacity_per_s(exits):.1f} samples/s"
    )
    print("\n".join(_table(results)))
    return _document(args, device, exits, rates, results)


def interrupted(args: argparse.Namespace) -> str:
    """Sentence after Ctrl-C."""
    return "stopped; nothing was written; run the same command again"


def _costs(args: argparse.Namespace) -> StageCosts:
    if args.costs is not None:
        return StageCosts.of_exits(args.costs, 1 if args.free_rows is None else args.free_rows)
    if args.free_rows is not None:
        raise ValueError("--free-rows goes with --costs; a table has its own costs of batches")
    if args.cost_table is not None:
        return read_stage_costs(args.cost_table)
    if args.folder is None:
        raise ValueError("give a bundle, --costs or --cost-table")
    variant = load_bundle(args.folder).variant(args.precision)
    try:
        return read_stage_costs(variant.profile)
    except ValueError as error:
        raise ValueError(
            f"{error}. `eenet profile {args.folder}` writes it; or give --costs or --cost-table"
        ) from error


def _arrivals(args: argparse.Namespace) -> NDArray[np.float64]:
    """Arrival times of the samples in seconds, (N,)."""
    samples = DEFAULT_SAMPLES if args.samples is None else args.samples
    if samples < 1:
        raise ValueError(f"--samples is {samples}; give 1 or more")
    if args.bursts is not None and args.rate is None:
        raise ValueError("--bursts goes with --rate, the mean of the arrivals")
    if args.trace is not None:
        return read_trace(args.trace)[: args.samples]
    if args.rate is None:
        return at_once(samples)
    if args.bursts is not None:
        return bursts(args.rate, samples, args.seed, factor=args.bursts)
    return poisson(args.rate, samples, args.seed)


def _exits(args: argparse.Namespace, costs: StageCosts, samples: int) -> NDArray[np.intp]:
    """The exit of each sample, (N,), drawn with the seed."""
    rng = np.random.default_rng([args.seed, 1])  # independent of the arrivals
    if args.exit_rates is not None:
        rates = _checked_rates(args.exit_rates, costs.num_exits)
        return rng.choice(costs.num_exits, samples, p=rates)
    if args.folder is None:
        raise ValueError("give a bundle, whose scheduler chooses exits, or --exit-rates")
    return rng.choice(bundle_exits(args.folder, costs, args.budget_ms, args.precision), samples)


def bundle_exits(
    folder: Path,
    costs: StageCosts,
    budget_ms: float | None = None,
    precision: Precision | None = None,
) -> NDArray[np.intp]:
    """The exit that a bundle's scheduler takes for each row of its test set, (M,).

    Args:
        folder: The bundle.
        costs: Costs of its stages on the simulated device.
        budget_ms: Mean cost of a sample alone on that device; None: the bundle's suggested budget
            on the machine it was fitted for.
        precision: Which of the bundle's networks; None: the first of its manifest.

    Raises:
        ValueError: If the costs are of another number of exits.
    """
    variant = load_bundle(folder).variant(precision)
    policy, frontier, combiner = load_scheduler(variant.scheduler())
    if policy.num_exits != costs.num_exits:
        raise ValueError(
            f"{folder} has {policy.num_exits} exits, the costs have {costs.num_exits}; give one "
            f"cost for each exit"
        )
    if budget_ms is not None:
        parameter = frontier.with_costs(costs.costs_ms).at_cost(budget_ms).parameter
    elif variant.entry.default_budget_ms is not None:
        parameter = frontier.at_cost(variant.entry.default_budget_ms).parameter
    else:
        parameter = policy.never_exit_parameter
    test = load_recorded(variant.predictions).test.combined(combiner)
    return exits_taken(policy, replay(policy, test.log_probs), parameter)


def _checked_rates(rates: Sequence[float], num_exits: int) -> NDArray[np.float64]:
    """Exit rates (K,) that sum to 1."""
    shares = np.asarray(rates, float)
    if len(shares) != num_exits or not (shares >= 0).all():
        raise ValueError(
            f"--exit-rates are {list(rates)}; give {num_exits} of them, 0 or more, one for "
            f"each exit"
        )
    if abs(shares.sum() - 1) > SUM_TOLERANCE:
        raise ValueError(f"--exit-rates sum to {shares.sum():g}; give shares of 1")
    normalised: NDArray[np.float64] = shares / shares.sum()
    return normalised


def _table(results: dict[str, Simulated]) -> list[str]:
    head = "                     samples/s    p50 ms    p90 ms    p99 ms  busy %  in flight"
    lines = [f"{head}   rows per batch, by stage"]
    for mode, result in results.items():
        percentiles = " ".join(f"{ms:9.3f}" for ms in result.percentiles_ms)
        rows = " ".join(f"{rows:.1f}" for rows in result.batch_rows)
        lines.append(
            f"{mode:19s} {result.throughput_per_s:10.1f} {percentiles} "
            f"{100 * result.utilisation:7.1f} {result.in_flight:10d}   {rows}"
        )
    return lines


def _document(
    args: argparse.Namespace,
    device: Device,
    exits: NDArray[np.intp],
    rates: NDArray[np.float64],
    results: dict[str, Simulated],
) -> dict[str, Any]:
    return {
        "bundle": None if args.folder is None else str(args.folder),
        "samples": len(exits),
        "exit_rates": rates.round(4).tolist(),
        "capacity_per_s": device.capacity_per_s(exits),
        "workers": device.workers,
        "max_batch": device.max_batch,
        "discipline": args.discipline,
        **device.costs.to_json(),
        "modes": {mode: _figures(result) for mode, result in results.items()},
    }


def _figures(result: Simulated) -> dict[str, Any]:
    names = (f"p{each}" for each in PERCENTILES)
    return {
        "throughput_per_s": result.throughput_per_s,
        "latency_ms": dict(zip(names, result.percentiles_ms.tolist(), strict=True)),
        "batch_rows": result.batch_rows.tolist(),
        "occupancy": result.occupancy.tolist(),
        "utilisation": result.utilisation,
        "in_flight": result.in_flight,
    }
