from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from models.known_answers import _plain_session
from models.onnx_file import refuse_external_data
from models.runtime.onnx_backend import CPU, open_graph


def graph_of(weight: TensorProto, *, nested: bool = False) -> onnx.ModelProto:
    """A graph that adds a weight to its input, or does so in a branch."""
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    given_x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    add = helper.make_node("Add", ["x", "w"], ["y"])
    if nested:
        branch = helper.make_graph([add], "branch", [], [value], [weight])
        nodes = [
            helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True))),
            helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
        ]
        graph = helper.make_graph(nodes, "g", [given_x], [value])
    else:
        graph = helper.make_graph([add], "g", [given_x], [value], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def external(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


INSIDE = numpy_helper.from_array(np.ones(4, np.float32), "w")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("location", ["w.bin", "../w.bin", "/etc/passwd"])
def test_weights_in_other_files_are_refused(tmp_path: Path, location: str, nested: bool) -> None:
    (tmp_path / "w.bin").write_bytes(np.ones(4, np.float32).tobytes())
    path = tmp_path / "g.onnx"
    path.write_bytes(graph_of(external(location), nested=nested).SerializeToString())
    for load in (
        refuse_external_data,
        _plain_session,
        lambda path: open_graph(path, CPU),
        lambda path: open_graph(path.read_bytes(), CPU),
    ):
        with pytest.raises(ValueError, match="keeps weights in another file"):
            load(path)


@pytest.mark.parametrize("nested", [False, True])
def test_weights_inside_are_loaded(tmp_path: Path, nested: bool) -> None:
    path = tmp_path / "g.onnx"
    path.write_bytes(graph_of(INSIDE, nested=nested).SerializeToString())
    (out,) = open_graph(path, CPU).run((np.zeros(4, np.float32),))
    assert out.tolist() == [1, 1, 1, 1]


def test_the_shipped_graphs_hold_their_weights(shipped_bundle: Path) -> None:
    graphs = list(shipped_bundle.rglob("*.onnx"))
    assert len(graphs) >= 6
    for path in graphs:
        refuse_external_data(path)


@settings(max_examples=200, deadline=None, database=None)
@given(st.data())
def test_a_damaged_file_ends_in_a_refusal_or_is_left_to_the_runtime(data: st.DataObject) -> None:
    damaged = bytearray(graph_of(external("w.bin"), nested=True).SerializeToString())
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        refuse_external_data(bytes(damaged))
    except ValueError as error:
        assert "keeps weights in another file" in str(error)
