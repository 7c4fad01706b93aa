"""A trained network as ONNX graphs: one per stage and one per exit head."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxscript.optimizer
import torch
from torch import Tensor, nn

from models.backend import State
from models.bundle import Weights
from models.export.weights import with_stored_weights
from models.networks import multi_exit
from models.networks.multi_exit import MultiExitModel
from models.runtime.onnx_backend import OnnxBackend
from models.runtime.torch_backend import ServedHead


class Graphs(NamedTuple):
    """The K stages and K exit heads of a network, in memory."""

    stages: list[onnx.ModelProto]
    heads: list[onnx.ModelProto]


def export_graphs(model: MultiExitModel, small: State, large: State) -> Graphs:
    """Trace every stage and head.

    Every size in which the two inputs, or the states they lead to, differ becomes dynamic: rows,
    and of texts their length.

    Args:
        model: The network; put into evaluation mode.
        small: An input of at least two rows; one would be taken for a constant.
        large: Another of more rows, and of another length where lengths vary.
    """
    model.eval()
    one, other = as_tensors(small), as_tensors(large)
    graphs = Graphs([], [])
    for stage, head in zip(model.stages, model.heads, strict=True):
        graphs.stages.append(_export(stage, one, other))
        with torch.inference_mode():
            one, other = _cloned(stage(one)), _cloned(stage(other))
        graphs.heads.append(_export(ServedHead(head), one, other))
    return graphs


def write_graphs(graphs: Graphs, folder: Path, weights: Weights = "float32") -> OnnxBackend:
    """Write `stages/{k}.onnx` and `heads/{k}.onnx`, each a single file.

    Args:
        graphs: Of all stages and heads.
        folder: Where the two folders go.
        weights: How the files store weights; arithmetic is single precision throughout.

    Returns:
        A backend over the written graphs.
    """
    return OnnxBackend(
        _write(graphs.stages, folder / "stages", weights),
        _write(graphs.heads, folder / "heads", weights),
    )


def _write(graphs: Sequence[onnx.ModelProto], folder: Path, weights: Weights) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{k}.onnx" for k in range(len(graphs))]
    for path, graph in zip(paths, graphs, strict=True):
        stored = with_stored_weights(graph, weights)
        onnx.checker.check_model(stored, full_check=True)
        path.write_bytes(stored.SerializeToString())
    return paths


def largest_disagreement(model: MultiExitModel, backend: OnnxBackend, inputs: State) -> float:
    """Largest difference of any logit between the network and its graphs, stage by stage.

    Infinite where either has a logit that is no number.
    """
    model.eval()
    with torch.inference_mode():
        expected = model(as_tensors(inputs)).numpy()
    differences, state = [], inputs
    for k in range(backend.num_exits):
        state = backend.run_stage(k, state)
        differences.append(np.abs(backend.run_head(k, state).logits - expected[k]).max())
    return float(np.nan_to_num(np.max(differences), nan=np.inf, posinf=np.inf))


def as_tensors(state: State) -> multi_exit.State:
    """Arrays as a network takes them."""
    tensors = tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in state)
    return tensors[0] if len(tensors) == 1 else tensors


def _export(module: nn.Module, state: multi_exit.State, other: multi_exit.State) -> onnx.ModelProto:
    several = isinstance(state, tuple)
    parts, others = (state, other) if several else ((state,), (other,))
    shapes = tuple(_dynamic_sizes(a, b) for a, b in zip(parts, others, strict=True))
    program = torch.onnx.export(
        module.eval(),
        (_cloned(state),),
        input_names=[f"state_in_{i}" for i in range(len(parts))],
        dynamic_shapes=(shapes if several else shapes[0],),
        dynamo=True,
        verbose=False,
        optimize=False,  # it would fold norms into kernels, which then need single precision
    )
    assert program is not None, "the exporter returns a program unless it is given a file"
    onnxscript.optimizer.fold_constants(program.model)
    onnxscript.optimizer.remove_unused_nodes(program.model)
    graph: onnx.ModelProto = program.model_proto
    for described in (graph.graph, *graph.graph.node, *graph.graph.value_info):
        del described.metadata_props[:]  # stack traces, with the paths of this machine
    return graph


def _dynamic_sizes(small: Tensor, large: Tensor) -> Mapping[int, object]:
    """The dimensions in which two inputs differ; the first of a tensor are its rows."""
    names = {0: torch.export.Dim("rows")}
    return {
        axis: names.get(axis, torch.export.Dim("length"))
        for axis, sizes in enumerate(zip(small.shape, large.shape, strict=True))
        if sizes[0] != sizes[1]
    }


def _cloned(state: multi_exit.State) -> multi_exit.State:
    """A state that is no inference tensor."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    return tuple(part.detach().clone() for part in state)
