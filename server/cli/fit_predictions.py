"""Fits a policy to a file of predictions, which any framework may have made."""

from __future__ import annotations

import argparse
from typing import Any

from server.cli.options import print_evaluations
from server.cli.progress import StepLog

OF_A_BUNDLE = ("precision", "weights", "from_live", "model", "key_file")


def fit_predictions(args: argparse.Namespace, policy: str) -> dict[str, Any]:
    """Fit a policy to the calibration rows of `args.predictions`; write it into `args.out`.

    Args:
        args: The flags of `eenet fit`.
        policy: Its policy.

    Returns:
        The results on the file's test rows, if it has any.

    Raises:
        ValueError: If a flag is missing or needs a bundle, or the file does not hold predictions.
    """
    from profiling.calibration import Recorded, load_calibration
    from profiling.evaluation.evaluate import evaluate, spread_budgets
    from scheduler.fitted import save_scheduler
    from scheduler.fitting.fit import check_costs
    from server.pipeline.priors import read_prior
    from server.pipeline.schedulers import FitKind, fit_kind

    _check_flags(args)
    calibration, test = load_calibration(args.predictions)
    num_exits, _, num_classes = calibration.log_probs.shape
    check_costs(args.costs, num_exits)
    classes = tuple(f"class {index}" for index in range(num_classes))
    kind = FitKind(policy, args.labels == "none")
    StepLog()(f"fitting {kind.name} to {len(calibration.labels)} rows")
    prior = read_prior(args.prior, classes)
    scheduler = fit_kind(kind, calibration, args.costs, prior=prior, seed=args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    save_scheduler(scheduler, args.out)
    print(f"{args.out}: {kind.name}, {len(scheduler.frontier)} points of the frontier")
    evaluations = []
    if test is not None:
        recorded = Recorded(calibration, None, test)
        evaluations = evaluate(scheduler, recorded, spread_budgets(args.costs))
        print_evaluations(evaluations)
    return {"scheduler": str(args.out), "evaluations": [row._asdict() for row in evaluations]}


def _check_flags(args: argparse.Namespace) -> None:
    if args.folder is not None:
        raise ValueError("give either a bundle or --predictions FILE.npz")
    if args.costs is None:
        raise ValueError("--predictions needs --costs, the latency until each exit: 1,2,3.3,5")
    if args.out is None:
        raise ValueError("--predictions needs --out, the folder to write the scheduler to")
    for name in OF_A_BUNDLE:
        if getattr(args, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} needs a bundle; leave it out with --predictions")
