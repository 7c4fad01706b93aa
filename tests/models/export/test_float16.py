import numpy as np
import onnx
import pytest
from onnx import TensorProto

from models.export.float16 import to_float16
from models.export.onnx_graphs import write_graphs
from models.runtime.onnx_backend import OnnxBackend
from tests.backends import answers
from tests.models.export.conftest import TEXTS, Exported

SINGLE, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def float_types(values: list[onnx.ValueInfoProto]) -> set[int]:
    return {value.type.tensor_type.elem_type for value in values} & {SINGLE, HALF}


@pytest.fixture(scope="session")
def backends(
    family: Exported, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Exported, OnnxBackend, OnnxBackend]:
    folder = tmp_path_factory.mktemp(family.name)
    return (
        family,
        write_graphs(family.graphs, folder / "single"),
        write_graphs(to_float16(family.graphs), folder / "half"),
    )


Backends = tuple[Exported, OnnxBackend, OnnxBackend]


@pytest.mark.slow
def test_half_precision_answers_nearly_the_same(backends: Backends) -> None:
    network, single, half = backends
    state = network.inputs(12)
    for exact, near in zip(answers(single, state), answers(half, state), strict=True):
        assert near.logits.dtype == near.log_probs.dtype == np.float32
        np.testing.assert_allclose(near.log_probs, exact.log_probs, atol=0.03)
        np.testing.assert_allclose(near.logits, exact.logits, atol=0.03)
        assert not np.array_equal(near.logits, exact.logits)


@pytest.mark.slow
def test_log_probabilities_are_computed_in_single_precision(backends: Backends) -> None:
    network, _, half = backends
    if network.name == "fcn":
        pytest.skip("its log-probabilities are of means of logits")
    for answer in answers(half, network.inputs(12)):
        logits = answer.logits.astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        np.testing.assert_allclose(answer.log_probs, expected, atol=2e-6)


def test_rows_are_the_same_alone_and_in_batches(backends: Backends) -> None:
    network, _, half = backends
    state = network.inputs(5)
    together = answers(half, state)
    for row in range(5):
        alone = answers(half, tuple(array[row : row + 1] for array in state))
        for one, all in zip(alone, together, strict=True):
            np.testing.assert_allclose(one.log_probs[0], all.log_probs[row], atol=5e-3)


def test_states_are_in_half_and_what_enters_and_leaves_is_not(family: Exported) -> None:
    stages, heads = to_float16(family.graphs)
    entering = float_types(list(stages[0].graph.input))
    assert entering == (set() if family.name in TEXTS else {SINGLE})
    for before, after in zip(stages, [*stages[1:], None], strict=True):
        assert float_types(list(before.graph.output)) == {HALF}
        assert after is None or float_types(list(after.graph.input)) == {HALF}
    for head in heads:
        assert float_types(list(head.graph.input)) == {HALF}
        assert float_types(list(head.graph.output)) == {SINGLE}
    for graph in (*stages, *heads):
        onnx.checker.check_model(graph, full_check=True)
        matrices = [t for t in graph.graph.initializer if len(t.dims) > 1]
        assert all(t.data_type != SINGLE for t in matrices)


@pytest.mark.parametrize("padding", [4, 9])
def test_padding_gives_no_nan(backends: Backends, padding: int) -> None:
    """Not even in a row of only padding: float16 cannot hold float32's lowest number."""
    network, _, half = backends
    if network.name not in TEXTS:
        pytest.skip("images have no padding")
    ids, mask = network.inputs(3)
    mask[1, 9 - padding :] = 0
    for answer in answers(half, (ids, mask)):
        assert np.isfinite(answer.log_probs).all()


def test_padding_changes_no_answer(backends: Backends) -> None:
    network, _, half = backends
    if network.name not in TEXTS:
        pytest.skip("images have no padding")
    ids, mask = network.inputs(1, 6)
    longer = tuple(np.pad(array, ((0, 0), (0, 5))) for array in (ids, mask))
    for short, padded in zip(answers(half, (ids, mask)), answers(half, longer), strict=True):
        np.testing.assert_allclose(short.log_probs, padded.log_probs, atol=5e-3)


def test_graphs_in_single_precision_do_not_change(resnet: Exported) -> None:
    before = [graph.SerializeToString() for graph in (*resnet.graphs.stages, *resnet.graphs.heads)]
    to_float16(resnet.graphs)
    after = [graph.SerializeToString() for graph in (*resnet.graphs.stages, *resnet.graphs.heads)]
    assert after == before
