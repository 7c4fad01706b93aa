"""Export a trained network as ONNX graphs: one per stage and one per exit head."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxscript.optimizer
import torch
from torch import Tensor, nn

from models.backend import State
from models.export.weights import Storage, with_stored_weights
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

    A dimension becomes dynamic if the two inputs, or their states at that stage, differ in its
    size. These are the rows and, for texts, the length.

    Args:
        model: The network; it is put into evaluation mode.
        small: An input of at least two rows; the exporter would treat a single row as a constant.
        large: An input of more rows, and of another length if lengths vary.
    """
    model.eval()
    first, second = as_tensors(small), as_tensors(large)
    graphs = Graphs([], [])
    for stage, head in zip(model.stages, model.heads, strict=True):
        graphs.stages.append(_export(stage, first, second))
        with torch.inference_mode():
            first, second = _clone(stage(first)), _clone(stage(second))
        graphs.heads.append(_export(ServedHead(head), first, second))
    return graphs


def write_graphs(graphs: Graphs, folder: Path, storage: Storage = "exact") -> OnnxBackend:
    """Write `stages/{k}.onnx` and `heads/{k}.onnx`, each a single file.

    Args:
        graphs: Graphs of all stages and heads.
        folder: Parent of the two folders.
        storage: How matrices of single precision are stored, which arithmetic does not see.

    Returns:
        A backend over the written graphs.
    """
    return OnnxBackend(
        _write(graphs.stages, folder / "stages", storage),
        _write(graphs.heads, folder / "heads", storage),
    )


def _write(graphs: Sequence[onnx.ModelProto], folder: Path, storage: Storage) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{k}.onnx" for k in range(len(graphs))]
    for path, graph in zip(paths, graphs, strict=True):
        stored = with_stored_weights(graph, storage)
        onnx.checker.check_model(stored, full_check=True)
        path.write_bytes(stored.SerializeToString())
    return paths


def largest_disagreement(model: MultiExitModel, backend: OnnxBackend, inputs: State) -> float:
    """Compute the largest difference of any logit between the network and its graphs.

    The result is infinite if either returns a logit that is not finite.
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
    """Convert arrays to the input of a network."""
    tensors = tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in state)
    return tensors[0] if len(tensors) == 1 else tensors


def _export(module: nn.Module, small: multi_exit.State, large: multi_exit.State) -> onnx.ModelProto:
    is_tuple = isinstance(small, tuple)
    smalls, larges = (small, large) if is_tuple else ((small,), (large,))
    shapes = tuple(_dynamic_sizes(a, b) for a, b in zip(smalls, larges, strict=True))
    program = torch.onnx.export(
        module.eval(),
        (_clone(small),),
        input_names=[f"state_in_{i}" for i in range(len(smalls))],
        dynamic_shapes=(shapes if is_tuple else shapes[0],),
        dynamo=True,
        verbose=False,
        # Optimising folds norms into kernels, which half precision would then not hold exactly.
        optimize=False,
    )
    assert program is not None, "the exporter returns a program unless it is given a file"
    onnxscript.optimizer.fold_constants(program.model)
    onnxscript.optimizer.remove_unused_nodes(program.model)
    graph: onnx.ModelProto = program.model_proto
    for element in (graph.graph, *graph.graph.node, *graph.graph.value_info):
        del element.metadata_props[:]  # stack traces with local paths
    return graph


def _dynamic_sizes(small: Tensor, large: Tensor) -> Mapping[int, object]:
    """Name the dimensions in which two inputs differ; the first dimension is the rows."""
    names = {0: torch.export.Dim("rows")}
    return {
        axis: names.get(axis, torch.export.Dim("length"))
        for axis, sizes in enumerate(zip(small.shape, large.shape, strict=True))
        if sizes[0] != sizes[1]
    }


def _clone(state: multi_exit.State) -> multi_exit.State:
    """Copy a state, because the exporter does not take inference tensors."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    return tuple(part.detach().clone() for part in state)
