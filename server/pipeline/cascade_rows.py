"""Predictions of several networks on the same rows, which a cascade is fitted to."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from models.bundle import Bundle, TextInput, Variant
from models.data.dataset import DataConfig, Dataset, Split
from models.data.load import load_dataset
from models.preprocess import ImagePreprocessor
from models.runtime.onnx_backend import OnnxBackend
from profiling.calibration import Predictions, Recorded, load_recorded
from profiling.recording import record_split
from scheduler.fitting.fit import MIN_ROWS

SPLIT = ("dataset", "calibration_from", "seed", "stratified")  # what tells the rows, beside labels


def shared_rows(
    variants: Sequence[Variant], data: DataConfig | None, log_step: Callable[[str], None]
) -> Recorded:
    """Return the predictions of all networks on the same rows, one after the other, (K, N, C).

    Their classes are in the order of the first network.

    Args:
        variants: The networks.
        data: The dataset to run them on. None: what the bundles have recorded, if it is of the same
            rows.
        log_step: Called with each step as it begins.

    Raises:
        ValueError: If the recorded rows are not the same, or the dataset does not fit.
    """
    if data is None:
        each = [_recorded(variant, variants[0].bundle) for variant in variants]
        _check_same(variants, each)
    else:
        check_unseen([variant.bundle for variant in variants], data)
        each = [_run(variant, variants[0].bundle, data, log_step) for variant in variants]
    parts = list(zip(*each, strict=True))
    calibration, certification, test = [_joined(part) for part in parts]
    assert calibration is not None and test is not None, "only certification rows may be missing"
    return Recorded(calibration, certification, test)


def _joined(parts: Sequence[Predictions | None]) -> Predictions | None:
    rows = [part for part in parts if part is not None]
    if len(rows) < len(parts):
        return None
    return Predictions(np.concatenate([each.log_probs for each in rows]), rows[0].labels)


def _recorded(variant: Variant, first: Bundle) -> Recorded:
    """Read what a bundle has recorded, in the classes' order of the first."""
    classes, own = first.manifest.classes, variant.bundle.manifest.classes
    order = [own.index(name) for name in classes]
    places = np.array([classes.index(name) for name in own])

    def moved(rows: Predictions) -> Predictions:
        return Predictions(rows.log_probs[..., order], places[rows.labels])

    recorded = load_recorded(variant.predictions)
    held_out = None if recorded.certification is None else moved(recorded.certification)
    return Recorded(moved(recorded.calibration), held_out, moved(recorded.test))


def _check_same(variants: Sequence[Variant], recorded: Sequence[Recorded]) -> None:
    """Check that bundles have recorded the same rows.

    Predictions carry no names of rows, so both the way the rows were drawn and all labels must
    agree.

    Raises:
        ValueError: If they differ.
    """
    first, rows = variants[0].bundle, recorded[0]
    for variant, other in zip(variants[1:], recorded[1:], strict=True):
        own, others = first.manifest.training, variant.bundle.manifest.training
        drawn = [
            name
            for name in SPLIT
            if own.get(name) != others.get(name) or (name not in own and name != "stratified")
        ]
        differs = f"their {drawn[0]} differs" if drawn else None
        if differs is None and not all(
            _same_labels(a, b) for a, b in zip(rows, other, strict=True)
        ):
            differs = "their labels differ"
        if differs is not None:
            raise ValueError(
                f"{first.folder} and {variant.bundle.folder} have not recorded predictions of the "
                f"same rows ({differs}); give --dataset, on which to run both"
            )


def _same_labels(mine: Predictions | None, other: Predictions | None) -> bool:
    if mine is None or other is None:
        return True  # rows that one of them lacks are left out
    return np.array_equal(mine.labels, other.labels)


def check_unseen(bundles: Sequence[Bundle], data: DataConfig) -> None:
    """Check that no network was trained on rows that a dataset holds out.

    Raises:
        ValueError: If one may have been.
    """
    if data.calibration_from == "test":
        return
    wanted = {"calibration_from": "train", "seed": data.seed, "stratified": data.stratified}
    for bundle in bundles:
        training: dict[str, Any] = {"stratified": False} | bundle.manifest.training
        differing = [name for name, value in wanted.items() if training.get(name) != value]
        if differing:
            raise ValueError(
                f"{bundle.folder} was trained with another {differing[0]} "
                f"({training.get(differing[0])!r}, not {wanted[differing[0]]!r}), so it may have "
                f"seen the calibration rows; give --calibration-from test"
            )


def _run(
    variant: Variant, first: Bundle, data: DataConfig, log_step: Callable[[str], None]
) -> Recorded:
    """Run a network on a dataset, as it would be served."""
    bundle = variant.bundle
    log_step(f"{variant.precision}: running {bundle.manifest.name} on {data.dataset}")
    dataset = _in_classes_of(first, load_dataset(_sized(data, bundle)))
    order = [bundle.manifest.classes.index(name) for name in first.manifest.classes]
    if len(dataset.calibration.labels) < MIN_ROWS:
        raise ValueError(
            f"there are {len(dataset.calibration.labels)} calibration rows; give a "
            f"--calibration-size of {MIN_ROWS} or more, better a thousand"
        )
    backend = OnnxBackend(
        variant.stage_files,
        variant.head_files,
        row_independent=variant.entry.row_independent,
    )
    preprocess = bundle.preprocessor(ImagePreprocessor.max_pixels)

    def record(split: Split) -> Predictions:
        rows = record_split(backend, preprocess, split)
        return rows._replace(log_probs=rows.log_probs[..., order])

    held_out = dataset.certification
    return Recorded(
        record(dataset.calibration),
        None if held_out is None else record(held_out),
        record(dataset.test),
    )


def _sized(data: DataConfig, bundle: Bundle) -> DataConfig:
    """The dataset at the size of a network's input."""
    size = bundle.manifest.input
    if isinstance(size, TextInput):
        return data
    if size.height != size.width:
        raise ValueError(
            f"{bundle.folder} reads images of {size.width}x{size.height}; a dataset is brought to "
            f"squares only, so join bundles that have recorded the same rows"
        )
    return dataclasses.replace(data, image_size=size.height)


def _in_classes_of(bundle: Bundle, data: Dataset) -> Dataset:
    """The dataset with labels in a bundle's order of classes.

    Raises:
        ValueError: If task or classes differ.
    """
    manifest = bundle.manifest
    if data.task != manifest.task:
        raise ValueError(
            f"the dataset is of the task {data.task}, but {bundle.folder} of {manifest.task}"
        )
    if sorted(data.classes) != sorted(manifest.classes):
        raise ValueError(
            f"the dataset has the classes {data.classes}, but {bundle.folder} {manifest.classes}; "
            f"give a dataset of these classes"
        )
    places = np.array([manifest.classes.index(name) for name in data.classes])
    return data.map_labels(manifest.classes, lambda labels: places[labels])
