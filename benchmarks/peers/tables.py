"""Tables of the measurements, in Markdown."""

from collections.abc import Iterator
from typing import Any

LATENCY = "p50, p99 ms"


def tables(report: dict[str, Any]) -> Iterator[str]:
    """Yield lines: two tables per task, then the peers that were left out."""
    for task, measured in report["tasks"].items():
        yield from _closed(task, measured)
        yield from _open(measured)
        yield from _notes(measured)
    for name, reason in report["not_installed"].items():
        yield f"{name} is left out: {reason}"


def _closed(task: str, measured: dict[str, Any]) -> Iterator[str]:
    one, many = "1 connection", "32 connections"
    head = [
        task,
        f"requests/s, {many}",
        f"of {measured['best_peer']}",
        LATENCY,
        f"{LATENCY}, {one}",
    ]
    yield f"| {' | '.join(head)} |"
    yield "|---|---|---|---|---|"
    best = measured["summary"].get(measured["best_peer"])
    for name, loads in measured["summary"].items():
        peak = loads[many]
        share = "" if best is None else f"{peak['rate'] / best[many]['rate']:.2f}"
        rate = f"{peak['rate']:.0f} ({100 * peak['rate_spread']:.1f} %)"
        yield f"| {name} | {rate} | {share} | {_latency(peak)} | {_latency(loads[one])} |"
    yield ""


def _open(measured: dict[str, Any]) -> Iterator[str]:
    rows = {
        name: {load: figures for load, figures in loads.items() if load.endswith("peak")}
        for name, loads in measured["summary"].items()
    }
    rows = {name: loads for name, loads in rows.items() if loads}
    if not rows:
        return
    shares = next(iter(rows.values()))
    yield f"| {LATENCY} at | {' | '.join(shares)} |".replace("its", measured["best_peer"] + "'s")
    yield "|---" * (len(shares) + 1) + "|"
    for name, loads in rows.items():
        yield f"| {name} | {' | '.join(_latency(figures) for figures in loads.values())} |"
    yield ""


def _notes(measured: dict[str, Any]) -> Iterator[str]:
    yield "In brackets the spread of the rounds, largest less smallest by their median."
    plain = 100 * measured["plain_accuracy"]
    for each in measured["measured"]:
        more = each["more"]
        if more.get("budget_ms") is not None:
            rates = " ".join(f"{rate:.2f}" for rate in more["exit_rates"])
            missed = more["test_accuracy"] < measured["least_accuracy"]
            yield (
                f"{each['contender']}, {each['load']}: {more['budget_ms']:.3f} ms budget, "
                f"{more['rolling_latency_ms']:.3f} measured, exit rates {rates}, test accuracy "
                f"{100 * more['test_accuracy']:.2f} % (plain {plain:.2f} %)"
                + (": MORE THAN HALF A POINT IS LOST" if missed else "")
            )
    for name, loads in measured["summary"].items():
        errors, wrong = (
            sum(figures[what] for figures in loads.values()) for what in ("errors", "wrong")
        )
        if errors or wrong:
            yield f"{name}: {errors} requests without an answer, {wrong} wrong answers"
    for name, reason in measured["left_out"].items():
        yield f"{name} is left out: {reason}"
    yield ""


def _latency(figures: dict[str, float]) -> str:
    return f"{figures['p50_ms']:.1f}, {figures['p99_ms']:.1f}"
