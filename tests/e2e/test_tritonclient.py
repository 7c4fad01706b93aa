"""NVIDIA's own client of the Open Inference Protocol, unmodified, in both process modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import load_bundle
from models.preprocess import ImagePreprocessor

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Images
    from tests.e2e.conftest import Server

http = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
IMAGE_MODEL, TEXT_MODEL = "cifar10-resnet56", "ag-news-minilm"
ROWS = 64
TEXTS = ["Oil prices fell below 50 dollars a barrel.", "The striker scored twice in the final."]


@pytest.fixture(scope="module")
def server(start_server: Callable[..., AbstractContextManager[Server]]) -> Iterator[Server]:
    with start_server() as running:
        running.client.put("/budget", json={"budget_ms": None, "max_disagreement": 0})
        yield running


@pytest.fixture
def triton(server: Server) -> Iterator[Any]:
    client = http.InferenceServerClient(f"127.0.0.1:{server.client.base_url.port}", concurrency=4)
    yield client
    client.close()


@pytest.fixture(scope="module")
def pixels(images: Images, shipped_bundle: Path) -> NDArray[np.uint8]:
    preprocess = preprocessor(shipped_bundle)
    return np.stack([preprocess.decode(file) for file in images.files[:ROWS]])


def preprocessor(bundle: Path) -> ImagePreprocessor:
    made = load_bundle(bundle).preprocessor(10**6)
    assert isinstance(made, ImagePreprocessor)
    return made


def given(name: str, array: NDArray[Any], datatype: str, *, binary: bool = True) -> Any:
    tensor = http.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def texts(*values: str, binary: bool = True) -> Any:
    return given("text", np.array([v.encode() for v in values], object), "BYTES", binary=binary)


def test_health_and_metadata(triton: Any) -> None:
    assert triton.is_server_live() and triton.is_server_ready()
    assert triton.is_model_ready(IMAGE_MODEL) and triton.is_model_ready(IMAGE_MODEL, "1")
    assert not triton.is_model_ready("nope") and not triton.is_model_ready(IMAGE_MODEL, "7")
    assert triton.get_server_metadata()["name"] == "eenet-serve"
    shown = triton.get_model_metadata(TEXT_MODEL)
    assert shown["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert triton.get_model_metadata(IMAGE_MODEL, "1")["versions"] == ["1"]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", ["FP32", "UINT8"])
def test_a_batch_of_images(
    triton: Any,
    server: Server,
    images: Images,
    pixels: NDArray[np.uint8],
    shipped_bundle: Path,
    datatype: str,
    binary: bool,
) -> None:
    array = pixels if datatype == "UINT8" else preprocessor(shipped_bundle).normalise(pixels)
    tensor = given("image", array, datatype, binary=binary)
    parameters = {"budget_ms": 1e6}
    result = triton.infer(IMAGE_MODEL, [tensor], request_id="t-1", parameters=parameters)
    assert result.get_response()["id"] == "t-1"
    probabilities = result.as_numpy("probabilities")
    assert probabilities.shape == (ROWS, 10) and probabilities.dtype == np.float32
    assert np.allclose(probabilities.sum(1), 1, atol=1e-4)
    assert (result.as_numpy("exit") == 2).all()
    classes = result.as_numpy("class_id")
    assert classes.dtype == np.int64 and (classes == probabilities.argmax(1)).all()
    assert np.mean(classes == images.labels[:ROWS]) > 0.8
    for row in (0, ROWS - 1):
        alone = server.client.post(
            "/predict?budget_ms=1e6", content=images.files[row],
            headers={"content-type": "image/jpeg"},
        ).json()  # fmt: skip
        assert result.as_numpy("label")[row] in (alone["label"], alone["label"].encode())
        assert probabilities[row].max() == pytest.approx(alone["confidence"], abs=0.05)
    told = server.client.post("/feedback", json={"request_id": "t-1/0", "label": 0})
    assert told.status_code == 200, told.text


def test_encoded_images(triton: Any, images: Images) -> None:
    tensor = given("image", np.array(images.files[:8], object), "BYTES")
    result = triton.infer(IMAGE_MODEL, [tensor], model_version="1")
    assert np.mean(result.as_numpy("class_id") == images.labels[:8]) > 0.7


@pytest.mark.parametrize("binary", [True, False])
def test_texts_and_a_choice_of_outputs(triton: Any, binary: bool) -> None:
    outputs = [
        http.InferRequestedOutput("label", binary_data=binary),
        http.InferRequestedOutput("logits", binary_data=binary),
        http.InferRequestedOutput("probabilities", binary_data=binary, class_count=2),
    ]
    result = triton.infer(TEXT_MODEL, [texts(*TEXTS, binary=binary)], outputs=outputs, priority=2)
    labels = [each if isinstance(each, str) else each.decode() for each in result.as_numpy("label")]
    assert labels == ["Business", "Sports"]
    assert result.as_numpy("logits").shape == (2, 4)
    best = result.as_numpy("probabilities")
    assert best.shape == (2, 2)
    first = best[0, 0] if isinstance(best[0, 0], str) else best[0, 0].decode()
    assert first.endswith(":0:Business")
    assert result.as_numpy("exit") is None


def test_many_calls_at_once(triton: Any) -> None:
    calls = [triton.async_infer(TEXT_MODEL, [texts(TEXTS[n % 2])]) for n in range(20)]
    classes = [int(call.get_result().as_numpy("class_id")[0]) for call in calls]
    assert classes == [0, 2] * 10


def test_errors_are_the_clients_own(triton: Any) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match="no model 'nope' is loaded"):
        triton.infer("nope", [texts("a")])
    with pytest.raises(InferenceServerException, match=r"row 1: the text is empty"):
        triton.infer(TEXT_MODEL, [texts("a", "")])
    with pytest.raises(InferenceServerException, match="takes image as FP32"):
        triton.infer(IMAGE_MODEL, [given("image", np.zeros((1, 3, 8, 8), "f4"), "FP32")])
    with pytest.raises(InferenceServerException, match="NaN"):
        triton.infer(IMAGE_MODEL, [given("image", np.full((1, 3, 32, 32), np.nan, "f4"), "FP32")])


def test_a_deadline_by_the_clients_timeout(triton: Any) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match="deadline"):
        triton.infer(TEXT_MODEL, [texts(*TEXTS)], timeout=1)


def test_statistics(triton: Any) -> None:
    before = triton.get_inference_statistics(TEXT_MODEL)["model_stats"][0]
    triton.infer(TEXT_MODEL, [texts(*TEXTS)])
    after = triton.get_inference_statistics(TEXT_MODEL, "1")["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 2
    assert after["execution_count"] > before["execution_count"]
    names = {each["name"] for each in triton.get_inference_statistics()["model_stats"]}
    assert names == {IMAGE_MODEL, TEXT_MODEL}
