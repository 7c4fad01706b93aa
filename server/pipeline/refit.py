"""Fits a bundle's scheduler again: another policy, other costs, published weights, live rows."""

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle, load_bundle, rewrite_manifest
from profiling.calibration import Recorded, load_recorded, save_recorded
from profiling.evaluation.evaluate import Evaluation, evaluate, spread_budgets
from scheduler.eenet import load_published_scheduler
from scheduler.fitted import FILES, Scheduler, save_scheduler
from scheduler.fitting.fit import fit_scheduler
from server.pipeline.builder import default_budget_ms
from server.pipeline.live import LabelledRows, LiveRows, labelled

CALIBRATION = "calibration.npz"


class RefitResult(NamedTuple):
    """A bundle with a new scheduler, and the scheduler's results on the recorded predictions.

    `live` holds the rows it was fitted to, or None for the bundle's own calibration set.
    """

    bundle: Bundle
    scheduler: Scheduler
    evaluations: list[Evaluation]
    live: LabelledRows | None


def refit(
    folder: Path,
    *,
    policy: str,
    costs_ms: NDArray[np.float64] | None = None,
    weights: Path | None = None,
    live: LiveRows | None = None,
    seed: int = 0,
) -> RefitResult:
    """Fit a policy to a bundle's calibration set and put it into the bundle.

    Args:
        folder: The bundle.
        policy: One of `scheduler.policies.POLICIES`.
        costs_ms: Latency from the start until each exit, (K,); None: the bundle's own profile.
        weights: npz of a published fitted EENet scheduler to take scores and assignment from.
        live: Audited rows of a server that replace the calibration set; the test set stays.
        seed: Seed of folds, of networks that are trained, and of labels that are drawn.

    Raises:
        ValueError: If bundle, costs or weights do not fit together; the bundle is as it was.
    """
    bundle = load_bundle(folder)
    recorded, seen = load_recorded(folder / CALIBRATION), None
    if live is not None:
        seen = labelled(live, recorded.calibration, seed)
        recorded = Recorded(seen.predictions, recorded.test)
    if costs_ms is None:
        costs_ms = profiled_costs(folder)
    published = None if weights is None else load_published_scheduler(weights)
    calibration = recorded.calibration
    scheduler = fit_scheduler(
        policy,
        calibration.log_probs,
        calibration.labels,
        costs_ms,
        seed=seed,
        published=published,
    )
    with tempfile.TemporaryDirectory(dir=folder) as part:
        save_scheduler(scheduler, Path(part))
        if live is not None:
            save_recorded(recorded, Path(part) / CALIBRATION)
        for name in (*FILES, CALIBRATION) if live is not None else FILES:
            (Path(part) / name).replace(folder / name)
    bundle = rewrite_manifest(bundle, default_budget_ms=default_budget_ms(scheduler.frontier))
    evaluations = evaluate(scheduler, recorded, spread_budgets(costs_ms))
    return RefitResult(bundle, scheduler, evaluations, seen)


def profiled_costs(folder: Path) -> NDArray[np.float64]:
    """Latency until each exit in a bundle's `profile.json`, (K,)."""
    costs: NDArray[np.float64] = np.array(
        json.loads((folder / "profile.json").read_text())["costs_ms"], np.float64
    )
    return costs
