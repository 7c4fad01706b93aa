"""Heads of fine-tuned models: used in the right order, or reported; never dropped silently."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models.training.run import read_run
from models.training.trainer import Trainer
from server.cli.main import main

Sentence = Callable[..., str]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 200,
}


@pytest.fixture
def make_checkpoint(backbone: Path, tmp_path: Path) -> Callable[..., Path]:
    """Saves a BERT of a given class and settings, beside the tokenizer of `backbone`."""

    def make(kind: str = "BertForSequenceClassification", **settings: Any) -> Path:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        torch.manual_seed(0)
        config = transformers.BertConfig(**SIZES, **settings)
        folder = tmp_path / "checkpoint"
        getattr(transformers, kind)(config).save_pretrained(folder)
        for file in backbone.glob("tokenizer*"):
            shutil.copy(file, folder)
        return folder

    return make


def names(*given: str) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(given)),
        "label2id": {name: i for i, name in enumerate(given)},
    }


def write_texts(path: Path, *labels: str) -> Path:
    lines = [f"text number {i},{labels[i % len(labels)]}" for i in range(60)]
    path.write_text("text,label\n" + "\n".join(lines))
    return path


@pytest.fixture
def start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Callable[..., tuple[Trainer, tuple[str, ...], str]]:
    """Runs `eenet attach` up to the training: its trainer, the classes, and the log."""
    reached: list[Trainer] = []

    def stop(trainer: Trainer, *given: object) -> list[object]:
        reached.append(trainer)
        return []

    monkeypatch.setattr(Trainer, "run", stop)

    def run(checkpoint: Path, dataset: Path) -> tuple[Trainer, tuple[str, ...], str]:
        out = tmp_path / "run"
        flags = ["--exits", "1", "--dataset", dataset, "--out", out, "--batch-size", "8"]
        with caplog.at_level(logging.INFO, "models"):
            assert main(["attach", "--backbone", str(checkpoint), *map(str, flags)]) == 0
        return reached[-1], read_run(out).classes, caplog.text

    return run


def head_rows(trainer: Trainer) -> torch.Tensor:
    return trainer.model.heads[-1].linear.weight.detach()


def saved_rows(checkpoint: Path) -> torch.Tensor:
    return load_file(checkpoint / "model.safetensors")["classifier.weight"]


def test_a_head_is_compared_without_case_and_brought_into_order(
    make_checkpoint: Callable[..., Path], start: Callable[..., Any], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(**names("positive", "negative"))
    trainer, classes, log = start(
        checkpoint, write_texts(tmp_path / "d.csv", "NEGATIVE", "POSITIVE")
    )
    assert classes == ("NEGATIVE", "POSITIVE")
    assert torch.equal(head_rows(trainer), saved_rows(checkpoint)[[1, 0]])
    assert "the last exit starts from the classifier of" in log
    assert "NEGATIVE is its negative, POSITIVE is its positive" in log


def test_labels_that_are_the_numbers_of_the_classes_take_their_names(
    make_checkpoint: Callable[..., Path], start: Callable[..., Any], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(**names("negative", "positive"))
    trainer, classes, log = start(checkpoint, write_texts(tmp_path / "d.csv", "0", "1"))
    assert classes == ("negative", "positive")
    assert torch.equal(head_rows(trainer), saved_rows(checkpoint))
    assert "the labels are its numbers: 0 negative, 1 positive" in log


@pytest.mark.parametrize(
    ("given", "labels", "reason"),
    [
        (names("negative", "positive"), ("bad", "good"), "its classes are negative, positive"),
        (names("a", "b", "c"), ("a", "b"), "it has 3 classes (a, b, c), the dataset 2"),
        ({}, ("bad", "good"), "does not tell their order"),
    ],
)
def test_a_head_that_cannot_be_used_is_reported_and_starts_anew(
    make_checkpoint: Callable[..., Path],
    start: Callable[..., Any],
    tmp_path: Path,
    given: dict[str, Any],
    labels: tuple[str, ...],
    reason: str,
) -> None:
    checkpoint = make_checkpoint(**given)
    trainer, classes, log = start(checkpoint, write_texts(tmp_path / "d.csv", *labels))
    assert classes == labels
    assert reason in log and "the last exit starts anew" in log
    saved = saved_rows(checkpoint)
    assert saved.shape != head_rows(trainer).shape or not torch.equal(head_rows(trainer), saved)


def test_an_encoder_without_a_head_says_so(
    backbone: Path, reviews: Path, start: Callable[..., Any]
) -> None:
    _, _, log = start(backbone, reviews)
    assert f"{backbone} has no classifier: the last exit starts anew" in log


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        (
            "BertForSequenceClassification",
            {"problem_type": "multi_label_classification"},
            "was fine-tuned for several labels per row",
        ),
        (
            "BertForSequenceClassification",
            {"problem_type": "regression", "num_labels": 1},
            "was made for regression",
        ),
        ("BertForSequenceClassification", {"num_labels": 1}, "was made for regression"),
        ("BertForTokenClassification", {}, "was made for token classification"),
        ("BertLMHeadModel", {"is_decoder": True}, "was made for generation"),
    ],
)
def test_other_tasks_are_one_sentence(
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    settings: dict[str, Any],
    expected: str,
) -> None:
    checkpoint = make_checkpoint(kind, **settings)
    dataset = write_texts(tmp_path / "d.csv", "0", "1")
    flags = ["--exits", "1", "--dataset", str(dataset), "--out", str(tmp_path / "run")]
    assert main(["attach", "--backbone", str(checkpoint), *flags]) == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_files_that_are_not_an_encoder_are_one_sentence(
    make_checkpoint: Callable[..., Path], tmp_path: Path, reviews: Path, sentence: Sentence
) -> None:
    checkpoint = make_checkpoint()
    flags = ["--exits", "1", "--dataset", reviews, "--out", tmp_path / "run"]
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-99])
    said = sentence("attach", "--backbone", checkpoint, *flags)
    assert "model.safetensors is damaged or cut off" in said
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    said = sentence("attach", "--backbone", checkpoint, *flags)
    assert "model.safetensors is a Git LFS pointer" in said
