"""Puts exits onto a classifier that comes as one ONNX file: cuts it and trains heads."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from models.backend import State
from models.data.dataset import Dataset, Split
from models.data.load import load_dataset
from models.export.onnx_graphs import Graphs
from models.onnx_import.exit_heads import feature_graph, head_graph
from models.onnx_import.graph import keep_outputs
from models.onnx_import.outputs import Scale, as_head, log_softmax, order_of_classes, scale_of
from models.onnx_import.parts import Parts, Whole, cut_at
from models.onnx_import.reading import read_model
from models.onnx_import.separators import light_tensors, separators
from models.runtime.onnx_backend import CPU, open_graph
from models.training.cached_heads import CachedRows, train_head
from models.training.exit_placement import suggest_exits
from models.training.run import TrainConfig
from profiling.recording import record_split, served_states
from server.pipeline.onnx_import import OnnxOptions, check_answers, check_task, run_config
from server.pipeline.onnx_source import (
    FirstGraph,
    adapt,
    answers_as_given,
    few_rows,
    in_order_of,
    open_in_memory,
    run_graph,
)
from server.pipeline.runs import save_onnx_run

WARM_UP, REPEATS = 3, 15
FEATURE_ROWS = 100  # that run through the network at once
WEAK_POINTS = 10.0  # an exit that is so many points behind the network's own answers is weak


class CutPoints(NamedTuple):
    """Where a network can have exits.

    Attributes:
        first: The network.
        whole: The same with two inputs, and only the output of scores.
        output: The output's name there.
        tensors: L tensors that separate it, in the order of the graph.
        ends_ms: Latency until each of them and until the end, (L + 1,).
    """

    first: FirstGraph
    whole: Whole
    output: str
    tensors: list[str]
    ends_ms: NDArray[np.float64]


class AttachReport(NamedTuple):
    """Exits on a network.

    Attributes:
        tensors: Tensors that the early exits read.
        scale: What the network's own output holds.
        disagreement: Largest difference of a probability between the network and its stages.
        test_accuracy: Of each exit on the test rows, (K,).
        agreement: Share of the test rows that each exit answers as the network does, (K,).
        cost_share: Latency until each exit, heads left out, as a share of the network's, (K,).
        order: As in `ImportReport`.
    """

    tensors: list[str]
    scale: Scale
    disagreement: float
    test_accuracy: list[float]
    agreement: list[float]
    cost_share: list[float]
    order: tuple[str, ...] | None

    @property
    def weakness(self) -> str | None:
        """One sentence about early exits that are far behind the network; None if none is."""
        behind = 100 * (self.test_accuracy[-1] - np.array(self.test_accuracy[:-1]))
        weak = np.flatnonzero(behind > WEAK_POINTS)
        if not len(weak):
            return None
        figures = ", ".join(
            f"exit {exit} reaches {100 * self.test_accuracy[exit]:.1f} % "
            f"({behind[exit]:.1f} points less)"
            for exit in weak
        )
        return (
            f"the backbone is frozen, so its early layers have not learnt to classify: {figures}, "
            f"and the network itself {100 * self.test_accuracy[-1]:.1f} %; exits that are trained "
            f"with the backbone (eenet attach --backbone, eenet train) are better"
        )


def find_cut_points(
    path: Path,
    preprocessing: Path | None,
    output: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> CutPoints:
    """Find the tensors that separate a network, and what it takes to reach them on this machine.

    Args:
        path: The ONNX file.
        preprocessing: As `adapt` takes it.
        output: Output of scores; None: the only one.
        clock: Returns seconds.

    Raises:
        ValueError: If the file is no classifier, or no single tensor separates it.
    """
    first = adapt(read_model(path), path, preprocessing)
    name = _scores(first, output)
    model = ModelProto()
    model.CopyFrom(first.model)
    keep_outputs(model, [name])
    whole = Whole(model, *first.reader.two_inputs())
    # The last one is what the classifier itself reads.
    tensors = _of_rows(whole, separators(model, light_tensors(model)))[:-1]
    if not tensors:
        raise ValueError(
            f"no single tensor separates {path} into stages, so exits cannot be added to it; "
            f"export it with exits of its own, or give eenet attach its torch weights"
        )
    parts = cut_at(whole, tensors, name)
    last = [tail for tail in parts.tails if tail is not None]
    ends_ms = _latencies(parts.stages, last, first.reader.preprocess.example, clock)
    return CutPoints(first, whole, name, tensors, ends_ms)


def choose(points: CutPoints, num_exits: int, budget_ms: float | None) -> list[int]:
    """Choose exits: evenly by cost, or for a budget.

    Returns:
        Numbers of tensors, counted from 1.

    Raises:
        ValueError: If there are more exits than places, or the budget is too small.
    """
    places = len(points.tensors) + 1
    if not 2 <= num_exits <= places:
        raise ValueError(
            f"--num-exits is {num_exits}; this network has room for 2 to {places} exits"
        )
    if budget_ms is not None:
        layers_ms = np.diff(points.ends_ms, prepend=0.0).clip(1e-6)
        return list(suggest_exits(layers_ms, budget_ms, num_exits))[:-1]
    chosen = list[int]()
    for k in range(1, num_exits):
        target = points.ends_ms[-1] * k / num_exits
        later = num_exits - 1 - k  # each needs a place of its own
        free = np.arange(chosen[-1] + 1 if chosen else 1, len(points.tensors) - later + 1)
        nearest = int(np.abs(points.ends_ms[free - 1] - target).argmin())
        chosen.append(int(free[nearest]))
    return chosen


def attach_exits(
    points: CutPoints,
    exits: Sequence[int],
    training: TrainConfig,
    options: OnnxOptions,
    log_step: Callable[[str], None],
) -> AttachReport:
    """Train heads at some cut points, and write the run.

    Args:
        points: The network.
        exits: Numbers of `points.tensors`, counted from 1, increasing.
        training: Settings of the heads' training.
        options: As for an import.
        log_step: Called with each step as it begins.

    Raises:
        ValueError: If the numbers are none of the network's, or it does not fit the dataset.
    """
    tensors = _tensors_of(points, exits)
    reader, name = points.first.reader, points.first.name
    log_step("reading the dataset")
    data = load_dataset(options.data, reader.images)
    check_task(data, reader, name)
    few = few_rows(reader, data.test)
    outputs = [value.name for value in points.first.given.graph.output]
    given = answers_as_given([points.first.given], points.first.rows, few)
    own = given[outputs.index(points.output)].reshape(len(few[0]), -1)
    scale = scale_of(own, points.output)
    data = in_order_of(data, options.class_names, own.shape[1], name)
    parts = cut_at(points.whole, tensors, points.output)
    (last,) = (tail for tail in parts.tails if tail is not None)
    own_head = as_head(last, scale)
    heads = _trained_heads(parts, own_head, data, points, training, log_step)
    graphs = Graphs(parts.stages, [*heads, own_head])
    disagreement = check_answers(graphs, few, {len(tensors): log_softmax(own, scale)}, points.first)
    log_step(f"measuring the accuracy on {len(data.test.labels)} test rows")
    tested = record_split(open_in_memory(graphs), reader.preprocess, data.test)
    answers = tested.log_probs.argmax(-1)  # (K, N)
    order = order_of_classes(answers[-1], data.test.labels, len(data.classes))
    config = run_config(reader, data, options.data, len(graphs.heads), Path(name).name)
    config = replace(config, training=replace(training, heads_only=True))
    save_onnx_run(options.out, config, graphs, reader.tokenizer)
    ends = [points.ends_ms[exit - 1] for exit in exits]
    return AttachReport(
        tensors,
        scale,
        disagreement,
        tested.correct.mean(0).tolist(),
        (answers == answers[-1]).mean(1).tolist(),
        [float(end / points.ends_ms[-1]) for end in (*ends, points.ends_ms[-1])],
        None if order is None else tuple(data.classes[label] for label in order),
    )


def _tensors_of(points: CutPoints, exits: Sequence[int]) -> list[str]:
    numbers = sorted(set(exits))
    if numbers != list(exits) or not numbers or numbers[0] < 1 or numbers[-1] > len(points.tensors):
        raise ValueError(
            f"--exits is {','.join(map(str, exits))}; give rising numbers from 1 to "
            f"{len(points.tensors)}, the places that eenet attach --onnx lists without --dataset"
        )
    return [points.tensors[number - 1] for number in numbers]


def _scores(first: FirstGraph, wanted: str | None) -> str:
    """Name the output of scores."""
    outputs: list[str] = [value.name for value in first.model.graph.output]
    found = run_graph(first.model, first.checked().large)
    scores = [
        name
        for name, values in zip(outputs, found, strict=True)
        if values.ndim >= 2
        and np.prod(values.shape[2:]) == 1
        and values.shape[1] > 1
        and values.dtype.kind == "f"
    ]
    if wanted is not None and wanted in scores:
        return wanted
    if wanted is not None or len(scores) != 1:
        raise ValueError(
            f"{first.name} has the outputs {', '.join(outputs)}, of which {len(scores)} are scores "
            f"of classes ({', '.join(scores)}); name one with --output, or import a network whose "
            f"outputs are its exits with eenet import --onnx"
        )
    (only,) = scores
    return only


def _of_rows(whole: Whole, tensors: Sequence[str]) -> list[str]:
    """Leave out tensors whose first axis is not the rows, such as windows of an image."""
    small, large = (whole.run(tensors, state) for state in (whole.small, whole.large))
    return [
        name
        for name, few, many in zip(tensors, small, large, strict=True)
        if few.ndim >= 2 and len(few) == len(whole.small[0]) and len(many) == len(whole.large[0])
    ]


def _latencies(
    stages: Sequence[ModelProto],
    tails: Sequence[ModelProto],
    example: State,
    clock: Callable[[], float],
) -> NDArray[np.float64]:
    """Median latency in ms until the end of each stage; the last includes the classifier."""
    graphs = [open_graph(model.SerializeToString(), CPU) for model in (*stages, *tails)]
    rounds = np.zeros((WARM_UP + REPEATS, len(graphs)))
    for row in rounds:
        state = list(example)
        for k, graph in enumerate(graphs):
            start = clock()
            state = graph.run(tuple(state))
            row[k] = clock() - start
    seconds = np.median(rounds[WARM_UP:], 0)
    seconds[-2] += seconds[-1]
    ends: NDArray[np.float64] = np.cumsum(seconds[:-1]) * 1e3
    return ends


def _trained_heads(
    parts: Parts,
    own_head: ModelProto,
    data: Dataset,
    points: CutPoints,
    training: TrainConfig,
    log_step: Callable[[str], None],
) -> list[ModelProto]:
    """Train a head for every stage but the last."""
    described = points.whole.described([name for state in parts.states for name in state])
    states = [[described[name] for name in state] for state in parts.states[:-1]]
    log_step(f"running {len(data.train.labels)} training rows through the network")
    pools = [feature_graph(state) for state in states]
    features, teacher = _cached(parts.stages, pools, own_head, data.train, points)
    heads = []
    for exit, (state, rows) in enumerate(zip(states, features, strict=True)):
        log_step(f"training the head of exit {exit} on {rows.shape[1]} features")
        cached = CachedRows(rows, data.train.labels, teacher)
        heads.append(head_graph(state, train_head(cached, training, lambda epoch, loss: None)))
    return heads


def _cached(
    stages: Sequence[ModelProto],
    pools: Sequence[ModelProto],
    own_head: ModelProto,
    split: Split,
    points: CutPoints,
) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
    """Run rows through the network; return features of each early exit, and the last answers."""
    threads = torch.get_num_threads()
    running = [open_graph(model.SerializeToString(), CPU, threads) for model in stages]
    pooling = [open_graph(model.SerializeToString(), CPU, threads) for model in pools]
    answering = open_graph(own_head.SerializeToString(), CPU, threads)
    places, found = list[NDArray[np.intp]](), list[list[NDArray[np.float32]]]()
    for rows, state in served_states(points.first.reader.preprocess, split):
        for start in range(0, len(rows), FEATURE_ROWS):
            part: State = tuple(each[start : start + FEATURE_ROWS] for each in state)
            arrays = []
            for k, graph in enumerate(running):
                part = tuple(graph.run(part))
                arrays.append(
                    pooling[k].run(part)[0] if k < len(pooling) else answering.run(part)[1]
                )
            places.append(rows[start : start + FEATURE_ROWS])
            found.append(arrays)
    back = np.argsort(np.concatenate(places))
    *features, teacher = (np.concatenate(each)[back] for each in zip(*found, strict=True))
    return features, teacher
