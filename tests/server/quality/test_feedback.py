from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from server.app import create_app
from server.quality.feedback import (
    AccuracyCount,
    Feedback,
    LoggedPrediction,
    PredictionLog,
    key_of,
)
from server.settings import Settings

if TYPE_CHECKING:
    from tests.conftest import Images, Texts

JPEG = {"content-type": "image/jpeg"}
IMAGES, TEXTS = "cifar10-resnet56", "ag-news-minilm"

ids = st.integers(0, 12).map(str)
noted = st.lists(st.tuples(ids, st.sampled_from("ab"), st.integers(0, 11), st.integers(0, 2**31)))


@given(st.integers(1, 6), noted)
def test_the_last_answers_are_remembered_and_no_others(
    capacity: int, answers: list[tuple[str, str, int, int]]
) -> None:
    remembered, expected = PredictionLog(capacity), deque[tuple[Any, ...]](maxlen=capacity)
    for answer in answers:
        remembered.record(key_of(answer[0]), *answer[1:])
        expected.append(answer)
    first = {answer[0]: answer for answer in reversed(expected)}
    assert len(remembered) == len(expected)
    for request_id in map(str, range(13)):
        found = remembered.find(request_id)
        assert (found is None) == (request_id not in first)
        if found is not None:
            assert (request_id, *found[1:]) == first[request_id]
    ids = [answer[0] for answer in expected]
    assert remembered.repeated() == {key_of(id) for id in ids if ids.count(id) > 1}


labels = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2), st.booleans()))


@given(st.integers(1, 6), labels)
def test_the_latest_labels_count_each_answer_once(
    window: int, given_labels: list[tuple[int, int, bool]]
) -> None:
    feedback, expected = Feedback(3, window), dict[int, tuple[int, bool]]()
    for key, exit, right in given_labels:
        new = feedback.add(LoggedPrediction(key, "m", exit, class_id=3), 3 if right else 4)
        assert new == (key not in expected)
        assert feedback.label_of(key) == (3 if right else 4)
        expected[key] = (exit, right)
        if len(expected) > window:
            del expected[next(iter(expected))]
        for k, tally in enumerate(feedback.tallies):
            at = [each for where, each in expected.values() if where == k]
            assert tally == AccuracyCount(sum(at), len(at))


@pytest.fixture(scope="module")
def both(shipped_bundle: Path, shipped_text_bundle: Path) -> Iterator[TestClient]:
    settings = Settings(bundle=(shipped_bundle, shipped_text_bundle), window=100)
    with TestClient(create_app(settings)) as client:
        yield client


def give(client: TestClient, request_id: str, label: object) -> dict[str, Any]:
    answer = client.post("/feedback", json={"request_id": request_id, "label": label})
    assert answer.status_code == 200, answer.text
    return answer.json()


def metric(client: TestClient, name: str, **labels: object) -> float:
    inner = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines())
    return float(lines[f"eenet_{name}{{{inner}}}"])


def ask(client: TestClient, file: bytes) -> dict[str, Any]:
    return client.post("/predict", content=file, headers=JPEG).json()


def other_label(answer: dict[str, Any]) -> str:
    return "frog" if answer["label"] != "frog" else "ship"


def test_labels_come_by_name_or_id(client: TestClient, images: Images) -> None:
    answer = ask(client, images.files[0])
    where = {"model": IMAGES, "exit": answer["exit"]}
    asked = answer["request_id"]
    assert give(client, asked, answer["label"]) == {**where, "correct": True}
    assert give(client, asked, answer["class_id"]) == {**where, "correct": True}
    assert give(client, asked, other_label(answer)) == {**where, "correct": False}
    assert give(client, asked, (answer["class_id"] + 1) % 10) == {**where, "correct": False}


def test_the_metrics_are_the_accuracy_of_the_labels(
    both: TestClient, images: Images, texts: Texts
) -> None:
    names = {"model": IMAGES, "exit": 0}
    assert math.isnan(metric(both, "feedback_accuracy_ratio", **names))
    assert metric(both, "feedback_samples_total", **names) == 0
    seen: dict[int, list[bool]] = {0: [], 1: [], 2: []}
    for index, file in enumerate(images.files[:40]):
        answer = ask(both, file)
        right = index % 4 != 0
        label = answer["label"] if right else other_label(answer)
        assert give(both, answer["request_id"], label)["correct"] is right
        seen[answer["exit"]].append(right)
    text = both.post("/predict", json={"text": texts.texts[0]}).json()
    assert give(both, text["request_id"], text["label"])["model"] == TEXTS
    for exit, rights in seen.items():
        names = {"model": IMAGES, "exit": exit}
        assert metric(both, "feedback_samples_total", **names) == len(rights)
        expected = sum(rights) / len(rights) if rights else math.nan
        found = metric(both, "feedback_accuracy_ratio", **names)
        assert found == pytest.approx(expected, nan_ok=True)
    assert metric(both, "feedback_samples_total", model=TEXTS, exit=text["exit"]) == 1


def test_a_later_label_replaces_the_earlier(client: TestClient, images: Images) -> None:
    answer = ask(client, images.files[1])
    exit = answer["exit"]
    give(client, answer["request_id"], answer["label"])
    count = metric(client, "feedback_samples_total", model=IMAGES, exit=exit)
    before = metric(client, "feedback_accuracy_ratio", model=IMAGES, exit=exit)
    give(client, answer["request_id"], other_label(answer))
    assert metric(client, "feedback_samples_total", model=IMAGES, exit=exit) == count
    assert metric(client, "feedback_accuracy_ratio", model=IMAGES, exit=exit) < before


def test_items_of_lists_have_ids_of_their_own(both: TestClient, texts: Texts) -> None:
    given_texts = [texts.texts[0], "", texts.texts[1]]
    answer = both.post("/predict", json={"texts": given_texts}, headers={"x-request-id": "list"})
    first, bad, last = answer.json()["predictions"]
    assert "error" in bad
    assert give(both, "list/0", first["label"])["correct"] is True
    assert give(both, "list/2", last["label"])["correct"] is True
    for unknown in ("list", "list/1", "list/3"):
        refused = both.post("/feedback", json={"request_id": unknown, "label": 0})
        assert refused.status_code == 404, refused.text


def test_the_first_answer_under_an_id_keeps_it(client: TestClient, images: Images) -> None:
    budget = client.put("/budget", json={"budget_ms": None})
    assert budget.status_code == 200
    taken = JPEG | {"x-request-id": "taken"}
    file = images.files[0]
    first = ask(client, file)["label"]
    other = next(each for each in images.files if ask(client, each)["label"] != first)
    later = ask(client, other)["label"]
    for each in (file, other):
        client.post("/predict", content=each, headers=taken)
    assert give(client, "taken", first)["correct"] is True
    assert give(client, "taken", later)["correct"] is False


def test_each_owner_has_ids_of_its_own() -> None:
    log = PredictionLog(10)
    log.record(key_of("id", 5), "m", 0, 1)
    log.record(key_of("id", 7), "m", 0, 2)
    found = [log.find("id", owner) for owner in (5, 7, 9, 0)]
    assert [each and each.class_id for each in found] == [1, 2, None, None]
    assert log.repeated() == set()


def test_an_answer_too_old_is_not_known_any_more(client: TestClient, images: Images) -> None:
    old = ask(client, images.files[0])["request_id"]
    client.get("/audit")  # accounts for it now, not while the log is filled below
    answers = client.app.state.control.answers  # type: ignore[attr-defined]
    assert answers.capacity == 100_000
    for index in range(answers.capacity - 1):
        answers.record(key_of(f"another-{index}"), IMAGES, 0, 0)
    give(client, old, 0)
    answers.record(key_of("the last straw"), IMAGES, 0, 0)
    refused = client.post("/feedback", json={"request_id": old, "label": 0})
    assert refused.status_code == 404
    told = refused.json()
    assert told["code"] == "unknown_answer" and old in told["detail"] and "100000" in told["detail"]


@pytest.mark.parametrize(
    ("label", "named"), [("unicorn", "unicorn"), ("", "''"), (10, "10"), (-1, "-1"), (2**70, None)]
)
def test_a_label_that_is_no_class_is_422_and_named(
    client: TestClient, images: Images, label: object, named: str | None
) -> None:
    asked = ask(client, images.files[0])["request_id"]
    refused = client.post("/feedback", json={"request_id": asked, "label": label})
    assert refused.status_code == 422, refused.text
    assert named is None or named in refused.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"request_id": "a"}',
        b'{"label": 1}',
        b'{"request_id": 5, "label": 1}',
        b'{"request_id": "a", "label": true}',
        b'{"request_id": "a", "label": 1.5}',
        b'{"request_id": "a", "label": null}',
        b'{"request_id": "a", "label": 1, "model": "b"}',
        b"[]",
    ],
)
def test_a_bad_body_is_422(client: TestClient, body: bytes) -> None:
    answer = client.post("/feedback", content=body)
    assert answer.status_code == 422, answer.text


def test_what_is_not_json_is_400(client: TestClient) -> None:
    assert client.post("/feedback", content=b"{").status_code == 400


def test_masks_take_no_labels(mask_bundle: Path, images: Images) -> None:
    with TestClient(create_app(Settings(bundle=(mask_bundle,)))) as client:
        asked = ask(client, images.files[0])["request_id"]
        refused = client.post("/feedback", json={"request_id": asked, "label": 0})
    assert refused.status_code == 422 and "masks" in refused.json()["detail"]
