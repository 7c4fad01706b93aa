"""The README's commands for an own model, with a tiny backbone and few texts."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from models.bundle import load_bundle
from server.cli.main import main
from tests.documents import examples, split_commands, without_numbers

SECTION = ("eenet attach --backbone my-minilm", "eenet build runs/news")


def test_an_own_model_becomes_a_bundle(
    backbone: Path,
    reviews: Path,
    tmp_path: Path,
    building_quickly: Callable[[], AbstractContextManager[None]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny = {
        "my-minilm": str(backbone),
        "ag_news/": str(reviews),
        "0": "text",  # the columns' names: this table has a line of them
        "1": "label",
        "1,2,4,6": "1",
        "2000": "20",
    }
    monkeypatch.chdir(tmp_path)
    for start in SECTION:
        (example,) = (each for each in examples("README.md") if start in each.commands)
        ((_, *words),) = split_commands(example.commands)
        epochs = ["--epochs", "3", "--batch-size", "8"] if words[0] == "attach" else []
        with building_quickly():
            assert main([tiny.get(word, word) for word in words] + epochs) == 0
        assert example.output is not None
        shown = without_numbers(example.output).partition(" ...")[0]
        printed = capsys.readouterr()
        assert shown in without_numbers(printed.err + printed.out)  # epochs go to standard error
    bundle = load_bundle(tmp_path / "ag-news-minilm")
    assert (bundle.manifest.name, bundle.manifest.task) == ("ag-news-minilm", "text")
