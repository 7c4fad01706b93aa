"""Growth of a request's cost with exits, classes, waiting requests and connections.

    .venv/bin/python -m benchmarks.growth [--image docs/images/growth.svg]

The network takes no time: the time is that of the engine with the default policy, and for
connections that of the whole server. JSON on the last line.
"""

import tempfile
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np

from benchmarks.harness import (
    FREE,
    IMAGE_BUNDLE,
    image_calls,
    make_parser,
    print_report,
    run_engine,
    serving,
    write_costs,
)
from models.backend import HeadOutput, State, gather_arrays
from profiling.loadtest.http_client import ConnectionConfig
from profiling.loadtest.load import closed_loop
from scheduler.stopping import NUM_FEATURES, StoppingPolicy

BATCHES = (1, 64)
LINES = (("#0072b2", "-"), ("#d55e00", "--"), ("#009e73", ":"), ("#000000", "-."))
Curve = dict[int, float]


class Sizes(NamedTuple):
    """Points of each curve, requests and turns of each point, seconds of load per connections."""

    seconds: float
    exits: tuple[int, ...] = (2, 3, 4, 6, 8, 10, 12)
    classes: tuple[int, ...] = (10, 30, 64, 100, 300, 1000)
    waiting: tuple[int, ...] = (10, 100, 1000, 3000, 10_000)
    connections: tuple[int, ...] = (1, 4, 16, 64, 128, 256, 512)
    requests: int = 2000
    turns: int = 5


SMOKE = Sizes(0.2, (2, 3), (10, 30), (10, 100), (1, 4), requests=100, turns=1)


class FreeBackend:
    """Exits that take no time and give all rows the same predictions."""

    device = "nothing"
    gather = staticmethod(gather_arrays)
    synchronize = staticmethod(lambda: None)

    def __init__(self, num_exits: int, num_classes: int) -> None:
        self.num_exits = num_exits
        logits = np.random.default_rng(0).normal(size=(1024, num_classes))
        log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        self.log_probs = log_probs.astype(np.float32)

    def run_stage(self, stage: int, state: State) -> State:
        """Return the state unchanged."""
        return state

    def run_head(self, exit: int, state: State) -> HeadOutput:
        """Return the first rows of a table."""
        log_probs = self.log_probs[: len(state[0])]
        return HeadOutput(log_probs, log_probs)


def unsure_policy(num_exits: int, num_classes: int) -> StoppingPolicy:
    """A policy that finds every exit unsure, so that all requests run to the end."""
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


def engine_us(num_exits: int, num_classes: int, waiting: int, max_batch: int, turns: int) -> float:
    """Microseconds of one request through the engine: the best of some turns."""
    policy = unsure_policy(num_exits, num_classes)
    backend = FreeBackend(num_exits, num_classes)
    states = [(np.zeros((1, 1), np.float32),)] * waiting
    runs = [
        run_engine(backend, policy, 0.0, states, workers=1, max_batch=max_batch)
        for _ in range(turns)
    ]
    return 1e6 / max(run.rate for run in runs)


def connections_us(sizes: Sizes) -> Curve:
    """Microseconds of processor time of one request, by the connections that send them."""
    calls, found = image_calls(), {}
    with tempfile.TemporaryDirectory() as folder:
        options = ("--backend", "replay", "--replay-costs", str(write_costs(FREE, Path(folder))))
        with serving("--bundle", str(IMAGE_BUNDLE), *options, "--max-queue", "1024") as server:
            for connections in sizes.connections:
                config, before_s = ConnectionConfig(connections), server.cpu_s()
                load = closed_loop(server.url, calls, config, seconds=sizes.seconds)
                assert not load.num_errors, load.outcomes
                found[connections] = (server.cpu_s() - before_s) / len(load.call) * 1e6
    return found


def measure(sizes: Sizes) -> dict[str, dict[str, Curve]]:
    """Measure all curves, by what grows and then by the size of batches."""
    curves: dict[str, dict[str, Curve]] = {"exits": {}, "classes": {}, "waiting rows": {}}
    count, turns = sizes.requests, sizes.turns
    for rows in BATCHES:
        label = f"batches of {rows}"
        curves["exits"][label] = {k: engine_us(k, 10, count, rows, turns) for k in sizes.exits}
        curves["classes"][label] = {c: engine_us(3, c, count, rows, turns) for c in sizes.classes}
        curves["waiting rows"][label] = {n: engine_us(3, 10, n, rows, turns) for n in sizes.waiting}
    curves["connections"] = {"CPU of the server": connections_us(sizes)}
    return curves


def main() -> None:
    """Measure, print, draw."""
    parser = make_parser(__doc__)
    parser.add_argument("--image", type=Path, help="file to draw the curves to")
    parser.add_argument("--seconds", type=float, default=3.0, help="of load per connections")
    args = parser.parse_args()
    curves = measure(SMOKE if args.smoke else Sizes(args.seconds))
    for name, lines in curves.items():
        for label, curve in lines.items():
            shown = "  ".join(f"{x}: {us:.1f}" for x, us in curve.items())
            print(f"us per request by {name}, {label}: {shown}", flush=True)
    if args.image:
        draw(curves, args.image)
    print_report({"us": curves}, smoke=args.smoke)


def draw(curves: dict[str, dict[str, Curve]], path: Path) -> None:
    """Draw one panel for each thing that grows."""
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(curves), figsize=(14, 3.2), layout="constrained")
    for panel, (name, lines) in zip(panels, curves.items(), strict=True):
        for (label, curve), (colour, dashes) in zip(lines.items(), cycle(LINES), strict=False):
            style: dict[str, Any] = {"color": colour, "ls": dashes, "marker": "o", "ms": 3}
            panel.plot(list(curve), list(curve.values()), label=label, **style)
        logarithmic = name in ("classes", "waiting rows", "connections")
        panel.set(xlabel=name, ylim=(0, None), xscale="log" if logarithmic else "linear")
        panel.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("microseconds per request")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
