from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from models.backend import OutOfMemory, Part, State
from models.runtime import onnx_device_backend
from models.runtime.onnx_backend import CPU, HOST, Graph, OnnxBackend
from models.runtime.onnx_device_backend import DeviceOnnxBackend, RowJoiner, run_bound
from tests.graphs import write_graph


@pytest.fixture
def backend(exported: tuple[Path, OnnxBackend]) -> DeviceOnnxBackend:
    """A backend on the CPU that keeps states as on a GPU."""
    stages, heads = (
        [exported[0] / f"{part}/{k}.onnx" for k in (0, 1)] for part in ("stages", "heads")
    )
    return DeviceOnnxBackend(stages, heads, CPU, buckets=(1, 2, 4))


def images(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, 3, 8, 8)).astype(np.float32)


def on_device(*arrays: np.ndarray) -> State:
    return tuple(ort.OrtValue.ortvalue_from_numpy(array) for array in arrays)


def test_states_are_values_of_the_device_and_answers_are_on_the_host(
    backend: DeviceOnnxBackend,
) -> None:
    state = backend.run_stage(0, (images(2),))
    assert all(isinstance(value, ort.OrtValue) for value in state)
    output = backend.run_head(0, state)
    assert isinstance(output.logits, np.ndarray) and output.logits.shape == (2, 3)
    before = output.log_probs.copy()
    del state
    for _ in range(5):
        backend.run_head(0, backend.run_stage(0, (images(2) + 1,)))
    assert np.array_equal(output.log_probs, before)  # no other run writes into them


def test_a_whole_batch_stays_where_it_is(backend: DeviceOnnxBackend) -> None:
    state = backend.run_stage(0, (images(4),))
    assert backend.gather([Part(state, [0, 1, 2, 3])]) is state
    assert backend.gather([Part(state, [0, 1, 3, 2])]) is not state


def test_waiting_rows_outlive_the_batches_that_come_after_theirs(
    backend: DeviceOnnxBackend,
) -> None:
    waiting = backend.run_stage(0, (images(2),))
    expected = waiting[0].numpy().copy()
    for rows in (1, 2, 4, 2):
        backend.run_stage(0, (images(rows),))
    (value,) = backend.gather([Part(waiting, [1, 0])])
    assert np.array_equal(value.numpy(), expected[[1, 0]])


def test_arrays_are_joined_on_the_host_before_the_first_stage(backend: DeviceOnnxBackend) -> None:
    one, other = images(1), images(2)
    (joined,) = backend.gather([Part((other,), [1, 0]), Part((one,), [0])])
    assert np.array_equal(joined, np.concatenate([other[[1, 0]], one, one]))


def test_few_graphs_join_rows_whatever_the_number_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    write = onnx_device_backend.row_graph
    monkeypatch.setattr(
        onnx_device_backend,
        "row_graph",
        lambda kinds, n: (built.append(n), write(kinds, n))[1],
    )
    joiner = RowJoiner(CPU)
    floats, ids = np.arange(12.0).reshape(4, 3), np.arange(8).reshape(4, 2)
    state = on_device(floats, ids)
    for parts in range(1, 17):
        joined = joiner.join([Part(state, [parts % 4])] * parts)
        for value, array in zip(joined, (floats, ids), strict=True):
            assert np.array_equal(value.numpy(), array[[parts % 4] * parts])
    assert built == [1, 2, 4, 8, 16]
    joiner.join([Part(on_device(floats), [0])])
    assert built[5:] == [1]  # of other tensors


def test_a_graph_that_many_threads_need_at_once_is_made_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built: list[Graph] = []
    open_graph = onnx_device_backend.open_graph

    def counted(*given: object) -> Graph:
        built.append(open_graph(*given))  # type: ignore[arg-type]
        return built[-1]

    monkeypatch.setattr(onnx_device_backend, "open_graph", counted)
    joiner, state = RowJoiner(CPU), on_device(np.arange(5))
    with ThreadPoolExecutor(4) as pool:
        joined = list(pool.map(lambda row: joiner.join([Part(state, [row])] * 3), [0, 1, 2, 3] * 5))
    assert [value.numpy().tolist() for (value,) in joined] == [[row] * 3 for row in range(4)] * 5
    assert len(built) == 1


class Full:
    """A session whose device has no memory left."""

    def io_binding(self) -> "Full":
        return self

    def bind_ortvalue_input(self, name: str, value: object) -> None:
        raise RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory")


def test_no_room_for_what_goes_in_is_out_of_memory_too() -> None:
    graph = Graph(Full(), ["x"], ["y"])  # type: ignore[arg-type]
    with pytest.raises(OutOfMemory):
        run_bound(graph, (images(1),), HOST, HOST)


@pytest.mark.parametrize(
    ("kind", "dtype"), [(TensorProto.FLOAT16, np.float16), (TensorProto.UINT8, np.uint8)]
)
def test_states_of_two_bytes_and_of_one_stay_so(
    tmp_path: Path, kind: int, dtype: type[np.generic]
) -> None:
    """Pixels go in, states have the type, heads return single precision."""
    state, rows = (kind, 2), (TensorProto.FLOAT, 2)
    stages = [
        write_graph(
            tmp_path / "0.onnx",
            [helper.make_node("Cast", ["x"], ["y"], to=kind)],
            {"x": (TensorProto.UINT8, 2)},
            {"y": state},
        ),
        write_graph(
            tmp_path / "1.onnx",
            [helper.make_node("Identity", ["x"], ["y"])],
            {"x": state},
            {"y": state},
        ),
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["logits"], to=TensorProto.FLOAT),
        helper.make_node("LogSoftmax", ["logits"], ["log_probs"]),
    ]
    outputs = {"logits": rows, "log_probs": rows}
    head = write_graph(tmp_path / "head.onnx", nodes, {"x": state}, outputs)
    pixels = np.arange(15, dtype=np.uint8).reshape(5, 3)
    for backend in (
        DeviceOnnxBackend(stages, [head, head], CPU, buckets=(1, 2, 4)),
        OnnxBackend(stages, [head, head]),
    ):
        one, other = (backend.run_stage(0, (pixels[part],)) for part in ([0, 1, 2], [3, 4]))
        joined = backend.gather([Part(one, [2, 0]), Part(other, [1]), Part(one, [1])])
        values = [value if isinstance(value, np.ndarray) else value.numpy() for value in joined]
        assert values[0].dtype == dtype
        output = backend.run_head(1, backend.run_stage(1, joined))
        assert output.logits.dtype == np.float32
        assert np.array_equal(output.logits, pixels[[2, 0, 4, 1]])
