"""The server on a GPU: throughput, latency, batches, and how busy the processors are.

    .venv/bin/python -m benchmarks.gpu [--device cuda] [--seconds 5] [--connections 1,64,256]

For images and texts: every request to the last exit, and under the default promise; with
ONNX Runtime, and with torch and CUDA graphs where the bundle has weights for it. What is not
installed is reported and left out. `--device cpu` measures the same without a GPU. JSON on the last
line.
"""

import argparse
import importlib.util
import re
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from benchmarks.harness import (
    BUNDLES,
    Figures,
    RunningServer,
    ask,
    image_calls,
    make_parser,
    print_figures,
    print_report,
    put_budget,
    serving,
    text_calls,
)
from models.bundle import TORCH_WEIGHTS, load_bundle
from models.runtime.onnx_devices import open_device
from profiling.loadtest.http_client import ConnectionConfig
from profiling.loadtest.load import Call, closed_loop

CALLS = {"image": image_calls, "text": text_calls}
BACKENDS = {"onnx": (), "torch": ("--torch-mode", "cuda-graphs")}
WARM_UP_S, SAMPLE_S = 1.0, 0.25
BATCHES = re.compile(r'eenet_batch_size_(sum|count){.*stage="(\d+)".*} (\S+)')


class GpuUse(NamedTuple):
    """What `nvidia-smi` shows of one device."""

    busy_percent: float
    memory_mib: float


def main() -> None:
    """Measure what is there; print figures and JSON."""
    args = parse()
    figures: Figures = {"device": args.device, "left_out": {}}
    for kind, folder in BUNDLES.items():
        for backend, options in BACKENDS.items():
            name = f"{kind}, {backend}"
            if (reason := missing(backend, kind, args.device)) is not None:
                print(f"{name} is left out: {reason}", flush=True)
                figures["left_out"][name] = reason
                continue
            mode = options if args.device != "cpu" else ()
            command = ("--bundle", str(folder), "--backend", backend, *mode)
            with serving(*command, "--device", args.device) as server:
                figures[name] = measure(server, CALLS[kind](), args)
            print(name)
            print_figures(figures[name])
    print_report(figures, smoke=args.smoke)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--connections", default="1,64,256", help="default: %(default)s")
    args = parser.parse_args()
    args.connections = [int(each) for each in args.connections.split(",")]
    if args.smoke:
        args.device, args.seconds, args.connections = "cpu", 0.3, [2]
    return args


def missing(backend: str, kind: str, device: str) -> str | None:
    """Why a backend cannot be measured here; None if it can."""
    if backend == "onnx":
        try:
            open_device(device)
        except ValueError as error:
            return str(error)
        return None
    if TORCH_WEIGHTS not in load_bundle(BUNDLES[kind]).manifest.files:
        return "the bundle has no weights for torch; build it with --torch-weights"
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    return None


def measure(server: RunningServer, calls: list[Call], args: argparse.Namespace) -> Figures:
    """Measure closed loops, to the last exit and under the default promise."""
    (model,) = scrape_budget(server)
    default = model["max_disagreement"]
    figures: Figures = {}
    for name, share in (("to the last exit", 0.0), ("under the default promise", default)):
        put_budget(server.url, None, share)
        for connections in args.connections:
            config = ConnectionConfig(connections)
            closed_loop(server.url, calls, config, seconds=min(WARM_UP_S, args.seconds))
            before, cpu_before_s = batches(server), server.cpu_s()
            with watching() as samples:
                load = closed_loop(server.url, calls, config, seconds=args.seconds)
            p50_ms, p99_ms = load.percentiles(50, 99) or (float("nan"), float("nan"))
            figures[f"{name}, {connections} connections"] = {
                "requests_per_s": load.rate,
                "p50_ms": p50_ms,
                "p99_ms": p99_ms,
                "errors": load.num_errors,
                "rows_per_batch": occupancy(before, batches(server)),
                "cpu_cores": (server.cpu_s() - cpu_before_s) / args.seconds,
                "gpus": [use._asdict() for use in mean_use(samples)],
            }
    return figures


def scrape_budget(server: RunningServer) -> list[dict[str, Any]]:
    """Read the budgets of the models."""
    models: list[dict[str, Any]] = ask(f"{server.url}/budget")["models"]
    return models


def batches(server: RunningServer) -> dict[tuple[str, str], float]:
    """Read the sums and counts of batch sizes, by stage."""
    with urllib.request.urlopen(f"{server.url}/metrics") as response:
        text = response.read().decode()
    return {(stage, what): float(value) for what, stage, value in BATCHES.findall(text)}


def occupancy(
    before: dict[tuple[str, str], float], after: dict[tuple[str, str], float]
) -> list[float]:
    """Return the mean rows of the batches in between, by stage; 0 where there were none."""
    rows = []
    for stage in sorted({stage for stage, _ in after}, key=int):
        total, count = (after[stage, what] - before[stage, what] for what in ("sum", "count"))
        rows.append(total / count if count else 0.0)
    return rows


@contextmanager
def watching() -> Iterator[list[list[GpuUse]]]:
    """Sample the GPUs meanwhile; the list stays empty without `nvidia-smi`."""
    samples: list[list[GpuUse]] = []
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_S):
            samples.append(read_gpus())

    thread = threading.Thread(target=sample)
    if shutil.which("nvidia-smi") is not None:
        thread.start()
    try:
        yield samples
    finally:
        stop.set()
        if thread.is_alive():
            thread.join()


def read_gpus() -> list[GpuUse]:
    """Read how busy each GPU is."""
    query = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used"]
    printed = subprocess.run(
        [*query, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True
    ).stdout
    lines = [line.split(",") for line in printed.splitlines() if line.strip()]
    return [GpuUse(float(busy), float(memory)) for busy, memory in lines]


def mean_use(samples: list[list[GpuUse]]) -> list[GpuUse]:
    """Return the mean of each device's samples."""
    return [
        GpuUse(*(sum(values) / len(values) for values in zip(*device, strict=True)))
        for device in zip(*samples, strict=True)
    ]


if __name__ == "__main__":
    main()
