"""`eenet evaluate`: policies side by side on a bundle's predictions or on a file's."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.bundle import load_bundle
from models.data.dataset import DataConfig
from models.data.load import load_dataset
from profiling.calibration import Recorded, load_predictions, load_recorded
from profiling.evaluation.evaluate import EVALUATED, Comparison, compare, spread_budgets
from scheduler.fitted import Scheduler, load_scheduler
from scheduler.fitting.fit import check_costs

SAME_LABELS = 0.999


class Subject(NamedTuple):
    """What is evaluated.

    Attributes:
        name: For titles.
        recorded: Predictions.
        costs_ms: (K,).
        classes: Names of the C classes.
        fitted: The bundle's own scheduler; None for a file, or where other costs were given.
    """

    name: str
    recorded: Recorded
    costs_ms: NDArray[np.float64]
    classes: tuple[str, ...]
    fitted: Scheduler | None


def subject_of(
    bundle: Path | None, predictions: Path | None, costs_ms: NDArray[np.float64] | None
) -> Subject:
    """Read a bundle or a file of predictions.

    Raises:
        ValueError: If neither or both are given, or what is given makes no sense.
    """
    if (bundle is None) == (predictions is None):
        raise ValueError("give either a bundle or --predictions FILE.npz")
    if bundle is not None:
        manifest, fitted = load_bundle(bundle).manifest, load_scheduler(bundle)
        recorded = load_recorded(bundle / "calibration.npz")
        if costs_ms is None:
            costs = fitted.frontier.costs_ms
            return Subject(manifest.name, recorded, costs, manifest.classes, fitted)
        return Subject(manifest.name, recorded, costs_ms, manifest.classes, None)
    assert predictions is not None, "one of the two was given"
    if costs_ms is None:
        raise ValueError("--predictions needs --costs, the latency until each exit: 1,2,3.3,5")
    recorded = load_predictions(predictions)
    num_exits, _, num_classes = recorded.test.log_probs.shape
    check_costs(costs_ms, num_exits)
    classes = tuple(f"class {index}" for index in range(num_classes))
    return Subject(predictions.stem, recorded, costs_ms, classes, None)


def run_evaluation(
    subject: Subject,
    *,
    budgets: Sequence[float] | None,
    policies: Sequence[str] | None,
    seed: int,
    say: Callable[[str], None],
) -> Comparison:
    """Compare; `None` stands for seven budgets over the range and for all policies."""
    return compare(
        subject.recorded,
        subject.costs_ms,
        budgets=budgets or list(dict.fromkeys(spread_budgets(subject.costs_ms))),
        policies=EVALUATED if policies is None else policies,
        fitted=subject.fitted,
        seed=seed,
        say=say,
    )


def table_of(comparison: Comparison) -> list[str]:
    """Lines for a terminal: test accuracy in %, and the test cost beneath the budget."""
    costs = ", ".join(f"{cost:.4g}" for cost in comparison.costs_ms)
    accuracy = ", ".join(f"{100 * share:.2f}" for share in comparison.exit_accuracy)
    lines = [
        f"exits cost {costs} and are right in {accuracy} % of the test set",
        "test accuracy % (realised test cost) under a budget of",
        f"{'':18}" + "".join(f"{budget:>16.4g}" for budget in comparison.budgets),
    ]
    for policy, rows in comparison.by_policy.items():
        cells = [f"{100 * row.test_accuracy:.2f} ({row.test_cost:.3f})" for row in rows]
        lines.append(f"{policy:18}" + "".join(f"{cell:>16}" for cell in cells))
    widest = max(
        judged.evaluation.test_accuracy_ci95[1] - judged.evaluation.test_accuracy_ci95[0]
        for judged in comparison.scored
    )
    lines.append(f"95 % intervals are at most {50 * widest:.2f} points to either side")
    return lines


def write_json(comparison: Comparison, path: Path) -> None:
    """Write the figures."""
    path.write_text(json.dumps(comparison.to_json(), indent=1) + "\n")


def write_exits(comparison: Comparison, path: Path) -> None:
    """Write the exit of every test sample, int8 (M,), under `POLICY@BUDGET`."""
    arrays: dict[str, Any] = {
        f"{judged.evaluation.policy}@{judged.evaluation.budget}": judged.exits.astype(np.int8)
        for judged in comparison.scored
    }
    with path.open("wb") as file:  # a path without .npz stays as it is
        np.savez_compressed(file, allow_pickle=False, **arrays)


def test_images(dataset: Path, subject: Subject) -> NDArray[np.uint8]:
    """The test images (M, H, W, 3) of the dataset a bundle was built from.

    Raises:
        ValueError: If the dataset holds no images or its test labels are not those of the
            predictions.
    """
    held_out = len(subject.recorded.calibration.labels)
    task, _, _, _, test = load_dataset(DataConfig(str(dataset), calibration_size=held_out))
    if task == "text":
        raise ValueError(f"{dataset} holds texts; the report shows examples of images alone")
    labels = test.labels
    if task == "segmentation":
        from models.networks.fcn import coarse_labels  # torch, which nothing else here needs

        labels = coarse_labels(labels)
    expected = subject.recorded.test.labels
    # A pixel on the edge of a drawn shape may be another on another processor.
    if labels.shape != expected.shape or (labels == expected).mean() < SAME_LABELS:
        raise ValueError(
            f"{dataset} has other test labels than the predictions; give the dataset that the "
            f"bundle was built from"
        )
    return np.asarray(test.inputs[:])
