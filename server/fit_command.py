"""`eenet fit`: another policy, other costs or published weights for a bundle."""

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle, load_bundle, rewrite_manifest
from profiling.calibration import load_recorded
from profiling.evaluate import Evaluation, evaluate, spread_budgets
from scheduler.eenet import load_published_scheduler
from scheduler.fit import fit_scheduler
from scheduler.scheduler import FILES, Scheduler, save_scheduler
from server.build import default_budget_ms


class Refitted(NamedTuple):
    """A bundle with a new scheduler and what that makes of the bundle's recorded predictions."""

    bundle: Bundle
    scheduler: Scheduler
    evaluations: list[Evaluation]


def refit(
    folder: Path,
    *,
    policy: str,
    costs_ms: NDArray[np.float64] | None = None,
    weights: Path | None = None,
    seed: int = 0,
) -> Refitted:
    """Fit a policy to a bundle's calibration set and put it into the bundle.

    Args:
        folder: The bundle.
        policy: One of `scheduler.fit.POLICIES`.
        costs_ms: Latency from the start until each exit, (K,); None: the bundle's own profile.
        weights: npz of a published fitted EENet scheduler to take scores and assignment from.
        seed: Of folds and of networks that are trained.

    Raises:
        ValueError: If bundle, costs or weights make no sense; the bundle is as it was.
    """
    bundle = load_bundle(folder)
    recorded = load_recorded(folder / "calibration.npz")
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
        for name in FILES:
            (Path(part) / name).replace(folder / name)
    bundle = rewrite_manifest(bundle, default_budget_ms=default_budget_ms(scheduler.frontier))
    evaluations = evaluate(scheduler, recorded, spread_budgets(costs_ms))
    return Refitted(bundle, scheduler, evaluations)


def profiled_costs(folder: Path) -> NDArray[np.float64]:
    """The costs (K,) in a bundle's `profile.json`."""
    costs: NDArray[np.float64] = np.array(
        json.loads((folder / "profile.json").read_text())["costs_ms"], np.float64
    )
    return costs
