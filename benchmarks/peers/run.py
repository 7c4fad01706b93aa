"""This server against LitServe, mosec, BentoML and Ray Serve.

    .venv/bin/python -m benchmarks.peers.run [--peers litserve,mosec,bentoml,ray] [--seconds 10]
        [--rounds 2] [--only image|text] [--precisions float32,int8] [--ours auto,float32]
        [--closed]

All answer the same inputs on the same cores, with the load generator beside them. Each peer serves
the plain network in single precision and in int8, ours chooses the precision of its bundle itself
unless `--ours` names one; `--closed` leaves out the open loops at shares of the best peer's rate.
benchmarks/peers/README.md describes the configuration of each. One server runs at a time, all of
them in turns, round after round. Peers are installed into build/peers; a smoke run installs nothing
and measures the peers that are installed already. JSON on the last line.
"""

import argparse
import itertools
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.harness import make_parser, print_report
from benchmarks.peers.ours import least_accuracy, our_server
from benchmarks.peers.running import PEERS, CannotRun, install, is_installed, serving, versions
from benchmarks.peers.tables import tables
from benchmarks.peers.tasks import PRECISIONS, TASKS, PlainNetwork, Task, judge_of_peer
from benchmarks.peers.turns import Contender, Load, Pace, Server, Turns, answers, say

SMOKE = Pace(rounds=1, seconds=0.4, warm_up_s=0.1, settle_calls=30, trials=1, trial_s=0.3)
SMOKE_INPUTS = 16
PEAK = Load("32 connections", 32)
CLOSED = (Load("1 connection", 1), PEAK)
SHARES = (0.5, 0.8, 0.95)  # of the best peer's peak, in open loops


def main() -> None:
    """Measure, print tables; end with status 1 if an answer was wrong."""
    args = parse()
    signal.signal(signal.SIGTERM, stop)
    pace = SMOKE if args.smoke else Pace(args.rounds, args.seconds)
    left_out = dict(not_installed(args.peers) if args.smoke else install_all(args.peers))
    peers = [name for name in args.peers if name not in left_out]
    tasks = {
        name: compare(
            TASKS[name](args.precisions, SMOKE_INPUTS if args.smoke else None),
            peers,
            pace,
            args.ours,
            open_loops=not args.closed,
        )
        for name in args.only
    }
    report = {
        "seconds": pace.seconds,
        "rounds": pace.rounds,
        "versions": {name: versions(name) for name in ["ours", *peers]},
        "not_installed": left_out,
        "tasks": tasks,
    }
    print("\n".join(tables(report)))
    print_report(report, smoke=args.smoke)
    wrong = sum(each["wrong"] for task in tasks.values() for each in task["measured"])
    if wrong:
        sys.exit(f"{wrong} answers are not those of the network")


def stop(*_: object) -> None:
    """End as after an error, so that the servers are stopped too; ignore further signals."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def parse() -> argparse.Namespace:
    """Parse and check the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--peers", default=",".join(PEERS), help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--only", choices=list(TASKS), help="one of the tasks")
    parser.add_argument(
        "--precisions", default=",".join(PRECISIONS), help="of the peers; default: %(default)s"
    )
    parser.add_argument(
        "--ours", default="auto", help="precisions of our server; default: %(default)s"
    )
    parser.add_argument("--closed", action="store_true", help="no open loops")
    args = parser.parse_args()
    args.ours = args.ours.split(",")
    args.precisions = [name for name in args.precisions.split(",") if name]
    args.peers = [name for name in args.peers.split(",") if name]
    args.only = [args.only] if args.only else list(TASKS)
    if unknown := set(args.peers) - PEERS.keys():
        parser.error(f"{min(unknown)!r} is not a peer; give some of {', '.join(PEERS)}")
    if unknown := set(args.precisions) - set(PRECISIONS):
        parser.error(f"{min(unknown)!r} is not a precision; give {' or '.join(PRECISIONS)}")
    if unknown := set(args.ours) - {"auto", *PRECISIONS}:
        parser.error(f"--ours: {min(unknown)!r} is none of auto, {', '.join(PRECISIONS)}")
    if not args.precisions:
        parser.error(f"--precisions is empty; give {' or '.join(PRECISIONS)}")
    if not 0 < args.seconds < float("inf") or args.rounds < 1:
        parser.error("give --seconds above 0 and --rounds of 1 or more")
    return args


def install_all(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Install peers; yield those that cannot be installed, and the reason."""
    for name in names:
        say(f"installing {name}")
        try:
            install(name)
        except CannotRun as error:
            say(f"{name} is left out: {error}")
            yield name, str(error)


def not_installed(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the peers that are not installed."""
    return ((name, "it is not installed") for name in names if not is_installed(name))


def compare(
    task: Task, peers: Sequence[str], pace: Pace, precisions: Sequence[str], *, open_loops: bool
) -> dict[str, Any]:
    """Closed loops on all servers; then open loops on the best peer and on ours.

    Args:
        task: What is asked.
        peers: The servers to compare with.
        pace: Length of the measurements.
        precisions: Those of our server.
        open_loops: Whether there are open loops.
    """
    turns = Turns(pace)
    ours = [our_server(task, pace, precision) for precision in precisions]
    others = {
        plain.precision: [peer_server(name, task, plain) for name in peers] for plain in task.plain
    }
    in_turns = itertools.chain.from_iterable(zip(*others.values(), strict=True))
    turns.measure([*in_turns, *ours], CLOSED)
    for name in {each.name for each in ours} & turns.left_out.keys():
        sys.exit(f"this repository's server: {turns.left_out[name]}")
    rates = {name: loads[PEAK.name]["rate"] for name, loads in turns.summary().items()}
    best = {
        precision: server
        for precision, servers in others.items()
        if (server := best_of(servers, rates)) is not None
    }
    if best and open_loops:
        # The int8 rows are for comparison; open loops on them too would lengthen the run.
        reference = next(iter(best.values()))
        peak = rates[reference.name]
        loads = [Load(f"{share:.0%} of its peak", rate=share * peak) for share in SHARES]
        turns.measure([reference, *ours], loads)
    return {
        "plain_accuracy": task.accuracy,
        "least_accuracy": least_accuracy(task),
        "left_out": {**task.left_out, **turns.left_out},
        "best_peers": {
            precision: {"name": server.name, "rate": rates[server.name]}
            for precision, server in best.items()
        },
        "ratios": {
            each.name: {
                precision: rates[each.name] / rates[server.name]
                for precision, server in best.items()
            }
            for server in ours
            for each in server.contenders
        },
        "summary": turns.summary(),
        "measured": [each._asdict() for each in turns.measured],
    }


def best_of(servers: Sequence[Server], rates: Mapping[str, float]) -> Server | None:
    """The server with the highest rate; None if no rate of any is known."""
    measured = [server for server in servers if server.name in rates]
    return max(measured, key=lambda server: rates[server.name], default=None)


def peer_server(name: str, task: Task, plain: PlainNetwork) -> Server:
    """A peer that is installed, with the plain network in one precision."""
    peer, calls = PEERS[name], task.peer_calls(PEERS[name].path)
    full_name = f"{name}, {plain.precision}"
    return Server(
        full_name,
        lambda: serving(
            peer.command_in(name),
            {**peer.environ, **task.environ, "BENCH_GRAPH": str(plain.graph)},
            f"{name}-{task.name}-{plain.precision}",
            lambda url: answers(url, calls[0]),
        ),
        [Contender(full_name, calls, judge_of_peer(plain))],
    )


if __name__ == "__main__":
    main()
