import json
from pathlib import Path
from typing import Any

import pytest

from models.bundle import load_bundle
from server.cli.main import main


def described(capsys: pytest.CaptureFixture[str], folder: Path) -> dict[str, Any]:
    assert main(["info", str(folder), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_images_are_described(capsys: pytest.CaptureFixture[str], shipped_bundle: Path) -> None:
    manifest = load_bundle(shipped_bundle).manifest
    told = described(capsys, shipped_bundle)
    assert (told["name"], told["task"], told["policy"]) == (manifest.name, "image", "stopping")
    assert told["classes"] == list(manifest.classes)
    assert told["input"] == {"kind": "image", "height": 32, "width": 32}
    assert (told["precision"], told["default_budget_ms"]) == ("float32", manifest.default_budget_ms)
    reached = [each["test_accuracy"] for each in told["exits"]]
    assert reached == pytest.approx(manifest.training["test_accuracy"], abs=1e-4)
    costs = [each["cost_ms"] for each in told["exits"]]
    assert costs == sorted(costs) and costs[0] > 0
    assert (
        told["bytes"]
        == sum(path.stat().st_size for path in shipped_bundle.rglob("*") if path.is_file())
        - (shipped_bundle / "bundle.json").stat().st_size
    )
    assert sum(told["at_default_budget"]["exit_rates"]) == pytest.approx(1, abs=1e-3)


def test_texts_are_described(capsys: pytest.CaptureFixture[str], shipped_text_bundle: Path) -> None:
    told = described(capsys, shipped_text_bundle)
    assert told["precision"] == "int8" and set(told["measured"]) == {"float32", "int8"}
    assert told["input"]["max_tokens"] == 128 and told["input"]["vocabulary"] > 10_000


def test_people_get_a_table(capsys: pytest.CaptureFixture[str], shipped_bundle: Path) -> None:
    assert main(["info", str(shipped_bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "10: airplane, automobile, bird" in lines[2]
    assert lines[3].split(maxsplit=1) == ["input", "images of 32x32"]
    assert [line.split()[0] for line in lines[-3:]] == ["0", "1", "2"]
    assert "84.28" in lines[-3]


def test_a_folder_without_a_bundle_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["info", str(tmp_path)]) == 2
    assert "bundle.json does not exist" in capsys.readouterr().err
