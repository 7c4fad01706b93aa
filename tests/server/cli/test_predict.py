import contextlib
import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from models.bundle import load_bundle
from scheduler.policy import exits_taken, replay
from server.app import create_app
from server.cli.main import main
from server.cli.predict import OfflineModel
from server.settings import Settings
from tests.bundles import recorded_of

if TYPE_CHECKING:
    from tests.conftest import Images, Texts

JPEG = {"Content-Type": "image/jpeg"}
Predict = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def predict(capsys: pytest.CaptureFixture[str]) -> Predict:
    """Runs the command and gives its lines."""

    def run(*arguments: object, status: int = 0) -> list[dict[str, Any]]:
        capsys.readouterr()
        try:
            ended = main(["predict", *map(str, arguments)])
        except SystemExit as stop:
            ended = int(str(stop.code))
        assert ended == status
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


@pytest.fixture
def image_files(images: "Images", tmp_path: Path) -> Path:
    """A folder with sixteen images, half of them in a subfolder."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for number, content in enumerate(images.files[:16]):
        (folder / ("more" if number % 2 else "") / f"{number:02d}.jpg").write_bytes(content)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_folder_gives_a_line_for_each_image_in_order(
    predict: Predict, shipped_bundle: Path, image_files: Path
) -> None:
    lines = predict(shipped_bundle, image_files, "--top-k", 2)
    names = [Path(line["file"]).name for line in lines]
    assert names == [f"{n:02d}.jpg" for n in (*range(0, 16, 2), *range(1, 16, 2))]
    for line in lines:
        assert set(line) == {
            "file", "label", "class_id", "confidence", "exit", "num_exits", "top_k", "latency_ms",
        }  # fmt: skip
        assert line["top_k"][0]["label"] == line["label"]
        assert len(line["top_k"]) == 2 and 0 <= line["exit"] < line["num_exits"] == 3
        latency = line["latency_ms"]
        assert latency["total"] >= latency["compute"] > 0 and latency["decode"] > 0


def test_predictions_equal_those_of_the_server_under_the_same_parameter(
    predict: Predict, shipped_bundle: Path, image_files: Path
) -> None:
    with TestClient(create_app(Settings(bundle=(shipped_bundle,)))) as client:
        client.put("/budget", json={"budget_ms": 1.3})
        parameter = client.get("/budget").json()["models"][0]["parameter"]
        paths = sorted(image_files.glob("*.jpg"))
        query = {"trace": True, "budget_ms": 1.3}
        answers = [
            client.post("/predict", content=path.read_bytes(), headers=JPEG, params=query).json()
            for path in paths
        ]
    lines = predict(shipped_bundle, *paths, "--parameter", parameter, "--trace")
    same = ("label", "class_id", "num_exits")
    for line, answer in zip(lines, answers, strict=True):
        # Costs, hence the server's own parameter, are measured anew: compare what does not hang
        # on them, the output of the exits that both have run.
        for ours, theirs in zip(line["trace"], answer["trace"], strict=False):
            assert ours["label"] == theirs["label"]
            assert ours["confidence"] == pytest.approx(theirs["confidence"], abs=1e-5)
        if line["exit"] == answer["exit"]:
            assert [line[name] for name in same] == [answer[name] for name in same]
            assert line["confidence"] == pytest.approx(answer["confidence"], abs=1e-5)
            assert line.keys() - {"file"} == answer.keys() - {"model", "version", "request_id"}
    pairs = zip(lines, answers, strict=True)
    assert sum(line["exit"] == answer["exit"] for line, answer in pairs) >= 6


def test_a_budget_moves_the_exits_and_none_runs_to_the_end(
    predict: Predict, shipped_bundle: Path, image_files: Path
) -> None:
    early = predict(shipped_bundle, image_files, "--budget-ms", "0.001")
    late = predict(shipped_bundle, image_files, "--budget-ms", "10000")
    assert {line["exit"] for line in early} == {0}
    assert np.mean([line["exit"] for line in late]) > 0


def test_without_a_budget_the_answers_are_promised_as_by_the_server(shipped_bundle: Path) -> None:
    bundle = load_bundle(shipped_bundle)
    rows = recorded_of(shipped_bundle, "float32").certification
    assert rows is not None
    for share in (0.0, 0.01):
        settings = Settings(bundle=(shipped_bundle,), precision="float32", max_disagreement=share)
        model = OfflineModel(bundle, settings)
        policy = model.engine.policy
        exits = exits_taken(policy, replay(policy, rows.log_probs), model.parameter)
        answers = rows.log_probs.argmax(-1)
        differ = np.mean(answers[exits, range(len(exits))] != answers[-1])
        assert (set(exits) == {2}) == (share == 0) and differ <= share


def test_texts_come_from_files_and_from_standard_input(
    predict: Predict,
    shipped_text_bundle: Path,
    texts: "Texts",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "texts.txt").write_text(f"{texts.texts[0]}\n\n{texts.texts[1]}", "utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{texts.texts[2]}\r\n"))
    lines = predict(shipped_text_bundle, tmp_path / "texts.txt", "-")
    assert [line["text"] for line in lines] == texts.texts[:3]
    assert [line["line"] for line in lines] == [1, 3, 1]
    assert [line["file"] for line in lines] == [str(tmp_path / "texts.txt")] * 2 + ["-"]
    assert all(line["label"] in ("World", "Sports", "Business", "Sci/Tech") for line in lines)


def test_an_input_that_fails_is_a_line_and_the_others_get_predictions(
    predict: Predict, shipped_bundle: Path, image_files: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    missing, empty = tmp_path / "missing.jpg", tmp_path / "empty"
    given = (missing, image_files / "00.jpg", image_files / "notes.txt", empty)
    lines = predict(shipped_bundle, *given, status=1)
    assert [set(line) == {"file", "error"} for line in lines] == [True, False, True, True]
    assert lines[0]["error"] == "cannot be read: No such file or directory"
    assert "image" in lines[2]["error"]
    assert lines[3]["error"] == "the folder holds no images"


def test_a_file_of_other_characters_is_a_line(
    predict: Predict, shipped_text_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    (line,) = predict(shipped_text_bundle, tmp_path / "latin", status=1)
    assert line["error"].startswith("the model reads texts, and this is not UTF-8")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--budget-ms", "1", "--parameter", "1"], "both choose where inputs exit; give one"),
        (["--budget-ms", "0"], "--budget-ms is 0; give a number above 0"),
        (["--top-k", "0"], "--top-k is 0; give 1 or more"),
        (["--backend", "onxx"], "did you mean 'onnx'?"),
        (["--backend", "replay"], "runs no network; use onnx or torch"),
        (["-"], "standard input holds texts, but this model reads images"),
    ],
)
def test_bad_flags_are_one_sentence(
    shipped_bundle: Path, flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(shipped_bundle), "x.jpg", *flags]) == 2
    said = capsys.readouterr()
    assert sentence in said.err and len(said.err.splitlines()) == 1 and said.out == ""


@pytest.mark.slow
def test_a_mask_comes_along_with_a_segmentation(
    predict: Predict, mask_bundle: Path, images: "Images", tmp_path: Path
) -> None:
    (tmp_path / "image.jpg").write_bytes(images.files[0])
    (line,) = predict(mask_bundle, tmp_path / "image.jpg")
    assert line["mask"].startswith("iVBORw0KGgo")  # a PNG in base64


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "server.cli.main", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_a_prediction_is_printed_before_the_next_text_comes_and_ctrl_c_ends_it(
    shipped_text_bundle: Path,
) -> None:
    process = start("predict", shipped_text_bundle, "-")
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("Stocks fell.\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["text"] == "Stocks fell."
    while process.poll() is None:  # one that comes within a collector's callback is lost
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert told.strip() == "eenet: stopped; inputs without a printed line have no prediction"


@pytest.mark.slow
def test_a_reader_that_leaves_ends_it_without_a_trace(shipped_text_bundle: Path) -> None:
    process = start("predict", shipped_text_bundle, "-")
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, told = process.communicate("Stocks fell.\n" * 3, timeout=60)
    assert process.returncode == 1 and told == ""
