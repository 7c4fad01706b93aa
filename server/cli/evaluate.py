"""`eenet evaluate`: policies side by side on a bundle's predictions or on a file's."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.bundle import Precision, Variant, load_bundle
from models.data.dataset import DataConfig
from models.label_sets import f1_scores
from profiling.calibration import Recorded, load_predictions, load_recorded
from scheduler.fitted import Scheduler, load_scheduler
from server.cli.options import (
    add_costs,
    add_precision,
    add_seed,
    number_array,
    require_training_extra,
)
from server.cli.progress import StepLog
from server.spelling import did_you_mean

if TYPE_CHECKING:
    from profiling.evaluation.evaluate import Comparison

EXAMPLE = "eenet evaluate --predictions mine.npz --costs 1,2,3.3,5 --report report"
SAME_LABELS = 0.999
SPLIT = ("calibration_from", "seed")  # settings of the split in the manifest's `training`


def add_subject(parser: argparse.ArgumentParser, arrays: str) -> None:
    """Add the arguments that `subject_of` reads; `arrays` says what a file of predictions holds."""
    parser.add_argument(
        "folder", metavar="BUNDLE", type=Path, nargs="?", help="a bundle; or give --predictions"
    )
    parser.add_argument("--predictions", type=Path, metavar="FILE.npz", help=arrays)
    add_precision(parser)
    add_costs(parser, "those the bundle's scheduler was fitted for")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_subject(
        parser,
        "calibration_probs (K, N, C), calibration_labels (N,), test_probs (K, M, C), "
        "test_labels (M,)",
    )
    parser.add_argument(
        "--budgets",
        type=number_array,
        help="mean costs, 1.5,2,3 (default: seven spread over the range)",
    )
    parser.add_argument(
        "--policies",
        type=lambda text: list(dict.fromkeys(text.split(","))),
        help="names separated by commas (default: all, with eenet-per-budget and oracle)",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures to this file")
    parser.add_argument(
        "--exits",
        type=Path,
        metavar="OUT.npz",
        help="write exit and answer of every test sample",
    )
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write an HTML page with figures"
    )
    parser.add_argument(
        "--intervals", action="store_true", help="with --report: draw 95 %% bootstrap intervals"
    )
    parser.add_argument(
        "--dataset",
        type=Path,
        help="with --report and a bundle: the images it was built from, to show examples",
    )
    add_seed(parser)


def run(args: argparse.Namespace) -> None:
    """Compare the policies, print a table and write the files asked for."""
    require_training_extra()
    from profiling.evaluation.evaluate import EVALUATED

    policies = EVALUATED if args.policies is None else tuple(args.policies)
    _check_policies(policies, EVALUATED)
    check_outputs(args.json, args.exits, args.report)
    subject = subject_of(args.folder, args.predictions, args.costs, args.precision)
    images = None if args.dataset is None else test_images(args.dataset, subject)
    comparison = run_evaluation(
        subject,
        budgets=None if args.budgets is None else list(dict.fromkeys(args.budgets.tolist())),
        policies=policies,
        seed=args.seed,
        log_step=StepLog(len(policies), similar=True),
    )
    print("\n".join(table_of(comparison)))
    if subject.label_sets:
        print("\n".join(f1_table(subject, comparison)))
    if args.json is not None:
        write_json(comparison, args.json)
    if args.exits is not None:
        write_exits(comparison, args.exits)
    if args.report is not None:
        from profiling.evaluation.report import write_report

        page = write_report(
            args.report,
            subject.name,
            subject.recorded,
            comparison,
            subject.classes,
            images,
            intervals=args.intervals,
        )
        print(f"report: {page}")


def interrupted(args: argparse.Namespace) -> str:
    """Sentence after Ctrl-C."""
    return "stopped; an unfinished comparison is not kept; run the same command again"


def _check_policies(policies: Sequence[str], known: Sequence[str]) -> None:
    for name in policies:
        if name not in known:
            hint = did_you_mean(name, known) or f"; choose from {', '.join(known)}"
            raise ValueError(f"unknown policy {name!r}{hint}")


def check_outputs(
    json_file: Path | None, exits_file: Path | None, report: Path | None = None
) -> None:
    """Check before any long work that the results can be written.

    Raises:
        ValueError: If a folder is missing, or a path names the wrong kind of file.
    """
    for out in (json_file, exits_file, report):
        if out is not None and not out.absolute().parent.is_dir():
            raise ValueError(f"the folder {out.absolute().parent} does not exist; make it first")
    for out in (json_file, exits_file):
        if out is not None and out.is_dir():
            raise ValueError(f"{out} is a folder; give the name of a file")
    if report is not None and report.is_file():
        raise ValueError(f"{report} is a file; give a folder")


class Subject(NamedTuple):
    """Predictions and costs to evaluate policies on.

    Attributes:
        name: Title of the report.
        recorded: Its predictions.
        costs_ms: Latency until each exit, (K,).
        classes: Names of the C classes.
        fitted: The bundle's own scheduler; None for a file, or if other costs were given.
        split: Settings of `DataConfig` that split the bundle's dataset, as far as it tells them.
        variant: The bundle's network; None for a file.
    """

    name: str
    recorded: Recorded
    costs_ms: NDArray[np.float64]
    classes: tuple[str, ...]
    fitted: Scheduler | None
    split: dict[str, Any]
    variant: Variant | None

    @property
    def label_sets(self) -> bool:
        """Whether a row may have several classes."""
        return self.variant is not None and self.variant.bundle.manifest.thresholds is not None


def subject_of(
    bundle: Path | None,
    predictions: Path | None,
    costs_ms: NDArray[np.float64] | None,
    precision: Precision | None = None,
    *,
    read: Callable[[Path], Recorded] = load_predictions,
) -> Subject:
    """Read a bundle's predictions in one precision, or a file of predictions.

    Args:
        bundle: A bundle; or else
        predictions: a file of predictions.
        costs_ms: Latency until each exit, (K,); None: those of the bundle's scheduler.
        precision: One of the bundle's; None: the first of its manifest.
        read: Reads the file of predictions.

    Raises:
        ValueError: If neither or both are given, or if they do not fit together.
    """
    if (bundle is None) == (predictions is None):
        raise ValueError("give either a bundle or --predictions FILE.npz")
    if bundle is not None:
        return _subject_of_bundle(load_bundle(bundle).variant(precision), costs_ms)
    if precision is not None:
        raise ValueError("--precision chooses a network of a bundle; leave it out of --predictions")
    assert predictions is not None, "one of the two was given"
    if costs_ms is None:
        raise ValueError("--predictions needs --costs, the latency until each exit: 1,2,3.3,5")
    recorded = read(predictions)
    num_exits, _, num_classes = recorded.test.log_probs.shape
    from scheduler.fitting.fit import check_costs

    check_costs(costs_ms, num_exits)
    classes = tuple(f"class {index}" for index in range(num_classes))
    return Subject(predictions.stem, recorded, costs_ms, classes, None, {}, None)


def _subject_of_bundle(variant: Variant, costs_ms: NDArray[np.float64] | None) -> Subject:
    manifest, fitted = variant.bundle.manifest, load_scheduler(variant.scheduler())
    recorded = load_recorded(variant.predictions)
    certification = recorded.certification
    split = {
        "calibration_size": len(recorded.calibration.labels),
        "certification_size": 0 if certification is None else len(certification.labels),
        "stratified": manifest.training.get("stratified", False),
        **{name: manifest.training[name] for name in SPLIT if name in manifest.training},
    }
    own = costs_ms is None
    costs = fitted.frontier.costs_ms if costs_ms is None else costs_ms
    return Subject(
        manifest.name, recorded, costs, manifest.classes, fitted if own else None, split, variant
    )


def run_evaluation(
    subject: Subject,
    *,
    budgets: Sequence[float] | None,
    policies: Sequence[str],
    seed: int,
    log_step: Callable[[str], None],
) -> Comparison:
    """Compare policies; without budgets, at seven spread over the range."""
    from profiling.evaluation.evaluate import compare, spread_budgets

    return compare(
        subject.recorded,
        subject.costs_ms,
        budgets=budgets or list(dict.fromkeys(spread_budgets(subject.costs_ms))),
        policies=policies,
        fitted=subject.fitted,
        seed=seed,
        say=log_step,
    )


def table_of(comparison: Comparison) -> list[str]:
    """Lines of a table: test accuracy in % and test cost of each policy at each budget."""
    costs = ", ".join(f"{cost:.4g}" for cost in comparison.costs_ms)
    accuracy = ", ".join(f"{100 * share:.2f}" for share in comparison.exit_accuracy)
    lines = [
        f"exits cost {costs}, and their heads alone are right in {accuracy} % of the test set",
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


def f1_table(subject: Subject, comparison: Comparison) -> list[str]:
    """Lines of a table: F1 scores in % of the exits alone, and of each policy at each budget.

    The accuracy beside it is the share of labels, over all rows, that are right.
    """
    labels, log_probs = subject.recorded.test.labels, subject.recorded.test.log_probs
    alone = [f1_scores(answers, labels) for answers in log_probs.argmax(-1)]
    shown = ", ".join(f"{100 * each.micro:.2f} ({100 * each.macro:.2f})" for each in alone)
    lines = [
        f"F1 in %, micro (macro), of the exits alone: {shown}",
        "accuracy above is the share of labels that are right; F1 in %, micro (macro), at each "
        "budget",
    ]
    by_policy: dict[str, list[str]] = {}
    for evaluation, _, answers in comparison.scored:
        score = f1_scores(answers, labels)
        cell = f"{100 * score.micro:.2f} ({100 * score.macro:.2f})"
        by_policy.setdefault(evaluation.policy, []).append(f"{cell:>16}")
    return lines + [f"{policy:18}" + "".join(cells) for policy, cells in by_policy.items()]


def write_json(comparison: Comparison, path: Path) -> None:
    """Write the figures as JSON."""
    path.write_text(json.dumps(comparison.to_json(), indent=1) + "\n")


def write_exits(comparison: Comparison, path: Path) -> None:
    """Write exit and answer of every test sample under `POLICY@BUDGET` and `.../answers`.

    Exits are int8 (M,), answers int32 (M,), for a segmentation (M, P).
    """
    arrays: dict[str, Any] = {}
    for evaluation, exits, answers in comparison.scored:
        name = f"{evaluation.policy}@{evaluation.budget}"
        arrays |= {name: exits.astype(np.int8), f"{name}/answers": answers.astype(np.int32)}
    with path.open("wb") as file:  # a path without .npz stays as it is
        np.savez_compressed(file, allow_pickle=False, **arrays)


def test_images(dataset: Path, subject: Subject) -> NDArray[np.uint8]:
    """The test images (M, H, W, 3) of the dataset a bundle was built from.

    Raises:
        ValueError: If the dataset holds no images or its test labels are not those of the
            predictions.
    """
    from models.data.load import load_dataset

    data = load_dataset(DataConfig(str(dataset), **subject.split))
    if data.task == "text":
        raise ValueError(f"{dataset} holds texts; the report shows examples of images only")
    labels = data.test.labels
    if data.task == "segmentation":
        from models.networks.fcn import coarse_labels

        labels = coarse_labels(labels)
    expected = subject.recorded.test.labels
    # Another processor may draw a pixel on the edge of a shape differently.
    if labels.shape != expected.shape or (labels == expected).mean() < SAME_LABELS:
        raise ValueError(
            f"{dataset} does not have the test labels of the predictions; give the dataset that "
            f"the bundle was built from"
        )
    return np.asarray(data.test.inputs[:])
