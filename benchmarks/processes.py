"""Requests per second and CPU time per request, by the processes of the server.

    .venv/bin/python -m benchmarks.processes [--seconds 5] [--rounds 2] [--only free,gpu,network]
        [--against CHECKOUT] [--growth docs/images/processes.svg] [--connections 32,256]

free: a network that costs nothing, so that all time is the server's. gpu: a fake device that runs
64 rows in 1.3 ms. network: the shipped images, every request to the last exit. Layouts of processes
are measured in turns, round after round; `--against` adds a server of another checkout. `wrk` sends
the load where it is installed, else this project's load generator, which takes more of the cores.
Growth is measured with the network that costs nothing. JSON on the last line.
"""

import argparse
import itertools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np

from benchmarks.harness import (
    FREE,
    IMAGE_BUNDLE,
    REPO,
    Figures,
    RunningServer,
    image_calls,
    image_files,
    make_parser,
    print_report,
    put_budget,
    serving,
    write_costs,
)
from models.stage_costs import StageCosts
from profiling.loadtest.http_client import ConnectionConfig
from profiling.loadtest.load import closed_loop

WRK = shutil.which("wrk")
FAST_GPU = StageCosts((1, 64), np.full((3, 2), 1.3 / 3))  # 64 rows in the time of one
WARM_UP_S = 1.0
FORMER = "former tree"
LAYOUTS = {
    "one process": ("--front-ends", "0"),
    "1 front-end, 1 engine": ("--front-ends", "1", "--engines", "1"),
    "2 front-ends, 1 engine": ("--front-ends", "2", "--engines", "1"),
    "1 front-end, 2 engines": ("--front-ends", "1", "--engines", "2"),
}
GROWTH = {
    "front-ends": [(str(n), ("--front-ends", str(n), "--engines", "1"), 64) for n in (1, 2, 3, 4)],
    "engines": [(str(n), ("--front-ends", "1", "--engines", str(n)), 64) for n in (1, 2)],
    "connections": [
        (str(n), ("--front-ends", "1", "--engines", "1"), n) for n in (1, 8, 64, 256, 1000, 2000)
    ],
}


class Point(NamedTuple):
    """One measurement.

    Attributes:
        rate: Requests per second.
        cpu_us: CPU time per request of all processes.
        cpu_us_of: The same of each process.
        p50_ms: Median latency.
        p99_ms: 99th percentile of it.
        failed: Requests that were not answered with status 200.
        memory_mib: Memory of all processes (PSS).
    """

    rate: float
    cpu_us: float
    cpu_us_of: dict[str, float]
    p50_ms: float
    p99_ms: float
    failed: int
    memory_mib: float


def main() -> None:
    """Measure, print a line per measurement and the JSON."""
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        networks = networks_in(Path(folder))
        figures: Figures = {
            "load": "wrk" if WRK else "python",
            "layouts": {
                f"{network}, {connections} connections": compare(
                    networks[network], connections, args
                )
                for network in args.only
                for connections in args.connections
            },
        }
        if args.growth is not None or args.smoke:
            figures["growth"] = growth(networks["free"], args)
    if args.growth is not None and not args.smoke:
        draw(figures["growth"], args.growth)
    print_report(figures, smoke=args.smoke)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--only", default="free,gpu,network")
    parser.add_argument("--connections", default="32", help="default: %(default)s")
    parser.add_argument("--against", type=Path, help="a checkout of a former tree")
    parser.add_argument("--growth", type=Path, help="measure growth and draw it into this file")
    args = parser.parse_args()
    args.only = args.only.split(",")
    args.connections = [int(each) for each in args.connections.split(",")]
    if args.smoke:
        args.seconds, args.rounds, args.only, args.connections = 0.3, 1, ["free"], [4]
    return args


def networks_in(folder: Path) -> dict[str, tuple[str, ...]]:
    """Options of the server for each network."""
    bundle = ("--bundle", str(IMAGE_BUNDLE))
    options: dict[str, tuple[str, ...]] = {"network": (*bundle, "--precision", "float32")}
    for name, costs in (("free", FREE), ("gpu", FAST_GPU)):
        (folder / name).mkdir()
        path = write_costs(costs, folder / name)
        options[name] = (*bundle, "--backend", "replay", "--replay-costs", str(path))
    return options


def compare(network: tuple[str, ...], connections: int, args: argparse.Namespace) -> Figures:
    """Measure all layouts in turns; return the median round of each."""
    layouts: dict[str, tuple[tuple[str, ...], Path]] = {
        name: (options, REPO) for name, options in LAYOUTS.items()
    }
    if args.against is not None:
        layouts[FORMER] = ((), args.against.resolve())
    if args.smoke:
        layouts = dict(itertools.islice(layouts.items(), 1, 2))
    points: dict[str, list[Point]] = {name: [] for name in layouts}
    for _ in range(args.rounds):
        for name, (options, checkout) in layouts.items():
            point = measure((*network, *options), connections, args.seconds, checkout)
            points[name].append(point)
            show(f"{name}, {connections} connections", point)
    return {name: median(each)._asdict() for name, each in points.items()}


def growth(network: tuple[str, ...], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measure how rate and CPU time grow with front-ends, engines and connections."""
    grown: dict[str, dict[str, Any]] = {}
    for what, steps in GROWTH.items():
        grown[what] = {}
        for name, options, connections in steps[:1] if args.smoke else steps:
            point = measure((*network, *options), connections, args.seconds, REPO)
            show(f"{name} {what}", point)
            grown[what][name] = point._asdict()
    return grown


def measure(
    options: Sequence[str], connections: int, seconds: float, checkout: Path = REPO
) -> Point:
    """Start a server, and load it with every request to the last exit."""
    queue = str(max(2 * connections, 512))
    with serving(*options, "--max-queue", queue, checkout=checkout) as server:
        put_budget(server.url, None)
        send(server, connections, WARM_UP_S)
        before = server.cpu_s_of()
        rate, count, p50_ms, p99_ms, failed = send(server, connections, seconds)
        used = {name: cpu_s - before[name] for name, cpu_s in server.cpu_s_of().items()}
        each = {name: cpu_s / max(count, 1) * 1e6 for name, cpu_s in used.items()}
        memory_mib = server.memory_mib()
    return Point(rate, sum(each.values()), each, p50_ms, p99_ms, failed, memory_mib)


def send(
    server: RunningServer, connections: int, seconds: float
) -> tuple[float, int, float, float, int]:
    """Send images in a closed loop; return rate, count, median, 99th percentile and failures."""
    if WRK is None:
        config = ConnectionConfig(connections)
        load = closed_loop(server.url, image_calls(), config, seconds=seconds)
        p50_ms, p99_ms = load.percentiles(50, 99) or (nan, nan)
        count = len(load.call)
        failed = count - load.outcomes.get("200", 0)
        return load.rate, count, p50_ms, p99_ms, failed
    with tempfile.TemporaryDirectory() as folder:
        script = write_script(Path(folder))
        command = [WRK, "-t1", f"-c{connections}", f"-d{max(round(seconds), 1)}s", "--latency"]
        printed = subprocess.run(
            [*command, "-s", str(script), server.url], capture_output=True, text=True, check=True
        ).stdout
    return read_wrk(printed)


def write_script(folder: Path) -> Path:
    """Write a script that lets wrk send the test images one after another."""
    files = image_files()
    for place, file in enumerate(files):
        (folder / str(place)).write_bytes(file)
    script = folder / "post.lua"
    script.write_text(
        f"""local bodies, sent = {{}}, 0
for place = 0, {len(files) - 1} do
  local file = io.open("{folder}/" .. place, "rb")
  bodies[place] = file:read("*a")
  file:close()
end
wrk.method = "POST"
wrk.headers["Content-Type"] = "image/jpeg"
request = function()
  sent = (sent + 1) % {len(files)}
  return wrk.format(nil, "/predict", nil, bodies[sent])
end
"""
    )
    return script


def read_wrk(printed: str) -> tuple[float, int, float, float, int]:
    """Read what wrk prints."""
    rate = float(re.search(r"Requests/sec:\s+(\S+)", printed)[1])  # type: ignore[index]
    count = int(re.search(r"(\d+) requests in", printed)[1])  # type: ignore[index]
    percentiles = dict(re.findall(r"^\s+(\d+)%\s+(\S+)$", printed, re.M))
    p50_ms, p99_ms = (_milliseconds(percentiles.get(each)) for each in ("50", "99"))
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", printed)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+)", printed)
    failed = int(refused[1]) if refused else 0
    failed += sum(map(int, broken.groups())) if broken else 0
    return rate, count, p50_ms, p99_ms, failed


def _milliseconds(shown: str | None) -> float:
    """Read a time of wrk's; NaN where it shows none, as when nothing was answered."""
    found = re.fullmatch(r"([\d.]+)(us|ms|s|m)", shown or "")
    return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}[found[2]] if found else nan


def median(points: Sequence[Point]) -> Point:
    """The round with the median rate."""
    return sorted(points, key=lambda point: point.rate)[len(points) // 2]


def show(name: str, point: Point) -> None:
    """Print one measurement."""
    each = ", ".join(f"{who} {us:.0f}" for who, us in point.cpu_us_of.items())
    print(
        f"  {name}: {point.rate:.0f}/s, {point.cpu_us:.0f} us of CPU ({each}), "
        f"p50 {point.p50_ms:.2f} ms, p99 {point.p99_ms:.2f} ms, {point.memory_mib:.0f} MiB"
        + (f", {point.failed} failed" if point.failed else ""),
        flush=True,
    )


def draw(grown: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw rate and CPU time over front-ends, engines and connections."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(grown), figsize=(9, 4.5), sharex="col")
    for column, (what, points) in enumerate(grown.items()):
        for row, (key, label) in enumerate(
            (("rate", "requests/s"), ("cpu_us", "CPU time per request (µs)"))
        ):
            axis = axes[row, column]
            heights = [point[key] for point in points.values()]
            axis.plot(list(points), heights, "o-", color="#0072b2")
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
            if column == 0:
                axis.set_ylabel(label)
        axes[1, column].set_xlabel(what)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
