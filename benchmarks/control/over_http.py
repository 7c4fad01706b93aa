"""Budgets held through every scenario of `benchmarks.control.scenarios` by the real server.

    .venv/bin/python -m benchmarks.control.over_http [--images cifar10_jpegs.npz] [--rate 150]
        [--only "budget steps,noise"] [--out build/control/real.npz]

Each scenario gets a server of its own, which `eenet loadtest` drives: rates, budgets, corrupted
images and classes change while it runs. The slow host and the neighbours are other processes that
compute beside the server, as many as there are cores and three times as many. For
1,000 requests per second the network is a fake device (`--backend replay`), since two cores cannot
serve as many images. `frozen` is the same server with a window of a million samples, in which
nothing moves. benchmarks.control.report makes tables and images of the logs. JSON on the last line.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.control.from_loadtest import log_of_load, static_curves
from benchmarks.control.log import ControlLog, save_logs
from benchmarks.control.policy_replay import PolicyReplay
from benchmarks.control.scenarios import MANY_PER_S, WINDOW, Scenario, scenarios
from benchmarks.harness import (
    IMAGE_BUNDLE,
    REPO,
    RunningServer,
    eenet,
    image_preprocessor,
    make_parser,
    onnx_backend,
    print_report,
    scheduler_of,
    serving,
    write_costs,
)
from models.stage_costs import StageCosts
from profiling.calibration import Predictions, record
from profiling.loadtest.inputs import Inputs, read_inputs
from profiling.loadtest.log import LoadLog, load_log
from server.cli.loadtest import ask_budgets

MODEL, CLASSES = "cifar10-resnet56", 10
STILL = 1_000_000  # samples of a window in which nothing moves
WARM_UP_S = 6.0
SMOKE_SCENARIO, SMOKE_SAMPLES, SMOKE_RATE = "budget steps", 60, 100.0
FEW_SAMPLES = 180  # at one per second
FROZEN_TOO = ("budget steps", "slow host", "noise", "burst")
DEVICE = StageCosts.of_exits([0.5, 1.0, 1.5], free_rows=16)
CORES = len(os.sched_getaffinity(0))
BURNERS, NEIGHBOURS = CORES, 3 * CORES  # processes that compute beside the server
BURN = "while True: pass"


def main() -> None:
    """Run the scenarios and keep the logs."""
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=Path, help="default: the 300 of this repository")
    parser.add_argument("--rate", type=float, default=150.0, help="calm requests per second")
    parser.add_argument("--only", help="names of scenarios, with commas between")
    parser.add_argument("--out", type=Path, default=REPO / "build/control/real.npz")
    args = parser.parse_args()
    chosen = list(choose(args.rate, args.only))
    warm_up_s = WARM_UP_S
    frozen_too: Sequence[str] = FROZEN_TOO
    if args.smoke:
        chosen = [each.shortened(SMOKE_SAMPLES) for each in choose(SMOKE_RATE, SMOKE_SCENARIO)]
        warm_up_s, frozen_too = 0.3, ()
    recorded = record_inputs(read_inputs(args.images, None))
    logs: list[ControlLog] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "real.npz" if args.smoke else args.out
        out.parent.mkdir(parents=True, exist_ok=True)
        for scenario in chosen:
            for law in ("controller", "frozen"):
                if law == "controller" or scenario.name in frozen_too:
                    logs.append(hold(scenario, law, args.images, recorded, warm_up_s))
                    save_logs(logs, out)
                    print(format_log(logs[-1]), flush=True)
    runs = [{"scenario": each.about["scenario"], "law": each.about["law"], "samples": len(each)}
            for each in logs]  # fmt: skip
    print_report({"written": str(out), "runs": runs}, smoke=args.smoke)


def format_log(log: ControlLog) -> str:
    """Format scenario, law and outcomes as one line."""
    about = log.about
    return (
        f"{about['scenario']}, {about['law']}: {len(log)} samples, outcomes {about['outcomes']}, "
        f"changes of the budget took {about['puts_ms']} ms"
    )


def choose(rate: float, only: str | None) -> Iterator[Scenario]:
    """Yield the chosen scenarios; one sample per second for fewer minutes than simulated."""
    for scenario in scenarios(rate, CLASSES):
        if only is None or scenario.name in only.split(","):
            if scenario.phases[0].rate_per_s == 1:
                yield scenario.shortened(FEW_SAMPLES)
            else:
                yield scenario


def record_inputs(inputs: Inputs) -> Predictions:
    """Record the predictions of every exit for each clean image."""
    preprocess = image_preprocessor()
    images = np.concatenate([preprocess(file).state[0] for file in inputs.files])
    labels = np.array(inputs.labels, np.int64)
    return record(onnx_backend(IMAGE_BUNDLE), (images,), labels)


def hold(
    scenario: Scenario, law: str, images: Path | None, recorded: Predictions, warm_up_s: float
) -> ControlLog:
    """Run one scenario on a fresh server and return its log."""
    on_device = scenario.phases[0].rate_per_s >= MANY_PER_S
    load = send(scenario, law, images, warm_up_s, on_device=on_device)
    scheduler = scheduler_of(IMAGE_BUNDLE)
    recorded = recorded.combined(scheduler.combiner)
    fitted = PolicyReplay.of(scheduler.policy, scheduler.frontier, recorded.log_probs)
    about: dict[str, Any] = {
        "policy": fitted.policy.kind, "law": law, "window": WINDOW, "seed": 0,
        "subject": "image", "costs_ms": fitted.frontier.costs_ms.tolist(),
    }  # fmt: skip
    if not on_device and all(phase.inputs == "clean" for phase in scenario.phases):
        about["static_curves"] = static_curves(
            load, scenario, fitted.static_exits(), recorded.correct > 0.5, fitted.frontier.costs_ms
        )
    return log_of_load(load, scenario, about, labelled=not on_device)


def send(
    scenario: Scenario, law: str, images: Path | None, warm_up_s: float, *, on_device: bool
) -> LoadLog:
    """Start a server, send a scenario with `eenet loadtest`, and read its log."""
    window = WINDOW if law == "controller" else STILL
    options = ["--bundle", str(IMAGE_BUNDLE), "--window", str(window)]
    options += ["--measure", scenario.measure]
    with tempfile.TemporaryDirectory() as folder:
        if on_device:
            table = write_costs(DEVICE, Path(folder))
            options += ["--backend", "replay", "--replay-costs", str(table)]
        with serving(*options) as server:
            state = warm_up(server, scenario, images, warm_up_s)
            budgets_ms = [
                state["floor_ms"] + phase.budget * (state["ceiling_ms"] - state["floor_ms"])
                for phase in scenario.phases
            ]
            log = Path(folder) / "load.npz"
            process = subprocess.Popen(
                loadtest(server, scenario, budgets_ms, images, log), stdout=subprocess.DEVNULL
            )
            with slowed(server, scenario, budgets_ms[0]):
                if process.wait() != 0:
                    raise RuntimeError(f"the load of {scenario.name} failed")
        return load_log(log)


def warm_up(
    server: RunningServer, scenario: Scenario, images: Path | None, least_s: float
) -> dict[str, Any]:
    """Send calm traffic without a budget; return the state with floor and ceiling."""
    rate = scenario.phases[0].rate_per_s
    seconds = max(least_s, 20 / rate)
    command = [
        *eenet("loadtest", server.url), "--rate", f"{rate:g}", "--seconds", f"{seconds:g}",
        "--model", MODEL, "--budgets", "0:off", *of_images(images),
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return ask_budgets(server.url, MODEL)[0]


def loadtest(
    server: RunningServer,
    scenario: Scenario,
    budgets_ms: Sequence[float],
    images: Path | None,
    log: Path,
) -> list[str]:
    """Make the command that sends a scenario."""
    phases = list(zip(scenario.begins_s, scenario.phases, strict=True))
    budgets = [f"{at:g}:{ms:.5g}" for at, ms in zip(scenario.begins_s, budgets_ms, strict=True)]
    classes = [
        f"{at:g}:{'all' if each.classes is None else '+'.join(map(str, each.classes))}"
        for at, each in phases
    ]
    rates = [change for begin_s, each in phases for change in each.rates(begin_s)]
    return [
        *eenet("loadtest", server.url), "--model", MODEL, "--seconds", f"{scenario.seconds:g}",
        "--rates", ",".join(f"{at:g}:{rate:g}" for at, rate in rates),
        "--budgets", ",".join(budgets),
        "--phases", ",".join(f"{at:g}:{each.inputs}" for at, each in phases),
        "--classes", ",".join(classes),
        "--poll-s", "0.25", "--log", str(log), *of_images(images),
    ]  # fmt: skip


def of_images(images: Path | None) -> list[str]:
    """Make the flag of the images."""
    return [] if images is None else ["--images", str(images)]


class Visit(NamedTuple):
    """Other processes that compute from one time of a scenario to another."""

    come_s: float
    go_s: float
    processes: int


def visits(scenario: Scenario) -> Iterator[Visit]:
    """Yield the visits of a scenario, in order."""
    for number, (phase, begin_s) in enumerate(zip(scenario.phases, scenario.begins_s, strict=True)):
        if phase.slowdown > 1:
            yield Visit(begin_s, begin_s + phase.seconds, BURNERS)
        for come_s, go_s in phase.visits(number):
            yield Visit(begin_s + come_s, begin_s + go_s, NEIGHBOURS)


@contextmanager
def slowed(server: RunningServer, scenario: Scenario, first_budget_ms: float) -> Iterator[None]:
    """Use up processor time when the scenario says so, counted from its first budget on."""
    over, planned = threading.Event(), list(visits(scenario))

    def burn() -> None:
        while (
            abs((ask_budgets(server.url, MODEL)[0]["budget_ms"] or 0.0) / first_budget_ms - 1)
            > 1e-3
        ):
            if over.wait(0.02):
                return
        begun = time.perf_counter()
        for visit in planned:
            if over.wait(max(begun + visit.come_s - time.perf_counter(), 0.0)):
                return
            burners = [
                subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(visit.processes)
            ]
            over.wait(max(begun + visit.go_s - time.perf_counter(), 0.0))
            for burner in burners:
                burner.kill()
                burner.wait()

    thread = threading.Thread(target=burn)
    if planned:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if thread.is_alive():
            thread.join()


if __name__ == "__main__":
    main()
