"""The tasks: networks to serve, inputs to send, and the check of every answer."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import (
    IMAGE_BUNDLE,
    MAX_PIXELS,
    TEXT_BUNDLE,
    TEXTS,
    image_calls,
    image_files,
    text_calls,
)
from benchmarks.peers.classifier import ImageClassifier, TextClassifier
from benchmarks.peers.graphs import write_whole_graph
from benchmarks.peers.running import BUILD, HERE
from models.bundle import TOKENIZER, Bundle, BundleError, Variant, load_bundle
from models.preprocess import ImagePreprocessor
from models.runtime.onnx_backend import OnnxBackend
from profiling.calibration import load_recorded
from profiling.loadtest.load import Call, LoadResult
from scheduler.fitted import load_scheduler
from scheduler.policy import exits_taken, replay

Judge = Callable[[LoadResult], int]
PlainPrecision = Literal["float32", "int8"]
PRECISIONS: tuple[PlainPrecision, ...] = get_args(PlainPrecision)

PLAIN_IMAGE_GRAPHS: dict[PlainPrecision, Path] = {
    "float32": HERE / "plain-resnet56.onnx",
    "int8": HERE / "plain-resnet56-int8.onnx",
}
PLAIN_IMAGE_FIGURES = HERE / "plain-resnet56.json"  # of quantise.py
# In a batch a class may gain 1e-3 of the logarithm, and another lose as much.
SAME = 2e-3


class PlainNetwork(NamedTuple):
    """The network without early exits in one precision, as the peers serve it.

    Attributes:
        precision: Its precision.
        graph: Its one graph.
        classes: Its answers to the inputs, (N,).
    """

    precision: PlainPrecision
    graph: Path
    classes: NDArray[np.int64]


class Task(NamedTuple):
    """The same network, inputs and answers for everyone.

    Attributes:
        name: `image` or `text`.
        bundle: The bundle that this repository's server serves.
        environ: Environment variables of the peers, besides the one that names the graph.
        calls: Calls to this repository's server, N of them.
        bodies: Bodies of the calls to the peers, (N,).
        content_type: Content type of these bodies.
        plain: The networks that the peers serve.
        left_out: Precisions that are not served, and the reason.
        accuracy: Accuracy of the plain networks on the rows that figures are reported on.
    """

    name: str
    bundle: Bundle
    environ: Mapping[str, str]
    calls: Sequence[Call]
    bodies: Sequence[bytes]
    content_type: str
    plain: Sequence[PlainNetwork]
    left_out: Mapping[str, str]
    accuracy: Mapping[str, float]

    def peer_calls(self, path: str) -> list[Call]:
        """The calls to a peer."""
        return [Call(path, body, self.content_type) for body in self.bodies]


def image_task(precisions: Sequence[PlainPrecision], count: int | None = None) -> Task:
    """A ResNet-56 with exits, and the plain one; with all inputs or the first of them."""
    bodies = image_files(count)
    plain = []
    for precision in precisions:
        classify = ImageClassifier(str(PLAIN_IMAGE_GRAPHS[precision]))
        classes = np.array([classify(body) for body in bodies])
        plain.append(PlainNetwork(precision, PLAIN_IMAGE_GRAPHS[precision], classes))
    accuracy = json.loads(PLAIN_IMAGE_FIGURES.read_text())["accuracy"]
    calls = image_calls()[:count]
    bundle = load_bundle(IMAGE_BUNDLE)
    return Task("image", bundle, {}, calls, bodies, "image/jpeg", plain, {}, accuracy)


def text_task(precisions: Sequence[PlainPrecision], count: int | None = None) -> Task:
    """A MiniLM with exits, and its stages as one graph; with all inputs or the first of them."""
    lines = TEXTS.read_text("utf-8").strip().split("\n")[1:][:count]
    bodies = [line.split("\t")[2].encode() for line in lines]
    bundle = load_bundle(TEXT_BUNDLE)
    tokenizer = str(bundle.folder / TOKENIZER)
    accuracy, plain, left_out = {"float32": last_exit_accuracy(bundle.variant("float32"))}, [], {}
    for precision in precisions:
        try:
            variant = bundle.variant(precision)
        except BundleError as error:
            left_out[f"the plain network in {precision}"] = str(error)
            continue
        graph = BUILD / f"minilm-{precision}.onnx"
        write_whole_graph(variant, graph)
        classify = TextClassifier(str(graph), tokenizer)
        classes = np.array([classify(body) for body in bodies])
        plain.append(PlainNetwork(precision, graph, classes))
        accuracy[precision] = last_exit_accuracy(variant)
    return Task(
        "text",
        bundle,
        {"BENCH_TOKENIZER": tokenizer},
        text_calls()[:count],
        bodies,
        "text/plain",
        plain,
        left_out,
        accuracy,
    )


TASKS = {"image": image_task, "text": text_task}


def last_exit_accuracy(variant: Variant) -> float:
    """Accuracy of the last exit on the rows that figures are reported on."""
    return float(load_recorded(variant.predictions).test.correct[:, -1].mean())


def judge_of_peer(plain: PlainNetwork) -> Judge:
    """Make a function that counts the answers of a peer that are not those of its graph."""

    def wrong(result: LoadResult) -> int:
        classes = [answer["class_id"] for answer in _answers(result)]
        return int((np.array(classes) != plain.classes[result.call[result.ok]]).sum())

    return wrong


def exit_rates(result: LoadResult) -> list[float]:
    """Share of each exit in the answers of this repository's server, (K,)."""
    answers = _answers(result)
    exits = [answer["exit"] for answer in answers]
    counts = np.bincount(exits, minlength=answers[0]["num_exits"])
    rates: list[float] = (counts / len(exits)).tolist()
    return rates


class Replay:
    """What one precision of a bundle answers: to the inputs that are sent, and in its test set.

    Args:
        task: The task.
        variant: The bundle in this precision.
    """

    def __init__(self, task: Task, variant: Variant) -> None:
        self.precision = variant.precision
        self._policy, _, combiner = load_scheduler(variant.scheduler())
        test = load_recorded(variant.predictions).test.combined(combiner)
        self._tested, self._correct = replay(self._policy, test.log_probs), test.correct
        sent = combiner.combine_all(log_probs_alone(variant, task.bodies))
        self._sent = replay(self._policy, sent)
        self._is_best = sent >= sent.max(-1, keepdims=True) - SAME  # (K, N, C)

    def accuracy(self, parameter: float) -> float:
        """Share of right answers in the whole test set, at a value of the policy's parameter."""
        exits = exits_taken(self._policy, self._tested, parameter)
        return float(self._correct[np.arange(len(exits)), exits].mean())

    def exit_rates(self, parameter: float) -> NDArray[np.float64]:
        """Share of each exit for the inputs that are sent, (K,)."""
        exits = exits_taken(self._policy, self._sent, parameter)
        return np.bincount(exits, minlength=self._policy.num_exits) / len(exits)

    def count_wrong(self, result: LoadResult, *, to_the_end: bool) -> int:
        """Count answers that are not those of the graphs at the exit that they name.

        Args:
            result: The answers.
            to_the_end: Whether an answer from an earlier exit is wrong.
        """
        calls, last = result.call[result.ok].tolist(), self._policy.num_exits - 1
        return sum(
            not self._is_best[answer["exit"], call, answer["class_id"]]
            or (to_the_end and answer["exit"] != last)
            for answer, call in zip(_answers(result), calls, strict=True)
        )


def log_probs_alone(variant: Variant, bodies: Sequence[bytes]) -> NDArray[np.float32]:
    """Run the graphs without a server, one input at a time; log-probabilities (K, N, C)."""
    backend = OnnxBackend(variant.stage_files, variant.head_files)
    preprocess = variant.bundle.preprocessor(MAX_PIXELS)
    found = []
    for body in bodies:
        if isinstance(preprocess, ImagePreprocessor):
            state = preprocess(body).state
        else:
            state = preprocess(body.decode()).state
        rows = []
        for k in range(backend.num_exits):
            state = backend.run_stage(k, state)
            rows.append(backend.run_head(k, state).log_probs[0])
        found.append(rows)
    return np.array(found, np.float32).swapaxes(0, 1)


def _answers(result: LoadResult) -> list[dict[str, Any]]:
    assert result.bodies is not None, "the benchmark keeps every answer"
    return [json.loads(body) for body, ok in zip(result.bodies, result.ok, strict=True) if ok]
