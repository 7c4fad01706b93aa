"""Runs graphs in float and observes their activations."""

from collections.abc import Sequence
from typing import NamedTuple

from onnx import ModelProto

from models.backend import State
from models.export.activation_ranges import ActivationHistograms
from models.export.bias_correction import ChannelMeans, correctable
from models.export.graph_parts import Part
from models.runtime.onnx_backend import CPU, Graph, open_graph

CALIBRATION_BYTES = 128 << 20  # of activations that are held at once


def observe(
    stages: list[Part], heads: list[Part], rows: Sequence[State]
) -> dict[str, "Activations"]:
    """Run the float graphs once over all rows and observe every activation."""
    observers = [(_Observer(a), _Observer(b)) for a, b in zip(stages, heads, strict=True)]
    at_once = 1
    for state in rows:
        first, count = 0, len(state[0])
        while first < count:
            chunk = tuple(array[first : first + at_once] for array in state)
            first += len(chunk[0])
            size = len(chunk[0])
            held = 0
            for stage, head in observers:
                chunk, stage_bytes = stage.run(chunk)
                _, head_bytes = head.run(chunk)
                held = max(held, stage_bytes, head_bytes)
            at_once = max(1, CALIBRATION_BYTES * size // max(1, held))
    return {each.part.name: each.seen for pair in observers for each in pair}


class Activations(NamedTuple):
    """What was seen of a graph's activations."""

    histograms: ActivationHistograms
    means: ChannelMeans


class _Observer:
    """Runs a graph and observes its activations."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.seen = Activations(ActivationHistograms(), ChannelMeans())
        self._averaged = {node.input[0] for node in correctable(part.model, part.weighted)}
        model = ModelProto()
        model.CopyFrom(part.model)
        graph = model.graph
        self._outputs = len(graph.output)
        inputs, outputs = {v.name for v in graph.input}, {v.name for v in graph.output}
        values = {value.name: value for value in graph.value_info}
        graph.output.extend(values[name] for name in part.tensors if name not in inputs | outputs)
        self._graph: Graph = open_graph(model.SerializeToString(), CPU)

    def run(self, state: State) -> tuple[State, int]:
        """Return the outputs and the size in bytes of everything that was held."""
        results = self._graph.run(state)
        values = dict(zip(self._graph.inputs, state, strict=True))
        values |= dict(zip(self._graph.outputs, results, strict=True))
        for name in self.part.tensors:
            self.seen.histograms.add(name, values[name])
        for name in self._averaged:
            self.seen.means.add(name, values[name])
        return tuple(results[: self._outputs]), sum(result.nbytes for result in results)
