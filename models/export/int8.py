"""Quantise graphs to integers: 7-bit weights, and activations of 8 bits with fixed scales."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from models.backend import State
from models.export.activation_ranges import METHODS, Ranges
from models.export.bias_correction import ChannelMeans
from models.export.graph_parts import WEIGHTED, CannotQuantise, Part, prepare
from models.export.observer import observe
from models.export.onnx_graphs import Graphs
from models.export.qdq import WEIGHT_BITS, Node, build_graphs
from models.runtime.onnx_backend import CPU, open_graph

LEAST_ROWS = 100
MAX_TRIALS = 24  # groups of nodes whose sensitivity is measured


class LosesAccuracy(CannotQuantise):
    """An exit loses too much, even with the most sensitive nodes in float."""


class Int8Graphs(NamedTuple):
    """Quantised graphs and how they were made.

    Attributes:
        graphs: The graphs. States between them are uint8 where both sides compute in integers.
        method: For people to read: how scales were chosen, what it cost, and what stayed in float.
    """

    graphs: Graphs
    method: dict[str, Any]


class Scores(NamedTuple):
    """Differences between quantised and float answers at each exit, (K,) each.

    Attributes:
        kl: Mean KL divergence of the log-probabilities from those in float.
        agreement: Share of rows with the same most probable class.
        expected_loss: Accuracy lost if the float network's probabilities are right: the mean
            probability of its class less that of the class which replaced it. Rows whose two best
            classes are nearly equal may swap them at no cost.
    """

    kl: NDArray[np.float64]
    agreement: NDArray[np.float64]
    expected_loss: NDArray[np.float64]


def quantise_graphs(
    graphs: Graphs,
    scale_rows: Sequence[State],
    choice_rows: Sequence[State],
    *,
    max_loss: float,
    log_step: Callable[[str], None],
) -> Int8Graphs:
    """Quantise all stages and heads.

    Ranges of activations come from min-max, percentile or entropy, whichever loses least. Scales
    are fixed, so rows never depend on each other. If an exit then loses too much, the most
    sensitive nodes stay in float.

    Args:
        graphs: Graphs in single precision; they are not changed.
        scale_rows: Batches of inputs that fix the ranges, `LEAST_ROWS` rows or more.
        choice_rows: Batches of inputs by which alternatives are compared.
        max_loss: Expected accuracy that an exit may lose, as in `Scores`.
        log_step: Called with each step as it begins.

    Raises:
        CannotQuantise: If there are too few rows, nothing to quantise, a graph that the runtime
            cannot quantise, or too great a loss.
    """
    rows = sum(len(state[0]) for state in scale_rows)
    check_rows(rows)
    stages, heads = prepare(graphs)
    if not any(part.weighted for part in (*stages, *heads)):
        raise CannotQuantise(
            f"the network has no {', '.join(WEIGHTED)} with constant weights before its "
            f"classifiers, so int8 would gain nothing; build with --precision float32"
        )
    log_step(f"int8: measuring the ranges of activations on {rows} rows")
    seen = observe(stages, heads, scale_rows)
    means = {part: activations.means for part, activations in seen.items()}
    choice = _Choice(stages, heads, means, choice_rows, _answers(graphs, choice_rows))
    log_step(f"int8: comparing scales by {', '.join(METHODS)}")
    tried = {}
    for name, method in METHODS.items():
        ranges = {part: method(each.histograms) for part, each in seen.items()}
        tried[name] = _Candidate(ranges, *choice.try_out(ranges, frozenset()))
    scales = min(tried, key=lambda name: tried[name].scores.kl.mean())
    ranges, built, scores = tried[scales]
    in_float = list[Node]()
    if scores.expected_loss.max() > max_loss:
        log_step("int8: finding the most sensitive nodes")
        built, scores, in_float = _keep_sensitive_in_float(choice, ranges, max_loss)
    method_record = {
        "scales": scales,
        "kl_by_scales": {name: _rounded(each.scores.kl.mean()) for name, each in tried.items()},
        "weight_bits": WEIGHT_BITS,
        "scale_rows": rows,
        "choice_rows": sum(len(state[0]) for state in choice_rows),
        "states": sorted({_state_type(graph) for graph in built.stages}),
        **{name: _rounded(values) for name, values in scores._asdict().items()},
        "nodes_in_float": [f"{part}: {node}" for part, node in in_float],
    }
    return Int8Graphs(built, method_record)


def check_rows(rows: int) -> None:
    """Check that there are enough training rows to fix scales.

    Raises:
        CannotQuantise: If there are not.
    """
    if rows < LEAST_ROWS:
        raise CannotQuantise(
            f"int8 needs {LEAST_ROWS} or more training rows to fix its scales, and there are "
            f"{rows}; give more or build with --precision float32"
        )


class _Candidate(NamedTuple):
    ranges: dict[str, Ranges]
    built: Graphs
    scores: Scores


@dataclass(frozen=True)
class _Choice:
    """Builds alternatives and compares them with the float network."""

    stages: list[Part]
    heads: list[Part]
    means: dict[str, ChannelMeans]
    rows: Sequence[State]
    expected: list[NDArray[np.float32]]

    def try_out(
        self, ranges: dict[str, Ranges], in_float: frozenset[Node]
    ) -> tuple[Graphs, Scores]:
        built = build_graphs(self.stages, self.heads, ranges, self.means, in_float)
        return built, _compare(self.expected, _answers(built, self.rows))


def _keep_sensitive_in_float(
    choice: _Choice, ranges: dict[str, Ranges], max_loss: float
) -> tuple[Graphs, Scores, list[Node]]:
    """Leave nodes in float, the most sensitive first, until no exit loses more than `max_loss`.

    Neighbours are tried together, so that there are at most `MAX_TRIALS` trials, and their number
    in float doubles until they suffice.
    """
    nodes = [
        (part.name, node) for part in (*choice.stages, *choice.heads) for node in part.weighted
    ]
    size = -(-len(nodes) // MAX_TRIALS)
    groups = [nodes[first : first + size] for first in range(0, len(nodes), size)]
    left = [choice.try_out(ranges, frozenset(group))[1].kl.mean() for group in groups]
    order = [groups[i] for i in np.argsort(left)]
    count, worst = 1, 0.0
    while count < len(groups):
        in_float = list(itertools.chain.from_iterable(order[:count]))
        built, scores = choice.try_out(ranges, frozenset(in_float))
        worst = float(scores.expected_loss.max())
        if worst <= max_loss:
            return built, scores, sorted(in_float, key=nodes.index)
        count *= 2
    raise LosesAccuracy(
        f"an exit would lose {100 * worst:.2f} points of accuracy in int8, even with its most "
        f"sensitive layers in float, and {100 * max_loss:g} are allowed; allow more with "
        f"--max-precision-loss"
    )


def _answers(graphs: Graphs, rows: Sequence[State]) -> list[NDArray[np.float32]]:
    """Return the log-probabilities of every exit, (N, C) each; cells of a grid count as rows."""
    stages = [open_graph(graph.SerializeToString(), CPU) for graph in graphs.stages]
    heads = [open_graph(graph.SerializeToString(), CPU) for graph in graphs.heads]
    answers: list[list[NDArray[np.float32]]] = [[] for _ in heads]
    for batch in rows:
        state = batch
        for stage, head, found in zip(stages, heads, answers, strict=True):
            state = tuple(stage.run(state))
            log_probs = head.run(state)[1]
            found.append(log_probs.reshape(-1, log_probs.shape[-1]))
    return [np.concatenate(found) for found in answers]


def _compare(expected: list[NDArray[np.float32]], found: list[NDArray[np.float32]]) -> Scores:
    scores = []
    for theirs, mine in zip(expected, found, strict=True):
        probs = np.exp(theirs.astype(np.float64))
        best, chosen = theirs.argmax(-1), mine.argmax(-1)
        row = np.arange(len(best))
        scores.append(
            (
                (probs * (theirs - mine)).sum(-1).mean(),
                (best == chosen).mean(),
                (probs[row, best] - probs[row, chosen]).mean(),
            )
        )
    return Scores(*np.array(scores).T)


def _state_type(graph: ModelProto) -> str:
    types = {value.type.tensor_type.elem_type for value in graph.graph.output}
    return "uint8" if TensorProto.UINT8 in types else "float32"


def _rounded(values: NDArray[np.float64] | np.float64) -> Any:
    """Return plain numbers with four significant digits."""
    return np.vectorize(lambda value: float(f"{value:.4g}"))(values).tolist()
