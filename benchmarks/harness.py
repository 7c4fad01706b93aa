"""Parts that the benchmarks share: options, inputs, a running server, the engine, the report.

Every benchmark ends with one line of JSON. With `--smoke` it runs the same code on tiny sizes
within seconds, to prove that it works; the figures of a smoke run mean nothing.
"""

import argparse
import itertools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydantic_core
from numpy.typing import NDArray

from models.backend import StageBackend, State
from models.bundle import Variant, load_bundle
from models.preprocess import ImagePreprocessor
from models.runtime.onnx_backend import OnnxBackend
from models.stage_costs import StageCosts
from profiling.calibration import Recorded, load_recorded
from profiling.latency import machine_name
from profiling.loadtest.load import Call
from scheduler.combiner import OWN_OUTPUTS, Combiner
from scheduler.fitted import Scheduler, load_scheduler
from scheduler.policy import ExitPolicy
from server.engine.engine import Engine
from server.engine.request import InferenceRequest, Prediction

REPO = Path(__file__).resolve().parent.parent
ZOO = REPO / "models/zoo"
IMAGE_BUNDLE, TEXT_BUNDLE = ZOO / "cifar10-resnet56", ZOO / "ag-news-minilm"
BUNDLES = {"image": IMAGE_BUNDLE, "text": TEXT_BUNDLE}
IMAGES = REPO / "tests/data/cifar10_test_300.npz"
TEXTS = REPO / "tests/data/ag_news_test_300.tsv"
MAX_PIXELS = 50_000_000
START_S = 60.0  # in which a server must become ready
SMOKE_NOTE = "smoke run: tiny sizes prove that the code runs; these figures mean nothing"
Figures = dict[str, Any]


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """Make the parser of a benchmark, described by the first line of its docstring."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes, seconds; its figures mean nothing"
    )
    return parser


def print_report(figures: Figures, *, smoke: bool) -> None:
    """Print the figures and the machine as JSON on the last line."""
    if smoke:
        print(SMOKE_NOTE)
    about = {"machine": machine_name(), "cores": len(os.sched_getaffinity(0)), "smoke": smoke}
    print(pydantic_core.to_json(about | figures, inf_nan_mode="null").decode(), flush=True)


def print_figures(figures: Figures, indent: str = "  ") -> None:
    """Print one figure per line; nested figures are indented."""
    for key, value in figures.items():
        if isinstance(value, dict):
            print(f"{indent}{key}")
            print_figures(value, indent + "  ")
        else:
            shown = f"{key:38s} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            print(f"{indent}{shown}", flush=True)


def image_files(count: int | None = None) -> list[bytes]:
    """The 300 test images of this repository as JPEG files, or the first of them."""
    with np.load(IMAGES, allow_pickle=False) as arrays:
        blob, offsets = arrays["blob"].tobytes(), arrays["off"].tolist()
    return [blob[start:end] for start, end in itertools.pairwise(offsets)][:count]


def image_calls() -> list[Call]:
    """One prediction request per test image."""
    return [Call("/predict", file, "image/jpeg") for file in image_files()]


def text_calls() -> list[Call]:
    """One prediction request per test text of this repository."""
    lines = TEXTS.read_text("utf-8").strip().split("\n")[1:]
    bodies = [json.dumps({"text": line.split("\t")[2]}).encode() for line in lines]
    return [Call("/predict", body, "application/json") for body in bodies]


def image_preprocessor() -> ImagePreprocessor:
    """The preprocessor of the shipped image bundle."""
    preprocess = load_bundle(IMAGE_BUNDLE).preprocessor(MAX_PIXELS)
    assert isinstance(preprocess, ImagePreprocessor), "the bundle classifies images"
    return preprocess


def image_states(count: int | None = None) -> list[State]:
    """Test images as inputs of the first stage of the shipped image bundle."""
    preprocess = image_preprocessor()
    return [preprocess(file).state for file in image_files(count)]


def network_of(folder: Path) -> Variant:
    """The network of a bundle that is measured: the first precision of its manifest."""
    return load_bundle(folder).variant()


def scheduler_of(folder: Path) -> Scheduler:
    """The scheduler that a server of the bundle starts with."""
    return load_scheduler(network_of(folder).scheduler())


def recorded_of(folder: Path) -> Recorded:
    """The recorded predictions of a bundle's network."""
    return load_recorded(network_of(folder).predictions)


def onnx_backend(folder: Path) -> OnnxBackend:
    """The backend of a bundle's network on ONNX Runtime, on the CPU."""
    variant = network_of(folder)
    return OnnxBackend(variant.stage_files, variant.head_files)


class EngineRun(NamedTuple):
    """Requests that went through the engine: the exit of each, in order, and the time for all."""

    exits: list[int]
    seconds: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.exits) / self.seconds


def run_engine(
    backend: StageBackend,
    policy: ExitPolicy,
    parameter: float,
    states: Iterable[State],
    *,
    workers: int,
    max_batch: int,
    combiner: Combiner = OWN_OUTPUTS,
) -> EngineRun:
    """Submit all inputs, run the engine until it is idle, and time it."""
    requests = [InferenceRequest(state) for state in states]
    engine = Engine(
        backend,
        policy,
        parameter,
        workers=workers,
        max_batch=max_batch,
        on_done=lambda _: None,
        combiner=combiner,
    )
    started = time.perf_counter()
    for first in range(0, len(requests), max_batch):
        engine.submit(requests[first : first + max_batch])
    engine.start()
    engine.stop()
    seconds = time.perf_counter() - started
    return EngineRun([prediction_of(request).exit for request in requests], seconds)


def prediction_of(request: InferenceRequest) -> Prediction:
    """The prediction of a request that cannot fail."""
    assert isinstance(request.result, Prediction), f"no request fails here: {request.result}"
    return request.result


def lower_quartiles(ways: Sequence[Callable[[], object]], rounds: int) -> NDArray[np.float64]:
    """Seconds of one call of each way, called in turns: the lower quartile over the rounds."""
    seconds: list[list[float]] = [[] for _ in ways]
    warm_up = rounds // 20
    for number in range(rounds):
        for way, kept in zip(ways, seconds, strict=True):
            started = time.perf_counter()
            way()
            if number >= warm_up:
                kept.append(time.perf_counter() - started)
    quartiles: NDArray[np.float64] = np.percentile(seconds, 25, axis=1)
    return quartiles


class RunningServer(NamedTuple):
    """A server of one or several processes, of which `pid` is the parent."""

    url: str
    pid: int

    def processes(self) -> dict[str, int]:
        """The processes, by name."""
        found, parents = {}, [self.pid]
        while parents:
            pid = parents.pop()
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            found["control" if pid == self.pid else name.removeprefix("eenet-")] = pid
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                parents += map(int, children.read_text().split())
        return found

    def cpu_s_of(self) -> dict[str, float]:
        """Processor time that each process has used so far."""
        used = {}
        for name, pid in self.processes().items():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            used[name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return used

    def cpu_s(self) -> float:
        """Processor time that all processes have used so far."""
        return sum(self.cpu_s_of().values())

    def memory_mib_of(self) -> dict[str, float]:
        """Memory of each process; of what several share each has its part (PSS)."""
        found = {}
        for name, pid in self.processes().items():
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            kib = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            found[name] = kib / 1024
        return found

    def memory_mib(self) -> float:
        """Memory of all processes."""
        return sum(self.memory_mib_of().values())

    def send_signal(self, number: int) -> None:
        """Send a signal to all processes."""
        for pid in self.processes().values():
            os.kill(pid, number)


@contextmanager
def serving(*options: str, checkout: Path = REPO) -> Iterator[RunningServer]:
    """Start `eenet serve` with these options, wait until it is ready, and stop it at the end.

    Args:
        options: Of the command.
        checkout: Whose code runs.

    Raises:
        RuntimeError: If it ends at its start or does not become ready.
    """
    port = free_port()
    command = [*eenet("serve"), "--log-level", "warning", "--port", str(port), *options]
    environ = {**os.environ, "PYTHONPATH": str(checkout)}
    process = subprocess.Popen(command, cwd=checkout, env=environ)
    try:
        url = f"http://127.0.0.1:{port}"
        _await_ready(process, url)
        yield RunningServer(url, process.pid)
    finally:
        process.terminate()
        process.wait()


def _await_ready(process: "subprocess.Popen[bytes]", url: str) -> None:
    deadline_s = time.monotonic() + START_S
    while True:
        try:
            ask(f"{url}/readyz")
            return
        except OSError:
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with status {process.returncode}") from None
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"the server is not ready after {START_S:g} s") from None
            time.sleep(0.1)


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eenet(*words: str) -> list[str]:
    """An `eenet` command of this checkout."""
    return [sys.executable, "-m", "server.cli.main", *words]


def ask(url: str, body: bytes | None = None) -> Any:
    """Read the JSON at an address; with a body, PUT it there."""
    headers, method = {"Content-Type": "application/json"}, "GET" if body is None else "PUT"
    request = urllib.request.Request(url, body, headers, method=method)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def put_budget(url: str, budget_ms: float | None, max_disagreement: float = 0.0) -> None:
    """Set the budget of every model; None: the promise, by default the whole network's answers."""
    change = {"budget_ms": budget_ms, "max_disagreement": max_disagreement}
    ask(f"{url}/budget", json.dumps(change).encode())


def write_costs(costs: StageCosts, folder: Path) -> Path:
    """Write a table of costs for `eenet serve --backend replay --replay-costs`."""
    path = folder / "costs.json"
    path.write_text(json.dumps(costs.to_json()))
    return path


FREE = StageCosts((1,), np.zeros((3, 1)))
"""Costs of a network of three exits that takes no time."""
