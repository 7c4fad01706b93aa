"""This server against LitServe, mosec, BentoML and Ray Serve. One JSON document last.

.venv/bin/python -m benchmarks.peers.run [--peers litserve,mosec,bentoml,ray] [--seconds 10]
    [--rounds 2] [--only image|text]

All answer the same inputs on the same cores, the load generator beside them;
benchmarks/peers/README.md
tells how each is set up. One server runs at a time, all of them in turns, round after round.
"""

import argparse
import json
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks.peers.ours import least_accuracy, our_server
from benchmarks.peers.running import PEERS, CannotRun, install, serving, versions
from benchmarks.peers.tables import tables
from benchmarks.peers.tasks import TASKS, Task, judge_of_peer
from benchmarks.peers.turns import Contender, Load, Server, Turns, answers, say
from profiling.latency import machine_name

PEAK = Load("32 connections", 32)
CLOSED = (Load("1 connection", 1), PEAK)
SHARES = (0.5, 0.8, 0.95)  # of the best peer's peak, in open loops


def main() -> None:
    """Measure, print tables and the JSON; exit status 1 where an answer was wrong."""
    args = parse()
    signal.signal(signal.SIGTERM, stop)
    left_out = dict(install_all(args.peers))
    peers = [name for name in args.peers if name not in left_out]
    tasks = {name: compare(TASKS[name](), peers, args) for name in args.only}
    report = {
        "machine": machine_name(),
        "seconds": args.seconds,
        "rounds": args.rounds,
        "versions": {name: versions(name) for name in ["ours", *peers]},
        "not_installed": left_out,
        "tasks": tasks,
    }
    print("\n".join(tables(report)))
    print(json.dumps(report))
    wrong = sum(each["wrong"] for task in tasks.values() for each in task["measured"])
    if wrong:
        sys.exit(f"{wrong} answers are not those of the network")


def stop(*_: object) -> None:
    """End as an error does, so that the servers are ended too; asked once is enough."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peers", default=",".join(PEERS), help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--only", choices=list(TASKS), help="one of the tasks")
    args = parser.parse_args()
    args.peers = [name for name in args.peers.split(",") if name]
    args.only = [args.only] if args.only else list(TASKS)
    if unknown := set(args.peers) - PEERS.keys():
        parser.error(f"{min(unknown)!r} is no peer; give some of {', '.join(PEERS)}")
    if not 0 < args.seconds < float("inf") or args.rounds < 1:
        parser.error("give --seconds above 0 and --rounds of 1 or more")
    return args


def install_all(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Those that cannot be installed, and why."""
    for name in names:
        say(f"installing {name}")
        try:
            install(name)
        except CannotRun as error:
            say(f"{name} is left out: {error}")
            yield name, str(error)


def compare(task: Task, peers: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    """Closed loops on all servers; then open loops on the best peer and on ours."""
    turns = Turns(args.rounds, args.seconds)
    ours, others = our_server(task), {name: peer_server(name, task) for name in peers}
    turns.measure([*others.values(), ours], CLOSED)
    if ours.name in turns.left_out:
        sys.exit(f"this repository's server: {turns.left_out[ours.name]}")
    rates = {name: loads[PEAK.name]["rate"] for name, loads in turns.summary().items()}
    best = max(rates.keys() & others.keys(), key=rates.__getitem__, default=None)
    if best is not None:
        loads = [Load(f"{share:.0%} of its peak", rate=share * rates[best]) for share in SHARES]
        turns.measure([others[best], ours], loads)
    return {
        "plain_accuracy": task.plain_accuracy,
        "least_accuracy": least_accuracy(task),
        "left_out": turns.left_out,
        "best_peer": best,
        "ratios": {each.name: rates[each.name] / rates[best] for each in ours.contenders if best},
        "summary": turns.summary(),
        "measured": [figures._asdict() for figures in turns.measured],
    }


def peer_server(name: str, task: Task) -> Server:
    """A peer, installed before."""
    peer, calls = PEERS[name], task.peer_calls(PEERS[name].path)
    return Server(
        name,
        lambda: serving(
            peer.command_in(name),
            {**peer.environ, **task.environ},
            f"{name}-{task.name}",
            lambda url: answers(url, calls[0]),
        ),
        [Contender(name, calls, judge_of_peer(task))],
    )


if __name__ == "__main__":
    main()
