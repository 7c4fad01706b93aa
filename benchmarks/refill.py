"""Gain of batches that refill between stages, and of each order of stages, in simulation.

    .venv/bin/python -m benchmarks.refill [--samples 20000] [--figure docs/images/refill.svg]

Networks of equal stages of 1 ms. Rates are shares of what full batches of every stage would do.
JSON on the last line.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.harness import make_parser, print_report
from models.stage_costs import StageCosts
from profiling.evaluation.figures import STYLE
from profiling.simulation.arrivals import at_once, poisson
from profiling.simulation.disciplines import DISCIPLINES
from profiling.simulation.simulator import MODES, Device, Simulated, Traffic, simulate

LOADS = (0.3, 0.7, 0.95, None)  # None: saturated
COLOURS = dict(zip(MODES, ("#6b7280", "#0072b2", "#d55e00"), strict=True))
DASHES = dict(zip(MODES, (":", "--", "-"), strict=True))
Array = NDArray[np.float64]


class Case(NamedTuple):
    """A device, a mix of exits, and a load."""

    device: str
    exits: str
    num_exits: int
    load: float | None


def main() -> None:
    """Print both tables, draw the figure."""
    parser = make_parser(__doc__)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--figure", type=Path, metavar="OUT.svg")
    args = parser.parse_args()
    samples = 100 if args.smoke else args.samples
    modes = compare_modes(samples)
    disciplines = compare_disciplines(samples // 2)
    if args.figure is not None:
        with mpl.rc_context(STYLE):
            draw(samples // 2).savefig(args.figure, metadata={"Date": None})
    print_report({"modes": modes, "disciplines": disciplines}, smoke=args.smoke)


def devices(num_exits: int) -> dict[str, Device]:
    """Devices with costs like those of a CPU and of accelerators."""
    until_ms = [float(exit + 1) for exit in range(num_exits)]
    return {
        "2 cores, batch 1": Device(StageCosts.of_exits(until_ms), 2, 1),
        "16 rows free, batch 16": Device(StageCosts.of_exits(until_ms, 16), 1, 16),
        "16 rows free, batch 64": Device(StageCosts.of_exits(until_ms, 16), 1, 64),
        "64 rows free, batch 64": Device(StageCosts.of_exits(until_ms, 64), 1, 64),
        "(16 + n) / 17, batch 64": Device(rising(num_exits), 1, 64),
    }


def rising(num_exits: int) -> StageCosts:
    """Costs of (16 + n) / 17 for a batch of n rows: every additional row is worth it."""
    sizes = (1, 64)
    return StageCosts(sizes, np.tile((16 + np.array(sizes)) / 17, (num_exits, 1)))


def exit_rates(num_exits: int) -> dict[str, Array]:
    """Mixes of exits: as many at every exit, early (81/16/3 % of three), all at the last."""
    early = 0.2 ** np.arange(num_exits)
    return {
        "equal": np.full(num_exits, 1 / num_exits),
        "early": early / early.sum(),
        "to the end": np.eye(num_exits)[-1],
    }


def traffic_of(device: Device, rates: Array, load: float | None, count: int) -> Traffic:
    """Draw arrivals at a load, and exits at the rates."""
    exits = np.random.default_rng(0).choice(len(rates), count, p=rates)
    if load is None:
        return Traffic(at_once(count), exits)
    return Traffic(poisson(load * device.capacity_per_s(exits), count, 1), exits)


def cases(num_exits: int, count: int) -> Iterator[tuple[Case, Device, Traffic]]:
    """Yield every device, mix of exits and load."""
    for name, device in devices(num_exits).items():
        for mix, rates in exit_rates(num_exits).items():
            for load in LOADS:
                traffic = traffic_of(device, rates, load, count)
                yield Case(name, mix, num_exits, load), device, traffic


def compare_modes(count: int) -> list[dict[str, Any]]:
    """Compare the modes at three exits: throughput where saturated, elsewhere p50 / p99."""
    print(f"{'device':24s} {'exits':11s} load" + "".join(f"{mode:>22s}" for mode in MODES))
    found = []
    for case, device, traffic in cases(3, count):
        results = [simulate(traffic, device, mode) for mode in MODES]
        shown = "".join(f"{_shown(case, result):>22s}" for result in results)
        print(f"{case.device:24s} {case.exits:11s} {_load(case.load):4s}{shown}", flush=True)
        found.append(_figures(case, dict(zip(MODES, results, strict=True))))
    return found


def compare_disciplines(count: int) -> list[dict[str, Any]]:
    """Compare refilling by each discipline, over 3, 4 and 8 exits, with the best of them."""
    found, everything = [], list[tuple[Case, dict[str, Simulated]]]()
    for num_exits in (3, 4, 8):
        for case, device, traffic in cases(num_exits, count):
            if device.max_batch > 1:  # at batch 1 deepest, oldest and urgent are the same
                results = {each: simulate(traffic, device, "refill", each) for each in DISCIPLINES}
                everything.append((case, results))
                found.append(_figures(case, results))
    print("\ndisciplines on accelerators: figures over those of the best, geometric means")
    print(f"{'':14s}" + "".join(f"{_load(load):>23s}" for load in LOADS[:-1]) + f"{'full':>13s}")
    print(f"{'':14s}" + f"{'p50    p99   mean':>23s}" * 3 + f"{'throughput':>13s}   most in flight")
    for discipline in DISCIPLINES:
        cells = [_cell(discipline, load, everything) for load in LOADS]
        most = max(results[discipline].in_flight for _, results in everything)
        latencies = "".join(f"{cell:>23s}" for cell in cells[:-1])
        print(f"{discipline:14s}{latencies}{cells[-1]:>13s}   {most:6d}")
    return found


def _cell(
    discipline: str, load: float | None, everything: Sequence[tuple[Case, dict[str, Simulated]]]
) -> str:
    """Geometric means of a discipline's figures over those of the best one, at one load."""
    ratios = []
    for case, results in everything:
        if case.load == load:
            each = {name: _numbers(case, result) for name, result in results.items()}
            best = max(each.values()) if load is None else np.min(list(each.values()), 0)
            ratios.append(np.divide(each[discipline], best))
    return " ".join(f"{mean:6.3g}" for mean in np.exp(np.log(ratios).mean(0)))


def draw(count: int) -> Figure:
    """Draw throughput over the share of samples that leave early."""
    figure = Figure(figsize=(9.6, 3.6))
    shares = np.linspace(0, 0.95, 20)
    for axes, (name, device) in zip(
        figure.subplots(1, 2, sharey=True), list(devices(3).items())[1:3], strict=True
    ):
        full = device.capacity_per_s(np.full(1, 2, np.intp))
        for mode in reversed(MODES):
            rates = [
                simulate(
                    traffic_of(device, np.array([share, 0, 1 - share]), None, count), device, mode
                ).throughput_per_s
                for share in shares
            ]
            line: dict[str, Any] = {"color": COLOURS[mode], "ls": DASHES[mode], "lw": 1.6}
            axes.plot(100 * shares, np.array(rates) / full, label=mode, **line)
        axes.set(
            xlim=(0, 100), xlabel="samples that leave at the first of three exits, %", title=name
        )
    figure.axes[0].set(ylabel="throughput, times that of all to the end")
    figure.axes[0].legend(fontsize=8)
    return figure


def _numbers(case: Case, result: Simulated) -> tuple[float, ...]:
    if case.load is None:
        return (result.throughput_per_s,)
    p50, _, p99 = result.percentiles_ms
    return float(p50), float(p99), float(result.latency_ms.mean())


def _shown(case: Case, result: Simulated) -> str:
    numbers = _numbers(case, result)
    if case.load is None:
        return f"{numbers[0]:.0f}/s"
    return " / ".join(f"{ms:.2f}" for ms in numbers[:2]) + " ms"


def _load(load: float | None) -> str:
    return "full" if load is None else f"{load:.0%}"


def _figures(case: Case, results: dict[str, Simulated]) -> dict[str, Any]:
    return case._asdict() | {
        name: [round(number, 3) for number in _numbers(case, result)]
        for name, result in results.items()
    }


if __name__ == "__main__":
    main()
