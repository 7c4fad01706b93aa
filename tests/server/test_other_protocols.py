"""The shapes of other servers: KServe's, Hugging Face's, vLLM's, and Open Inference."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from models.bundle import load_bundle
from models.preprocess import ImagePreprocessor
from server.app import create_app
from server.settings import Settings

if TYPE_CHECKING:
    from tests.conftest import Images

IMAGE_MODEL, TEXT_MODEL = "cifar10-resnet56", "reviews"
TEXT, OTHER = "the film was very good", "a dull and awful film"
V1, V2 = f"/v1/models/{IMAGE_MODEL}:predict", f"/v2/models/{IMAGE_MODEL}/infer"
V1_TEXT, V2_TEXT = f"/v1/models/{TEXT_MODEL}:predict", f"/v2/models/{TEXT_MODEL}/infer"
JPEG = {"content-type": "image/jpeg"}
TO_THE_END = {"budget_ms": 1e6}


@pytest.fixture(scope="module")
def both(shipped_bundle: Path, text_bundle: Path) -> Iterator[TestClient]:
    """A client of an app with a model of images and one of texts."""
    settings = Settings(
        bundle=(shipped_bundle, text_bundle),
        precision="float32",
        max_batch=4,
        max_items=20,
        max_body_mib=2,
    )
    with TestClient(create_app(settings)) as client:
        client.put("/budget", json={"budget_ms": None, "max_disagreement": 0})
        yield client


@pytest.fixture(scope="module")
def base64_images(images: Images) -> list[str]:
    return [base64.b64encode(file).decode() for file in images.files[:4]]


@pytest.fixture(scope="module")
def pixels(images: Images, shipped_bundle: Path) -> NDArray[np.uint8]:
    """The first images as the network takes them, but not normalised, (4, H, W, 3)."""
    preprocess = load_bundle(shipped_bundle).preprocessor(10**6)
    assert isinstance(preprocess, ImagePreprocessor)
    return np.stack([preprocess.decode(file) for file in images.files[:4]])


def post(client: TestClient, path: str, body: Any, **headers: str) -> Any:
    answer = client.post(
        path, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(client: TestClient, path: str, body: Any, status: int = 422) -> str:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert told["error"] == told["detail"]
    return str(told["detail"])


def predicted(client: TestClient, **body: Any) -> dict[str, Any]:
    found: dict[str, Any] = post(client, "/predict", {"top_k": 10, **body})
    return found


# GET /models


def test_models_tell_what_they_read_and_promise(both: TestClient) -> None:
    listed = both.get("/models").json()["models"]
    image, text = listed
    assert (image["model"], image["version"], image["task"]) == (IMAGE_MODEL, "1", "image")
    assert (image["inputs"], text["inputs"]) == (["image"], ["text"])
    assert len(image["classes"]) == 10 and image["num_exits"] == 3
    assert (image["promise"], image["max_disagreement"]) == ("none", 0.0)
    assert image["precision"] == "float32" and image["device"] == "cpu"
    assert image["summary"] and image["policy"]


# KServe's first protocol


def test_instances_of_images_and_texts(both: TestClient, base64_images: list[str]) -> None:
    forms = [base64_images[0], {"b64": base64_images[0]}, {"image": base64_images[0]}]
    forms.append({"image_bytes": {"b64": base64_images[0]}})
    answers = post(both, V1, {"instances": forms, "top_k": 2}, X_Request_ID="k1")["predictions"]
    alone = predicted(both, image=base64_images[0])
    for place, answer in enumerate(answers):
        assert (answer["label"], answer["exit"]) == (alone["label"], alone["exit"])
        assert answer["request_id"] == f"k1/{place}" and len(answer["top_k"]) == 2
    texts = [TEXT, {"text": OTHER}]
    answers = post(both, V1_TEXT, {"instances": texts, "parameters": TO_THE_END})["predictions"]
    assert [each["class_id"] for each in answers] == [
        predicted(both, text=text)["class_id"] for text in (TEXT, OTHER)
    ]
    versioned = f"/v1/models/{TEXT_MODEL}/versions/1:predict"
    assert len(post(both, versioned, {"instances": [TEXT]})["predictions"]) == 1


def test_a_bad_instance_hurts_no_other(both: TestClient) -> None:
    body = {"instances": [TEXT, "", TEXT]}
    first, bad, last = post(both, V1_TEXT, body, X_Request_ID="k2")["predictions"]
    assert first["label"] == last["label"]
    assert (bad["error"]["status"], bad["error"]["request_id"]) == (422, "k2/1")


def test_models_that_are_ready(both: TestClient) -> None:
    assert both.get("/v1/models").json() == {"models": [IMAGE_MODEL, TEXT_MODEL]}
    assert both.get(f"/v1/models/{TEXT_MODEL}").json() == {"name": TEXT_MODEL, "ready": True}
    assert both.get("/v1/models/none").status_code == 404


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"instances": []}, "empty list"),
        ({"instances": "a"}, "instances"),
        ({}, "instances"),
        ({"instances": [1]}, "instances.0 should be a text or an image"),
        ({"instances": [[[[1.0]]]]}, "instances.0 should be a text or an image"),
        ({"instances": [{"x": 1}]}, "exactly one field"),
        ({"instances": [{"text": 1}]}, "instances.0.text should be a text"),
        ({"instances": [{"text": "a", "text_pair": 1}]}, "instances.0.text_pair should be texts"),
        ({"instances": ["a"] * 21}, "20 is the most"),
        ({"instances": ["a"], "instnces": 1}, "unknown field"),
        ({"instances": ["a"], "parameters": {"topk": 1}}, "did you mean 'top_k'"),
        ({"instances": ["a"], "parameters": {"top_k": 0}}, "top_k"),
    ],
)
def test_instances_that_are_refused(both: TestClient, body: Any, sentence: str) -> None:
    assert sentence in refusal(both, V1_TEXT, body)


# Hugging Face's


def test_one_text_is_answered_by_a_list_in_a_list(both: TestClient) -> None:
    (listed,) = post(both, "/predict", {"inputs": TEXT, "model": TEXT_MODEL})
    alone = predicted(both, text=TEXT)
    assert [each["label"] for each in listed] == [each["label"] for each in alone["top_k"]]
    assert [each["score"] for each in listed] == pytest.approx(
        [each["probability"] for each in alone["top_k"]], abs=1e-6
    )
    assert set(listed[0]) == {"label", "score"}
    several = post(both, "/predict", {"inputs": [TEXT, OTHER], "parameters": {"top_k": 1}})
    assert [len(each) for each in several] == [1, 1]
    assert several[0][0]["label"] == listed[0]["label"]
    assert len(post(both, "/predict", {"inputs": [[TEXT], [OTHER]]})) == 2


def test_an_image_in_base64_is_told_from_a_text(both: TestClient, base64_images: list[str]) -> None:
    alone = predicted(both, image=base64_images[0])
    for given in (base64_images[0], f"data:image/jpeg;base64,{base64_images[0]}"):
        (listed,) = post(both, "/predict", {"inputs": given})
        assert listed[0]["label"] == alone["label"] and len(listed) == 5
    several = post(both, "/predict", {"inputs": base64_images, "parameters": {"top_k": 10}})
    assert [len(each) for each in several] == [10] * len(base64_images)


def test_raw_scores_of_hugging_face_are_logits(both: TestClient) -> None:
    asks = [
        {"inputs": TEXT, "raw_scores": True},
        {"inputs": TEXT, "parameters": {"raw_scores": True}},
        {"inputs": TEXT, "parameters": {"function_to_apply": "none"}},
    ]
    plain = post(both, "/predict", {"inputs": TEXT, "truncate": True})[0]
    for body in asks:
        raw = post(both, "/predict", body)[0]
        weights = np.exp([each["score"] for each in raw])
        assert weights / weights.sum() == pytest.approx([e["score"] for e in plain], abs=1e-5)


def test_inputs_beside_other_texts_of_that_word(both: TestClient) -> None:
    assert "label" in post(both, "/predict", {"text": "inputs"})
    assert "label" in post(both, "/predict", {"text": '{"inputs": "x"}'})


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"inputs": []}, "empty list"),
        ({"inputs": 5}, "inputs should be a text"),
        ({"inputs": ""}, "the text is empty"),
        ({"inputs": None}, "inputs should be a text"),
        ({"inputs": {"text": "a", "text_pair": "b"}}, "the model reads one text"),
        ({"inputs": TEXT, "trace": True}, "trace"),
        ({"inputs": TEXT, "parameters": {"function_to_apply": "sigmoid"}}, "function_to_apply"),
        ({"inputs": TEXT, "parameters": {"topk": 1}}, "did you mean 'top_k'"),
        ({"inputs": TEXT, "text": TEXT}, "unknown field 'text'"),
    ],
)
def test_inputs_that_are_refused(both: TestClient, body: Any, sentence: str) -> None:
    assert sentence in refusal(both, "/predict", body)


# vLLM's


def test_classify_answers_in_vllms_shape(both: TestClient) -> None:
    answer = post(both, "/classify", {"input": [TEXT, OTHER]}, X_Request_ID="v1")
    assert set(answer) == {"id", "object", "created", "model", "data", "usage"}
    assert (answer["id"], answer["object"]) == ("classify-v1", "list")
    assert answer["model"] == TEXT_MODEL and answer["created"] > 1.7e9
    for index, (text, entry) in enumerate(zip((TEXT, OTHER), answer["data"], strict=True)):
        alone = predicted(both, text=text)
        assert (entry["index"], entry["label"]) == (index, alone["label"])
        assert max(entry["probs"]) == pytest.approx(alone["confidence"], abs=1e-6)
        assert entry["num_classes"] == len(entry["probs"]) and "logits" not in entry
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 8
    (one,) = post(both, "/classify", {"input": TEXT, "raw_scores": True})["data"]
    weights = np.exp(one["logits"])
    assert weights / weights.sum() == pytest.approx(one["probs"], abs=1e-5)


def test_classify_takes_images_and_keeps_the_places_of_bad_items(
    both: TestClient, base64_images: list[str]
) -> None:
    body = {"input": [base64_images[0], "!!", base64_images[1]], "model": IMAGE_MODEL}
    first, bad, last = post(both, "/classify", body)["data"]
    assert first["label"] == predicted(both, image=base64_images[0])["label"]
    assert (bad["index"], bad["error"]["status"]) == (1, 422)
    assert (last["index"], last["num_classes"]) == (2, 10)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "input"),
        ({"input": [1, 2]}, "token ids"),
        ({"input": [[1, 2]]}, "input.0 should be a text"),
        ({"input": ""}, "the text is empty"),
        ({"input": TEXT, "trace": True}, "trace"),
        ({"input": TEXT, "inputs": TEXT}, "unknown field 'inputs'"),
    ],
)
def test_input_that_is_refused(both: TestClient, body: Any, sentence: str) -> None:
    assert sentence in refusal(both, "/classify", body)


# text_pair and raw_scores on /predict


def test_a_model_of_one_text_reads_no_pairs(both: TestClient) -> None:
    body = {"text": TEXT, "text_pair": OTHER}
    assert "leave text_pair out" in refusal(both, "/predict", body)
    form = both.post("/predict", files={name: (None, text) for name, text in body.items()})
    assert form.status_code == 422 and "leave text_pair out" in form.json()["detail"]
    pair = [[TEXT, OTHER], TEXT]
    of_kserve = post(both, V1_TEXT, {"instances": pair})["predictions"]
    of_hugging_face = post(both, "/predict", {"inputs": pair})
    for wrong, right in (of_kserve, of_hugging_face):
        assert "leave text_pair out" in wrong["error"]["detail"] and "error" not in right


def test_raw_scores_add_logits_whose_softmax_is_answered(
    both: TestClient, images: Images, base64_images: list[str]
) -> None:
    answers = [
        both.post(
            "/predict", params={"raw_scores": True}, content=images.files[0], headers=JPEG
        ).json(),
        predicted(both, image=base64_images[0], raw_scores=True),
        predicted(both, images=base64_images[:1], raw_scores=True)["predictions"][0],
        post(both, V1, {"instances": base64_images[:1], "raw_scores": True})["predictions"][0],
    ]
    for answer in answers:
        weights = np.exp(answer["logits"])
        assert len(weights) == 10
        assert weights[answer["class_id"]] / weights.sum() == pytest.approx(
            answer["confidence"], abs=1e-5
        )
    assert "logits" not in predicted(both, image=base64_images[0])


# The Open Inference Protocol


def tensor_of(values: Any, datatype: str, name: str = "image") -> dict[str, Any]:
    data = values.tolist() if isinstance(values, np.ndarray) else values
    return {"name": name, "shape": list(np.shape(values)), "datatype": datatype, "data": data}


def outputs_of(answer: dict[str, Any]) -> dict[str, NDArray[Any]]:
    return {each["name"]: np.reshape(each["data"], each["shape"]) for each in answer["outputs"]}


def planes_of(pixels: NDArray[np.uint8], bundle: Path) -> NDArray[np.float32]:
    preprocess = load_bundle(bundle).preprocessor(10**6)
    assert isinstance(preprocess, ImagePreprocessor)
    return preprocess.normalise(pixels)


def test_health_and_metadata(both: TestClient) -> None:
    assert both.get("/v2/health/live").json() == {"live": True}
    assert both.get("/v2/health/ready").json() == {"ready": True}
    assert "binary_tensor_data" in both.get("/v2").json()["extensions"]
    shown = both.get(f"/v2/models/{IMAGE_MODEL}").json()
    assert shown == both.get(f"/v2/models/{IMAGE_MODEL}/versions/1").json()
    assert (shown["name"], shown["versions"]) == (IMAGE_MODEL, ["1"])
    assert shown["inputs"][0] == {"name": "image", "datatype": "FP32", "shape": [-1, 3, 32, 32]}
    outputs = {each["name"]: (each["datatype"], each["shape"]) for each in shown["outputs"]}
    assert outputs == {
        "probabilities": ("FP32", [-1, 10]), "class_id": ("INT64", [-1]), "label": ("BYTES", [-1]),
        "exit": ("INT64", [-1]), "latency_ms": ("FP32", [-1]), "logits": ("FP32", [-1, 10]),
    }  # fmt: skip
    assert both.get(f"/v2/models/{TEXT_MODEL}/ready").json()["ready"] is True
    assert both.get(f"/v2/models/{TEXT_MODEL}/versions/1/ready").status_code == 200


@pytest.mark.parametrize(
    "path", ["/v2/models/no", "/v2/models/no/ready", "/v2/models/no/stats",
             f"/v2/models/{IMAGE_MODEL}/versions/9", f"/v2/models/{IMAGE_MODEL}/versions/9/ready"],
)  # fmt: skip
def test_what_is_not_loaded_is_404(both: TestClient, path: str) -> None:
    answer = both.get(path)
    assert answer.status_code == 404 and answer.json()["error"] == answer.json()["detail"]
    assert answer.json()["code"] == "unknown_model"


def test_all_tensors_of_the_same_images_have_the_same_answers(
    both: TestClient,
    images: Images,
    pixels: NDArray[np.uint8],
    base64_images: list[str],
    shipped_bundle: Path,
) -> None:
    planes = planes_of(pixels, shipped_bundle)
    answers = [
        outputs_of(post(both, V2, {"inputs": [tensor], "parameters": TO_THE_END}))
        for tensor in (
            tensor_of(planes, "FP32"),
            {**tensor_of(planes, "FP32"), "data": planes.reshape(-1).tolist()},
            tensor_of(pixels, "UINT8"),
            tensor_of(base64_images, "BYTES"),
        )
    ]
    alone = [predicted(both, image=each, **TO_THE_END) for each in base64_images]
    for answer in answers:
        assert list(answer) == ["probabilities", "class_id", "label", "exit", "latency_ms"]
        assert answer["label"].tolist() == [each["label"] for each in alone]
        assert answer["class_id"].tolist() == [each["class_id"] for each in alone]
        assert answer["exit"].tolist() == [2] * 4 and (answer["latency_ms"] > 0).all()
        assert answer["probabilities"].max(1) == pytest.approx(
            [each["confidence"] for each in alone], abs=1e-5
        )


def test_binary_tensors_in_and_out(
    both: TestClient, pixels: NDArray[np.uint8], shipped_bundle: Path
) -> None:
    planes = planes_of(pixels, shipped_bundle)
    head = {
        "id": "b-1",
        "parameters": {"binary_data_output": True, **TO_THE_END},
        "inputs": [
            {
                "name": "image", "shape": list(planes.shape), "datatype": "FP32",
                "parameters": {"binary_data_size": planes.nbytes},
            }
        ],
    }  # fmt: skip
    content = json.dumps(head).encode()
    sent = {"Inference-Header-Content-Length": str(len(content))}
    answer = both.post(V2, content=content + planes.tobytes(), headers=sent)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers["inference-header-content-length"])
    shown, rest = json.loads(answer.content[:length]), answer.content[length:]
    assert (shown["id"], shown["model_name"], shown["model_version"]) == ("b-1", IMAGE_MODEL, "1")
    sizes = [each["parameters"]["binary_data_size"] for each in shown["outputs"]]
    assert sum(sizes) == len(rest)
    probabilities = np.frombuffer(rest[: sizes[0]], "<f4").reshape(4, 10)
    expected = outputs_of(
        post(both, V2, {"inputs": [tensor_of(planes, "FP32")], "parameters": TO_THE_END})
    )
    assert probabilities == pytest.approx(expected["probabilities"], abs=1e-5)
    ids = np.frombuffer(rest[sizes[0] :][: sizes[1]], "<i8")
    assert ids.tolist() == expected["class_id"].tolist()


def test_chosen_outputs(both: TestClient) -> None:
    body = {
        "inputs": [tensor_of([TEXT, OTHER], "BYTES", "text")],
        "outputs": [{"name": name} for name in ("label", "logits", "truncated")],
    }
    answer = outputs_of(post(both, V2_TEXT, body))
    assert list(answer) == ["label", "logits", "truncated"]
    assert answer["truncated"].tolist() == [False, False]
    assert answer["logits"].shape[0] == 2
    del body["outputs"]
    more = {"parameters": {"raw_scores": True, "top_k": 2}}
    answer = outputs_of(post(both, V2_TEXT, {**body, **more}))
    best = answer["top_probability"]
    assert best.shape == (2, 2) and (best[:, 0] >= best[:, 1]).all()
    assert answer["top_class_id"][:, 0].tolist() == answer["class_id"].tolist()
    assert answer["top_label"][:, 0].tolist() == answer["label"].tolist()
    weights = np.exp(answer["logits"])
    assert weights / weights.sum(1, keepdims=True) == pytest.approx(
        answer["probabilities"], abs=1e-5
    )


def test_classification_lists_the_best_classes(both: TestClient) -> None:
    body = {
        "inputs": [tensor_of([TEXT], "BYTES", "text")],
        "outputs": [
            {"name": "probabilities", "parameters": {"classification": 1}},
            {"name": "label"},
        ],
    }
    answer = outputs_of(post(both, V2_TEXT, body))
    value, _, label = str(answer["probabilities"][0, 0]).split(":")
    assert label == answer["label"][0] and 0 < float(value) <= 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"outputs": [{"name": "prob"}]}, "has no output 'prob'"),
        ({"outputs": [{"name": "exit", "parameters": {"classification": 2}}]}, "classification"),
        ({"parameters": {"budgt_ms": 1}}, "did you mean 'budget_ms'"),
        ({"parameters": {"budget_ms": -1}}, "budget_ms"),
        ({"parameters": {"priority": 9}}, "priority"),
        ({"parameters": {"trace": True}}, "trace"),
        ({"parameters": {"model": "x"}}, "the path names the model"),
        ({"parameters": {"timeout": 0}}, "microseconds"),
        ({"parameters": {"sequence_id": 3}}, "unknown field 'sequence_id'"),
        ({"inputs": []}, "text as BYTES [N]"),
    ],
)
def test_calls_that_are_refused(both: TestClient, change: Any, sentence: str) -> None:
    body = {"inputs": [tensor_of([TEXT], "BYTES", "text")], **change}
    assert sentence in refusal(both, V2_TEXT, body)


def test_a_bad_row_is_named_and_fails_the_call(both: TestClient) -> None:
    body = {"inputs": [tensor_of([TEXT, " ", TEXT], "BYTES", "text")]}
    assert refusal(both, V2_TEXT, body) == "row 1: the text is empty; send at least one word"


def test_bounds_are_those_of_predict(both: TestClient) -> None:
    body = {"inputs": [tensor_of([TEXT] * 21, "BYTES", "text")]}
    assert "20 is the most" in refusal(both, V2_TEXT, body)
    large = both.post(V2, content=b" " * (2 * 2**20 + 1))
    assert large.status_code == 413 and large.json()["code"] == "body_too_large"
    assert both.post(V2, content=b"no json").status_code == 400
    assert both.get(V2).status_code == 405


def test_parameters_reach_the_engine(both: TestClient) -> None:
    body = {"inputs": [tensor_of([TEXT], "BYTES", "text")]}
    cheap = outputs_of(post(both, V2_TEXT, {**body, "parameters": {"budget_ms": 1e-3}}))
    whole = outputs_of(post(both, f"{V2_TEXT}?budget_ms=1e6", body))
    assert cheap["exit"][0] == 0 and whole["exit"][0] > 0
    late = both.post(V2_TEXT, json={**body, "parameters": {"timeout": 1}})
    assert late.status_code == 504 and late.json()["error"]


def test_feedback_finds_rows_by_the_id_of_the_call(both: TestClient) -> None:
    body = {"inputs": [tensor_of([TEXT, OTHER], "BYTES", "text")]}
    assert post(both, V2_TEXT, {**body, "id": "mine-1"})["id"] == "mine-1"
    named = post(both, V2_TEXT, body, X_Request_ID="header-1")["id"]
    assert named == "header-1"
    for request_id in ("mine-1/1", "header-1/0"):
        told = both.post("/feedback", json={"request_id": request_id, "label": 0})
        assert told.status_code == 200 and told.json()["model"] == TEXT_MODEL
    spaced = post(both, V2_TEXT, {**body, "id": "two words"})
    assert spaced["id"] == "two words"


def test_statistics_count_samples_batches_and_failures(both: TestClient) -> None:
    def stats() -> dict[str, Any]:
        (entry,) = both.get(f"/v2/models/{TEXT_MODEL}/stats").json()["model_stats"]
        return entry  # type: ignore[no-any-return]

    before = stats()
    body = {"inputs": [tensor_of([TEXT] * 3, "BYTES", "text")]}
    post(both, V2_TEXT, body)
    refusal(both, V2_TEXT, {"inputs": [tensor_of([""], "BYTES", "text")]})
    after = stats()
    assert after["inference_count"] - before["inference_count"] == 3
    success, fail = after["inference_stats"]["success"], after["inference_stats"]["fail"]
    assert success["count"] == after["inference_count"] and success["ns"] > 0
    assert fail["count"] - before["inference_stats"]["fail"]["count"] == 1
    assert after["execution_count"] > before["execution_count"]
    assert sum(e["batch_size"] * e["compute_infer"]["count"] for e in after["batch_stats"]) > 0
    everything = both.get("/v2/models/stats").json()["model_stats"]
    assert [each["name"] for each in everything] == [IMAGE_MODEL, TEXT_MODEL]
    assert both.get(f"/v2/models/{TEXT_MODEL}/versions/1/stats").status_code == 200


def test_metrics_know_the_routes_and_not_the_names(both: TestClient) -> None:
    post(both, V1_TEXT, {"instances": [TEXT]})
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [TEXT]}
    post(both, V2_TEXT, {"inputs": [tensor]})
    post(both, "/classify", {"input": TEXT})
    text = both.get("/metrics").text
    for label in ("/v1/models/{model}:predict", "/v2/models/{model}/infer", "/classify"):
        assert f'eenet_requests_total{{route="{label}",status="200"}}' in text
    routes = [line for line in text.splitlines() if line.startswith("eenet_requests_total")]
    assert not any(TEXT_MODEL in line for line in routes)
