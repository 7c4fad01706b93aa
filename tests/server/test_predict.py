from __future__ import annotations

import base64
import io
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from models.preprocess import ImagePreprocessor, ModelInput
from server.app import create_app
from server.settings import Settings
from tests.bundles import recorded_of

if TYPE_CHECKING:
    from tests.conftest import Images

JPEG = {"content-type": "image/jpeg"}
OCTETS = {"content-type": "application/octet-stream"}
KEYS = {
    "model",
    "version",
    "label",
    "class_id",
    "confidence",
    "exit",
    "num_exits",
    "top_k",
    "latency_ms",
    "request_id",
}


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_the_answer_has_the_shape_of_the_contract(client: TestClient, images: Images) -> None:
    answer = client.post("/predict", content=images.files[0], headers=JPEG).json()
    assert set(answer) == KEYS
    assert (answer["model"], answer["version"]) == ("cifar10-resnet56", "1")
    assert 0 <= answer["exit"] < answer["num_exits"] == 3
    assert set(answer["latency_ms"]) == {"total", "queue", "decode", "compute"}
    ranking = [entry["probability"] for entry in answer["top_k"]]
    assert len(ranking) == 5 and ranking == sorted(ranking, reverse=True)
    best = answer["top_k"][0]
    assert (best["label"], best["class_id"]) == (answer["label"], answer["class_id"])
    assert best["probability"] == answer["confidence"]


@pytest.mark.parametrize("budget_ms", [1e-3, 1e6])
def test_answers_are_those_recorded_in_the_bundle(
    client: TestClient, images: Images, shipped_bundle: Path, budget_ms: float
) -> None:
    test = recorded_of(shipped_bundle, "float32").test
    exit = 0 if budget_ms < 1 else 2
    for file, row in zip(images.files[:40], images.rows[:40], strict=True):
        options = {"budget_ms": budget_ms, "top_k": 10}
        answer = client.post("/predict", params=options, content=file, headers=JPEG).json()
        assert answer["exit"] == exit
        got = [e["probability"] for e in sorted(answer["top_k"], key=lambda e: e["class_id"])]
        assert got == pytest.approx(np.exp(test.log_probs[exit, row].astype(float)), abs=2e-3)


def test_all_ways_of_sending_an_image_give_the_same_answer(
    client: TestClient, images: Images
) -> None:
    file, options = images.files[3], {"budget_ms": 1e6}
    answers = [
        client.post("/predict", params=options, content=file, headers=JPEG),
        client.post("/predict", params=options, content=file, headers={"content-type": "image/x"}),
        client.post("/predict", params=options, content=file, headers=OCTETS),
        client.post("/predict", params=options, files={"file": ("a.jpg", file, "image/jpeg")}),
        client.post("/predict", data=options, files={"image": ("a.jpg", file, "image/jpeg")}),
        client.post("/predict", json={"image": encode(file), **options}),
        client.post("/predict", params=options, json={"image": encode(file)}),
        client.post(
            "/predict", json={"image": f"data:image/jpeg;base64,{encode(file)}", **options}
        ),
    ]
    assert {answer.status_code for answer in answers} == {200}
    probabilities = [answer.json()["confidence"] for answer in answers]
    assert probabilities == [probabilities[0]] * len(answers)
    assert {answer.json()["exit"] for answer in answers} == {2}


def test_a_list_is_answered_in_order_and_a_bad_item_hurts_no_other(
    client: TestClient, images: Images
) -> None:
    items = [encode(file) for file in images.files[:6]]
    items[2], items[4] = encode(b"no image"), "!!!"
    answer = client.post(
        "/predict",
        json={"images": items, "budget_ms": 1e6, "top_k": 1},
        headers={"x-request-id": "batch"},
    )
    assert answer.status_code == 200
    predictions = answer.json()["predictions"]
    assert len(predictions) == 6
    for index, entry in enumerate(predictions):
        if index in (2, 4):
            assert entry["error"]["status"] == 422
            assert entry["error"]["request_id"] == f"batch/{index}"
            continue
        alone = client.post(
            "/predict", params={"budget_ms": 1e6}, content=images.files[index], headers=JPEG
        ).json()
        assert entry["request_id"] == f"batch/{index}"
        assert entry["class_id"] == alone["class_id"]
        assert entry["confidence"] == pytest.approx(alone["confidence"], abs=1e-6)
        assert len(entry["top_k"]) == 1


def test_a_list_of_one_is_still_a_list(client: TestClient, images: Images) -> None:
    answer = client.post("/predict", json={"images": [encode(images.files[0])]}).json()
    assert len(answer["predictions"]) == 1


def test_the_trace_shows_every_exit_passed(client: TestClient, images: Images) -> None:
    options = {"trace": "true", "budget_ms": 1e6}
    answer = client.post("/predict", params=options, content=images.files[0], headers=JPEG).json()
    assert [entry["exit"] for entry in answer["trace"]] == [0, 1, 2]
    assert answer["trace"][-1]["threshold"] is None
    elapsed = [entry["elapsed_ms"] for entry in answer["trace"]]
    assert elapsed == sorted(elapsed)
    assert answer["trace"][-1]["label"] == answer["label"]
    assert set(answer["trace"][0]) == {
        "exit",
        "label",
        "confidence",
        "score",
        "threshold",
        "elapsed_ms",
    }


def test_the_trace_tells_why_a_sample_left(client: TestClient, images: Images) -> None:
    state = client.get("/budget").json()["models"][0]
    middle = (state["floor_ms"] + state["ceiling_ms"]) / 2
    for file in images.files[:20]:
        options = {"trace": "true", "budget_ms": middle}
        answer = client.post("/predict", params=options, content=file, headers=JPEG).json()
        *passed, left = answer["trace"]
        assert all(entry["score"] < entry["threshold"] for entry in passed)
        assert left["exit"] == answer["exit"]
        assert left["threshold"] is None or left["score"] >= left["threshold"]


def test_a_deadline_that_cannot_be_met_is_504(client: TestClient, images: Images) -> None:
    answer = client.post(
        "/predict", params={"deadline_ms": 0.001}, content=images.files[0], headers=JPEG
    )
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize(
    "query",
    [
        "budget_ms=0",
        "budget_ms=-1",
        "budget_ms=nan",
        "budget_ms=inf",
        "budget_ms=x",
        "deadline_ms=0",
        "top_k=0",
        "top_k=1.5",
        "trace=perhaps",
        "priority=4",
        "priority=-1",
        "bugdet_ms=1",
    ],
)
def test_bad_options_are_422_and_named(client: TestClient, images: Images, query: str) -> None:
    answer = client.post(f"/predict?{query}", content=images.files[0], headers=JPEG)
    assert answer.status_code == 422
    assert query.partition("=")[0] in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"image": 5}', 422),
        (b'{"image": ""}', 422),
        (b'{"image": "aGk=", "images": ["aGk="]}', 422),
        (b'{"images": []}', 422),
        (b'{"images": "aGk="}', 422),
        (b'{"image": "aGk=", "top_k": "3"}', 422),
        (b'{"image": "aGk=", "budget_ms": NaN}', 422),
        (b'{"image": "aGk=", "colour": 1}', 422),
        (b'{"text": "hello"}', 404),
        (b'{"image": "aGk=", "model": "nope"}', 404),
    ],
)
def test_bad_json_gets_a_clear_error(client: TestClient, body: bytes, status: int) -> None:
    answer = client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert len(answer.json()["detail"]) > 10


def test_bad_forms_get_a_clear_error(client: TestClient, images: Images) -> None:
    file = ("a.jpg", images.files[0], "image/jpeg")
    both = client.post("/predict", files={"file": file}, data={"text": "hello"})
    two = client.post("/predict", files=[("file", file), ("image", file)])
    none = client.post("/predict", files={"photo": (None, "a.jpg")})
    broken = client.post(
        "/predict", content=b"--x\r\nnonsense", headers={"content-type": "multipart/form-data"}
    )
    assert [a.status_code for a in (both, two, none, broken)] == [422, 422, 422, 400]
    assert broken.json()["code"] == "malformed"


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_other_media_types_are_415(client: TestClient, media_type: str) -> None:
    answer = client.post("/predict", content=b"abc", headers={"content-type": media_type})
    assert answer.status_code == 415


def test_a_file_of_the_type_of_a_form_is_told_the_header_to_add(client: TestClient) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}  # what curl says of any file
    answer = client.post("/predict", content=b"abc", headers=form)
    assert "add the header 'Content-Type: application/octet-stream'" in answer.json()["detail"]


PNG_BYTES = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("media_type", ["", "application/x-www-form-urlencoded", None])
def test_an_image_without_its_type_is_known_by_its_bytes(
    client: TestClient, images: Images, media_type: str | None
) -> None:
    headers = {} if media_type is None else {"content-type": media_type}
    query = {"budget_ms": 1e6}
    plain = client.post("/predict", params=query, content=images.files[0], headers=JPEG).json()
    answer = client.post("/predict", params=query, content=images.files[0], headers=headers).json()
    assert answer["confidence"] == plain["confidence"]
    damaged = client.post("/predict", content=PNG_BYTES + bytes(99), headers=headers)
    assert (damaged.status_code, damaged.json()["code"]) == (422, "invalid_content")
    named = client.post("/predict", content=b"II*\0" + bytes(99), headers=headers)
    assert "a TIFF, which is not read" in named.json()["detail"]


def test_an_image_that_curl_has_stripped_is_told_how(client: TestClient, images: Images) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    stripped = images.files[0].translate(None, b"\0\r\n")
    answer = client.post("/predict", content=stripped, headers=form)
    assert answer.status_code == 422 and "--data-binary" in answer.json()["detail"]


@pytest.mark.parametrize("media_type", ["", "application/x-www-form-urlencoded"])
def test_json_without_its_type_is_told_the_header_to_add(
    client: TestClient, media_type: str
) -> None:
    answer = client.post(
        "/predict", content=b' \n{"text": "Oil"}', headers={"content-type": media_type}
    )
    assert answer.status_code == 415
    assert "add the header 'Content-Type: application/json'" in answer.json()["detail"]


WRITTEN_OTHERWISE = {
    "lines": lambda text: "\n".join(re.findall(".{1,76}", text)),
    "crlf": lambda text: "\r\n".join(re.findall(".{1,76}", text)) + "\r\n",
    "trailing newline": lambda text: text + "\n",
    "unpadded": lambda text: text.rstrip("="),
    "capitals": lambda text: f"DATA:image/JPEG;BASE64,{text}",
    "parameters": lambda text: f"data:image/jpeg;name=a.jpg;base64,{text}",
}


@pytest.mark.parametrize("way", WRITTEN_OTHERWISE)
def test_base64_is_read_as_others_write_it(client: TestClient, images: Images, way: str) -> None:
    file = next(each for each in images.files if len(each) % 3)
    body = {"image": WRITTEN_OTHERWISE[way](encode(file)), "budget_ms": 1e6}
    answer = client.post("/predict", json=body)
    plain = client.post("/predict", params={"budget_ms": 1e6}, content=file, headers=JPEG)
    assert answer.json()["confidence"] == plain.json()["confidence"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("https://example.com/a.jpg", "URLs are not fetched"),
        (" FTP://example.com/a.jpg", "URLs are not fetched"),
        ("data:image/svg+xml,%3Csvg/%3E", "a data: URL without base64"),
        ("a", "not base64"),
        ("!!!", "not base64"),
    ],
)
def test_what_is_not_base64_is_named(client: TestClient, text: str, sentence: str) -> None:
    answer = client.post("/predict", json={"image": text})
    assert answer.status_code == 422 and sentence in answer.json()["detail"]


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "body", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + b"0" * 99]
)
def test_what_is_no_image_is_422(client: TestClient, body: bytes) -> None:
    answer = client.post("/predict", content=body, headers={"content-type": "image/png"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_content")


def test_a_cut_off_png_is_422(client: TestClient, images: Images) -> None:
    whole = png(Image.open(io.BytesIO(images.files[0])))
    for length in (20, 40, len(whole) // 2, len(whole) - 30):
        answer = client.post(
            "/predict", content=whole[:length], headers={"content-type": "image/png"}
        )
        assert answer.status_code == 422


def test_other_sizes_and_modes_are_recognised(client: TestClient, images: Images) -> None:
    # A sample that the network is sure of must keep its label, whatever the image's form.
    options = {"budget_ms": 1e6}
    for file in images.files:
        answer = client.post("/predict", params=options, content=file, headers=JPEG).json()
        if answer["confidence"] > 0.999:
            break
    image = Image.open(io.BytesIO(file)).convert("RGB")
    forms = [
        image.convert("RGBA"),
        image.convert("P", palette=Image.Palette.ADAPTIVE),
        image.resize((64, 64), Image.Resampling.BICUBIC),
        image.resize((1000, 1000), Image.Resampling.BICUBIC),
    ]
    for form in forms:
        got = client.post(
            "/predict", params=options, content=png(form), headers={"content-type": "image/png"}
        ).json()
        assert got["label"] == answer["label"]


def test_a_full_queue_is_429_with_a_time_to_come_back(shipped_bundle: Path, images: Images) -> None:
    app = create_app(Settings(bundle=(shipped_bundle,), max_queue=4))
    with TestClient(app) as client:
        app.state.front.admission.admit(3)
        items = [encode(file) for file in images.files[:2]]
        answer = client.post("/predict", json={"images": items})
        text = client.get("/metrics").text
        app.state.front.admission.release(3)
        assert client.post("/predict", json={"images": items}).status_code == 200
    assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
    assert int(answer.headers["retry-after"]) >= 1
    assert 'eenet_rejected_total{reason="queue_full"} 1.0' in text
    assert "eenet_inflight_samples 3.0" in text


def test_a_list_too_long_to_ever_fit_is_422(shipped_bundle: Path, images: Images) -> None:
    with TestClient(create_app(Settings(bundle=(shipped_bundle,), max_queue=4))) as client:
        answer = client.post("/predict", json={"images": [encode(images.files[0])] * 5})
    assert answer.status_code == 422 and "split it" in answer.json()["detail"]


def test_many_requests_at_once_are_all_answered(shipped_bundle: Path, images: Images) -> None:
    with (
        TestClient(create_app(Settings(bundle=(shipped_bundle,), engine_workers=2))) as client,
        ThreadPoolExecutor(16) as pool,
    ):

        def send(index: int) -> int:
            file = images.files[index % 50]
            return client.post("/predict", content=file, headers=JPEG).status_code

        codes = list(pool.map(send, range(200)))
        text = client.get("/metrics").text
    assert codes == [200] * 200
    answered = re.findall(r"eenet_predictions_total{.*} (\S+)", text)
    assert sum(map(float, answered)) == 200
    assert "eenet_inflight_samples 0.0" in text


def enlarged(data: bytes) -> bytes:
    """The same image, 320x320: too large to be decoded on the event loop."""
    out = io.BytesIO()
    Image.open(io.BytesIO(data)).resize((320, 320)).save(out, "JPEG")
    return out.getvalue()


def test_only_small_images_are_decoded_on_the_event_loop(
    client: TestClient, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, prepared = [], ImagePreprocessor._prepare

    def watched(preprocess: ImagePreprocessor, image: Image.Image) -> ModelInput:
        threads.append(threading.current_thread().name.partition("_")[0])
        return prepared(preprocess, image)

    monkeypatch.setattr(ImagePreprocessor, "_prepare", watched)
    client.post("/predict", content=images.files[0], headers=JPEG)
    assert threads.pop() != "decode"
    client.post("/predict", content=enlarged(images.files[0]), headers=JPEG)
    client.post("/predict", json={"images": [encode(enlarged(images.files[0]))] * 3})
    assert threads == ["decode"] * 4


def test_a_small_file_of_a_large_image_is_decoded_off_the_event_loop(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, prepared = [], ImagePreprocessor._prepare

    def watched(preprocess: ImagePreprocessor, image: Image.Image) -> ModelInput:
        threads.append(threading.current_thread().name.partition("_")[0])
        return prepared(preprocess, image)

    monkeypatch.setattr(ImagePreprocessor, "_prepare", watched)
    out = io.BytesIO()
    Image.new("RGB", (1000, 1000)).save(out, "PNG")
    assert len(out.getvalue()) < 8192
    answer = client.post("/predict", content=out.getvalue(), headers={"Content-Type": "image/png"})
    assert answer.status_code == 200
    assert threads == ["decode"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"images": [' + b"1," * 200_000 + b"1]}",
        b"{" + b",".join(b'"k%d": 1' % index for index in range(100_000)) + b"}",
    ],
    ids=["many bad items", "many unknown fields"],
)
def test_a_hostile_body_gets_one_short_sentence(client: TestClient, body: bytes) -> None:
    answer = client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert len(answer.content) < 1000
