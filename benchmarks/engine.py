"""What the engine and the server add to ONNX Runtime; ratios within one run, JSON on the last line.

    .venv/bin/python -m benchmarks.engine [--seconds 5] [--only graph,engine,served,fake]

graph: all stages in sequence against the same network as one graph. engine: its throughput against
bare loops over the sessions that know each row's exit beforehand, and score nothing. served: over
HTTP. fake: bookkeeping alone, on a backend that does nothing.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.compose
import onnxruntime as ort
from prometheus_client import CollectorRegistry

from models.backend import HeadOutput, State, gather_arrays
from models.bundle import Bundle, load_bundle
from models.runtime.onnx_backend import OnnxBackend
from models.stage_costs import StageCosts
from profiling.calibration import load_recorded
from profiling.latency import machine_name
from profiling.loadtest.http_client import ConnectionConfig
from profiling.loadtest.load import Call, closed_loop
from scheduler.fitted import load_scheduler
from scheduler.policy import ExitPolicy
from server.engine.engine import Engine
from server.engine.request import Completion, InferenceRequest
from server.metrics import Metrics, ModelMetrics

REPO = Path(__file__).resolve().parent.parent
ZOO = REPO / "models/zoo"
IMAGES = REPO / "tests/data/cifar10_test_300.npz"
MAX_PIXELS = 50_000_000
TURNS = 9
WORKERS = 2
Figures = dict[str, Any]


def main() -> None:
    """Run what is asked for and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load over HTTP")
    parser.add_argument("--only", default="graph,engine,served,fake")
    args = parser.parse_args()
    parts: dict[str, Callable[[], Figures]] = {
        "graph": lambda: {
            name: graphs(ZOO / name) for name in ("cifar10-resnet56", "ag-news-minilm")
        },
        "engine": engine_against_loop,
        "served": lambda: served(args.seconds),
        "fake": bookkeeping,
    }
    figures: Figures = {"machine": machine_name(), "cores": len(os.sched_getaffinity(0))}
    for name in args.only.split(","):
        print(name, flush=True)
        figures[name] = parts[name]()
        show(figures[name])
    print(json.dumps(figures))


def show(figures: Figures, indent: str = "  ") -> None:
    """One line a figure."""
    for key, value in figures.items():
        if isinstance(value, dict):
            print(f"{indent}{key}")
            show(value, indent + "  ")
        else:
            print(
                f"{indent}{key:38s} {value:.4g}"
                if isinstance(value, float)
                else f"{indent}{key} {value}",
                flush=True,
            )


# --- stages in sequence against one graph


def graphs(folder: Path) -> Figures:
    """Seconds of stages and heads run one by one over seconds of one graph of all of them."""
    bundle = load_bundle(folder)
    backend = OnnxBackend(bundle.stage_files, bundle.head_files)
    example = bundle.preprocessor(MAX_PIXELS).example
    with tempfile.TemporaryDirectory() as part:
        last, every = Path(part) / "last.onnx", Path(part) / "every.onnx"
        last.write_bytes(merged(bundle, [bundle.manifest.num_exits - 1]).SerializeToString())
        every.write_bytes(merged(bundle, range(bundle.manifest.num_exits)).SerializeToString())
        sessions = [session(last), session(every)]
    found: Figures = {}
    for rows in (1, 8):
        batch = tuple(np.concatenate([array] * rows) for array in example)
        ways = [
            partial(one_graph, sessions[0], batch),
            partial(in_sequence, backend, batch, [backend.num_exits - 1]),
            partial(one_graph, sessions[1], batch),
            partial(in_sequence, backend, batch, range(backend.num_exits)),
        ]
        ms = 1e3 * in_turns(ways, calls=40 if rows == 1 else 10)
        found[f"batch {rows}"] = {
            "one graph, heads left out, ms": ms[0],
            "ratio, heads left out": ms[1] / ms[0],
            "ratio, heads apart": ms[3] / ms[2],
        }
    return found


def merged(bundle: Bundle, exits: Sequence[int]) -> onnx.ModelProto:
    """All stages and the heads of some exits as one graph, whose outputs are the heads'."""
    graph, state, outputs = None, list[str](), list[str]()
    for k, (stage_file, head_file) in enumerate(
        zip(bundle.stage_files, bundle.head_files, strict=True)
    ):
        graph, state = joined(graph, onnx.load(stage_file), f"stage{k}_", state, outputs)
        if k in exits:
            graph, said = joined(
                graph, onnx.load(head_file), f"head{k}_", state, [*outputs, *state]
            )
            outputs += said
    assert graph is not None, "there is at least one stage"
    kept = [each for each in graph.graph.output if each.name in outputs]
    del graph.graph.output[:]
    graph.graph.output.extend(kept)
    return graph


def joined(
    graph: onnx.ModelProto | None,
    other: onnx.ModelProto,
    prefix: str,
    state: list[str],
    outputs: list[str],
) -> tuple[onnx.ModelProto, list[str]]:
    """A graph with another behind its state, and the other's outputs; named outputs stay."""
    other = onnx.compose.add_prefix(other, prefix)
    said = [each.name for each in other.graph.output]
    if graph is None:
        return other, said
    wires = list(zip(state, [each.name for each in other.graph.input], strict=True))
    return onnx.compose.merge_models(graph, other, wires, outputs=[*outputs, *said]), said


def session(path: Path) -> ort.InferenceSession:
    """As the backend makes its own."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def one_graph(graph: ort.InferenceSession, batch: State) -> None:
    """The whole network in one call."""
    graph.run(
        None, {given.name: array for given, array in zip(graph.get_inputs(), batch, strict=True)}
    )


def in_sequence(backend: OnnxBackend, state: State, exits: Sequence[int]) -> None:
    """Stage by stage, with the heads of some exits."""
    for k in range(backend.num_exits):
        state = backend.run_stage(k, state)
        if k in exits:
            backend.run_head(k, state)


def in_turns(ways: Sequence[Callable[[], None]], calls: int) -> np.ndarray:
    """Seconds of one call of each way: lower quartile of all calls, made in turns."""
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(TURNS * calls):
        for way, kept in zip(ways, seconds, strict=True):
            started = time.perf_counter()
            way()
            if turn >= calls // 2:
                kept.append(time.perf_counter() - started)
    return np.percentile(seconds, 25, axis=1)


# --- the engine against bare loops


def engine_against_loop() -> Figures:
    """Samples a second of the engine over those of bare loops, one a core, at the same exits."""
    bundle = load_bundle(ZOO / "cifar10-resnet56")
    backend = OnnxBackend(bundle.stage_files, bundle.head_files)
    policy, frontier = load_scheduler(bundle.folder)
    inputs = [bundle.preprocessor(MAX_PIXELS)(file).state for file in image_files()] * 3
    found: Figures = {}
    for name, point in (
        ("middle budget", frontier.at_cost(float(frontier.costs_ms.mean()))),
        ("no budget", frontier[-1]),
    ):
        exits = exits_of(backend, policy, point.parameter, inputs)
        heads = [policy.needs(k, point.parameter) for k in range(backend.num_exits)]
        rates: list[list[float]] = [[], []]
        for _ in range(TURNS):
            rates[0].append(loop_rate(backend, inputs, exits, heads))
            rates[1].append(engine_rate(backend, policy, point.parameter, inputs, exits))
        loop, ours = np.median(rates, axis=1)
        found[name] = {"bare loops, samples/s": loop, "engine, samples/s": ours,
                       "ratio": float(np.median(np.divide(rates[1], rates[0])))}  # fmt: skip
    return found


def exits_of(
    backend: OnnxBackend, policy: ExitPolicy, parameter: float, inputs: list[State]
) -> list[int]:
    """The exit of each row, by the engine itself."""
    rows = [InferenceRequest(state) for state in inputs]
    done, _ = run_engine(backend, policy, parameter, rows, WORKERS, 1)
    return [done[id(row)] for row in rows]


def loop_rate(
    backend: OnnxBackend, inputs: list[State], exits: list[int], heads: list[bool]
) -> float:
    """Two threads over the sessions, nothing else."""

    def loop(mine: slice) -> None:
        for state, last in zip(inputs[mine], exits[mine], strict=True):
            for k in range(last + 1):
                state = backend.run_stage(k, state)
                if heads[k]:
                    backend.run_head(k, state)

    threads = [
        threading.Thread(target=loop, args=(slice(i, None, WORKERS),)) for i in range(WORKERS)
    ]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(inputs) / (time.perf_counter() - started)


def engine_rate(
    backend: OnnxBackend,
    policy: ExitPolicy,
    parameter: float,
    inputs: list[State],
    exits: list[int],
) -> float:
    """The same rows through the engine."""
    rows = [InferenceRequest(state) for state in inputs]
    done, seconds = run_engine(backend, policy, parameter, rows, WORKERS, 1)
    assert [done[id(row)] for row in rows] == exits, "the engine took other exits"
    return len(rows) / seconds


def run_engine(
    backend: Any,
    policy: ExitPolicy,
    parameter: float,
    rows: list[InferenceRequest],
    workers: int,
    max_batch: int,
) -> tuple[dict[int, int], float]:
    """The exit of each row, by its identity, and the seconds it took."""
    done: dict[int, int] = {}

    def keep(completions: list[Completion]) -> None:
        for row, answer in completions:
            done[id(row)] = answer.exit  # type: ignore[union-attr]

    metrics = ModelMetrics(Metrics(CollectorRegistry(), ""), "bench", backend.num_exits)
    engine = Engine(
        backend,
        policy,
        parameter,
        workers=workers,
        max_batch=max_batch,
        metrics=metrics,
        on_batch=keep,
    )
    started = time.perf_counter()
    for first in range(0, len(rows), max_batch):
        engine.submit(rows[first : first + max_batch])
    engine.start()
    engine.stop()
    return done, time.perf_counter() - started


# --- bookkeeping alone


class Nothing:
    """Three exits that cost nothing; a row is the place of its recorded predictions."""

    num_exits, device = 3, "nothing"
    gather = staticmethod(gather_arrays)
    synchronize = staticmethod(lambda: None)

    def __init__(self, log_probs: np.ndarray) -> None:
        self.log_probs = log_probs

    def run_stage(self, stage: int, state: State) -> State:
        """Nothing."""
        return state

    def run_head(self, exit: int, state: State) -> HeadOutput:
        """Look up."""
        said = self.log_probs[exit, state[0]]
        return HeadOutput(said, said)


def bookkeeping() -> Figures:
    """Samples a second of one worker on a network that costs nothing, a third leaving each exit."""
    folder = ZOO / "cifar10-resnet56"
    policy, frontier = load_scheduler(folder)
    rates = np.abs(frontier.exit_rates - 1 / 3).max(1)
    parameter = float(frontier.parameters[rates.argmin()])
    backend = Nothing(load_recorded(folder / "calibration.npz").test.log_probs.astype(np.float32))
    found: Figures = {"exit rates": frontier.exit_rates[rates.argmin()].round(3).tolist()}
    for max_batch, count in ((64, 20_000), (1, 4_000)):
        runs = []
        for _ in range(5):
            rows = [InferenceRequest((np.array([place % 10_000]),)) for place in range(count)]
            runs.append(count / run_engine(backend, policy, parameter, rows, 1, max_batch)[1])
        found[f"batches of {max_batch}, samples/s"] = float(np.median(runs))
    return found


# --- over HTTP


class Served(NamedTuple):
    """A server that runs."""

    url: str
    pid: int

    def cpu_s(self) -> float:
        """Processor time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def served(seconds: float) -> Figures:
    """The server with one and with 32 connections; what it adds to model and decoding."""
    files = image_files()
    calls = [Call("/predict", file, "image/jpeg") for file in files]
    found: Figures = {}
    bundle = ZOO / "cifar10-resnet56"
    with serving("--bundle", str(bundle)) as server:
        put_budget(server.url, None)
        one = closed_loop(
            server.url, calls, ConnectionConfig(1, keep_bodies=True), seconds=seconds, warm_up_s=1
        )
        parts = [json.loads(body)["latency_ms"] for body in one.bodies or ()]
        own = one.latency_ms - [part["compute"] + part["decode"] for part in parts]
        found["p50 at 1 connection, ms"] = float(np.median(one.latency_ms))
        found["p50 less model and decoding, ms"] = float(np.median(own))
        idle_from, idle_cpu = time.perf_counter(), server.cpu_s()
        time.sleep(3)
        found["idle CPU, share of a core"] = (server.cpu_s() - idle_cpu) / (
            time.perf_counter() - idle_from
        )
        rates, alone = [], []
        for _ in range(3):
            rates.append(
                closed_loop(server.url, calls, ConnectionConfig(32), seconds=seconds, warm_up_s=1).rate
            )
            os.kill(server.pid, 19)  # stopped while the engine is measured alone
            alone.append(engine_alone())
            os.kill(server.pid, 18)
        found["served at 32 connections, requests/s"] = float(np.median(rates))
        found["engine alone, samples/s"] = float(np.median(alone))
        found["served / engine alone"] = float(np.median(np.divide(rates, alone)))
    found |= cpu_per_request(calls, files, seconds)
    return found


def engine_alone() -> float:
    """Samples a second through the engine, every sample to the end."""
    bundle = load_bundle(ZOO / "cifar10-resnet56")
    backend = OnnxBackend(bundle.stage_files, bundle.head_files)
    policy, frontier = load_scheduler(bundle.folder)
    rows = [
        InferenceRequest(bundle.preprocessor(MAX_PIXELS)(file).state) for file in image_files() * 4
    ]
    return len(rows) / run_engine(backend, policy, frontier[-1].parameter, rows, WORKERS, 1)[1]


def cpu_per_request(calls: list[Call], files: list[bytes], seconds: float) -> Figures:
    """Processor time of a request that needs no model, less its decoding."""
    folder = ZOO / "cifar10-resnet56"
    preprocess = load_bundle(folder).preprocessor(MAX_PIXELS)
    started = time.thread_time()
    for file in files * 3:
        preprocess(file)
    decode_us = (time.thread_time() - started) / len(files) / 3 * 1e6
    with tempfile.TemporaryDirectory() as part:
        table = Path(part) / "nothing.json"
        table.write_text(json.dumps(StageCosts((1,), np.zeros((3, 1))).to_json()))
        with serving(
            "--bundle", str(folder), "--backend", "replay", "--replay-costs", str(table)
        ) as server:
            found = {}
            for connections in (32, 1):
                closed_loop(server.url, calls, ConnectionConfig(connections), seconds=1)
                before = server.cpu_s()
                load = closed_loop(server.url, calls, ConnectionConfig(connections), seconds=seconds)
                whole_us = (server.cpu_s() - before) / len(load.call) * 1e6
                found[f"CPU a request, no model nor decoding, {connections} connections, us"] = (
                    whole_us - decode_us
                )
    return {"CPU of decoding, us": decode_us} | found


@contextmanager
def serving(*options: str) -> Iterator[Served]:
    """A server of its own process, ready."""
    port = 8500 + os.getpid() % 400
    command = [
        sys.executable,
        "-m",
        "server.cli.main",
        "serve",
        "--log-level",
        "warning",
        "--port",
        str(port),
    ]
    process = subprocess.Popen([*command, *options], cwd=REPO)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/readyz").close()
                break
            except OSError:
                time.sleep(0.1)
        yield Served(url, process.pid)
    finally:
        process.terminate()
        process.wait()


def put_budget(url: str, budget_ms: float | None) -> None:
    """Set the budget of every model."""
    body = json.dumps({"budget_ms": budget_ms}).encode()
    request = urllib.request.Request(
        f"{url}/budget", body, {"Content-Type": "application/json"}, method="PUT"
    )
    urllib.request.urlopen(request).close()


def image_files() -> list[bytes]:
    """300 test images."""
    with np.load(IMAGES) as arrays:
        blob, off = arrays["blob"].tobytes(), arrays["off"].tolist()
    return [blob[a:b] for a, b in itertools.pairwise(off)]


if __name__ == "__main__":
    main()
