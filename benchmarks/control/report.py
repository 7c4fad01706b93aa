"""Tables and images of how budgets were held, from the logs of benchmarks.control.simulated.

    .venv/bin/python -m benchmarks.control.report build/control/image-*.npz [--images DIR]
    .venv/bin/python -m benchmarks.control.report benchmarks/control/data/real.npz \
        --images docs/images

Figures as in `ControlMetrics` (benchmarks/control/metrics.py), in % except samples and ms; over
several seeds the worst time to settle and overshoot, the mean of the rest. JSON on the last line.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.control.log import ControlLog, load_logs
from benchmarks.control.metrics import ControlMetrics, measure_control
from benchmarks.control.plots import control_figure
from benchmarks.harness import REPO, make_parser, print_report

HEAD = (
    "| scenario | settle | overshoot | above | under-use | budget | latency | accuracy | lost "
    "| infeasible |"
)
GOALS = {"settle": 1300, "overshoot": 0.05, "above": 0.01, "under_use": 0.03, "lost": 0.003}
APART = ("1/s",)  # no window can meet the goals there
# What never settles need not use all of the budget.
UNSTEADY = ("on and off", "neighbours")
UNSTEADY_GOALS = {"overshoot": 0.1, "above": 0.02}
REAL, SMOKE_LOGS = REPO / "benchmarks/control/data/real.npz", 2
SHOWN = ("budget steps", "slow host", "noise", "longer", "burst")


class Key(NamedTuple):
    """Subject, policy, law and scenario of a log, without its seed."""

    subject: str
    policy: str
    law: str
    scenario: str
    drifts: bool


def main() -> int:
    """Print the tables, write the images, judge."""
    parser = make_parser(__doc__)
    parser.add_argument("logs", type=Path, nargs="*", metavar="LOGS.npz")
    parser.add_argument("--images", type=Path, help="folder for one image a file of logs")
    parser.add_argument(
        "--goals", action="store_true", help="end with status 1 if the controller misses a goal"
    )
    args = parser.parse_args()
    if not args.logs and not args.smoke:
        parser.error("give files of logs")
    document: list[dict[str, Any]] = []
    all_figures: dict[Key, ControlMetrics] = {}
    for path in args.logs or [REAL]:
        logs = load_logs(path)[: SMOKE_LOGS if args.smoke else None]
        figures = grouped(logs)
        document += [key._asdict() | each._asdict() for key, each in figures.items()]
        all_figures |= figures
        print("\n".join(tables(figures)), flush=True)
        if args.images is not None:
            args.images.mkdir(parents=True, exist_ok=True)
            write_image(logs, args.images / f"control-{path.stem}.svg")
    print("\n".join(summary(all_figures)))
    missed = [key for key, each in all_figures.items() if misses(key, each)]
    for key in missed if args.goals else ():
        print(f"MISSED: {' '.join(key[:4])}")
    print_report({"figures": document}, smoke=args.smoke)
    return 1 if args.goals and missed else 0


def misses(key: Key, figures: ControlMetrics) -> bool:
    """Whether the controller misses a goal that can be met."""
    judged = key.law == "controller" and key.scenario not in APART
    return judged and any("*" in shown(key, figures, name) for name in GOALS)


def grouped(logs: Iterable[ControlLog]) -> dict[Key, ControlMetrics]:
    """Compute the figures of each scenario under each law, over all seeds."""
    found: dict[Key, list[ControlMetrics]] = defaultdict(list)
    for log in logs:
        about = log.about
        key = Key(*(about[name] for name in Key._fields))
        found[key].append(measure_control(log))
    return {key: over_seeds(each) for key, each in found.items()}


def over_seeds(figures: Sequence[ControlMetrics]) -> ControlMetrics:
    """Combine seeds: the worst time to settle and overshoot, the mean of the rest."""

    def known(name: str) -> list[Any]:
        return [value for each in figures if (value := getattr(each, name)) is not None]

    combined: dict[str, Any] = {}
    for name in ControlMetrics._fields:
        values = known(name)
        worst = name in ("settle", "overshoot")
        combined[name] = None if not values else max(values) if worst else float(np.mean(values))
    return ControlMetrics(**combined)


def tables(figures: dict[Key, ControlMetrics]) -> list[str]:
    """One Markdown table per policy and law; * marks a missed goal."""
    lines: list[str] = []
    heads = list(dict.fromkeys((key.subject, key.policy, key.law) for key in figures))
    for head in heads:
        lines += ["", " ".join(f"**{part}**" for part in head), "", HEAD, "|---" * 10 + "|"]
        here = {key: each for key, each in figures.items() if key[:3] == head}
        lines += [row(key, each) for key, each in here.items()]
        above = {key: each for key, each in here.items() if "*" in shown(key, each, "above")}
        lines += above_table(above)
    return lines


def above_table(figures: dict[Key, ControlMetrics]) -> list[str]:
    """How many samples left at exit 0 while the mean was above the budget, and their latency."""
    rows = [
        f"| {key.scenario} | {each.budget_ms:.2f} | {100 * each.first_exit:.0f} "
        f"| {each.first_exit_ms:.2f} |"
        for key, each in figures.items()
        if each.first_exit is not None
    ]
    head = ["", "| above the budget | budget | at exit 0, % | their latency |", "|---" * 4 + "|"]
    return head + rows if rows else []


def summary(figures: dict[Key, ControlMetrics]) -> list[str]:
    """One line per policy and law: the worst of settling and overshoot, the mean of the rest."""
    found: dict[tuple[str, ...], list[ControlMetrics]] = defaultdict(list)
    for key, each in figures.items():
        if key.scenario not in APART:
            found[key[:3]].append(each)
    lines = ["", f"All scenarios but {' and '.join(APART)}:", "", f"| | {' | '.join(GOALS)} |"]
    lines.append("|---" * (len(GOALS) + 1) + "|")
    for head, scenarios in found.items():
        combined = over_seeds(scenarios)
        cells = [
            "" if (value := getattr(combined, name)) is None
            else f"{value:.0f}" if name == "settle" else f"{100 * value:.2f}"
            for name in GOALS
        ]  # fmt: skip
        lines.append(f"| {' '.join(head)} | {' | '.join(cells)} |")
    return lines


def row(key: Key, figures: ControlMetrics) -> str:
    """The table row of one scenario."""
    marked = {name: shown(key, figures, name) for name in GOALS}
    cells = [
        key.scenario, *(marked[name] for name in ("settle", "overshoot", "above", "under_use")),
        f"{figures.budget_ms:.2f}", f"{figures.mean_ms:.2f}",
        "" if figures.accuracy is None else f"{100 * figures.accuracy:.2f}",
        marked["lost"], "" if figures.infeasible < 0.0005 else f"{100 * figures.infeasible:.0f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def shown(key: Key, figures: ControlMetrics, name: str) -> str:
    """Format a figure, with a star if it misses its goal."""
    value = getattr(figures, name)
    if value is None:
        return ""
    goal = (UNSTEADY_GOALS if key.scenario in UNSTEADY else GOALS).get(name)
    missed = goal is not None and value > goal and not (name == "lost" and key.drifts)
    text = f"{value:.0f}" if name == "settle" else f"{100 * value:.2f}"
    return text + ("*" if missed else "")


def write_image(logs: Sequence[ControlLog], path: Path) -> None:
    """Draw the controller beside the frozen parameter in a few scenarios."""
    first: dict[tuple[str, str], ControlLog] = {}
    for log in logs:
        first.setdefault((log.about["scenario"], log.about["law"]), log)
    pairs = [
        (first[name, "controller"], first.get((name, "frozen")))
        for name in SHOWN
        if (name, "controller") in first
    ]
    about = logs[0].about
    title = f"{about['subject']}s, {about['policy']}, {about['source']}"
    control_figure(pairs, title).savefig(path, metadata={"Date": None})
    print(f"image: {path}")


if __name__ == "__main__":
    sys.exit(main())
