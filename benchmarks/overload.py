"""Overload on a recorded trace: SLO attainment against accuracy over all requests, simulated.

    .venv/bin/python -m benchmarks.overload [--trace FILE] [--figure docs/images/overload.svg]

The shipped bundles at the costs of their profiles, with two workers and batches of up to 8; the
rows are the bundles' test rows. The trace is compressed to a minute, and its rate scaled so that 5,
10 and 20 % of the seconds exceed what the whole network answers. A request that is refused is late
and wrong. Default trace: Azure LLM inference trace 2023, "code" (Splitwise, ISCA '24), CC-BY 4.0.
Prints a table and the goal: 2 points more accuracy than SlackFit at no fewer answers in time, or
half its late answers at no less accuracy. JSON on the last line.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness import BUNDLES, REPO, make_parser, print_report
from profiling.evaluation.figures import STYLE
from profiling.simulation.comparison import BUCKETS, Result, compare, read_subject
from profiling.trace import read_trace, replay_trace

TRACE = REPO / "tests/data/azure2023_code.npz"
WORKERS, MAX_BATCH = 2, 8
SECONDS, EXCEEDING = 60.0, (0.05, 0.1, 0.2)
SLOS_MS = {"image": (10.0, 20.0, 50.0, 100.0), "text": (50.0, 100.0, 200.0, 500.0)}
SEEDS = {"image": 1, "text": 3}  # a minute of texts is few requests
RIVAL, OURS = "SlackFit", ("budget SLO/8", "budget SLO/4", "budget SLO/2")
POINTS, FACTOR = 0.02, 0.5  # the goal: accuracy gained, or share of misses left


class Case(NamedTuple):
    """Results of all ways to serve at one load and SLO, means over the seeds."""

    exceeding: float
    slo_ms: float
    requests: int
    results: dict[str, Result]


class Look(NamedTuple):
    """How a way to serve is drawn: colours of Okabe and Ito, and markers, tell them apart."""

    colour: str
    marker: str
    label: str


LOOKS = {
    "whole network": Look("#000000", "s", "whole network, 429"),
    "exit 0": Look("#666666", "v", "one fixed exit"),
    "frozen thresholds": Look("#E69F00", "D", "frozen thresholds"),
    RIVAL: Look("#D55E00", "X", "SlackFit"),
    OURS[0]: Look("#0072B2", "o", "EENet Serve, budgets of SLO/8, /4, /2"),
}
SHOWN = ("whole network", "exit 0", "exit 1", "frozen thresholds", RIVAL, *OURS)
FIXED, BUDGETS = ("exit ", "budget ")
FAR = 0.1  # points of accuracy behind the best, beyond which a way is named beside the plot


def main() -> None:
    """Simulate all cases, print the tables, draw the figure."""
    parser = make_parser(__doc__)
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--bundles", default=",".join(BUNDLES))
    parser.add_argument("--buckets", type=int, default=BUCKETS, help="SlackFit's (%(default)s)")
    parser.add_argument("--figure", type=Path, metavar="OUT.svg")
    args = parser.parse_args()
    times_s = read_trace(args.trace)
    seconds, shares = (5.0, (0.4,)) if args.smoke else (SECONDS, EXCEEDING)
    cases = {}
    for name in args.bundles.split(","):
        slos_ms = SLOS_MS[name][-1:] if args.smoke else SLOS_MS[name]
        cases[name] = run_cases(name, times_s, seconds, shares, slos_ms, args.buckets)
        print_table(name, cases[name])
    if args.figure is not None:
        with mpl.rc_context(STYLE):
            draw(cases).savefig(args.figure, metadata={"Date": None})
    documents = {name: [_document(case) for case in found] for name, found in cases.items()}
    print_report({"trace": args.trace.name, "cases": documents}, smoke=args.smoke)


def run_cases(
    name: str,
    times_s: np.ndarray[Any, np.dtype[np.float64]],
    seconds: float,
    shares: Sequence[float],
    slos_ms: Sequence[float],
    buckets: int,
) -> list[Case]:
    """Simulate a bundle at every load and SLO."""
    subject, found = read_subject(BUNDLES[name], workers=WORKERS, max_batch=MAX_BATCH), []
    for share in shares:
        capacity = subject.full_depth_per_s
        seeds = range(SEEDS[name])
        replays = [replay_trace(times_s, seconds, capacity, share, seed) for seed in seeds]
        offered = [subject.offer(replay.arrivals_s, seed) for seed, replay in enumerate(replays)]
        requests = sum(len(each.rows) for each in offered)
        for slo_ms in slos_ms:
            runs = [compare(subject, each, slo_ms, buckets) for each in offered]
            means = [_mean(same) for same in zip(*runs, strict=True)]
            found.append(Case(share, slo_ms, requests, {each.policy: each for each in means}))
    return found


def _mean(results: Sequence[Result]) -> Result:
    """Return the mean of one way's results over the seeds."""
    numbers = [(each.attainment, each.accuracy, each.refused) for each in results]
    attainment, accuracy, refused = np.mean(numbers, 0).tolist()
    return results[0]._replace(
        attainment=attainment,
        accuracy=accuracy,
        refused=refused,
        exit_rates=tuple(np.mean([each.exit_rates for each in results], 0).tolist()),
    )


def is_met(ours: Result, rival: Result) -> bool:
    """Whether one way reaches the goal against another."""
    gained = ours.attainment >= rival.attainment and ours.accuracy >= rival.accuracy + POINTS
    halved = ours.accuracy >= rival.accuracy and 1 - ours.attainment <= FACTOR * (
        1 - rival.attainment
    )
    return gained or (halved and rival.attainment < 1)


def print_table(name: str, cases: Sequence[Case]) -> None:
    """Print a Markdown table: in time / right, in % of all requests; bold where the goal is met."""
    shown = [way for way in SHOWN if way in cases[0].results]
    print(f"\n**{name.capitalize()}s**: in time / right\n")
    print("| exceeding | SLO | " + " | ".join(shown) + " |")
    print("|---" * (len(shown) + 2) + "|")
    for case in cases:
        cells = [_cell(case, way) for way in shown]
        print(f"| {case.exceeding:.0%} | {case.slo_ms:g} ms | {' | '.join(cells)} |", flush=True)


def _cell(case: Case, way: str) -> str:
    result = case.results[way]
    cell = f"{100 * result.attainment:.1f} / {100 * result.accuracy:.1f}"
    met = way in OURS and is_met(result, case.results[RIVAL])
    return f"**{cell}**" if met else cell


def draw(cases: dict[str, list[Case]]) -> Figure:
    """Draw accuracy over attainment: a row per bundle at its middle load, a column per SLO."""
    columns = max(len({case.slo_ms for case in found}) for found in cases.values())
    figure = Figure(figsize=(2.9 * columns, 3.1 * len(cases) + 0.9))
    grid = figure.subplots(len(cases), columns, squeeze=False)
    for row, (name, found) in zip(grid, cases.items(), strict=True):
        shares = sorted({case.exceeding for case in found})
        middle = [case for case in found if case.exceeding == shares[len(shares) // 2]]
        for axes, case in zip(row, middle, strict=False):
            _draw_case(axes, case)
            axes.set_title(f"{name}s, SLO {case.slo_ms:g} ms", fontsize=9)
            axes.set_xlabel("answered in time, % of all requests")
        row[0].set_ylabel("answered rightly, % of all requests")
    figure.suptitle(
        f"{middle[0].exceeding:.0%} of the seconds exceed what the whole network can answer; "
        "refused requests count as late and wrong; best is up and to the right",
        fontsize=10,
    )
    figure.legend(*grid[0, 0].get_legend_handles_labels(), ncols=3, loc="outside lower center")
    return figure


def _draw_case(axes: Axes, case: Case) -> None:
    """Draw each way as a point; those that differ in one number are joined by a line."""
    best = max(each.accuracy for each in case.results.values())
    near = {name: each for name, each in case.results.items() if best - each.accuracy < FAR}
    for key, look in LOOKS.items():
        family = FIXED if key.startswith(FIXED) else BUDGETS if key.startswith(BUDGETS) else key
        found = {name: each for name, each in near.items() if name.startswith(family)}
        across = [100 * each.attainment for each in found.values()]
        up = [100 * each.accuracy for each in found.values()]
        axes.plot(
            across, up, linestyle=":" if family == BUDGETS else "none", color=look.colour, lw=1,
            marker=look.marker, markersize=6, label=look.label,
        )  # fmt: skip
        for name, x, y in zip(found, across, up, strict=True):
            if name in OURS or family == FIXED:
                axes.annotate(
                    name.removeprefix(BUDGETS), (x, y), (0, 6 if name in OURS else -11),
                    textcoords="offset points", fontsize=7, color=look.colour, ha="center",
                )  # fmt: skip
    far = [
        f"{name}: {100 * each.attainment:.0f} / {100 * each.accuracy:.0f}"
        for name, each in case.results.items()
        if name not in near
    ]
    if far:
        note = "\n".join(["outside, in time / right", *far])
        axes.text(0.03, 0.97, note, transform=axes.transAxes, fontsize=7, va="top")
    axes.margins(0.17)
    axes.set_xlim(right=min(axes.get_xlim()[1], 100.3))


def _document(case: Case) -> dict[str, Any]:
    results = {name: each._asdict() for name, each in case.results.items()}
    goals = {ours: is_met(case.results[ours], case.results[RIVAL]) for ours in OURS}
    return case._asdict() | {"results": results, "goal_met": goals}


if __name__ == "__main__":
    main()
