"""Overhead of the engine and the server over ONNX Runtime; ratios hold within one run.

    .venv/bin/python -m benchmarks.engine [--seconds 5] [--only graph,engine,served,fake]

graph: all stages in sequence against the same network as one graph. engine: its throughput against
bare loops over the sessions that know each exit beforehand and score nothing. served: over HTTP.
fake: bookkeeping alone, on a backend that does nothing.
"""

import json
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnx.compose
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.harness import (
    BUNDLES,
    FREE,
    IMAGE_BUNDLE,
    MAX_PIXELS,
    EngineRun,
    Figures,
    RunningServer,
    image_calls,
    image_files,
    image_preprocessor,
    image_states,
    lower_quartiles,
    make_parser,
    network_of,
    onnx_backend,
    print_figures,
    print_report,
    put_budget,
    recorded_of,
    run_engine,
    scheduler_of,
    serving,
    write_costs,
)
from models.backend import HeadOutput, State, gather_arrays
from models.bundle import Variant
from models.runtime.onnx_backend import OnnxBackend
from profiling.loadtest.http_client import ConnectionConfig
from profiling.loadtest.load import closed_loop
from scheduler.fitted import Scheduler

WORKERS = 2
CONNECTIONS = 32


class Sizes(NamedTuple):
    """Amount of work.

    Attributes:
        seconds: Duration of each load over HTTP.
        warm_up_s: Duration of the same load before.
        idle_s: Time over which an idle server is watched.
        bundles: Whose graphs are compared.
        rounds: Repeats of each comparison.
        turns: Repeats of server against engine, and of bookkeeping.
        images: Number of images; None: all.
        requests: Number of requests for bookkeeping.
    """

    seconds: float
    warm_up_s: float = 1.0
    idle_s: float = 3.0
    bundles: tuple[Path, ...] = tuple(BUNDLES.values())
    rounds: int = 9
    turns: tuple[int, int] = (3, 5)
    images: int | None = None
    requests: int = 20_000


def main() -> None:
    """Run the parts that were asked for and print their figures."""
    parser = make_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load over HTTP")
    parser.add_argument("--only", default="graph,engine,served,fake")
    args = parser.parse_args()
    sizes = Sizes(args.seconds)
    if args.smoke:
        sizes = Sizes(0.2, 0.1, 0.2, (IMAGE_BUNDLE,), 1, (1, 1), images=10, requests=200)
    parts: dict[str, Callable[[Sizes], Figures]] = {
        "graph": lambda sizes: {
            bundle.name: stages_against_graph(bundle, sizes) for bundle in sizes.bundles
        },
        "engine": engine_against_loop,
        "served": served,
        "fake": bookkeeping,
    }
    figures: Figures = {}
    for name in args.only.split(","):
        print(name, flush=True)
        figures[name] = parts[name](sizes)
        print_figures(figures[name])
    print_report(figures, smoke=args.smoke)


# --- stages in sequence against one graph


def stages_against_graph(folder: Path, sizes: Sizes) -> Figures:
    """Time of stages and heads run one by one over the time of one graph of all of them."""
    network, backend = network_of(folder), onnx_backend(folder)
    example = network.bundle.preprocessor(MAX_PIXELS).example
    last, every = whole_graphs(network)
    found: Figures = {}
    for rows in (1, 8):
        batch = tuple(np.concatenate([array] * rows) for array in example)
        ways = [
            partial(run_graph, last, batch),
            partial(run_stages, backend, batch, [backend.num_exits - 1]),
            partial(run_graph, every, batch),
            partial(run_stages, backend, batch, range(backend.num_exits)),
        ]
        seconds = lower_quartiles(ways, sizes.rounds * (40 if rows == 1 else 10))
        found[f"batch {rows}"] = {
            "one graph, heads left out, ms": 1e3 * seconds[0],
            "ratio, heads left out": seconds[1] / seconds[0],
            "ratio, with all heads": seconds[3] / seconds[2],
        }
    return found


def whole_graphs(network: Variant) -> tuple[ort.InferenceSession, ort.InferenceSession]:
    """The network as one graph: with the last head alone, and with every head."""
    num_exits = network.bundle.manifest.num_exits
    sessions = []
    with tempfile.TemporaryDirectory() as folder:
        for exits in ([num_exits - 1], range(num_exits)):
            path = Path(folder) / "whole.onnx"
            path.write_bytes(merge_graphs(network, exits).SerializeToString())
            sessions.append(open_session(path))
    return sessions[0], sessions[1]


def merge_graphs(network: Variant, exits: Sequence[int]) -> onnx.ModelProto:
    """Merge all stages and the heads of some exits into one graph that outputs the heads'."""
    graph, state, outputs = None, list[str](), list[str]()
    for k, (stage_file, head_file) in enumerate(
        zip(network.stage_files, network.head_files, strict=True)
    ):
        graph, state = append_graph(graph, onnx.load(stage_file), f"stage{k}_", state, outputs)
        if k in exits:
            kept = [*outputs, *state]
            graph, head = append_graph(graph, onnx.load(head_file), f"head{k}_", state, kept)
            outputs += head
    assert graph is not None, "there is at least one stage"
    kept_outputs = [each for each in graph.graph.output if each.name in outputs]
    del graph.graph.output[:]
    graph.graph.output.extend(kept_outputs)
    return graph


def append_graph(
    graph: onnx.ModelProto | None,
    other: onnx.ModelProto,
    prefix: str,
    state: list[str],
    outputs: list[str],
) -> tuple[onnx.ModelProto, list[str]]:
    """Append another graph after the state; return both as one, and the other's outputs."""
    other = onnx.compose.add_prefix(other, prefix)
    names = [each.name for each in other.graph.output]
    if graph is None:
        return other, names
    wires = list(zip(state, [each.name for each in other.graph.input], strict=True))
    return onnx.compose.merge_models(graph, other, wires, outputs=[*outputs, *names]), names


def open_session(path: Path) -> ort.InferenceSession:
    """Open a session with the options that the backend uses."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_graph(graph: ort.InferenceSession, batch: State) -> None:
    """Run the whole network in one call."""
    graph.run(
        None, {given.name: array for given, array in zip(graph.get_inputs(), batch, strict=True)}
    )


def run_stages(backend: OnnxBackend, state: State, exits: Sequence[int]) -> None:
    """Run stage by stage, with the heads of some exits."""
    for k in range(backend.num_exits):
        state = backend.run_stage(k, state)
        if k in exits:
            backend.run_head(k, state)


# --- the engine against bare loops


def engine_against_loop(sizes: Sizes) -> Figures:
    """Throughput of the engine over that of bare loops, one per core, at the same exits."""
    backend, scheduler = onnx_backend(IMAGE_BUNDLE), scheduler_of(IMAGE_BUNDLE)
    policy, frontier, combiner = scheduler
    inputs = image_states(sizes.images) * 3
    found: Figures = {}
    for name, point in (
        ("middle budget", frontier.at_cost(float(frontier.costs_ms.mean()))),
        ("no budget", frontier[-1]),
    ):
        exits = through_engine(backend, scheduler, point.parameter, inputs).exits
        heads = [
            combiner.needs(k) or policy.needs(k, point.parameter) for k in range(backend.num_exits)
        ]
        rates: list[list[float]] = [[], []]
        for _ in range(sizes.rounds):
            rates[0].append(loop_rate(backend, inputs, exits, heads))
            run = through_engine(backend, scheduler, point.parameter, inputs)
            assert run.exits == exits, "the engine took other exits"
            rates[1].append(run.rate)
        loop, ours = np.median(rates, axis=1)
        found[name] = {
            "bare loops, requests/s": loop,
            "engine, requests/s": ours,
            "ratio": float(np.median(np.divide(rates[1], rates[0]))),
        }
    return found


def through_engine(
    backend: OnnxBackend, scheduler: Scheduler, parameter: float, inputs: list[State]
) -> EngineRun:
    """Run the inputs through the engine one by one, on two workers."""
    return run_engine(
        backend,
        scheduler.policy,
        parameter,
        inputs,
        workers=WORKERS,
        max_batch=1,
        combiner=scheduler.combiner,
    )


def loop_rate(
    backend: OnnxBackend, inputs: list[State], exits: list[int], heads: list[bool]
) -> float:
    """Inputs per second of two threads that only run the sessions."""

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


# --- bookkeeping alone


class RecordedBackend:
    """Stages take no time; a request is the row of its recorded predictions."""

    num_exits, device = 3, "nothing"
    gather = staticmethod(gather_arrays)
    synchronize = staticmethod(lambda: None)

    def __init__(self, log_probs: NDArray[np.float32]) -> None:
        self.log_probs = log_probs

    def run_stage(self, stage: int, state: State) -> State:
        """Return the state unchanged."""
        return state

    def run_head(self, exit: int, state: State) -> HeadOutput:
        """Look up the recorded predictions."""
        log_probs = self.log_probs[exit, state[0]]
        return HeadOutput(log_probs, log_probs)


def bookkeeping(sizes: Sizes) -> Figures:
    """Requests per second of one worker on a free network; a third leave at each exit."""
    policy, frontier, combiner = scheduler_of(IMAGE_BUNDLE)
    distances = np.abs(frontier.exit_rates - 1 / 3).max(1)
    parameter = float(frontier.parameters[distances.argmin()])
    log_probs = recorded_of(IMAGE_BUNDLE).test.log_probs
    backend = RecordedBackend(log_probs.astype(np.float32))
    found: Figures = {"exit rates": frontier.exit_rates[distances.argmin()].round(3).tolist()}
    for max_batch, count in ((64, sizes.requests), (1, sizes.requests // 5)):
        rates = []
        for _ in range(sizes.turns[1]):
            states = [(np.array([place % 10_000]),) for place in range(count)]
            run = run_engine(
                backend,
                policy,
                parameter,
                states,
                workers=1,
                max_batch=max_batch,
                combiner=combiner,
            )
            rates.append(run.rate)
        found[f"batches of {max_batch}, requests/s"] = float(np.median(rates))
    return found


# --- over HTTP


def served(sizes: Sizes) -> Figures:
    """Throughput and latency over HTTP, beside those of engine, model and decoding alone."""
    with serving("--bundle", str(IMAGE_BUNDLE)) as server:
        put_budget(server.url, None)
        found = one_connection(server, sizes)
        found["idle CPU, share of a core"] = idle_share(server, sizes.idle_s)
        found |= served_against_engine(server, sizes)
    return found | cpu_per_request(sizes)


def one_connection(server: RunningServer, sizes: Sizes) -> Figures:
    """Latency at one connection, with and without model and decoding."""
    config = ConnectionConfig(1, keep_bodies=True)
    one = closed_loop(
        server.url, image_calls(), config, seconds=sizes.seconds, warm_up_s=sizes.warm_up_s
    )
    parts = [json.loads(body)["latency_ms"] for body in one.bodies or ()]
    own = one.latency_ms - [part["compute"] + part["decode"] for part in parts]
    return {
        "p50 at 1 connection, ms": float(np.median(one.latency_ms)),
        "p50 less model and decoding, ms": float(np.median(own)),
    }


def idle_share(server: RunningServer, seconds: float) -> float:
    """Processor time that the server uses without requests, as a share of a core."""
    started, before_s = time.perf_counter(), server.cpu_s()
    time.sleep(seconds)
    return (server.cpu_s() - before_s) / (time.perf_counter() - started)


def served_against_engine(server: RunningServer, sizes: Sizes) -> Figures:
    """Throughput over HTTP and of the engine alone, in turns."""
    calls, config = image_calls(), ConnectionConfig(CONNECTIONS)
    backend, scheduler = onnx_backend(IMAGE_BUNDLE), scheduler_of(IMAGE_BUNDLE)
    parameter = scheduler.policy.never_exit_parameter
    inputs = image_states(sizes.images) * 4
    rates, alone = [], []
    for _ in range(sizes.turns[0]):
        load = closed_loop(
            server.url, calls, config, seconds=sizes.seconds, warm_up_s=sizes.warm_up_s
        )
        rates.append(load.rate)
        server.send_signal(signal.SIGSTOP)  # while the engine is measured alone
        alone.append(through_engine(backend, scheduler, parameter, inputs).rate)
        server.send_signal(signal.SIGCONT)
    return {
        f"served at {CONNECTIONS} connections, requests/s": float(np.median(rates)),
        "engine alone, requests/s": float(np.median(alone)),
        "served / engine alone": float(np.median(np.divide(rates, alone))),
    }


def cpu_per_request(sizes: Sizes) -> Figures:
    """Processor time of a request that needs no model, less that of decoding its image."""
    calls, decode_us = image_calls(), decoding_us(sizes)
    found = {"CPU of decoding, us": decode_us}
    with tempfile.TemporaryDirectory() as folder:
        replay = ("--backend", "replay", "--replay-costs", str(write_costs(FREE, Path(folder))))
        with serving("--bundle", str(IMAGE_BUNDLE), *replay) as server:
            for connections in (CONNECTIONS, 1):
                config = ConnectionConfig(connections)
                closed_loop(server.url, calls, config, seconds=sizes.warm_up_s)
                before_s = server.cpu_s()
                load = closed_loop(server.url, calls, config, seconds=sizes.seconds)
                whole_us = (server.cpu_s() - before_s) / len(load.call) * 1e6
                name = f"CPU per request, no model nor decoding, {connections} connections, us"
                found[name] = whole_us - decode_us
    return found


def decoding_us(sizes: Sizes) -> float:
    """Processor time of decoding one image, in microseconds."""
    preprocess, files = image_preprocessor(), image_files(sizes.images) * 3
    started = time.thread_time()
    for file in files:
        preprocess(file)
    return (time.thread_time() - started) / len(files) * 1e6


if __name__ == "__main__":
    main()
