from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scheduler.fitted import load_scheduler
from server.cli.main import main


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """Two exits, the second of which is better; 300 calibration and 100 test rows."""
    random, arrays = np.random.default_rng(0), {}
    for part, rows in (("calibration", 300), ("test", 100)):
        labels = random.integers(0, 3, rows)
        logits = random.normal(size=(2, rows, 3))
        logits[:, np.arange(rows), labels] += np.array([[1.0], [3.0]])
        arrays[f"{part}_probs"] = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        arrays[f"{part}_labels"] = labels
    np.savez(tmp_path / "mine.npz", **arrays)
    return tmp_path / "mine.npz"


def command(predictions: Path, *more: object) -> list[str]:
    return ["fit", "--predictions", str(predictions), *map(str, more)]


@pytest.mark.slow
def test_a_scheduler_is_fitted_to_predictions_and_costs(
    predictions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scheduler"
    flags = ["--costs", "1,3", "--out", out, "--policy", "maxprob", "--json"]
    assert main(command(predictions, *flags)) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["scheduler"] == str(out) and len(told["evaluations"]) == 7
    scheduler = load_scheduler(out)
    assert scheduler.policy.kind == "maxprob"
    assert scheduler.frontier.costs_ms.tolist() == [1.0, 3.0]


@pytest.mark.slow
def test_test_rows_may_be_missing(predictions: Path, tmp_path: Path) -> None:
    with np.load(predictions) as arrays:
        kept = {name: arrays[name] for name in arrays.files if name.startswith("calibration")}
    np.savez(predictions, **kept)
    flags = ["--costs", "1,3", "--out", tmp_path / "s", "--policy", "maxprob"]
    assert main(command(predictions, *flags)) == 0
    assert load_scheduler(tmp_path / "s").policy.num_exits == 2


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--out", "s"], "--predictions needs --costs"),
        (["--costs", "1,3"], "--predictions needs --out"),
        (["--costs", "1,3,4", "--out", "s"], "costs"),
        (["--costs", "1,3", "--out", "s", "--precision", "int8"], "--precision needs a bundle"),
        (["bundle", "--costs", "1,3", "--out", "s"], "give either a bundle or --predictions"),
    ],
)
def test_flags_that_do_not_fit_are_one_sentence(
    predictions: Path, capsys: pytest.CaptureFixture[str], flags: list[str], expected: str
) -> None:
    assert main(command(predictions, *flags)) == 2
    assert expected in capsys.readouterr().err


def test_a_fit_needs_a_bundle_or_predictions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit"]) == 2
    assert "give either a bundle" in capsys.readouterr().err
