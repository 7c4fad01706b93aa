"""From recorded predictions and a latency profile to a fitted precision of a bundle."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.bundle import PREDICTIONS, PROFILE, Measured, Precision, VariantEntry
from profiling.calibration import Predictions, Recorded, save_recorded
from profiling.evaluation.evaluate import Evaluation, evaluate, spread_budgets
from profiling.latency import LatencyProfile, save_profile
from scheduler.fitted import Scheduler, save_scheduler
from scheduler.fitting.prior import Prior
from scheduler.frontier import Frontier
from server.pipeline.schedulers import FitKind, fit_kind

ACCURACY_GIVEN_UP = 0.005  # in accuracy, by the suggested budget
MANY_VALUES = 10_000_000  # log-probabilities from which on a fit of eenet takes minutes


class BuiltVariant(NamedTuple):
    """One precision of a bundle, and its results."""

    precision: Precision
    entry: VariantEntry
    measured: Measured
    recorded: Recorded
    scheduler: Scheduler
    evaluations: list[Evaluation]

    @property
    def frontier(self) -> Frontier:
        """The frontier of its policy, at the latency of this machine."""
        return self.scheduler.frontier


@dataclass(frozen=True)
class VariantFitter:
    """Fits schedulers to precisions whose graphs are already in the bundle.

    Attributes:
        folder: The bundle.
        policy: The policy that a server starts with.
        prior: Shares of the classes that schedulers are fitted for; None: the calibration rows'.
        seed: Seed of the fit.
        log_step: Called with each step as it begins.
        label_sets: Whether a row may have several classes.
    """

    folder: Path
    policy: str
    prior: Prior | None
    seed: int
    log_step: Callable[[str], None]
    label_sets: bool = False

    def fit(
        self,
        precision: Precision,
        recorded: Recorded,
        profile: LatencyProfile,
        method: dict[str, Any],
        costs_ms: NDArray[np.float64] | None = None,
        *,
        row_independent: bool = True,
    ) -> BuiltVariant:
        """Store predictions and profile of a precision, and fit the policy to them.

        Args:
            precision: The precision; its folder has this name.
            recorded: Predictions of its graphs.
            profile: Latency of its graphs.
            method: How the precision was reached, for people.
            costs_ms: Latency until each exit, measured elsewhere, (K,); None: the profile's.
            row_independent: As in the manifest.
        """
        folder = self.folder / precision
        save_recorded(recorded, folder / PREDICTIONS)
        save_profile(profile, folder / PROFILE)
        self.log_step(f"{precision}: fitting {self.policy}")
        costs_ms = profile.costs_ms if costs_ms is None else costs_ms
        kind = FitKind(self.policy)
        scheduler = self._fit_kind(kind, recorded.calibration, costs_ms)
        place = self._store(precision, kind, scheduler)
        measured = Measured(
            accuracy=recorded.test.correct.mean(0).round(4).tolist(),
            latency_ms=profile.costs_ms.round(4).tolist(),
        )
        entry = VariantEntry(
            folder=precision,
            predictions=f"{precision}/{PREDICTIONS}",
            schedulers={self.policy: place},
            policy=self.policy,
            default_budget_ms=default_budget_ms(scheduler.frontier),
            row_independent=row_independent,
            measured=measured,
            method=method,
        )
        evaluations = evaluate(scheduler, recorded, spread_budgets(costs_ms))
        return BuiltVariant(precision, entry, measured, recorded, scheduler, evaluations)

    def add_schedulers(self, variant: BuiltVariant, kinds: Sequence[FitKind]) -> BuiltVariant:
        """Fit further schedulers to a variant that the bundle will hold, beside its policy's."""
        if len(variant.frontier.costs_ms) == 1:  # nothing to decide
            return variant
        entry, calibration = variant.entry, variant.recorded.calibration
        for kind in kinds:
            if kind.name in entry.schedulers:
                continue
            slow = kind.policy == "eenet" and calibration.log_probs.size > MANY_VALUES
            takes = ", which takes minutes for so many predictions" if slow else ""
            self.log_step(f"{variant.precision}: fitting {kind.name} beside it{takes}")
            scheduler = self._fit_kind(kind, calibration, variant.frontier.costs_ms)
            place = self._store(variant.precision, kind, scheduler)
            entry = entry.model_copy(update={"schedulers": entry.schedulers | {kind.name: place}})
        return variant._replace(entry=entry)

    def _fit_kind(
        self, kind: FitKind, rows: Predictions, costs_ms: NDArray[np.float64]
    ) -> Scheduler:
        return fit_kind(
            kind, rows, costs_ms, prior=self.prior, seed=self.seed, label_sets=self.label_sets
        )

    def _store(self, precision: Precision, kind: FitKind, scheduler: Scheduler) -> str:
        """Write a scheduler's files; returns their folder in the bundle."""
        place = f"{precision}/schedulers/{kind.name}"
        (self.folder / place).mkdir(parents=True)
        save_scheduler(scheduler, self.folder / place)
        return place


def default_budget_ms(frontier: Frontier) -> float:
    """The smallest budget that loses at most half a point of accuracy, rounded up to 0.01 ms."""
    good = frontier.expected_accuracy >= frontier.expected_accuracy.max() - ACCURACY_GIVEN_UP
    rounded = math.ceil(float(frontier.expected_costs_ms[good].min()) * 100) / 100
    return min(rounded, round(float(frontier.costs_ms[-1]), 4))
