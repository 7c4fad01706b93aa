import numpy as np
import onnx
import pytest
from onnx import TensorProto

from models.runtime.onnx_backend import CPU, open_graph
from models.runtime.row_graph import TensorType, row_graph

FLOATS, IDS = TensorType(TensorProto.FLOAT, 3), TensorType(TensorProto.INT64, 2)


@pytest.mark.parametrize("parts", [1, 2, 8, 64])
def test_what_is_written_is_a_graph_by_the_rules_of_onnx(parts: int) -> None:
    model = onnx.load_from_string(row_graph([FLOATS, IDS], parts))
    onnx.checker.check_model(model, full_check=True)
    assert len(model.graph.node) == 2 * (parts + 1)
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    assert types["value_0_0"] == TensorProto.FLOAT
    assert types["value_1_0"] == types["rows_0"] == TensorProto.INT64
    assert [len(v.type.tensor_type.shape.dim) for v in model.graph.output] == [3, 2]


def test_it_picks_rows_and_joins_them_and_parts_may_give_none() -> None:
    graph = open_graph(row_graph([FLOATS, IDS], 4), CPU)
    rng = np.random.default_rng(0)
    floats = [rng.normal(size=(n, 2, 3)).astype(np.float32) for n in (3, 1, 4, 3)]
    ids = [rng.integers(0, 9, (n, 5)) for n in (3, 1, 4, 3)]
    rows = [np.array(picked, np.int64) for picked in ([2, 0], [], [3, 3, 1], [])]
    joined = graph.run((*rows, *floats, *ids))
    for found, given in zip(joined, (floats, ids), strict=True):
        picked = [array[part] for array, part in zip(given, rows, strict=True)]
        assert np.array_equal(found, np.concatenate(picked))
        assert found.dtype == given[0].dtype


def test_names_longer_than_one_byte_of_length_are_written() -> None:
    kinds = [TensorType(TensorProto.FLOAT16, 1)] * 3
    model = onnx.load_from_string(row_graph(kinds, 256))
    assert len(model.graph.input) == 4 * 256 and len(model.graph.node[-1].input) == 256
