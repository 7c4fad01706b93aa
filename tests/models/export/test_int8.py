import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from models.export import activation_ranges, qdq
from models.export.activation_ranges import METHODS, ActivationHistograms
from models.export.graph_parts import CannotQuantise, optimise
from models.export.int8 import Int8Graphs, quantise_graphs
from models.export.onnx_graphs import Graphs, write_graphs
from models.runtime.onnx_backend import CPU, open_graph
from tests.backends import answers
from tests.models.export.conftest import TEXTS, Exported

ENCODERS = (*TEXTS, "vit")


@pytest.fixture(scope="module", autouse=True)
def coarse_bins() -> Any:
    """Entropy compares few ranges then, which takes it a tenth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activation_ranges, "BINS", 144)
        yield


def quantise(network: Exported, **options: Any) -> Int8Graphs:
    settings = {"max_loss": 0.02, "log_step": lambda _: None} | options
    rows = network.batches(5, 20), network.batches(5, 8, seed=100)
    return quantise_graphs(network.graphs, *rows, **settings)


@pytest.fixture(scope="session")
def built(family: Exported, tmp_path_factory: pytest.TempPathFactory) -> "Built":
    return Built(family, quantise(family), tmp_path_factory.mktemp(family.name))


class Built:
    """A family's quantised graphs and their backend."""

    def __init__(self, network: Exported, quantised: Int8Graphs, folder: Path) -> None:
        self.network, self.quantised, self.folder = network, quantised, folder
        self.backend = write_graphs(quantised.graphs, folder / "int8")
        self.float = write_graphs(network.graphs, folder / "float32")


def divergence(expected: NDArray[Any], found: NDArray[Any]) -> float:
    return float((np.exp(expected) * (expected - found)).sum(-1).mean())


@pytest.mark.slow
def test_quantised_answers_are_near_those_in_float(built: Built) -> None:
    state = built.network.inputs(40, 11, seed=7)
    for exact, near in zip(answers(built.float, state), answers(built.backend, state), strict=True):
        assert near.logits.dtype == near.log_probs.dtype == np.float32
        assert near.logits.shape == exact.logits.shape
        spread = exact.log_probs.std(0).mean()
        difference = np.abs(near.log_probs - exact.log_probs).mean()
        assert 0 < difference < 0.25 * spread
        assert divergence(exact.log_probs, near.log_probs) < 5e-3


def test_rows_are_the_same_alone_and_in_batches(built: Built) -> None:
    state = built.network.inputs(6, 11, seed=8)
    together = answers(built.backend, state)
    for row in range(6):
        alone = answers(built.backend, tuple(array[row : row + 1] for array in state))
        for one, all in zip(alone, together, strict=True):
            np.testing.assert_allclose(one.log_probs[0], all.log_probs[row], atol=1e-3)
            np.testing.assert_allclose(one.logits[0], all.logits[row], atol=1e-3)


def test_weights_and_states_are_stored_in_eight_bits(built: Built) -> None:
    graphs = built.quantised.graphs
    matrices = [
        tensor
        for graph in (*graphs.stages, *graphs.heads)
        for tensor in graph.graph.initializer
        if len(tensor.dims) > 1
    ]
    stored = {
        type: [numpy_helper.to_array(each) for each in matrices if each.data_type == type]
        for type in (TensorProto.INT8, TensorProto.FLOAT)
    }
    assert all(np.abs(values).max() <= 64 for values in stored[TensorProto.INT8])
    in_int8, in_float = (sum(values.size for values in part) for part in stored.values())
    assert in_int8 > in_float
    is_encoder = built.network.name in ENCODERS
    assert ("uint8" in built.quantised.method["states"]) != is_encoder
    for graph in graphs.stages[:-1]:  # a DenseNet ends with a norm, in float
        types = {value.type.tensor_type.elem_type for value in graph.graph.output}
        assert (TensorProto.UINT8 in types) != is_encoder


def test_no_state_is_made_float_and_rounded_again(built: Built) -> None:
    for graph in (*built.quantised.graphs.stages, *built.quantised.graphs.heads):
        whole = [v.name for v in graph.graph.input if v.type.tensor_type.elem_type == 2]
        for node in graph.graph.node:
            assert node.op_type != "QuantizeLinear" or not set(node.input) & set(whole)


def test_graphs_are_clean_and_valid(built: Built) -> None:
    for path in (built.folder / "int8").rglob("*.onnx"):
        graph = onnx.load(path)
        onnx.checker.check_model(graph, full_check=True)
        assert not graph.metadata_props
        assert {each.domain for each in graph.opset_import} <= {"", "com.microsoft"}
        assert not re.search(rb"/tmp|site-packages|\.py", path.read_bytes())


def test_the_choice_of_scales_is_recorded(built: Built) -> None:
    method = built.quantised.method
    assert method["scales"] == min(method["kl_by_scales"], key=method["kl_by_scales"].get)
    assert set(method["kl_by_scales"]) == set(METHODS)
    assert method["weight_bits"] == 7
    assert (method["scale_rows"], method["choice_rows"]) == (100, 40)
    assert method["nodes_in_float"] == []
    exits = len(built.quantised.graphs.heads)
    assert len(method["kl"]) == len(method["agreement"]) == len(method["expected_loss"]) == exits


@pytest.mark.slow
def test_sensitive_nodes_stay_in_float(resnet: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    # Weights that reach far from the others leave one kernel few levels.
    graphs = copied(resnet.graphs)
    kernel = next(t for t in graphs.stages[1].graph.initializer if len(t.dims) == 4)
    values = numpy_helper.to_array(kernel).copy()
    values[:, 0, 0, 0] = 400 * np.abs(values).max()
    kernel.CopyFrom(numpy_helper.from_array(values, kernel.name))
    network = resnet._replace(graphs=graphs)
    before = quantise(network, max_loss=1.0)
    allowed = max(before.method["expected_loss"]) / 2
    after = quantise(network, max_loss=allowed)
    assert max(before.method["expected_loss"]) > allowed >= max(after.method["expected_loss"])
    assert before.method["nodes_in_float"] == []
    assert 0 < len(after.method["nodes_in_float"]) < 8


def test_a_loss_that_no_choice_avoids_is_refused(resnet: Exported) -> None:
    with pytest.raises(CannotQuantise, match="points of accuracy in int8, even with its most"):
        quantise(resnet, max_loss=-1.0)


def test_too_few_rows_are_refused(resnet: Exported) -> None:
    with pytest.raises(
        CannotQuantise, match=r"int8 needs 100 or more training rows .* there are 99"
    ):
        quantise_graphs(
            resnet.graphs,
            [*resnet.batches(4, 20), resnet.inputs(19)],
            resnet.batches(1, 8),
            max_loss=0.1,
            log_step=lambda _: None,
        )


def test_a_network_without_products_is_refused(resnet: Exported) -> None:
    graphs = copied(resnet.graphs)
    head = graphs.heads[1]  # it has a classifier only, which stays in float
    identity = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Relu", ["a"], ["b"])],
            "identity",
            [onnx.helper.make_tensor_value_info("a", TensorProto.FLOAT, ["rows", 3, 16, 16])],
            [onnx.helper.make_tensor_value_info("b", TensorProto.FLOAT, ["rows", 3, 16, 16])],
        ),
        opset_imports=list(head.opset_import),
        ir_version=head.ir_version,
    )
    with pytest.raises(CannotQuantise, match="has no Conv, Gemm, MatMul with constant weights"):
        quantise(resnet._replace(graphs=Graphs([identity], [head])))


def test_what_the_library_refuses_is_one_sentence(
    resnet: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("operator X is unknown")

    monkeypatch.setattr(qdq, "QDQQuantizer", refuse)
    with pytest.raises(CannotQuantise, match=r"stages/0 of the network .* \(operator X is unknown"):
        quantise(resnet)


def test_graphs_in_float_do_not_change(resnet: Exported) -> None:
    before = [graph.SerializeToString() for graph in (*resnet.graphs.stages, *resnet.graphs.heads)]
    quantise(resnet)
    after = [graph.SerializeToString() for graph in (*resnet.graphs.stages, *resnet.graphs.heads)]
    assert after == before


def test_embeddings_are_stored_in_eight_bits(exports: None) -> None:
    rng = np.random.default_rng(0)
    table = (rng.normal(size=(600, 8)) * rng.uniform(0.1, 5, (600, 1))).astype(np.float32)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Gather", ["table", "ids"], ["out"], name="embed")],
            "embedding",
            [onnx.helper.make_tensor_value_info("ids", TensorProto.INT64, ["rows", "length"])],
            [onnx.helper.make_tensor_value_info("out", TensorProto.FLOAT, ["rows", "length", 8])],
            [numpy_helper.from_array(table, "table")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=10,
    )
    rounded = optimise(model)
    assert {t.data_type for t in rounded.graph.initializer if len(t.dims) == 2} == {
        TensorProto.INT8
    }
    ids = rng.integers(0, 600, (4, 5))
    (found,) = open_graph(rounded.SerializeToString(), CPU).run((ids,))
    steps = np.abs(table[ids]).max(-1, keepdims=True) / 127
    assert (np.abs(found - table[ids]) <= 0.51 * steps).all()


def test_histograms_grow_without_losing_values() -> None:
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=1000).astype(np.float32) * scale for scale in (1e-3, 1, 30)]
    histograms = ActivationHistograms()
    for batch in batches:
        histograms.add("x", batch)
    values = np.concatenate(batches)
    assert histograms.min_max()["x"] == (values.min(), values.max())
    counts, edges, *_ = histograms._of["x"].as_collected()
    assert counts.sum() == len(values) and len(counts) == activation_ranges.BINS
    exact, _ = np.histogram(values, edges)
    assert np.abs(np.cumsum(counts) - np.cumsum(exact)).max() <= 10  # values at the bins' edges
    for ranges in (histograms.percentile(), histograms.entropy()):
        low, high = ranges["x"]
        assert values.min() <= low < 0 < high <= values.max()


def test_a_tensor_of_zeros_has_a_range() -> None:
    histograms = ActivationHistograms()
    histograms.add("zeros", np.zeros(5, np.float32))
    for method in METHODS.values():
        assert method(histograms)["zeros"] == (0, 0)


def copied(graphs: Graphs) -> Graphs:
    return Graphs(
        *([onnx.load_from_string(g.SerializeToString()) for g in part] for part in graphs)
    )
