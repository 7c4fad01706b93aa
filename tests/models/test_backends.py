"""The same tests for every backend and device."""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.backend import HeadOutput, Part, StageBackend, State
from models.export.onnx_graphs import as_tensors, export_graphs, write_graphs
from models.networks.encoder import EncoderConfig, bert_encoder
from models.networks.multi_exit import MultiExitModel
from models.runtime.onnx_backend import CPU, OnnxBackend
from models.runtime.onnx_device_backend import DeviceOnnxBackend
from models.runtime.onnx_devices import open_device, open_onnx_backend
from models.runtime.torch_backend import TorchBackend
from tests.backends import answers

TOKENS = 9
BUCKETS = (1, 2, 4, 8)


class Case(NamedTuple):
    """A network, its graphs, and a function that makes its input."""

    model: MultiExitModel
    stages: list[Path]
    heads: list[Path]
    inputs: Callable[[int], State]


def graphs_on(device: str, buckets: Sequence[int] = ()) -> Callable[[Case], StageBackend]:
    def opened(case: Case) -> StageBackend:
        try:
            open_device(device)
        except ValueError as error:
            pytest.skip(str(error))
        return open_onnx_backend(case.stages, case.heads, device, buckets)

    return opened


def torch_on(device: str, mode: Any, buckets: Sequence[int] = ()) -> Callable[[Case], StageBackend]:
    def opened(case: Case) -> StageBackend:
        if device == "cuda" and not torch.cuda.is_available():
            pytest.skip("torch sees no GPU")
        return TorchBackend(copy.deepcopy(case.model), device, mode, buckets)

    return opened


def openvino(case: Case) -> StageBackend:
    try:
        return graphs_on("openvino")(case)
    except ValueError as error:
        if "do not have the same element type" in str(error):
            pytest.xfail("OpenVINO narrows the constants that masks of texts are compared with")
        raise


def on_gpu(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.gpu)


OPENERS: dict[str, Callable[[Case], StageBackend]] = {
    "graphs": lambda case: OnnxBackend(case.stages, case.heads),
    "bound": lambda case: DeviceOnnxBackend(case.stages, case.heads, CPU),
    "torch": torch_on("cpu", "eager"),
    "openvino": openvino,
    "cuda": graphs_on("cuda"),
    "tensorrt": graphs_on("tensorrt"),
    "torch-cuda": torch_on("cuda", "eager"),
    "torch-cuda-graphs": torch_on("cuda", "cuda-graphs"),
}
GPU = ("cuda", "tensorrt", "torch-cuda", "torch-cuda-graphs")
NAMES = [on_gpu(name) if name in GPU else name for name in OPENERS]
PADDED: dict[str, Callable[[Case], StageBackend]] = {
    "bound": lambda case: DeviceOnnxBackend(case.stages, case.heads, CPU, BUCKETS),
    "torch": torch_on("cpu", "eager", BUCKETS),
    "cuda": graphs_on("cuda", BUCKETS),
    "torch-cuda-graphs": torch_on("cuda", "cuda-graphs", BUCKETS),
}


def images(rows: int) -> State:
    return (np.random.default_rng(rows).normal(size=(rows, 3, 8, 8)).astype(np.float32),)


def texts(rows: int) -> State:
    """Make texts, of which every second is a third shorter."""
    rng = np.random.default_rng(rows)
    ids, mask = rng.integers(1, 50, (rows, TOKENS)), np.ones((rows, TOKENS), np.int64)
    ids[1::2, 6:] = mask[1::2, 6:] = 0
    return ids, mask


def files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files of stage and head graphs."""
    stages, heads = ([folder / f"{part}/{k}.onnx" for k in (0, 1)] for part in ("stages", "heads"))
    return stages, heads


@pytest.fixture(scope="module")
def encoder() -> MultiExitModel:
    """An encoder with two exits and weights that are large enough to distinguish tokens."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 16}
    model = bert_encoder(
        EncoderConfig(
            vocab_size=50,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_labels=3,
            exits_after_layer=(1, 2),
            **sizes,
        )
    )
    with torch.no_grad():
        for value in model.parameters():
            value += 0.2 * torch.randn_like(value)
    return model


@pytest.fixture(scope="module")
def of_images(network: MultiExitModel, exported: tuple[Path, OnnxBackend]) -> Case:
    return Case(network, *files(exported[0]), images)


@pytest.fixture(scope="module")
def of_texts(encoder: MultiExitModel, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("texts")
    shorter = tuple(array[:, :-1] for array in texts(2))
    write_graphs(export_graphs(encoder, shorter, texts(3)), folder)
    return Case(encoder, *files(folder), texts)


@pytest.fixture(
    scope="module",
    params=["of_images", pytest.param("of_texts", marks=pytest.mark.slow)],
    ids=["images", "texts"],
)
def case(request: pytest.FixtureRequest) -> Case:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def opened(case: Case) -> Callable[[Callable[[Case], StageBackend]], StageBackend]:
    @functools.cache
    def once(opener: Callable[[Case], StageBackend]) -> StageBackend:
        return opener(case)

    return once


@pytest.fixture(scope="module", params=NAMES)
def backend(request: pytest.FixtureRequest, opened: Any) -> Iterator[StageBackend]:
    yield opened(OPENERS[request.param])


@pytest.fixture(scope="module", params=[on_gpu(name) if name in GPU else name for name in PADDED])
def padding(request: pytest.FixtureRequest, opened: Any) -> Iterator[StageBackend]:
    """A backend that pads batches to certain sizes."""
    yield opened(PADDED[request.param])


def tolerance(backend: StageBackend) -> float:
    """Return the tolerance: GPUs round the factors of products to ten bits."""
    return 1e-4 if "cpu" in backend.device.lower() else 2e-2


def on_host(state: State) -> list[NDArray[Any]]:
    return [value if isinstance(value, np.ndarray) else value.cpu().numpy()
            if isinstance(value, torch.Tensor) else value.numpy() for value in state]  # fmt: skip


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_answers_are_those_of_the_network(case: Case, backend: StageBackend, rows: int) -> None:
    given = case.inputs(rows)
    with torch.inference_mode():
        expected = case.model.eval()(as_tensors(given))
    for logits, output in zip(expected, answers(backend, given), strict=True):
        limit = tolerance(backend)
        np.testing.assert_allclose(output.logits, logits, rtol=limit, atol=limit)
        np.testing.assert_allclose(output.log_probs, logits.log_softmax(-1), rtol=limit, atol=limit)
        assert output.logits.dtype == output.log_probs.dtype == np.float32


def test_rows_of_a_batch_do_not_influence_each_other(case: Case, backend: StageBackend) -> None:
    given = case.inputs(5)
    strange = tuple(array.copy() for array in given)
    strange[0][[0, 1, 3, 4]] = 49
    if strange[0].dtype == np.float32:
        strange[0][[0, 1, 3, 4]] = [[[[np.nan]]], [[[1e6]]], [[[-1e6]]], [[[np.inf]]]]
    alone = answers(backend, tuple(array[2:3] for array in given))
    among = answers(backend, strange)
    for mixed, other, single in zip(answers(backend, given), among, alone, strict=True):
        assert np.array_equal(mixed.logits[2], other.logits[2])
        limit = tolerance(backend)
        np.testing.assert_allclose(single.logits[0], mixed.logits[2], rtol=limit, atol=limit)


def test_threads_share_a_backend_and_get_the_same_answers(
    case: Case, backend: StageBackend
) -> None:
    def work(number: int) -> list[HeadOutput]:
        """Run two batches that are joined before the last stage."""
        one, other = case.inputs(1 + number % 4), case.inputs(2)
        states = [backend.run_stage(0, state) for state in (one, other)]
        parts = [Part(states[0], [number % 4]), Part(states[1], [1, 0])]
        last = backend.run_stage(1, backend.gather(parts))
        return [backend.run_head(0, states[0]), backend.run_head(1, last)]

    alone = [work(number) for number in range(30)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(work, range(30)))
    for one, other in zip(alone, together, strict=True):
        for output, again in zip(one, other, strict=True):
            assert np.array_equal(output.logits, again.logits)
            assert np.array_equal(output.log_probs, again.log_probs)


BATCHES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@st.composite
def picks(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, list[int]]]]:
    """Draw sizes of batches, and some rows of them: the index of a batch and of its rows."""
    sizes = draw(BATCHES)
    picked = []
    for _ in range(draw(st.integers(1, 9))):
        batch = draw(st.integers(0, len(sizes) - 1))
        some = st.lists(st.integers(0, sizes[batch] - 1), min_size=1, max_size=4)
        picked.append((batch, draw(some)))
    return sizes, picked


def gathered(
    case: Case, backend: StageBackend, drawn: tuple[list[int], list[tuple[int, list[int]]]]
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield each array that the backend gathers, and the one that numpy gathers."""
    sizes, picked = drawn
    states = [backend.run_stage(0, case.inputs(size)) for size in sizes]
    joined = backend.gather([Part(states[batch], rows) for batch, rows in picked])
    arrays = [on_host(state) for state in states]
    for t, value in enumerate(on_host(joined)):
        yield value, np.concatenate([arrays[batch][t][rows] for batch, rows in picked])


@settings(deadline=None, max_examples=40)
@given(drawn=picks())
def test_rows_of_several_batches_join_in_any_order(
    case: Case, backend: StageBackend, drawn: tuple[list[int], list[tuple[int, list[int]]]]
) -> None:
    for value, expected in gathered(case, backend, drawn):
        assert np.array_equal(value, expected) and value.dtype == expected.dtype


@settings(deadline=None, max_examples=40)
@given(drawn=picks())
def test_batches_are_filled_up_with_their_last_row(
    case: Case, padding: StageBackend, drawn: tuple[list[int], list[tuple[int, list[int]]]]
) -> None:
    for value, expected in gathered(case, padding, drawn):
        size = min((size for size in BUCKETS if size >= len(expected)), default=len(expected))
        assert len(value) == size
        assert np.array_equal(value[: len(expected)], expected)
        assert all(np.array_equal(row, expected[-1]) for row in value[len(expected) :])


def refilled(case: Case, backend: StageBackend, rows: int, rng: np.random.Generator) -> None:
    """Check that rows get the same output in changing batches as in one batch of all."""
    whole = case.inputs(rows)
    expected = answers(backend, whole)
    places = {row: (whole, row) for row in range(rows)}
    for exit in range(backend.num_exits):
        order = rng.permutation(rows)
        cuts = np.flatnonzero(rng.random(rows - 1) < 0.4) + 1
        for batch in np.split(order, cuts):
            parts = [Part(places[row][0], [places[row][1]]) for row in batch.tolist()]
            state = backend.run_stage(exit, backend.gather(parts))
            output = backend.run_head(exit, state)
            for place, row in enumerate(batch.tolist()):
                places[row] = (state, place)
                limit = tolerance(backend)
                for found, reference in zip(output, expected[exit], strict=True):
                    np.testing.assert_allclose(found[place], reference[row], rtol=limit, atol=limit)


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_batches_refill_between_stages(
    case: Case, backend: StageBackend, rows: int, seed: int
) -> None:
    refilled(case, backend, rows, np.random.default_rng(seed))


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_filled_up_batches_refill_between_stages(
    case: Case, padding: StageBackend, rows: int, seed: int
) -> None:
    refilled(case, padding, rows, np.random.default_rng(seed))
