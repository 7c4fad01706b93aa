"""Reads what tests need of a bundle, and writes bundles in format 1 as earlier versions did."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import SCHEDULER_FILES, Precision, Variant, load_bundle, rewrite_manifest
from models.runtime.onnx_backend import OnnxBackend
from profiling.calibration import Recorded, load_recorded, save_recorded
from scheduler.fitted import Scheduler, load_scheduler
from tests.backends import answers

SMALL_IMAGE = {
    "kind": "image",
    "height": 8,
    "width": 8,
    "mean": (0.5, 0.5, 0.5),
    "std": (1, 1, 1),
}
"""The input of a bundle that reads images of 8x8."""


def variant_of(folder: Path) -> Variant:
    """The first precision of a bundle."""
    return load_bundle(folder).variant()


def scheduler_of(folder: Path) -> Scheduler:
    """The scheduler that a server starts with in the first precision."""
    return load_scheduler(variant_of(folder).scheduler())


def recorded_of(folder: Path, precision: Precision | None = None) -> Recorded:
    """The predictions of a precision; by default the first."""
    return load_recorded(load_bundle(folder).variant(precision).predictions)


def without_certification(source: Path, folder: Path) -> Path:
    """Copy a bundle, but for the certification rows of its single precision."""
    shutil.copytree(source, folder)
    bundle = load_bundle(folder)
    recorded = recorded_of(folder, "float32")._replace(certification=None)
    save_recorded(recorded, bundle.variant("float32").predictions)
    rewrite_manifest(bundle)
    return folder


def offline_log_probs(variant: Variant, inputs: Sequence[Any]) -> NDArray[np.float32]:
    """Run images or texts through the graphs of a variant on this host, one by one, (K, N, C).

    int8 graphs round elsewhere on other hosts, so what a bundle has recorded differs by more.
    """
    backend = OnnxBackend(variant.stage_files, variant.head_files)
    preprocess = variant.bundle.preprocessor(10**6)
    rows = [answers(backend, preprocess(given).state) for given in inputs]
    return np.array([[output.log_probs[0] for output in exits] for exits in rows]).swapaxes(0, 1)


def add_int8(folder: Path) -> None:
    """Add a second precision with costs of its own to a bundle of float32."""
    shutil.copytree(folder / "float32", folder / "int8")
    (folder / "int8/profile.json").write_text(json.dumps({"costs_ms": [0.5, 1.0, 1.5]}))
    loaded = load_bundle(folder)
    entry = loaded.variant().entry.model_dump_json().replace('"float32', '"int8')
    precisions = {**loaded.manifest.precisions, "int8": json.loads(entry)}
    rewrite_manifest(loaded, precisions=precisions)


def rewrite_as_format_1(folder: Path) -> Path:
    """Rewrite a bundle of one precision: all files in one folder, and the manifest of then."""
    variant = load_bundle(folder).variant()
    manifest, entry = variant.bundle.manifest, variant.entry
    moves = {variant.predictions: "calibration.npz", variant.profile: "profile.json"} | {
        variant.scheduler() / name: name for name in SCHEDULER_FILES
    }
    for path in (*variant.stage_files, *variant.head_files):
        moves[path] = path.relative_to(variant.folder).as_posix()
    if variant.known_answers is not None:
        variant.known_answers.unlink()
    dropped = [name for name in entry.schedulers if name != entry.policy]  # it held only one
    for name in dropped:
        shutil.rmtree(variant.scheduler(name))
    others = tuple(f"{entry.schedulers[name]}/" for name in dropped)
    for path, name in moves.items():
        (folder / name).parent.mkdir(exist_ok=True)
        path.replace(folder / name)
    if variant.folder != folder:
        shutil.rmtree(variant.folder)  # only empty folders are left
    names = {path.relative_to(folder).as_posix(): name for path, name in moves.items()}
    told = {name: file.model_dump() for name, file in manifest.files.items()}
    measured = None if entry.measured is None else entry.measured.model_dump(mode="json")
    old: dict[str, Any] = {
        "format_version": 1,
        "name": manifest.name,
        "version": manifest.version,
        "task": manifest.task,
        "classes": manifest.classes,
        "num_exits": manifest.num_exits,
        "preprocessing": manifest.input.model_dump(exclude={"kind", "dtype"}),
        "default_budget_ms": entry.default_budget_ms,
        "weights": "float32",
        "measured": {} if measured is None else {"float32": measured},
        "network": None if manifest.network is None else manifest.network.model_dump(),
        "training": manifest.training,
        "files": {
            names.get(name, name): file
            for name, file in told.items()
            if not name.endswith("known_answers.npz") and not name.startswith(others)
        },
    }
    (folder / "bundle.json").write_text(json.dumps(old, indent=1) + "\n")
    return folder
