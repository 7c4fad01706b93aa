"""The commands of docs/training.md for an own model, with a tiny backbone and few texts."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from models.bundle import load_bundle
from server.cli.main import main
from tests.documents import examples, split_commands, without_numbers
from tests.server.conftest import write_reviews

SECTION = ("eenet attach --backbone my-minilm", "eenet build runs/news")


def told(text: str) -> str:
    """The words of a text; a precision's rows of a table are one, as a run of numbers is."""
    row = r"((?:int|float)N) N [+-]N"
    return re.sub(rf"{row}(?: \1 N [+-]N)*", r"\1 N", without_numbers(text))


@pytest.mark.slow
def test_an_own_model_becomes_a_bundle(
    backbone: Path,
    tmp_path: Path,
    building_quickly: Callable[[], AbstractContextManager[None]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_reviews(tmp_path / "reviews.csv", 300)  # int8 needs a hundred rows to train on
    tiny = {
        "my-minilm": str(backbone),
        "ag_news/": "reviews.csv",
        "0": "text",  # the columns' names: this table has a line of them
        "1": "label",
        "1,2,4,6": "1",
        "2000": "20",
    }
    monkeypatch.chdir(tmp_path)
    for start in SECTION:
        (example,) = (each for each in examples("docs/training.md") if start in each.commands)
        ((_, *words),) = split_commands(example.commands)
        more = {
            "attach": ["--epochs", "3", "--batch-size", "8"],
            "build": ["--max-precision-loss", "1"],  # one of the few test rows is a lot
        }
        with building_quickly():
            assert main([tiny.get(word, word) for word in words] + more[words[0]]) == 0
        assert example.output is not None
        captured = capsys.readouterr()
        printed = told(captured.err + captured.out)  # epochs go to standard error
        for shown in told(example.output).split(" ..."):
            assert shown.strip() in printed
    bundle = load_bundle(tmp_path / "ag-news-minilm")
    assert (bundle.manifest.name, bundle.manifest.task) == ("ag-news-minilm", "text")
    assert bundle.precisions == ("int8", "float32")
