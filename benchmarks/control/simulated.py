"""A budget held through everything that `benchmarks.control.scenarios` has, on a simulated server.

    .venv/bin/python -m benchmarks.control.simulated image [--policies stopping,maxprob] [--seeds 3]
    .venv/bin/python -m benchmarks.control.simulated text

Samples are the recorded predictions of docs/control (2,000 real test inputs in every form, made by
benchmarks/record_drift.py), costs those of the bundle's profile. Beside the server's controller
run the
same policy with the parameter that calibration gives for the budget (`frozen`), and for the default
policy other laws of control. The log of every sample goes to build/control;
benchmarks/control/report.py
makes tables and images of it again.
"""

import argparse
import time
from pathlib import Path

from benchmarks.control.drift_sets import load_drift_set
from benchmarks.control.fitted import PolicyReplay
from benchmarks.control.laws import LAWS, Controlled
from benchmarks.control.log import ControlLog, save_logs
from benchmarks.control.plant import ControlPolicy, Host, Reference, run
from benchmarks.control.rows import RecordedSamples
from benchmarks.control.scenarios import WINDOW, scenarios
from models.stage_costs import read_stage_costs
from profiling.calibration import load_recorded
from scheduler.control.controller import ControllerConfig
from scheduler.fitted import load_scheduler
from scheduler.fitting.fit import fit_scheduler
from scheduler.policies import DEFAULT_POLICY, POLICIES

REPO = Path(__file__).resolve().parents[2]
BUNDLES = {
    "image": REPO / "models/zoo/cifar10-resnet56",
    "text": REPO / "models/zoo/ag-news-minilm",
}
LOAD = 0.25  # of what the host can run to the end


def main() -> None:
    """Run all scenarios, write the logs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modality", choices=BUNDLES)
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--laws", default=",".join(LAWS), help="beside the controller")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--window", type=int, default=WINDOW)
    parser.add_argument("--out", type=Path, default=REPO / "build/control")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = RecordedSamples.of_drift(
        load_drift_set(REPO / f"benchmarks/control/data/{args.modality}.npz")
    )
    bundle = BUNDLES[args.modality]
    host = Host(read_stage_costs(bundle / "profile.json").costs_ms)
    for policy in args.policies.split(","):
        started = time.perf_counter()
        fitted = fitted_policy(bundle, policy, rows, host)
        laws = ["controller", "frozen"]
        if policy == DEFAULT_POLICY:
            laws = ["controller", *args.laws.split(",")]
        logs = [
            log
            for seed in range(args.seeds)
            for law in laws
            for log in run_all(fitted, rows, host, law, args.window, seed, args.modality)
        ]
        path = args.out / f"{args.modality}-{policy}.npz"
        save_logs(logs, path)
        print(f"{path}: {len(logs)} logs, {time.perf_counter() - started:.0f} s", flush=True)


def fitted_policy(bundle: Path, policy: str, rows: RecordedSamples, host: Host) -> PolicyReplay:
    """The bundle's own scheduler, or one of another kind fitted to its calibration set."""
    fitted = load_scheduler(bundle)
    if policy != fitted.policy.kind:
        calibration = load_recorded(bundle / "calibration.npz").calibration
        fitted = fit_scheduler(policy, *calibration, host.costs_ms)
    return PolicyReplay.of(fitted.policy, fitted.frontier.with_costs(host.costs_ms), rows.log_probs)


def run_all(
    fitted: PolicyReplay,
    rows: RecordedSamples,
    host: Host,
    law: str,
    window: int,
    seed: int,
    modality: str,
) -> list[ControlLog]:
    """Every scenario under one law."""
    rate_per_s = LOAD * host.workers * 1e3 / float(host.costs_ms[-1])
    judge = Reference(fitted.static_exits(), fitted.frontier)
    about = {
        "policy": fitted.policy.kind, "law": law, "window": window, "seed": seed,
        "subject": modality,
    }  # fmt: skip
    classes = rows.log_probs.shape[2]
    return [
        run(scenario, rows, host, make_law(law, fitted, window, host), about, seed, judge)
        for scenario in scenarios(rate_per_s, classes, texts=modality == "text")
    ]


def make_law(law: str, fitted: PolicyReplay, window: int, host: Host) -> ControlPolicy:
    """By name."""
    begin_ms = host.budget_ms(0.5)  # a scenario sets its own at once
    if law == "controller":
        return Controlled(fitted, begin_ms, ControllerConfig(window=window))
    return LAWS[law](fitted, begin_ms)


if __name__ == "__main__":
    main()
