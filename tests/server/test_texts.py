"""Texts over HTTP, alone and beside images."""

from __future__ import annotations

import base64
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from starlette.testclient import TestClient
from tokenizers import Tokenizer

from models.networks.multi_exit import MultiExitModel
from server.app import create_app
from server.pipeline.runs import load_run
from server.settings import Settings

if TYPE_CHECKING:
    from tests.conftest import Images

JPEG = {"content-type": "image/jpeg"}
TEXT = "the film was very good"
MAX_TOKENS = 40
LONG = "good film " * 60
WHOLE = {"budget_ms": None, "max_disagreement": 0}
TO_THE_END, AT_ONCE = {"budget_ms": 1e6}, {"budget_ms": 1e-3}


def renamed(bundle: Path, out: Path, name: str) -> Path:
    shutil.copytree(bundle, out)
    manifest = out / "bundle.json"
    manifest.write_text(re.sub(r'"name": ?"reviews"', f'"name":"{name}"', manifest.read_text()))
    return out


@pytest.fixture(scope="module")
def both(shipped_bundle: Path, text_bundle: Path) -> Iterator[TestClient]:
    """A client of an app with a model of images and one of texts."""
    settings = Settings(bundle=(shipped_bundle, text_bundle), max_batch=4, engine_workers=2)
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.fixture(scope="module")
def network(text_run: Path) -> MultiExitModel:
    return load_run(text_run).model.eval()


@torch.inference_mode()
def expected(network: MultiExitModel, tokenizer: Tokenizer, text: str) -> NDArray[np.float32]:
    """The probabilities that the network gives a text at each exit, (K, C)."""
    reader = Tokenizer.from_str(tokenizer.to_str())
    reader.enable_truncation(MAX_TOKENS)
    ids = torch.tensor([reader.encode(text).ids])
    probs: NDArray[np.float32] = network((ids, torch.ones_like(ids))).softmax(-1)[:, 0].numpy()
    return probs


def probabilities(answer: dict[str, Any]) -> list[float]:
    ranked = sorted(answer["top_k"], key=lambda entry: entry["class_id"])
    return [entry["probability"] for entry in ranked]


def ask(client: TestClient, text: str = TEXT, **more: object) -> dict[str, Any]:
    answer = client.post("/predict", json={"text": text, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_answer_has_the_shape_of_the_contract(both: TestClient) -> None:
    answer = ask(both)
    assert set(answer) == {
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
    assert (answer["model"], answer["num_exits"]) == ("reviews", 2)
    assert answer["label"] in ("blame", "praise")
    assert {entry["label"] for entry in answer["top_k"]} == {"blame", "praise"}
    assert sum(probabilities(answer)) == pytest.approx(1)


@pytest.mark.parametrize(("budget", "exit"), [(AT_ONCE, 0), (TO_THE_END, 1)])
@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        "good",
        "Bad BAD bad!",
        "the film and the very dull film was a very very awful and bad film",
        LONG,
        "žluťoučký kůň 🐎 漢字 ‮abc",
        "a\n\tb\x00c\u200bd",
    ],
)
def test_answers_are_those_of_the_network(
    both: TestClient,
    network: MultiExitModel,
    tokenizer: Tokenizer,
    text: str,
    budget: dict[str, float],
    exit: int,
) -> None:
    answer = ask(both, text, **budget)
    assert answer["exit"] == exit
    assert probabilities(answer) == pytest.approx(
        expected(network, tokenizer, text)[exit].tolist(), abs=1e-3
    )


def test_all_ways_of_sending_a_text_give_the_same_answer(both: TestClient) -> None:
    answers = [
        both.post("/predict", json={"text": TEXT, **TO_THE_END}),
        both.post("/predict", params=TO_THE_END, json={"text": TEXT}),
        both.post("/predict", json={"text": TEXT, "model": "reviews", **TO_THE_END}),
        both.post("/predict?model=reviews", json={"text": TEXT, **TO_THE_END}),
        both.post("/predict", params=TO_THE_END, files={"text": (None, TEXT)}),
        both.post("/predict", files={"text": (None, TEXT), "budget_ms": (None, "1000000")}),
        both.post(
            "/predict",
            files={"text": ("a.txt", TEXT.encode(), "text/plain; charset=utf-8")},
            params={**TO_THE_END, "model": "reviews"},
        ),
    ]
    assert [answer.status_code for answer in answers] == [200] * len(answers)
    shown = [(answer.json()["model"], probabilities(answer.json())) for answer in answers]
    assert shown == [shown[0]] * len(answers)
    assert both.post("/predict", json={"texts": [TEXT], **TO_THE_END}).json()["predictions"][0][
        "confidence"
    ] == pytest.approx(answers[0].json()["confidence"], abs=1e-6)


def test_each_request_goes_to_the_model_of_its_modality(both: TestClient, images: Images) -> None:
    file = images.files[0]
    encoded = base64.b64encode(file).decode()
    images = [
        both.post("/predict", content=file, headers=JPEG),
        both.post("/predict", json={"image": encoded}),
        both.post("/predict", files={"file": ("a.jpg", file, "image/jpeg")}),
    ]
    assert {answer.json()["model"] for answer in images} == {"cifar10-resnet56"}
    assert ask(both)["model"] == "reviews"
    many = both.post("/predict", json={"images": [encoded] * 2}).json()["predictions"]
    assert {answer["model"] for answer in many} == {"cifar10-resnet56"}
    many = both.post("/predict", json={"texts": [TEXT] * 2}).json()["predictions"]
    assert {answer["model"] for answer in many} == {"reviews"}


def test_a_model_of_the_other_modality_is_422(both: TestClient, images: Images) -> None:
    text = both.post("/predict", json={"text": TEXT, "model": "cifar10-resnet56"})
    image = both.post("/predict?model=reviews", content=images.files[0], headers=JPEG)
    assert (text.status_code, image.status_code) == (422, 422)
    assert text.json()["detail"] == "cifar10-resnet56 reads images; send it one, not texts"
    assert image.json()["detail"] == "reviews reads texts; send it one, not images"


def test_an_unknown_model_is_404(both: TestClient) -> None:
    answer = both.post("/predict", json={"text": TEXT, "model": "nope"})
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model")
    assert "cifar10-resnet56, reviews" in answer.json()["detail"]


@pytest.mark.parametrize("body", [{"text": TEXT}, {"texts": [TEXT]}])
def test_without_a_text_model_a_text_is_404(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post("/predict", json=body)
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model")
    assert answer.json()["detail"] == (
        "no model that reads texts is loaded; loaded are cifar10-resnet56 (images)"
    )
    assert client.post("/predict", files={"text": (None, TEXT)}).status_code == 404


def test_without_a_model_of_images_an_image_is_404(text_bundle: Path, images: Images) -> None:
    with TestClient(create_app(Settings(bundle=(text_bundle,)))) as client:
        answer = client.post("/predict", content=images.files[0], headers=JPEG)
        assert ask(client)["model"] == "reviews"
    assert answer.status_code == 404
    assert "no model that reads images is loaded; loaded are reviews (texts)" in answer.text


def test_with_several_text_models_a_text_must_name_one(
    text_bundle: Path, shipped_bundle: Path, tmp_path: Path, images: Images
) -> None:
    other = renamed(text_bundle, tmp_path / "other", "other")
    settings = Settings(bundle=(text_bundle, other, shipped_bundle))
    with TestClient(create_app(settings)) as client:
        answer = client.post("/predict", json={"text": TEXT})
        assert answer.status_code == 422
        assert answer.json()["detail"] == (
            "several models read texts; name one of other, reviews as model"
        )
        assert ask(client, model="other")["model"] == "other"
        image = client.post("/predict", content=images.files[0], headers=JPEG)
        assert image.json()["model"] == "cifar10-resnet56"


@pytest.mark.parametrize("text", ["", " ", "\n\t \u00a0\u2003"])
def test_a_text_without_a_word_is_422(both: TestClient, text: str) -> None:
    answers = [
        both.post("/predict", json={"text": text}),
        both.post("/predict", files={"text": (None, text)}),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_content")
        assert answer.json()["detail"] == "the text is empty; send at least one word"


def test_a_list_is_answered_in_order_and_a_bad_item_hurts_no_other(
    both: TestClient, network: MultiExitModel, tokenizer: Tokenizer
) -> None:
    texts = [TEXT, "", "bad", " \n", LONG, "a dull film"]
    answer = both.post(
        "/predict",
        json={"texts": texts, "top_k": 2, **TO_THE_END},
        headers={"x-request-id": "many"},
    )
    assert answer.status_code == 200
    predictions = answer.json()["predictions"]
    assert len(predictions) == len(texts)
    for index, (text, entry) in enumerate(zip(texts, predictions, strict=True)):
        if not text.strip():
            assert entry["error"]["status"] == 422
            assert entry["error"]["request_id"] == f"many/{index}"
            continue
        assert entry["request_id"] == f"many/{index}"
        assert ("truncated" in entry) == (text == LONG)
        probs = expected(network, tokenizer, text)[1]
        assert probabilities(entry) == pytest.approx(probs.tolist(), abs=1e-3)


def test_a_text_is_truncated_where_it_does_not_fit_and_nowhere_else(both: TestClient) -> None:
    special = 2  # [CLS] and [SEP]
    fits = " ".join(["good"] * (MAX_TOKENS - special))
    assert "truncated" not in ask(both, fits)
    assert ask(both, f"{fits} film")["truncated"] is True
    assert "truncated" not in ask(both, f"{fits}   \n")
    assert "truncated" not in ask(both)
    # What is cut off changes nothing.
    assert ask(both, f"{fits} bad awful dull", **TO_THE_END)["confidence"] == pytest.approx(
        ask(both, fits, **TO_THE_END)["confidence"], abs=1e-6
    )


@pytest.mark.parametrize("unit", ["good film ", "x", "漢", "!"])
def test_a_megabyte_of_text_is_answered_quickly(both: TestClient, unit: str) -> None:
    text = unit * (2**20 // len(unit.encode()) - 100)
    started = time.perf_counter()
    answer = ask(both, text)
    assert time.perf_counter() - started < 1.0
    assert answer["truncated"] is True
    assert answer["latency_ms"]["decode"] < 500


def test_megabytes_in_a_form_are_answered_too(both: TestClient) -> None:
    text = "good film " * 200_000
    answer = both.post("/predict", files={"text": (None, text)})
    assert answer.status_code == 200 and answer.json()["truncated"] is True


def test_the_trace_shows_every_exit_passed(
    both: TestClient, network: MultiExitModel, tokenizer: Tokenizer
) -> None:
    answer = ask(both, trace=True, **TO_THE_END)
    probs = expected(network, tokenizer, TEXT)
    assert [entry["exit"] for entry in answer["trace"]] == [0, 1]
    assert answer["trace"][-1]["threshold"] is None
    for entry, shown in zip(answer["trace"], probs, strict=True):
        assert entry["confidence"] == pytest.approx(float(shown.max()), abs=1e-3)
        assert entry["label"] == ("blame", "praise")[shown.argmax()]
    assert answer["trace"][-1]["elapsed_ms"] == answer["latency_ms"]["compute"]
    assert len(ask(both, trace=True, **AT_ONCE)["trace"]) == 1


def test_top_k_bounds_the_ranking(both: TestClient) -> None:
    assert len(ask(both, top_k=1)["top_k"]) == 1
    assert len(ask(both, top_k=1000)["top_k"]) == 2
    assert both.post("/predict", json={"text": TEXT, "top_k": 0}).status_code == 422


def test_a_deadline_that_cannot_be_met_is_504(both: TestClient) -> None:
    answer = both.post("/predict", json={"text": TEXT, "deadline_ms": 0.001})
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    many = both.post("/predict", json={"texts": [TEXT, ""], "deadline_ms": 0.001})
    late, empty = many.json()["predictions"]
    assert (late["error"]["status"], empty["error"]["status"]) == (504, 422)
    assert "deadline_exceeded" not in ask(both, deadline_ms=60_000)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"text": 5}', 422),
        (b'{"text": null}', 422),
        (b'{"text": "a", "texts": ["a"]}', 422),
        (b'{"text": "a", "image": "aGk="}', 422),
        (b'{"texts": []}', 422),
        (b'{"texts": "a"}', 422),
        (b'{"texts": ["a", 5]}', 422),
        (b'{"text": "a", "top_k": "3"}', 422),
        (b'{"text": "\\ud800"}', 422),
        (b'{"text": "\xed\xa0\x80"}', 422),
        (b'{"text": "\xff"}', 400),
    ],
)
def test_bad_json_gets_a_clear_error(both: TestClient, body: bytes, status: int) -> None:
    answer = both.post("/predict", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert len(answer.json()["detail"]) > 10


def test_bad_forms_get_a_clear_error(both: TestClient, images: Images) -> None:
    file = ("a.jpg", images.files[0], "image/jpeg")
    answers = [
        both.post("/predict", files={"file": file, "text": (None, TEXT)}),
        both.post("/predict", files=[("text", (None, TEXT)), ("text", (None, TEXT))]),
        both.post("/predict", files={"text": (None, TEXT), "colour": (None, "1")}),
    ]
    assert [answer.status_code for answer in answers] == [422] * 3
    assert "2 inputs ('file', 'text')" in answers[0].json()["detail"]
    assert "colour" in answers[2].json()["detail"]


def test_a_list_of_too_many_texts_is_422(both: TestClient) -> None:
    answer = both.post("/predict", json={"texts": [TEXT] * 257})
    assert answer.status_code == 422
    assert answer.json()["detail"] == "257 texts in one list; 256 is the most, split it"


def test_texts_of_mixed_lengths_get_the_answers_that_they_get_alone(
    both: TestClient, network: MultiExitModel, tokenizer: Tokenizer
) -> None:
    random = np.random.default_rng(0)
    words = ("good", "bad", "film", "very", "the", "unseen", "zebra")
    texts = [" ".join(random.choice(words, random.integers(1, 60))) for _ in range(64)]
    answers = both.post("/predict", json={"texts": texts, **TO_THE_END}).json()["predictions"]
    for text, answer in zip(texts, answers, strict=True):
        probs = expected(network, tokenizer, text)[1]
        assert probabilities(answer) == pytest.approx(probs.tolist(), abs=1e-3)
    assert "eenet_inflight_samples 0.0" in both.get("/metrics").text


def test_each_model_has_a_budget_of_its_own(both: TestClient) -> None:
    both.put("/budget?model=reviews", json={"budget_ms": 3.0, "measure": "end_to_end"})
    both.put("/budget?model=cifar10-resnet56", json={"budget_ms": 2.0})
    states = {each["model"]: each for each in both.get("/budget").json()["models"]}
    assert {name: each["budget_ms"] for name, each in states.items()} == {
        "cifar10-resnet56": 2.0,
        "reviews": 3.0,
    }
    assert states["reviews"]["measure"] == "end_to_end"
    assert states["cifar10-resnet56"]["measure"] == "compute"
    (alone,) = both.get("/budget?model=reviews").json()["models"]
    assert (alone["model"], len(alone["expected_exit_rates"])) == ("reviews", 2)
    everyone = both.put("/budget", json={"budget_ms": None, "measure": "compute"}).json()["models"]
    assert [(each["budget_ms"], each["measure"]) for each in everyone] == [(None, "compute")] * 2


def test_a_budget_moves_the_answers_of_its_own_model_alone(
    both: TestClient, images: Images
) -> None:
    both.put("/budget", json=WHOLE)
    both.put("/budget?model=reviews", json={"budget_ms": 1e-4})
    before = both.get("/budget?model=cifar10-resnet56").json()["models"][0]["samples"]
    assert {ask(both)["exit"] for _ in range(5)} == {0}
    image = both.post("/predict", content=images.files[0], headers=JPEG).json()
    assert image["exit"] == 2
    states = both.get("/budget").json()["models"]
    assert {each["model"]: each["feasible"] for each in states} == {
        "cifar10-resnet56": True,
        "reviews": False,
    }
    after = both.get("/budget?model=cifar10-resnet56").json()["models"][0]["samples"]
    assert after == before + 1
    both.put("/budget", json=WHOLE)
    assert ask(both)["exit"] == 1


def test_with_two_models_the_frontier_is_asked_by_name(both: TestClient) -> None:
    answer = both.get("/frontier")
    assert answer.status_code == 422
    assert answer.json()["detail"] == (
        "several models are loaded; name one of cifar10-resnet56, reviews as model"
    )
    assert {len(each["exit_rates"]) for each in both.get("/frontier?model=reviews").json()} == {2}
    assert both.get("/frontier?model=nope").status_code == 404


def test_metrics_are_told_apart_by_model(both: TestClient) -> None:
    ask(both, **TO_THE_END)
    text = both.get("/metrics").text
    found = re.findall(r'eenet_predictions_total{exit="(\d)",model="reviews"} (\S+)', text)
    assert [exit for exit, _ in found] == ["0", "1"] and float(found[1][1]) >= 1
    assert len(re.findall(r'eenet_stage_latency_seconds_count{model="reviews"', text)) == 2
    assert 'eenet_model_info{device="cpu",model="reviews",policy="maxprob"' in text
