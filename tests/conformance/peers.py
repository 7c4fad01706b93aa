"""The attacks that make sense for any server, on LitServe, mosec and this one.

    .venv/bin/python -m tests.conformance.peers [--servers ours,litserve,mosec] [--seconds 280]
        [--only NAME,...]

Each serves the same image network (benchmarks/peers). A check runs in a process of its own that is
ended after `CHECK_S`; a server that has died, or answers no more, is started anew for the next
check. After `--seconds` the checks of a server that are left are not run. Prints a table in
Markdown, and ends with status 1 if this repository's server falls.
"""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import NamedTuple

from benchmarks.harness import IMAGE_BUNDLE, REPO, eenet
from benchmarks.peers.running import (
    HERE,
    PEERS,
    CannotRun,
    Started,
    install,
    starting,
    versions,
)
from tests.conformance import http_checks, image_checks, load_checks
from tests.conformance.image_checks import real_images
from tests.conformance.prober import CLOSE
from tests.conformance.target import CLOSED, JPEG, Target, ask, head, post, statuses_in, target_of

CHECK_S, SERVER_S = 90.0, 280.0
PROBE_S = 10.0  # in which a server must answer after a check
IN_FLIGHT, STOP_S = 100, 10.0
SIGTERM = "sigterm"
LONGEST = 90  # characters of a cell
# Left out: what is about our processes, our lists, our JSON and our forms; peers have none of them.
CHECKS = (
    load_checks.hang_ups,
    *(image_checks.many_pixels_in_few_bytes, image_checks.many_scans),
    *(image_checks.packed_comments, image_checks.large_images, image_checks.runs_in_python),
    image_checks.mutated_bodies,
    *(http_checks.endless_header, http_checks.header_flood, http_checks.unknown_paths),
    *(http_checks.slow_clients, http_checks.open_bodies, http_checks.unread_answers),
    *(http_checks.too_large_a_body, http_checks.offers_of_upgrade),
    *(http_checks.two_lengths, http_checks.other_hosts),
)
NAMES = (*(check.__name__ for check in CHECKS), SIGTERM)


class Routes(NamedTuple):
    """Where a server answers; as in `Target`."""

    path: str
    probe: str
    page: str


ROUTES = {
    "ours": Routes("/predict", "/livez", "/metrics"),
    "litserve": Routes("/predict", "/health", "/openapi.json"),
    "mosec": Routes("/inference", "/", "/metrics"),
}
Results = dict[str, str]


def main() -> int:
    """Attack every server and print the table."""
    args = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are ended too
    results: dict[str, Results] = {}
    for name in args.servers:
        print(f"{name}:", flush=True)
        try:
            if name in PEERS:
                install(name)
            results[name] = attack(name, args.only, args.seconds)
        except CannotRun as error:
            print(f"  left out: {error}", flush=True)
    print("\n".join(table(results, args.only)))
    fallen = [check for check, told in results.get("ours", {}).items() if told[:5] != "holds"]
    return int(bool(fallen))


def parse() -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--servers", default=",".join(ROUTES), help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=SERVER_S, help="for each server")
    parser.add_argument("--only", default=",".join(NAMES), metavar="NAME,...")
    args = parser.parse_args()
    args.servers, args.only = args.servers.split(","), args.only.split(",")
    for given, known in ((args.servers, ROUTES), (args.only, NAMES)):
        if unknown := set(given) - set(known):
            parser.error(f"{min(unknown)!r} is none of {', '.join(known)}")
    return args


def attack(name: str, checks: Sequence[str], seconds: float) -> Results:
    """Run checks against a server one after another; what came of each.

    Raises:
        CannotRun: If the server cannot be started.
    """
    results: Results = {}
    left = list(checks)
    ends_s = time.monotonic() + seconds
    while left:
        with running(name) as server:
            target = target_at(server, ROUTES[name])
            while left:
                check = left.pop(0)
                if time.monotonic() > ends_s:
                    results[check] = "not run: no time left"
                    continue
                results[check], lives = perform(check, server, target)
                print(f"  {check:26} {results[check]}", flush=True)
                if not lives:
                    break
    return results


@contextmanager
def running(name: str) -> Iterator[Started]:
    """Start a server, and end it with all its processes."""
    path = ROUTES[name].path
    if name == "ours":
        command, environ = [*eenet("serve"), "--bundle", str(IMAGE_BUNDLE)], {}
        command += ["--log-level", "error", "--port", "PORT"]
    else:
        peer = PEERS[name]
        command = peer.command_in(name)
        environ = {**peer.environ, "BENCH_GRAPH": str(HERE / "plain-resnet56.onnx")}
    inherited: Mapping[str, str] = (
        {**environ, "PYTHONPATH": str(REPO)} if name == "ours" else environ
    )
    file = real_images()[0]
    with starting(
        command,
        inherited,
        f"conformance-{name}",
        lambda url: post(target_of(url, path=path), file, JPEG) == "200",
    ) as server:
        yield server


def target_at(server: Started, routes: Routes) -> Target:
    """The server as checks see it."""
    return target_of(server.url, server.process.pid)._replace(**routes._asdict())


def perform(check: str, server: Started, target: Target) -> tuple[str, bool]:
    """Run one check; what came of it, and whether the server still answers."""
    if check == SIGTERM:
        return end_with_requests_in_flight(server, target), False
    told = told_by(check, server, target)
    if server.process.poll() is not None:
        return f"{told}; the server has ended", False
    if not answers(target):
        return f"{told}; it answers no more", False
    return told, True


def told_by(check: str, server: Started, target: Target) -> str:
    """Run one check in a process of its own, for a time; what it printed."""
    command = [sys.executable, "-m", "tests.conformance", server.url, "--only", check]
    for name in ("pid", "path", "probe", "page"):
        command += [f"--{name}", str(getattr(target, name))]
    process = subprocess.Popen(
        command,
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=CHECK_S)
    except subprocess.TimeoutExpired:
        return f"falls: no end within {CHECK_S:.0f} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also its honest client
        process.communicate()  # which closes the pipes
    found = re.search(r"(holds|falls): (.*)", output)
    last = (errors.strip().splitlines() or ["it printed nothing"])[-1]
    return cell(found[1], found[2]) if found else f"falls: {last[:LONGEST]}"


def cell(outcome: str, told: str) -> str:
    """A line of the suite, shortened: what others saw if it holds, the reason if it falls."""
    if outcome == "falls":
        return f"falls: {told[:LONGEST]}"
    waited = re.search(r"others at most (\d+) ms", told)
    return f"holds, others wait {waited[1]} ms" if waited else "holds"


def answers(target: Target) -> bool:
    """Whether a server answers an image within a while."""
    ends_s = time.monotonic() + PROBE_S
    while time.monotonic() < ends_s:
        if ask(target, "POST", target.path, real_images()[0], JPEG).status == "200":
            return True
        time.sleep(0.2)
    return False


def end_with_requests_in_flight(server: Started, target: Target) -> str:
    """Send SIGTERM while requests are in flight; each is answered, and all processes end."""
    file = real_images()[0]
    request = head("POST", target.path, len(file), JPEG, CLOSE) + file
    connections = [target.connect(STOP_S) for _ in range(IN_FLIGHT)]
    for connection in connections:
        connection.sendall(request)
    server.process.terminate()
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        seen = Counter(pool.map(status_of, connections))
    ends_s = time.monotonic() + STOP_S
    while server.members and time.monotonic() < ends_s:
        time.sleep(0.1)
    left = len(server.members)
    lost, failed = seen[CLOSED], seen["500"]
    faults = [f"{lost} of {IN_FLIGHT} requests are lost"] if lost else []
    faults += [f"{failed} of {IN_FLIGHT} requests fail"] if failed else []
    faults += [f"{left} processes are left after {STOP_S:.0f} s"] if left else []
    if faults:
        return f"falls: {'; '.join(faults)}"
    refused = IN_FLIGHT - seen["200"]  # at a bound, before the signal or after it
    return f"holds, {refused} of {IN_FLIGHT} refused" if refused else "holds"


def status_of(connection: socket.socket) -> str:
    """The status of the answer to what was sent; `closed` without one."""
    answer = b""
    with connection, suppress(OSError):
        while data := connection.recv(65536):
            answer += data
    return statuses_in(answer)[0]


def table(results: Mapping[str, Results], checks: Sequence[str]) -> list[str]:
    """The table in Markdown, with the versions of the servers."""
    names = {name: f"{name} {versions(name).get(name, '')}".strip() for name in results}
    lines = [
        "| check | " + " | ".join(names.values()) + " |",
        "|---" * (len(results) + 1) + "|",
    ]
    for check in checks:
        cells = [results[name].get(check, "not run") for name in results]
        lines.append(
            f"| `{check}` | " + " | ".join(each.replace("|", "/") for each in cells) + " |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
