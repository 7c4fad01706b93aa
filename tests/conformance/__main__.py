"""Attack a running server and say whether it holds.

    python -m tests.conformance URL [--pid PID] [--only NAME,...]
        [--path /predict] [--probe /livez] [--page /metrics]

Run it from the root of a checkout. Each line names a check and its figures. With --pid, that of the
server's first process, its memory is watched too, and checks that kill its processes run. Ends with
status 1 if the server falls. `make conformance` starts servers of its own.
"""

import argparse
import sys

from tests.conformance.checks import perform
from tests.conformance.suite import CHECKS
from tests.conformance.target import target_of


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], prog="python -m tests.conformance"
    )
    parser.add_argument("url", metavar="URL")
    parser.add_argument("--pid", type=int, help="the server's first process, to watch its memory")
    parser.add_argument("--path", default="/predict", help="its route for predictions")
    parser.add_argument("--probe", default="/livez", help="a route that is 200 while it lives")
    parser.add_argument("--page", default="/metrics", help="a route with a long answer")
    names = [check.name for check in CHECKS]
    parser.add_argument("--only", metavar="NAME,...", help=", ".join(names))
    args = parser.parse_args()
    chosen = args.only.split(",") if args.only else names
    if unknown := set(chosen) - set(names):
        parser.error(f"no check is named {', '.join(sorted(unknown))}")
    target = target_of(args.url, args.pid, args.path)._replace(probe=args.probe, page=args.page)
    fallen = []
    for check in CHECKS:
        if check.name not in chosen or (check.needs_pid and args.pid is None):
            continue
        try:
            figures = perform(check, target)
        except (AssertionError, OSError) as error:
            fallen.append(check.name)
            print(f"{check.name:26} falls: {error}", flush=True)
        else:
            print(
                f"{check.name:26} holds: sent {figures.sent}, lost {figures.lost}, wrong "
                f"{figures.wrong}; {figures.note}",
                flush=True,
            )
    print(f"{len(fallen)} of {len(chosen)} fall{': ' if fallen else ''}{', '.join(fallen)}")
    return int(bool(fallen))


if __name__ == "__main__":
    sys.exit(main())
