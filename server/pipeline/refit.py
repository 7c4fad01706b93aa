"""Fits a scheduler to a bundle: another policy, other costs, published weights, live rows."""

import json
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.bundle import (
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
from server.pipeline.fitting import default_budget_ms
from server.pipeline.live import LabelledRows, LiveRows, labelled
from server.pipeline.priors import OBSERVED, read_prior
from server.pipeline.schedulers import FitKind, fit_kind, warn_of_imbalance


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
    prior: str = OBSERVED,
    seed: int = 0,
) -> RefitResult:
    """Fit a policy to a variant's calibration rows and put it into the bundle.

    It replaces the variant's scheduler of that policy; all others stay. A server will start with
    it, unless it is label-free: that one is kept beside the policy in command.

    Args:
        folder: The bundle.
        policy: One of `scheduler.policies.POLICIES`.
        precision: Which variant; None: the first of the manifest.
        costs_ms: Latency from the start until each exit, (K,); None: the variant's own profile.
        weights: npz of a published fitted EENet scheduler to take scores and assignment from.
        live: Audited rows of a server that replace the calibration rows; other rows stay.
        label_free: Fit to the last exit's answers in place of labels.
        prior: What `read_prior` takes.
        seed: Seed of folds, of networks that are trained, and of labels that are drawn.

    Raises:
        ValueError: If bundle, costs or weights do not fit together; the bundle is as it was.
    """
    variant = load_bundle(folder).variant(precision)
    classes, kind = variant.bundle.manifest.classes, FitKind(policy, label_free)
    target = read_prior(prior, classes)
    recorded, seen = load_recorded(variant.predictions), None
    if live is not None:
        seen = labelled(Predictions(live.log_probs, live.labels), recorded.calibration, seed)
        recorded = recorded._replace(calibration=seen.predictions)
    if costs_ms is None:
        costs_ms = profiled_costs(variant.profile)
    published = None if weights is None else load_published_scheduler(weights)
    if target is None and live is None:  # live rows have the shares of what is served
        warn_of_imbalance(kind, recorded.calibration, classes)
    scheduler = fit_kind(
        kind,
        recorded.calibration,
        costs_ms,
        prior=target,
        seed=seed,
        published=published,
        label_sets=variant.bundle.manifest.thresholds is not None,
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
    folder, entry = variant.bundle.folder, variant.entry
    label_free = scheduler.frontier.reference == "last_exit"
    name = FitKind(scheduler.policy.kind, label_free).name
    new_place = (PurePosixPath(entry.folder) / "schedulers" / name).as_posix()
    place = entry.schedulers.get(name, new_place)
    with tempfile.TemporaryDirectory(dir=folder) as part:
        save_scheduler(scheduler, Path(part))
        if recorded is not None:
            save_recorded(recorded, Path(part) / PREDICTIONS)
        (folder / place).mkdir(parents=True, exist_ok=True)
        for file in SCHEDULER_FILES:
            (Path(part) / file).replace(folder / place / file)
        if recorded is not None:
            (Path(part) / PREDICTIONS).replace(variant.predictions)
    changes: dict[str, Any] = {"schedulers": entry.schedulers | {name: place}}
    if not label_free or entry.policy == name:
        budget_ms = default_budget_ms(scheduler.frontier)
        changes |= {"policy": name, "default_budget_ms": budget_ms}
    bundle = rewrite_entry(variant, **changes)
    return bundle.variant(variant.precision)
