"""Budgets held through every scenario of `benchmarks.control.scenarios`, on a simulated server.

    .venv/bin/python -m benchmarks.control.simulated image [--policies stopping,maxprob] [--seeds 3]
    .venv/bin/python -m benchmarks.control.simulated text

Samples are the recorded predictions in benchmarks/control/data (2,000 real test inputs in every
variant, made by benchmarks.record_drift), costs those of the bundle's profile. Beside the server's
controller run the same policy with the parameter that calibration gives for the budget (`frozen`),
and for the default policy other control laws. The log of every sample goes to build/control;
benchmarks.control.report makes tables and images of it. JSON on the last line.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.control.drift_sets import load_drift_set
from benchmarks.control.laws import LAWS, Controlled
from benchmarks.control.log import ControlLog, save_logs
from benchmarks.control.policy_replay import PolicyReplay
from benchmarks.control.recorded_samples import RecordedSamples
from benchmarks.control.scenarios import WINDOW, Scenario, scenarios
from benchmarks.control.simulated_server import ControlPolicy, Host, Reference, run
from benchmarks.harness import (
    BUNDLES,
    REPO,
    make_parser,
    network_of,
    print_report,
    recorded_of,
    scheduler_of,
)
from models.stage_costs import read_stage_costs
from scheduler.control.controller import ControllerConfig
from scheduler.fitted import Scheduler
from scheduler.fitting.fit import fit_scheduler
from scheduler.policies import DEFAULT_POLICY, POLICIES

LOAD = 0.25  # share of what the host can run to the end
SMOKE_SCENARIOS, SMOKE_SAMPLES = 2, 60


def main() -> None:
    """Run all scenarios and write the logs."""
    parser = make_parser(__doc__)
    parser.add_argument("modality", choices=BUNDLES, nargs="?", default="image")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--laws", default=",".join(LAWS), help="beside the controller")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--window", type=int, default=WINDOW)
    parser.add_argument("--out", type=Path, default=REPO / "build/control")
    args = parser.parse_args()
    if args.smoke:
        args.policies, args.laws, args.seeds = DEFAULT_POLICY, "frozen", 1
    data = REPO / f"benchmarks/control/data/{args.modality}.npz"
    samples = RecordedSamples.of_drift(load_drift_set(data))
    bundle = BUNDLES[args.modality]
    host = Host(read_stage_costs(network_of(bundle).profile).costs_ms)
    written = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) if args.smoke else args.out
        out.mkdir(parents=True, exist_ok=True)
        for policy in args.policies.split(","):
            started = time.perf_counter()
            scheduler = fitted_scheduler(bundle, policy, host)
            answered = samples.combined(scheduler.combiner)
            fitted = PolicyReplay.of(scheduler.policy, scheduler.frontier, answered.log_probs)
            laws = ["controller", "frozen"]
            if policy == DEFAULT_POLICY:
                laws = ["controller", *args.laws.split(",")]
            logs = [
                log
                for seed in range(args.seeds)
                for law in laws
                for log in run_all(
                    fitted, answered, host, law, args.window, seed, args.modality,
                    chosen(samples, host, args.modality, smoke=args.smoke),
                )
            ]  # fmt: skip
            path = out / f"{args.modality}-{policy}.npz"
            save_logs(logs, path)
            seconds = time.perf_counter() - started
            print(f"{path}: {len(logs)} logs, {seconds:.0f} s", flush=True)
            written.append({"file": str(path), "logs": len(logs), "seconds": seconds})
    print_report({"written": written}, smoke=args.smoke)


def chosen(
    samples: RecordedSamples, host: Host, modality: str, *, smoke: bool
) -> Sequence[Scenario]:
    """All scenarios; for a smoke run short versions of the first."""
    rate_per_s = LOAD * host.workers * 1e3 / float(host.costs_ms[-1])
    classes = samples.log_probs.shape[2]
    found = scenarios(rate_per_s, classes, texts=modality == "text")
    if smoke:
        return [each.shortened(SMOKE_SAMPLES) for each in found[:SMOKE_SCENARIOS]]
    return found


def fitted_scheduler(bundle: Path, policy: str, host: Host) -> Scheduler:
    """The bundle's own scheduler, or one of another kind fitted to its calibration set."""
    fitted = scheduler_of(bundle)
    if policy != fitted.policy.kind:
        calibration = recorded_of(bundle).calibration
        fitted = fit_scheduler(policy, *calibration, host.costs_ms)
    return fitted._replace(frontier=fitted.frontier.with_costs(host.costs_ms))


def run_all(
    fitted: PolicyReplay,
    samples: RecordedSamples,
    host: Host,
    law: str,
    window: int,
    seed: int,
    modality: str,
    chosen: Sequence[Scenario],
) -> list[ControlLog]:
    """Run scenarios under one law."""
    reference = Reference(fitted.static_exits(), fitted.frontier)
    about = {
        "policy": fitted.policy.kind, "law": law, "window": window, "seed": seed,
        "subject": modality,
    }  # fmt: skip
    logs = []
    for scenario in chosen:
        steering = make_law(law, fitted, window, host, scenario)
        logs.append(run(scenario, samples, host, steering, about, seed, reference))
    return logs


def make_law(
    law: str, fitted: PolicyReplay, window: int, host: Host, scenario: Scenario
) -> ControlPolicy:
    """Make a law by its name."""
    begin_ms = host.budget_ms(0.5)  # a scenario sets its own at once
    if law == "controller":
        return Controlled(fitted, begin_ms, ControllerConfig(window=window), scenario.measure)
    return LAWS[law](fitted, begin_ms)


if __name__ == "__main__":
    main()
