"""How the cost of a sample grows with exits, classes, waiting rows and connections.

    .venv/bin/python -m benchmarks.growth [--image docs/images/growth.svg]

The network costs nothing; what is measured is the engine with the default policy, and for
connections the whole server. JSON on the last line.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import matplotlib
import numpy as np

from benchmarks.engine import ZOO, image_files, run_engine, serving
from models.backend import HeadOutput, State, gather_arrays
from models.stage_costs import StageCosts
from profiling.latency import machine_name
from profiling.loadtest.http_client import ConnectionConfig
from profiling.loadtest.load import Call, closed_loop
from scheduler.stopping import NUM_FEATURES, StoppingPolicy
from server.engine.request import InferenceRequest

EXITS = (2, 3, 4, 6, 8, 10, 12)
CLASSES = (10, 30, 64, 100, 300, 1000)
WAITING = (10, 100, 1000, 3000, 10_000)
CONNECTIONS = (1, 4, 16, 64, 128, 256, 512)
BATCHES = (1, 64)
TURNS = 5
Curve = dict[int, float]


class Nothing:
    """Exits that cost nothing and say the same of all rows."""

    device = "nothing"
    gather = staticmethod(gather_arrays)
    synchronize = staticmethod(lambda: None)

    def __init__(self, num_exits: int, num_classes: int) -> None:
        self.num_exits = num_exits
        logits = np.random.default_rng(0).normal(size=(1024, num_classes))
        log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        self.log_probs = log_probs.astype(np.float32)

    def run_stage(self, stage: int, state: State) -> State:
        """Nothing."""
        return state

    def run_head(self, exit: int, state: State) -> HeadOutput:
        """The first rows of a table."""
        said = self.log_probs[: len(state[0])]
        return HeadOutput(said, said)


def stopping(num_exits: int, num_classes: int) -> StoppingPolicy:
    """A policy that finds every exit unsure, so that all rows see every exit."""
    prices = np.linspace(0.0, 1.0, 13)
    never = np.zeros((NUM_FEATURES, 1 + len(prices)))
    never[0, 0], never[0, 1:] = -9.0, 9.0
    offsets = np.zeros((num_classes, 1 + len(prices)))
    return StoppingPolicy(
        prices,
        np.ones(num_exits - 1),
        (*[never] * (num_exits - 1), never[:, :1]),
        (*[offsets] * (num_exits - 1), offsets[:, :1]),
    )


def engine_us(num_exits: int, num_classes: int, waiting: int, max_batch: int) -> float:
    """Microseconds of one sample through the engine: the best of some turns."""
    policy, backend = stopping(num_exits, num_classes), Nothing(num_exits, num_classes)
    taken = []
    for _ in range(TURNS):
        rows = [InferenceRequest((np.zeros((1, 1), np.float32),)) for _ in range(waiting)]
        taken.append(run_engine(backend, policy, 0.0, rows, 1, max_batch)[1] / waiting)
    return min(taken) * 1e6


def connections_us(seconds: float) -> Curve:
    """Microseconds of processor time of one request, by the connections that send them."""
    calls = [Call("/predict", file, "image/jpeg") for file in image_files()]
    found = {}
    with tempfile.TemporaryDirectory() as part:
        table = Path(part) / "nothing.json"
        table.write_text(json.dumps(StageCosts((1,), np.zeros((3, 1))).to_json()))
        bundle = str(ZOO / "cifar10-resnet56")
        options = ("--backend", "replay", "--replay-costs", str(table), "--max-queue", "1024")
        with serving("--bundle", bundle, *options) as server:
            for connections in CONNECTIONS:
                before = server.cpu_s()
                load = closed_loop(server.url, calls, ConnectionConfig(connections), seconds=seconds)
                assert not load.num_errors, load.outcomes
                found[connections] = (server.cpu_s() - before) / len(load.call) * 1e6
    return found


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--image", type=Path, help="where the plot goes")
    parser.add_argument("--seconds", type=float, default=3.0, help="of load per connections")
    args = parser.parse_args()
    curves: dict[str, dict[str, Curve]] = {"exits": {}, "classes": {}, "waiting rows": {}}
    for rows in BATCHES:
        label = f"batches of {rows}"
        curves["exits"][label] = {k: engine_us(k, 10, 2000, rows) for k in EXITS}
        curves["classes"][label] = {c: engine_us(3, c, 2000, rows) for c in CLASSES}
        curves["waiting rows"][label] = {n: engine_us(3, 10, n, rows) for n in WAITING}
    curves["connections"] = {"CPU of the server": connections_us(args.seconds)}
    for what, lines in curves.items():
        for label, curve in lines.items():
            shown = "  ".join(f"{x}: {us:.1f}" for x, us in curve.items())
            print(f"us a sample by {what}, {label}: {shown}", flush=True)
    if args.image:
        draw(curves, args.image)
    print(json.dumps({"machine": machine_name(), "cores": os.cpu_count(), "us": curves}))


def draw(curves: dict[str, dict[str, Curve]], path: Path) -> None:
    """One panel for each thing that grows."""
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(curves), figsize=(14, 3.2), layout="constrained")
    for panel, (what, lines) in zip(panels, curves.items(), strict=True):
        for label, curve in lines.items():
            panel.plot(list(curve), list(curve.values()), marker="o", markersize=3, label=label)
        logarithmic = what in ("classes", "waiting rows", "connections")
        panel.set(xlabel=what, ylim=(0, None), xscale="log" if logarithmic else "linear")
        panel.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("microseconds a sample")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
