import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from models.data.dataset import DataConfig
from models.training.run import RunConfig
from server.cli.options import add_data, data_of_run


def flags(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    add_data(parser, required=False)
    return parser.parse_args(["runs/mine", *given])


def run_of(**data: Any) -> RunConfig:
    return RunConfig("resnet8", {}, ("a", "b"), {}, data=asdict(DataConfig("pets", **data)))


def test_a_build_splits_as_the_training_did() -> None:
    split: dict[str, Any] = {
        "calibration_size": 20,
        "calibration_from": "test",
        "certification_size": 30,
        "seed": 4,
    }
    assert data_of_run(flags(), run_of(**split)) == DataConfig("pets", **split)


def test_flags_override_the_trainings() -> None:
    given = flags("--calibration-from", "test", "--certification-size", "9", "--dataset", "more")
    expected = DataConfig(
        "more", calibration_size=20, calibration_from="test", certification_size=9
    )
    assert data_of_run(given, run_of(calibration_size=20)) == expected


def test_an_imported_run_takes_all_from_the_flags() -> None:
    imported = RunConfig("resnet8", {}, (), {})
    given = flags("--dataset", "pets", "--calibration-from", "test", "--calibration-size", "7")
    expected = DataConfig("pets", calibration_size=7, calibration_from="test")
    assert data_of_run(given, imported) == expected
    with pytest.raises(ValueError, match="was imported, not trained here; give --dataset"):
        data_of_run(flags(), imported)


@pytest.mark.parametrize(
    ("data", "given", "told"),
    [
        ({}, ("--calibration-size", "9"), "would calibrate on rows .* the training's own share"),
        ({"calibration_size": 8}, ("--calibration-size", "9"), "give at most the training's own 8"),
        (
            {"calibration_from": "test"},
            ("--calibration-from", "train"),
            "--calibration-from train would calibrate on rows that runs/mine was trained on",
        ),
        (
            {"calibration_from": "test", "certification_size": 3},
            ("--certification-size", "4"),
            "would certify on rows that chose the weights of .* at most the training's own 3",
        ),
    ],
)
def test_rows_that_the_training_has_used_cannot_be_held_out(
    data: dict[str, Any], given: tuple[str, ...], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        data_of_run(flags(*given), run_of(**data))


@pytest.mark.parametrize(
    ("data", "given"),
    [
        ({"calibration_size": 8}, ("--calibration-size", "8")),
        ({"calibration_size": 8}, ("--calibration-size", "3")),
        # Test rows, of which the training used none.
        ({"calibration_size": 8}, ("--calibration-size", "9", "--calibration-from", "test")),
        ({"calibration_size": 8}, ("--certification-size", "99")),
        ({"calibration_from": "test", "certification_size": 3}, ("--certification-size", "2")),
        ({"calibration_from": "test", "calibration_size": 3}, ("--calibration-size", "4")),
    ],
)
def test_rows_that_the_training_has_not_used_may_be_held_out(
    data: dict[str, Any], given: tuple[str, ...]
) -> None:
    data_of_run(flags(*given), run_of(**data))
