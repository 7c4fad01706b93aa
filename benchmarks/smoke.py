"""Smoke runs of all benchmarks: each must end well and print its JSON, within seconds.

    .venv/bin/python -m benchmarks.smoke [NAME...]

Two run at a time; of the peers only this server runs, so that nothing need be installed. The
figures of a smoke run mean nothing. JSON on the last line.
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from benchmarks.harness import REPO

AT_A_TIME, TIMEOUT_S, STOP_S = 2, 180.0, 20.0
OPTIONS = {"peers.run": ["--peers", ""]}
BENCHMARKS = (  # the longest first, so that both cores stay busy
    "peers.run",
    "policy_bars",
    "combined_answers",
    "priors",
    "cascades",
    "engine",
    "soak.run",
    "policies",
    "certificates",
    "quality.run",
    "control.over_http",
    "control.after_overload",
    "validate_simulation",
    "predictions",
    "deadlines",
    "budget_demo",
    "control.simulated",
    "overload",
    "refill",
    "networks",
    "precision",
    "growth",
    "request_path",
    "alarms",
    "processes",
    "gpu",
    "overload_http",
    "protocols",
    "large_bodies",
    "metrics_scrape",
    "engine_process",
    "transport",
    "decoding",
    "record_drift",
    "observability",
    "control.report",
)


class SmokeRun(NamedTuple):
    """The outcome of one smoke run; no problem: None."""

    name: str
    seconds: float
    problem: str | None


def main() -> int:
    """Run them and print a line each; 1 if one has a problem."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", default=BENCHMARKS, metavar="NAME")
    names: list[str] = parser.parse_args().names
    started = time.perf_counter()
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        runs = list(pool.map(run, names))
    problems = {each.name: each.problem for each in runs if each.problem is not None}
    seconds = {each.name: round(each.seconds, 1) for each in runs}
    total_s = round(time.perf_counter() - started, 1)
    print(json.dumps({"seconds": seconds, "total_s": total_s, "problems": problems}))
    return 1 if problems else 0


def run(name: str) -> SmokeRun:
    """Run one benchmark with --smoke and check what it prints."""
    started = time.perf_counter()
    command = [sys.executable, "-m", f"benchmarks.{name}", "--smoke", *OPTIONS.get(name, ())]
    process = subprocess.Popen(
        command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        output, errors = process.communicate(timeout=TIMEOUT_S)
        problem = problem_of(process.returncode, output, errors)
    except subprocess.TimeoutExpired:
        problem = f"it took more than {TIMEOUT_S:g} s"
        _stop(process)
    seconds = time.perf_counter() - started
    print(f"{name:22s} {seconds:5.1f} s  {problem or 'good'}", flush=True)
    return SmokeRun(name, seconds, problem)


def _stop(process: "subprocess.Popen[str]") -> None:
    """Ask a benchmark to end, so that it stops its servers; kill it if it does not."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def problem_of(status: int, output: str, errors: str) -> str | None:
    """A sentence if a smoke run failed or its last line is not its JSON, else None."""
    if status != 0:
        return f"it ended with status {status}: {(errors or output).strip()[-2000:]}"
    last = (output.strip().splitlines() or [""])[-1]
    try:
        report = json.loads(last)
    except ValueError:
        return f"its last line is not JSON: {last[:200]!r}"
    if not isinstance(report, dict) or report.get("smoke") is not True:
        return "its JSON does not say that it was a smoke run"
    return None


if __name__ == "__main__":
    sys.exit(main())
