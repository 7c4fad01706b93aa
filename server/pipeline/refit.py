"""Fits a scheduler to a bundle: another policy, other costs, published weights, live rows."""

import json
import tempfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.bundle import (
    LABEL_FREE,
    PREDICTIONS,
    SCHEDULER_FILES,
    Precision,
    Variant,
    load_bundle,
    rewrite_entry,
)
from profiling.calibration import Predictions, Recorded, load_recorded, save_recorded
from profiling.evaluation.evaluate import Evaluation, evaluate, spread_budgets
from scheduler.eenet import load_published_scheduler
from scheduler.fitted import Scheduler, save_scheduler
from scheduler.fitting.fit import fit_scheduler
from server.pipeline.live import LabelledRows, LiveRows, labelled
from server.pipeline.variants import default_budget_ms


class RefitResult(NamedTuple):
    """A variant with a new scheduler, and the scheduler's results on the recorded predictions.

    `live` holds the rows it was fitted to, or None for the variant's own calibration rows.
    """

    variant: Variant
    scheduler: Scheduler
    evaluations: list[Evaluation]
    live: LabelledRows | None


def refit(
    folder: Path,
    *,
    policy: str,
    precision: Precision | None = None,
    costs_ms: NDArray[np.float64] | None = None,
    weights: Path | None = None,
    live: LiveRows | None = None,
    label_free: bool = False,
    seed: int = 0,
) -> RefitResult:
    """Fit a policy to a variant's calibration rows and put it into the bundle.

    It replaces the variant's scheduler of that policy, and a server will start with it. Schedulers
    of other policies stay, and so does the one fitted to labels beside the label-free one.

    Args:
        folder: The bundle.
        policy: One of `scheduler.policies.POLICIES`.
        precision: Which variant; None: the first of the manifest.
        costs_ms: Latency from the start until each exit, (K,); None: the variant's own profile.
        weights: npz of a published fitted EENet scheduler to take scores and assignment from.
        live: Audited rows of a server that replace the calibration rows; other rows stay.
        label_free: Fit to the last exit's answers in place of labels.
        seed: Seed of folds, of networks that are trained, and of labels that are drawn.

    Raises:
        ValueError: If bundle, costs or weights do not fit together; the bundle is as it was.
    """
    variant = load_bundle(folder).variant(precision)
    recorded, seen = load_recorded(variant.predictions), None
    if live is not None:
        seen = labelled(Predictions(live.log_probs, live.labels), recorded.calibration, seed)
        recorded = recorded._replace(calibration=seen.predictions)
    if costs_ms is None:
        costs_ms = profiled_costs(variant.profile)
    published = None if weights is None else load_published_scheduler(weights)
    calibration = recorded.calibration
    scheduler = fit_scheduler(
        policy,
        calibration.log_probs,
        None if label_free else calibration.labels,
        costs_ms,
        seed=seed,
        published=published,
    )
    variant = _store(variant, scheduler, None if live is None else recorded)
    evaluations = evaluate(scheduler, recorded, spread_budgets(costs_ms))
    return RefitResult(variant, scheduler, evaluations, seen)


def profiled_costs(profile: Path) -> NDArray[np.float64]:
    """Latency until each exit in a `profile.json`, (K,)."""
    costs: NDArray[np.float64] = np.array(json.loads(profile.read_text())["costs_ms"], np.float64)
    return costs


def _store(variant: Variant, scheduler: Scheduler, recorded: Recorded | None) -> Variant:
    """Put a scheduler, and changed predictions if there are any, into a variant."""
    folder, entry, policy = variant.bundle.folder, variant.entry, scheduler.policy.kind
    if scheduler.frontier.reference == "last_exit":
        policy += LABEL_FREE
    new_place = (PurePosixPath(entry.folder) / "schedulers" / policy).as_posix()
    place = entry.schedulers.get(policy, new_place)
    with tempfile.TemporaryDirectory(dir=folder) as part:
        save_scheduler(scheduler, Path(part))
        if recorded is not None:
            save_recorded(recorded, Path(part) / PREDICTIONS)
        (folder / place).mkdir(parents=True, exist_ok=True)
        for name in SCHEDULER_FILES:
            (Path(part) / name).replace(folder / place / name)
        if recorded is not None:
            (Path(part) / PREDICTIONS).replace(variant.predictions)
    bundle = rewrite_entry(
        variant,
        schedulers=entry.schedulers | {policy: place},
        policy=policy,
        default_budget_ms=default_budget_ms(scheduler.frontier),
    )
    return bundle.variant(variant.precision)
