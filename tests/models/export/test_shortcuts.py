import numpy as np
import pytest
import torch
from onnx import ModelProto, helper, numpy_helper, shape_inference

from models.export.graph_parts import optimise
from models.export.onnx_graphs import export_graphs
from models.export.shortcuts import replace_shortcuts
from models.networks.resnet import cifar_resnet
from models.runtime.onnx_backend import CPU, open_graph

END = 2**63 - 1


def shortcut(
    pads: tuple[int, ...] = (0, 2, 0, 0, 0, 3, 0, 0),
    start: int = 0,
    end: int = END,
    axis: int = 3,
    value: float | None = None,
    mode: str = "constant",
) -> ModelProto:
    """Every second row and column of a state (N, 4, 8, 8), between channels of zeros."""
    constants = {
        "starts": [start],
        "ends": [end],
        "axes": [axis],
        "steps": [2],
        "two": [2],
        "pads": list(pads),
    }
    tensors = [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in constants.items()]
    padding = ["columns", "pads"]
    if value is not None:
        tensors.append(numpy_helper.from_array(np.array(value, np.float32), "value"))
        padding.append("value")
    nodes = [
        helper.make_node("Slice", ["state", "starts", "ends", "two", "steps"], ["rows"]),
        helper.make_node("Slice", ["rows", "starts", "ends", "axes", "steps"], ["columns"]),
        helper.make_node("Pad", padding, ["out"], mode=mode),
    ]
    given = helper.make_tensor_value_info("state", 1, ["rows", 4, 8, 8])
    made = helper.make_tensor_value_info("out", 1, None)
    graph = helper.make_graph(nodes, "shortcut", [given], [made], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return shape_inference.infer_shapes(model)


def operators(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def run(model: ModelProto) -> np.ndarray:
    state = np.random.default_rng(0).normal(size=(3, 4, 8, 8)).astype(np.float32)
    (out,) = open_graph(model.SerializeToString(), CPU).run((state,))
    return np.asarray(out)


@pytest.mark.parametrize("value", [None, 0.0])
def test_a_shortcut_becomes_one_convolution_with_the_same_values(value: float | None) -> None:
    model = shortcut(value=value)
    before = run(model)
    replace_shortcuts(model)
    assert operators(model)[-1] == "Conv"
    np.testing.assert_array_equal(run(model), before)


@pytest.mark.parametrize(
    "other",
    [
        {"start": 1},
        {"end": 7},
        {"axis": 1},
        {"pads": (0, 2, 1, 0, 0, 3, 0, 0)},
        {"pads": (0, -1, 0, 0, 0, 3, 0, 0)},
        {"value": 0.5},
        {"mode": "edge"},
    ],
)
def test_what_is_more_than_a_shortcut_keeps_its_values(other: dict) -> None:
    model = shortcut(**other)
    before = run(model)
    replace_shortcuts(model)
    np.testing.assert_array_equal(run(model), before)


@pytest.mark.slow
def test_an_exported_resnet_has_only_convolutions_and_sums_left() -> None:
    torch.manual_seed(0)
    model = cifar_resnet(8, 5, [1], [()]).eval()
    rows = [torch.randn(n, 3, 16, 16).numpy() for n in (2, 3)]
    exported = export_graphs(model, (rows[0],), (rows[1],)).stages[1]
    assert {"Slice", "Pad"} <= set(operators(exported))
    prepared = optimise(exported)
    assert set(operators(prepared)) == {"Conv", "Relu", "Add"}
