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
    best = measured["best_peers"].values()
    head = [
        task,
        f"requests/s, {many}",
        *(f"of {peer['name']}" for peer in best),
        LATENCY,
        f"{LATENCY}, {one}",
    ]
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for name, loads in measured["summary"].items():
        peak = loads[many]
        shares = [f"{peak['rate'] / peer['rate']:.2f}" for peer in best]
        rate = f"{peak['rate']:.0f} ({100 * peak['rate_spread']:.1f} %)"
        yield f"| {' | '.join([name, rate, *shares, _latency(peak), _latency(loads[one])])} |"
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
    reference = next(iter(measured["best_peers"].values()))["name"]
    yield f"| {LATENCY} at | {' | '.join(shares)} |".replace("its", f"{reference}'s")
    yield "|---" * (len(shares) + 1) + "|"
    for name, loads in rows.items():
        yield f"| {name} | {' | '.join(_latency(figures) for figures in loads.values())} |"
    yield ""


def _notes(measured: dict[str, Any]) -> Iterator[str]:
    yield "In brackets the spread of the rounds, largest less smallest by their median."
    plain = ", ".join(f"{name} {100 * of:.2f} %" for name, of in measured["plain_accuracy"].items())
    for name, ratios in measured["ratios"].items():
        for precision, ratio in ratios.items():
            yield f"{name}: {ratio:.2f} times the best {precision} peer's requests/s"
    for each in measured["measured"]:
        more = each["more"]
        if more.get("budget_ms") is not None:
            rates = " ".join(f"{rate:.2f}" for rate in more["exit_rates"])
            missed = more["test_accuracy"] < measured["least_accuracy"]
            yield (
                f"{each['contender']}, {each['load']}, {more['precision']}: "
                f"{more['budget_ms']:.3f} ms budget, "
                f"{more['rolling_latency_ms']:.3f} measured, exit rates {rates}, test accuracy "
                f"{100 * more['test_accuracy']:.2f} % (plain {plain})"
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
