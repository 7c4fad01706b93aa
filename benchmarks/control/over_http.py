"""The real server holds its budget, over HTTP, through what `benchmarks.control.scenarios` has.

    .venv/bin/python -m benchmarks.control.over_http [--images cifar10_jpegs.npz] [--rate 150]
        [--only "budget steps,noise"] [--out build/control/real.npz]

Each scenario gets a server of its own, which `eenet loadtest` drives: rates, budgets, corrupted
images and classes change while it runs. A slow host is processes that compute beside it. Where a
scenario asks for 1,000 requests per second the network is a fake device (`--backend replay`), since
two cores do not serve as many images. `frozen` is the same server with a window of a million
samples, in which nothing moves. benchmarks/control/report.py makes tables and images of the logs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.control.from_loadtest import log_of_load, static_curves
from benchmarks.control.log import ControlLog, save_logs
from benchmarks.control.policy_replay import PolicyReplay
from benchmarks.control.scenarios import MANY_PER_S, WINDOW, Scenario, scenarios
from benchmarks.engine import REPO, ZOO, Served, serving
from models.bundle import load_bundle
from models.runtime.onnx_backend import OnnxBackend
from models.stage_costs import StageCosts
from profiling.calibration import Predictions, record
from profiling.loadtest.inputs import Inputs, read_inputs
from profiling.loadtest.log import load_log
from scheduler.fitted import load_scheduler
from server.cli.loadtest import ask_budgets

BUNDLE = ZOO / "cifar10-resnet56"
MODEL, CLASSES = "cifar10-resnet56", 10
MAX_PIXELS = 50_000_000
STILL = 1_000_000  # samples of a window in which nothing moves
WARM_UP_S = 6.0
FEW_SAMPLES = 180  # where one comes a second
FROZEN_TOO = ("budget steps", "slow host", "noise", "burst")
DEVICE = StageCosts.of_exits([0.5, 1.0, 1.5], free_rows=16)
BURNERS = 2  # processes that compute beside the server, while the host is slow


def main() -> None:
    """Run the scenarios, keep the logs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, help="default: the 300 of this repository")
    parser.add_argument("--rate", type=float, default=150.0, help="of a calm, requests per second")
    parser.add_argument("--only", help="names of scenarios, with commas between")
    parser.add_argument("--out", type=Path, default=REPO / "build/control/real.npz")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    recorded = record_inputs(read_inputs(args.images, None))
    logs: list[ControlLog] = []
    for scenario in chosen(args.rate, args.only):
        for law in ("controller", "frozen"):
            if law == "controller" or scenario.name in FROZEN_TOO:
                logs.append(hold(scenario, law, args.images, recorded))
                save_logs(logs, args.out)
                told = {name: logs[-1].about[name] for name in ("outcomes", "puts_ms")}
                print(f"{scenario.name}, {law}: {len(logs[-1])} samples, {told}", flush=True)


def chosen(rate: float, only: str | None) -> Iterator[Scenario]:
    """The scenarios that are asked for; a sample a second for fewer minutes than simulated."""
    for scenario in scenarios(rate, CLASSES):
        if only is None or scenario.name in only.split(","):
            if scenario.phases[0].rate_per_s == 1:
                few = replace(scenario.phases[0], samples=FEW_SAMPLES)
                yield replace(scenario, phases=(few,))
            else:
                yield scenario


def record_inputs(inputs: Inputs) -> Predictions:
    """What every exit says of each image, clean."""
    bundle = load_bundle(BUNDLE)
    preprocess = bundle.preprocessor(MAX_PIXELS)
    images = np.concatenate([preprocess(file).state[0] for file in inputs.files])
    backend = OnnxBackend(bundle.stage_files, bundle.head_files)
    return record(backend, (images,), np.array(inputs.labels, np.int64))


def hold(scenario: Scenario, law: str, images: Path | None, recorded: Predictions) -> ControlLog:
    """One scenario on a fresh server."""
    on_device = scenario.phases[0].rate_per_s >= MANY_PER_S
    window = WINDOW if law == "controller" else STILL
    with tempfile.TemporaryDirectory() as folder:
        options = ["--bundle", str(BUNDLE), "--window", str(window)]
        options += ["--measure", scenario.measure]
        if on_device:
            table = Path(folder) / "costs.json"
            table.write_text(json.dumps(DEVICE.to_json()))
            options += ["--backend", "replay", "--replay-costs", str(table)]
        with serving(*options) as server:
            state = warm_up(server, scenario, images)
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
        load = load_log(log)
    fitted = fit_of(recorded)
    known = not on_device and not any(phase.inputs != "clean" for phase in scenario.phases)
    about = {
        "policy": fitted.policy.kind, "law": law, "window": WINDOW, "seed": 0,
        "subject": "image", "costs_ms": fitted.frontier.costs_ms.tolist(),
    }  # fmt: skip
    if known:
        curves = static_curves(
            load, scenario, fitted.static_exits(), recorded.correct > 0.5, fitted.frontier.costs_ms
        )
        about["static_curves"] = curves
    return log_of_load(load, scenario, about, labelled=not on_device)


def fit_of(recorded: Predictions) -> PolicyReplay:
    """The bundle's scheduler, and what it makes of the images."""
    policy, frontier = load_scheduler(BUNDLE)
    return PolicyReplay.of(policy, frontier, recorded.log_probs)


def warm_up(server: Served, scenario: Scenario, images: Path | None) -> dict[str, Any]:
    """A calm without a budget; then what floor and ceiling are."""
    rate = scenario.phases[0].rate_per_s
    seconds = max(WARM_UP_S, 20 / rate)
    command = [
        *eenet("loadtest", server.url), "--rate", f"{rate:g}", "--seconds", f"{seconds:g}",
        "--model", MODEL, "--budgets", "0:off", *of_images(images),
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return ask_budgets(server.url, MODEL)[0]


def loadtest(
    server: Served,
    scenario: Scenario,
    budgets_ms: Sequence[float],
    images: Path | None,
    log: Path,
) -> list[str]:
    """The command that sends a scenario."""
    phases = list(zip(scenario.begins_s, scenario.phases, strict=True))
    budgets = [f"{at:g}:{ms:.5g}" for at, ms in zip(scenario.begins_s, budgets_ms, strict=True)]
    classes = [
        f"{at:g}:{'all' if each.classes is None else '+'.join(map(str, each.classes))}"
        for at, each in phases
    ]
    return [
        *eenet("loadtest", server.url), "--model", MODEL, "--seconds", f"{scenario.seconds:g}",
        "--rates", ",".join(f"{at:g}:{each.rate_per_s:g}" for at, each in phases),
        "--budgets", ",".join(budgets),
        "--phases", ",".join(f"{at:g}:{each.inputs}" for at, each in phases),
        "--classes", ",".join(classes),
        "--poll-s", "0.25", "--log", str(log), *of_images(images),
    ]  # fmt: skip


def eenet(*words: str) -> list[str]:
    """A command of ours."""
    return [sys.executable, "-m", "server.cli.main", *words]


def of_images(images: Path | None) -> list[str]:
    """The flag of the images."""
    return [] if images is None else ["--images", str(images)]


@contextmanager
def slowed(server: Served, scenario: Scenario, first_budget_ms: float) -> Iterator[None]:
    """Burn processor time in the scenario's slow phases, counted from its first budget on."""
    over = threading.Event()

    def burn() -> None:
        while (
            abs((ask_budgets(server.url, MODEL)[0]["budget_ms"] or 0.0) / first_budget_ms - 1)
            > 1e-3
        ):
            if over.wait(0.02):
                return
        begun = time.perf_counter()
        for begin_s, phase in zip(scenario.begins_s, scenario.phases, strict=True):
            if phase.slowdown > 1 and not over.wait(begun + begin_s - time.perf_counter()):
                burners = [
                    subprocess.Popen([sys.executable, "-c", "while True: pass"])
                    for _ in range(BURNERS)
                ]
                over.wait(phase.seconds)
                for burner in burners:
                    burner.kill()
                    burner.wait()

    thread = threading.Thread(target=burn)
    if any(phase.slowdown > 1 for phase in scenario.phases):
        thread.start()
    try:
        yield
    finally:
        over.set()
        if thread.is_alive():
            thread.join()


if __name__ == "__main__":
    main()
