"""Bundles of networks of a few numbers, made in milliseconds, to be joined and served."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

from models.bundle import (
    KNOWN_ANSWERS,
    TOKENIZER,
    Bundle,
    graph_files,
    write_manifest,
)
from models.known_answers import record_known_answers, save_known_answers
from models.preprocess import ImagePreprocessor, TextPreprocessor
from models.runtime.onnx_backend import OnnxBackend
from profiling.calibration import Predictions, Recorded
from profiling.latency import measure_latency
from server.pipeline.fitting import VariantFitter
from tests.graphs import write_graph

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
CLASSES = ("ape", "bee", "cat")
ROWS = 80
DRAWN = {"dataset": "pets", "calibration_from": "train", "seed": 0, "stratified": True}


def write_image_bundle(
    folder: Path,
    side: int,
    accuracy: Sequence[float],
    *,
    classes: Sequence[str] = CLASSES,
    mean: float = 0.5,
    weights_seed: int = 0,
    **training: Any,
) -> Bundle:
    """Write a bundle whose network reads the mean colours of images of side x side.

    Args:
        folder: The bundle.
        side: Height and width of the input.
        accuracy: Share of the recorded rows that each exit is right on, (K,).
        classes: Names of the classes.
        mean: Of the normalisation.
        weights_seed: Of the weights.
        training: Further fields of the manifest's `training`.
    """
    stages, heads = graph_files(folder / "float32", len(accuracy))
    pool = helper.make_node("ReduceMean", ["image"], ["state"], axes=[2, 3], keepdims=0)
    write_graph(stages[0], [pool], {"image": (FLOAT, 4)}, {"state": (FLOAT, 2)})
    write_rest(stages, heads, 3, len(classes), weights_seed)
    settings = {"height": side, "width": side, "mean": (mean,) * 3, "std": (0.25,) * 3}
    known = np.random.default_rng(weights_seed).normal(size=(4, 3, side, side)).astype(np.float32)
    preprocess = ImagePreprocessor(**settings)  # type: ignore[arg-type]
    described = {"image": {"kind": "image", **settings}}
    return _finish(
        folder, "image", classes, accuracy, described, (known,), preprocess.example, training
    )


def write_text_bundle(
    folder: Path,
    tokenizer: Tokenizer,
    accuracy: Sequence[float],
    *,
    classes: Sequence[str] = CLASSES,
    length_step: int = 4,
    weights_seed: int = 0,
    **training: Any,
) -> Bundle:
    """Write a bundle whose network reads the mean token id of texts."""
    stages, heads = graph_files(folder / "float32", len(accuracy))
    nodes = [
        helper.make_node("Mul", ["ids", "mask"], ["masked"]),
        helper.make_node("Cast", ["masked"], ["numbers"], to=FLOAT),
        helper.make_node("ReduceMean", ["numbers"], ["state"], axes=[1], keepdims=1),
    ]
    inputs = {"ids": (INT, 2), "mask": (INT, 2)}
    write_graph(stages[0], nodes, inputs, {"state": (FLOAT, 2)})
    write_rest(stages, heads, 1, len(classes), weights_seed)
    tokenizer.save(str(folder / TOKENIZER))
    settings = {"max_tokens": 16, "pad_id": 0, "length_step": length_step, "typical_tokens": 4}
    preprocess = TextPreprocessor(folder / TOKENIZER, **settings)
    known = preprocess.batch(["good film", "bad", "the film was very fine"])
    described = {"text": {"kind": "text", **settings}}
    return _finish(
        folder, "text", classes, accuracy, described, known, preprocess.example, training
    )


def write_rest(
    stages: Sequence[Path], heads: Sequence[Path], width: int, classes: int, seed: int
) -> None:
    """Write stages that keep the state of the first, and heads with random weights."""
    rng = np.random.default_rng(seed)
    for stage in stages[1:]:
        keep = helper.make_node("Identity", ["before"], ["state"])
        write_graph(stage, [keep], {"before": (FLOAT, 2)}, {"state": (FLOAT, 2)})
    for head in heads:
        weights = rng.normal(size=(width, classes)).astype(np.float32)
        nodes = [
            helper.make_node("MatMul", ["state", "weights"], ["logits"]),
            helper.make_node("LogSoftmax", ["logits"], ["log_probs"], axis=1),
        ]
        outputs = {"logits": (FLOAT, 2), "log_probs": (FLOAT, 2)}
        constants = [numpy_helper.from_array(weights, "weights")]
        write_graph(head, nodes, {"state": (FLOAT, 2)}, outputs, constants)


def _finish(
    folder: Path,
    task: str,
    classes: Sequence[str],
    accuracy: Sequence[float],
    inputs: dict[str, Any],
    known: tuple[NDArray[Any], ...],
    example: tuple[NDArray[Any], ...],
    training: dict[str, Any],
) -> Bundle:
    stages, heads = graph_files(folder / "float32", len(accuracy))
    answers = record_known_answers(stages, heads, known)
    save_known_answers(answers, folder / "float32" / KNOWN_ANSWERS)
    sets = [predictions(accuracy, classes, seed) for seed in range(3)]
    backend = OnnxBackend(stages, heads)
    profile = measure_latency(backend, example, batch_sizes=(1, 2), warm_up=1, repeats=3)
    fitter = VariantFitter(folder, "maxprob", None, 0, lambda step: None)
    built = fitter.fit("float32", Recorded(*sets), profile, {})
    return write_manifest(
        folder,
        name=folder.name,
        version="1",
        task=task,
        classes=tuple(classes),
        num_exits=len(accuracy),
        inputs=inputs,
        precisions={"float32": built.entry},
        training=DRAWN | training,
    )


def predictions(accuracy: Sequence[float], classes: Sequence[str], seed: int) -> Predictions:
    """Predictions of rows whose labels, by name, are the same for every bundle."""
    names = np.random.default_rng(seed).choice(sorted(classes), ROWS)
    labels = np.array([list(classes).index(name) for name in names])
    exits = []
    for exit, share in enumerate(accuracy):
        rng = np.random.default_rng((seed, exit))
        wrong = rng.permutation(ROWS) >= round(share * ROWS)
        answers = np.where(wrong, (labels + 1) % len(classes), labels)
        logits = rng.normal(size=(ROWS, len(classes))) * 0.1
        logits[np.arange(ROWS), answers] += rng.uniform(1, 3, ROWS)
        exits.append(logits - np.log(np.exp(logits).sum(1, keepdims=True)))
    return Predictions(np.stack(exits).astype(np.float16), labels.astype(np.int64))
