"""A trained network as ONNX graphs: one per stage and one per exit head."""

from pathlib import Path

import numpy as np
import onnx
import onnxscript.optimizer
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.multi_exit import MultiExitModel
from models.onnx_backend import OnnxBackend

TRACE_ROWS = 2  # one row would be taken for a constant


class _ServedHead(nn.Module):
    """An exit head that also gives log-probabilities, as policies read them."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(state)
        return logits, logits.log_softmax(-1)


def export_onnx(model: MultiExitModel, example: Tensor, folder: Path) -> OnnxBackend:
    """Write `stages/{k}.onnx` and `heads/{k}.onnx`, each a single file with a dynamic batch.

    Kernels that half precision holds exactly are stored so and widened when the graph is loaded;
    the arithmetic is single precision throughout.

    Args:
        model: The network; put into evaluation mode.
        example: An input of any number of rows, for its shape.
        folder: Where the two folders go.

    Returns:
        A backend over the written graphs.
    """
    model.eval()
    state = example[:1].expand(TRACE_ROWS, *example.shape[1:]).contiguous()
    stages, heads = [], []
    for name in ("stages", "heads"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for k, (stage, head) in enumerate(zip(model.stages, model.heads, strict=True)):
        stages.append(_export(stage, state, folder / f"stages/{k}.onnx", ["state_out"]))
        with torch.inference_mode():
            state = stage(state).clone()
        heads.append(
            _export(_ServedHead(head), state, folder / f"heads/{k}.onnx", ["logits", "log_probs"])
        )
    return OnnxBackend(stages, heads)


def largest_disagreement(
    model: MultiExitModel, backend: OnnxBackend, inputs: NDArray[np.float32]
) -> float:
    """Largest difference of any logit between the network and its graphs, stage by stage."""
    model.eval()
    with torch.inference_mode():
        expected = model(torch.from_numpy(inputs)).numpy()
    worst, state = 0.0, inputs
    for k in range(backend.num_exits):
        state = backend.run_stage(k, state)
        worst = max(worst, float(np.abs(backend.run_head(k, state).logits - expected[k]).max()))
    return worst


def _export(module: nn.Module, state: Tensor, path: Path, outputs: list[str]) -> Path:
    program = torch.onnx.export(
        module.eval(),
        (state.detach().clone(),),
        input_names=["state_in"],
        output_names=outputs,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
        optimize=False,  # it would fold norms into kernels, which then need single precision
    )
    assert program is not None, "the exporter returns a program unless it is given a file"
    onnxscript.optimizer.fold_constants(program.model)
    onnxscript.optimizer.remove_unused_nodes(program.model)
    graph = program.model_proto
    _store_in_half(graph)
    onnx.checker.check_model(graph, full_check=True)
    path.write_bytes(graph.SerializeToString())
    return path


def _store_in_half(model: onnx.ModelProto) -> None:
    """Store what loses nothing by it in half precision, behind casts that fold away at load."""
    kept, casts = [], []
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if (
            values.dtype == np.float32
            and values.ndim > 1
            and np.array_equal(values.astype(np.float16), values)
        ):
            half = onnx.numpy_helper.from_array(values.astype(np.float16), f"{tensor.name}_half")
            casts.append(
                onnx.helper.make_node("Cast", [half.name], [tensor.name], to=onnx.TensorProto.FLOAT)
            )
            kept.append(half)
        else:
            kept.append(tensor)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
