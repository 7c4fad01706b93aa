"""The tasks: networks to serve, inputs to send, and the check of every answer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import IMAGE_BUNDLE, IMAGES, TEXT_BUNDLE, TEXTS, image_calls, text_calls
from benchmarks.peers.classifier import ImageClassifier, TextClassifier
from benchmarks.peers.graphs import write_whole_graph
from benchmarks.peers.running import BUILD, HERE
from models.bundle import TOKENIZER, load_bundle
from profiling.calibration import load_recorded
from profiling.loadtest.load import Call, LoadResult
from scheduler.fitted import load_scheduler
from scheduler.policy import exits_taken, replay

Judge = Callable[[LoadResult], int]

# Accuracy of benchmarks/peers/plain-resnet56.onnx on the 10,000 test images of CIFAR-10 (JPEG
# re-encoded).
PLAIN_IMAGE_ACCURACY = 0.9001


class Task(NamedTuple):
    """The same network, inputs and answers for everyone.

    Attributes:
        name: `image` or `text`.
        bundle: The bundle that this repository's server serves.
        graph: The graph that the peers serve.
        environ: Environment variables that name the graph for the peers.
        calls: Calls to this repository's server, N of them.
        bodies: Bodies of the calls to the peers, (N,).
        content_type: Content type of these bodies.
        plain_classes: Right answers of the peers, (N,).
        plain_accuracy: Accuracy of the graph on the whole test set.
        rows: Rows of the inputs in the bundle's test set, (N,).
    """

    name: str
    bundle: Path
    graph: Path
    environ: dict[str, str]
    calls: list[Call]
    bodies: list[bytes]
    content_type: str
    plain_classes: NDArray[np.int64]
    plain_accuracy: float
    rows: NDArray[np.int64]

    def peer_calls(self, path: str) -> list[Call]:
        """The calls to a peer."""
        return [Call(path, body, self.content_type) for body in self.bodies]


def image_task(count: int | None = None) -> Task:
    """A ResNet-56 with exits, and the plain one; with all inputs or the first of them."""
    with np.load(IMAGES) as arrays:
        rows = arrays["row"][:count]
    calls = image_calls()[:count]
    bodies = [call.body for call in calls]
    graph = HERE / "plain-resnet56.onnx"
    classify = ImageClassifier(str(graph))
    return Task(
        "image",
        IMAGE_BUNDLE,
        graph,
        {"BENCH_GRAPH": str(graph)},
        calls,
        bodies,
        "image/jpeg",
        np.array([classify(body) for body in bodies]),
        PLAIN_IMAGE_ACCURACY,
        rows,
    )


def text_task(count: int | None = None) -> Task:
    """A MiniLM with exits, and the same network as one graph; with all inputs or the first."""
    lines = TEXTS.read_text("utf-8").strip().split("\n")
    rows, _, texts = zip(*(line.split("\t") for line in lines[1:][:count]), strict=True)
    bundle = load_bundle(TEXT_BUNDLE)
    graph, tokenizer = BUILD / "minilm.onnx", str(bundle.folder / TOKENIZER)
    write_whole_graph(bundle, graph)
    bodies = [text.encode() for text in texts]
    classify = TextClassifier(str(graph), tokenizer)
    return Task(
        "text",
        bundle.folder,
        graph,
        {"BENCH_GRAPH": str(graph), "BENCH_TOKENIZER": tokenizer},
        text_calls()[:count],
        bodies,
        "text/plain",
        np.array([classify(body) for body in bodies]),
        float(load_recorded(bundle.folder / "calibration.npz").test.correct[:, -1].mean()),
        np.array(rows, np.int64),
    )


TASKS = {"image": image_task, "text": text_task}


def judge_of_peer(task: Task) -> Judge:
    """Make a function that counts the answers of a peer that are not those of its graph."""

    def wrong(result: LoadResult) -> int:
        classes = [answer["class_id"] for answer in _answers(result)]
        return int((np.array(classes) != task.plain_classes[result.call[result.ok]]).sum())

    return wrong


def judge_of_ours(task: Task, *, to_the_end: bool) -> Judge:
    """Make a function that counts our answers that differ from the recorded ones of their exit.

    Args:
        task: The task.
        to_the_end: Whether an answer from an earlier exit is wrong.
    """
    recorded = load_recorded(task.bundle / "calibration.npz").test.log_probs[:, task.rows]
    # Half precision may tie where single precision does not: then each of the tied is right.
    is_best = recorded == recorded.max(-1, keepdims=True)  # (K, N, C)
    last = len(recorded) - 1

    def wrong(result: LoadResult) -> int:
        calls = result.call[result.ok].tolist()
        return sum(
            not is_best[answer["exit"], call, answer["class_id"]]
            or (to_the_end and answer["exit"] != last)
            for answer, call in zip(_answers(result), calls, strict=True)
        )

    return wrong


def exit_rates(result: LoadResult) -> list[float]:
    """Share of each exit in the answers of this repository's server, (K,)."""
    answers = _answers(result)
    exits = [answer["exit"] for answer in answers]
    counts = np.bincount(exits, minlength=answers[0]["num_exits"])
    rates: list[float] = (counts / len(exits)).tolist()
    return rates


class Replay:
    """A bundle's policy on its recorded test predictions, at any value of its parameter."""

    def __init__(self, task: Task) -> None:
        self._policy, self._rows = load_scheduler(task.bundle).policy, task.rows
        test = load_recorded(task.bundle / "calibration.npz").test
        self._replayed, self._correct = replay(self._policy, test.log_probs), test.correct

    def accuracy(self, parameter: float) -> float:
        """Share of right answers in the whole test set."""
        exits = exits_taken(self._policy, self._replayed, parameter)
        return float(self._correct[np.arange(len(exits)), exits].mean())

    def exit_rates(self, parameter: float) -> NDArray[np.float64]:
        """Share of each exit for the inputs that are sent, (K,)."""
        exits = exits_taken(self._policy, self._replayed, parameter)[self._rows]
        return np.bincount(exits, minlength=self._policy.num_exits) / len(exits)


def _answers(result: LoadResult) -> list[dict[str, Any]]:
    assert result.bodies is not None, "the benchmark keeps every answer"
    return [json.loads(body) for body, ok in zip(result.bodies, result.ok, strict=True) if ok]
