"""A tiny bundle that holds float32 and int8, without any training."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from models.bundle import MANIFEST, Bundle, VariantEntry, write_manifest
from models.known_answers import (
    KnownAnswers,
    record_known_answers,
    save_known_answers,
)
from scheduler.baselines import ConfidencePolicy
from scheduler.fitted import FILES, Scheduler, save_scheduler
from scheduler.frontier import Frontier
from scheduler.thresholds import ThresholdTable
from tests.graphs import write_graph

EXITS, CLASSES, SIDE = 2, 3, 8
POLICIES = {"float32": "maxprob", "int8": "entropy"}
BUDGETS_MS = {"float32": 2.0, "int8": 1.0}


def write_two_precisions(
    folder: Path, precisions: Sequence[str] = ("float32", "int8"), wrong: Sequence[str] = ()
) -> Bundle:
    """Write a bundle whose precisions hold the same graphs, but other schedulers and budgets.

    Args:
        folder: The bundle's folder, which is made.
        precisions: What it holds.
        wrong: Precisions whose known answers are those of another network.
    """
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(EXITS, 3 * SIDE * SIDE, CLASSES)).astype(np.float32)
    inputs = rng.normal(size=(60, 3, SIDE, SIDE)).astype(np.float32)
    entries = {}
    for precision in precisions:
        place = folder / precision
        stages = [write_stage(place / f"stages/{k}.onnx") for k in range(EXITS)]
        heads = [write_head(place / f"heads/{k}.onnx", weights[k]) for k in range(EXITS)]
        recorded = record_known_answers(stages, heads, (inputs,)).log_probs
        labels = recorded[-1].argmax(-1)
        sets = {f"{part}_log_probs": recorded for part in ("calibration", "test")}
        sets |= {f"{part}_labels": labels for part in ("calibration", "test")}
        np.savez(place / "predictions.npz", allow_pickle=False, **sets)
        few = record_known_answers(stages, heads, (inputs[:8],))
        if precision in wrong:
            few = KnownAnswers(few.inputs, few.log_probs[:, ::-1])
        save_known_answers(few, place / "known_answers.npz")
        (place / "profile.json").write_text('{"batch_sizes": [1], "stages_ms": [[1.0], [1.0]]}')
        policy = POLICIES.get(precision, "maxprob")
        save_made_up_scheduler(place / f"schedulers/{policy}", policy)
        entries[precision] = VariantEntry(
            folder=precision,
            predictions=f"{precision}/predictions.npz",
            schedulers={policy: f"{precision}/schedulers/{policy}"},
            policy=policy,
            default_budget_ms=BUDGETS_MS.get(precision),
        )
    return write_manifest(
        folder,
        name="tiny",
        version="1",
        task="image",
        classes=("ape", "bee", "cat"),
        num_exits=EXITS,
        inputs={
            "image": {"kind": "image", "height": SIDE, "width": SIDE, "mean": (0.5,) * 3}
            | {"std": (0.5,) * 3}
        },
        precisions=entries,
        training={},
    )


def write_format_1(folder: Path) -> None:
    """Write a bundle of the old format: one network, whose files lie in the bundle's folder."""
    write_two_precisions(folder, ["float32"])
    place = folder / "float32"
    for name in ("stages", "heads", "profile.json"):
        (place / name).rename(folder / name)
    (place / "predictions.npz").rename(folder / "calibration.npz")
    for name in FILES:
        (place / "schedulers/maxprob" / name).rename(folder / name)
    shutil.rmtree(place)
    content = json.loads((folder / MANIFEST).read_text())
    fields = ("name", "version", "task", "classes", "num_exits", "training")
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    old = {key: content[key] for key in fields} | {
        "format_version": 1,
        "preprocessing": {"height": SIDE, "width": SIDE, "mean": [0.5] * 3, "std": [0.5] * 3},
        "default_budget_ms": BUDGETS_MS["float32"],
        "files": {
            path.relative_to(folder).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in paths
        },
    }
    (folder / MANIFEST).write_text(json.dumps(old))


def save_made_up_scheduler(folder: Path, kind: str) -> None:
    """Write a scheduler with two points: all rows leave at the first exit, or none does."""
    parameters, never = np.array([1.0, 2.0]), np.inf
    table = ThresholdTable(parameters, np.array([[-never, -never], [never, -never]]))
    frontier = Frontier(parameters, np.eye(2), np.array([0.8, 0.9]), np.array([1.0, 2.0]))
    folder.mkdir(parents=True)
    save_scheduler(Scheduler(ConfidencePolicy(table, kind), frontier), folder)


def write_stage(path: Path) -> Path:
    """Write a stage that changes nothing: (N, 3, H, W)."""
    image = (TensorProto.FLOAT, 4)
    return write_graph(
        path, [helper.make_node("Identity", ["x"], ["y"])], {"x": image}, {"y": image}
    )


def write_head(path: Path, weights: np.ndarray) -> Path:
    """Write a linear head: (N, 3, H, W) to logits and log-probabilities (N, C)."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        helper.make_node("LogSoftmax", ["logits"], ["log_probs"]),
    ]
    outputs = {name: (TensorProto.FLOAT, 2) for name in ("logits", "log_probs")}
    constants = [numpy_helper.from_array(0.1 * weights, "w")]
    return write_graph(path, nodes, {"x": (TensorProto.FLOAT, 4)}, outputs, constants)
