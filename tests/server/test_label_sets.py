"""Several labels per text, from the table to the answer over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from models.bundle import load_bundle
from models.data.dataset import DataConfig
from models.data.load import load_dataset
from models.preprocess import TextPreprocessor
from profiling.calibration import load_recorded
from scheduler.fitted import load_scheduler
from scheduler.guarantee import losses_along
from server.app import create_app
from server.cli.main import main
from server.pipeline.builder import load_run
from server.settings import Settings

pytestmark = pytest.mark.slow
WORDS = {"praise": ("good", "great", "fine"), "blame": ("bad", "awful", "dull")}
MadeOnce = Callable[[str, Callable[[Path], object]], Path]


def write_table(path: Path, rows: int = 200) -> Path:
    """Texts that praise, blame, do both or neither."""
    random, lines = np.random.default_rng(0), dict[str, str]()
    while len(lines) < rows:
        words = list(random.choice(("the", "film", "was", "very", "and", "a"), 5))
        labels = [label for label in WORDS if random.random() < 0.5]
        words += [str(random.choice(WORDS[label])) for label in labels]
        lines[" ".join(random.permutation(words))] = "|".join(labels)
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in lines.items()))
    return path


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def folders(
    backbone: Path,
    tmp_path_factory: pytest.TempPathFactory,
    building_quickly: Callable[[], AbstractContextManager[None]],
) -> tuple[Path, Path]:
    """A run of several labels per text, and its bundle."""
    folder = tmp_path_factory.mktemp("labels")
    table = write_table(folder / "texts.csv")
    run("attach", "--backbone", backbone, "--exits", 1, "--dataset", table, "--label-separator",
        "|", "--out", folder / "run", "--epochs", 2, "--batch-size", 16,
        "--peak-lr", 0.004)  # fmt: skip
    with building_quickly():
        run("build", folder / "run", "--out", folder / "moods", "--torch-weights")
    return folder / "run", folder / "moods"


@pytest.fixture(scope="module")
def client(folders: tuple[Path, Path]) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(bundle=(folders[1],)))) as client:
        yield client


def predict(client: TestClient, text: str, **options: Any) -> dict[str, Any]:
    response = client.post("/predict", json={"text": text, **options})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def names(answer: dict[str, Any]) -> set[str]:
    return {each["label"] for each in answer["labels"]}


def test_an_answer_is_that_of_the_network_and_the_thresholds(
    folders: tuple[Path, Path], client: TestClient
) -> None:
    model, manifest = load_run(folders[0]).model.eval(), load_bundle(folders[1]).manifest
    assert manifest.thresholds is not None and manifest.classes == ("blame", "praise")
    preprocess = load_bundle(folders[1]).preprocessor(1)
    assert isinstance(preprocess, TextPreprocessor)
    answer = predict(client, "the very good film was dull", trace=True, top_k=1)
    state = tuple(map(torch.from_numpy, preprocess("the very good film was dull").state))
    with torch.inference_mode():
        probs = model(state).softmax(-1)[answer["exit"], 0, :, 1].numpy()
    shown = {each["class_id"]: each["probability"] for each in answer["labels"]}
    for label, probability in shown.items():
        assert probability == pytest.approx(float(probs[label]), abs=1e-3)
    expected = {c for c, p in enumerate(probs) if p > manifest.thresholds[answer["exit"]][c]}
    assert set(shown) == expected
    assert len(answer["top_k"]) == 1 and "label" not in answer
    assert [step["exit"] for step in answer["trace"]] == list(range(answer["exit"] + 1))
    assert {each["label"] for each in answer["trace"][-1]["labels"]} == names(answer)


def test_a_list_has_a_set_for_each_item(client: TestClient) -> None:
    response = client.post("/predict", json={"texts": ["the good film", "the dull film", ""]})
    first, second, third = response.json()["predictions"]
    for item, text in ((first, "the good film"), (second, "the dull film")):
        assert names(item) == names(predict(client, text))
    assert third["error"]["status"] == 422


def test_two_sets_disagree_if_any_label_differs(folders: tuple[Path, Path]) -> None:
    variant = load_bundle(folders[1]).variant()
    log_probs = load_recorded(variant.predictions).test.log_probs
    scheduler = load_scheduler(variant.scheduler("stopping-label-free"))
    assert log_probs.shape[2:] == (2, 2) and scheduler.frontier.label_sets
    losses = losses_along(scheduler.policy, scheduler.frontier, log_probs)
    assert losses.dtype == np.bool_
    answers = log_probs.argmax(-1)
    differ = (answers[0] != answers[-1]).any(-1)
    assert set(losses[0][~differ].tolist()) <= {False}


def test_feedback_of_one_label_is_refused(client: TestClient) -> None:
    request_id = predict(client, "the good film")["request_id"]
    given = {"request_id": request_id, "label": "praise"}
    response = client.post("/feedback", json=given)
    assert response.status_code == 422 and "predicts sets of labels" in response.json()["detail"]


def test_evaluate_shows_f1(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run("evaluate", folders[1], "--policies", "maxprob,stopping")
    shown = capsys.readouterr().out
    assert "F1 in %, micro (macro), of the exits alone: " in shown


def test_predict_prints_the_labels(
    folders: tuple[Path, Path],
    client: TestClient,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "texts.txt").write_text("the good film\n")
    run("predict", folders[1], tmp_path / "texts.txt")
    (line,) = capsys.readouterr().out.splitlines()
    assert names(json.loads(line)) == names(predict(client, "the good film"))


def test_the_torch_backend_gives_the_same_labels(
    folders: tuple[Path, Path], client: TestClient
) -> None:
    settings = Settings(bundle=(folders[1],), backend="torch", device="cpu")
    with TestClient(create_app(settings)) as torch_client:
        for text in ("the good film", "a dull and fine film"):
            assert names(predict(torch_client, text)) == names(predict(client, text))


def test_the_table_is_split_with_every_label(folders: tuple[Path, Path]) -> None:
    table = folders[0].parent / "texts.csv"
    data = load_dataset(DataConfig(str(table), label_separator="|"))
    assert data.test.labels.shape[1] == 2 and data.test.labels.any(0).all()
