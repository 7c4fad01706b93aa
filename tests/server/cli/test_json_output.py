"""With a bare --json, standard output holds one JSON document and nothing else."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from server.cli.main import COMMANDS, main
from tests.onnx_models import exits_net, save
from tests.small_bundles import write_image_bundle

TRAIN = ("--epochs", "1", "--batch-size", "8")
# The load test needs a server and push a hub: their own tests parse all of their standard output.
TESTED = (
    "train", "attach", "import", "build", "profile", "fit", "simulate", "info", "cascade",
    "loadtest", "push",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_with_a_bare_json_flag_has_a_test(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    is_bare = re.search(r"--json +print", " ".join(capsys.readouterr().out.split())) is not None
    assert is_bare == (command in TESTED)


def document(capfd: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """Runs a command and parses all that its process wrote to standard output."""
    capfd.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capfd.readouterr().out)


def test_train(capfd: pytest.CaptureFixture[str], image_folder: Path, tmp_path: Path) -> None:
    flags = ("--arch", "resnet8", "--exits", "1", "--heads", "4/2", *TRAIN)
    (report,) = document(capfd, "train", "--dataset", image_folder, "--out", tmp_path, *flags)
    assert report["epoch"] == 1


def test_attach(
    capfd: pytest.CaptureFixture[str], backbone: Path, reviews: Path, tmp_path: Path
) -> None:
    flags = ("--backbone", backbone, "--dataset", reviews, "--out", tmp_path, *TRAIN)
    # The choice of exits is printed too.
    (report,) = document(capfd, "attach", "--budget-ms", 1000, "--num-exits", 2, *flags)
    assert report["epoch"] == 1


def test_import(capfd: pytest.CaptureFixture[str], image_folder: Path, tmp_path: Path) -> None:
    path = save(exits_net(2), tmp_path / "net.onnx")
    (tmp_path / "preprocessing.json").write_text('{"size": 16}')
    flags = ("--preprocessing", tmp_path / "preprocessing.json", "--calibration-size", 3)
    given = ("--onnx", path, "--dataset", image_folder, "--out", tmp_path / "run")
    assert document(capfd, "import", *given, *flags)["exits"] == ["exit_0", "exit_1"]


@pytest.mark.slow
def test_build(
    capfd: pytest.CaptureFixture[str], text_run: Path, tmp_path: Path, quick_builds: None
) -> None:
    flags = ("--out", tmp_path / "bundle", "--policy", "maxprob")
    assert "exit_accuracy" in document(capfd, "build", text_run, *flags)


@pytest.mark.slow
def test_fit_profile_and_info(
    capfd: pytest.CaptureFixture[str], shipped_bundle: Path, tmp_path: Path, quick_fits: None
) -> None:
    folder = shutil.copytree(shipped_bundle, tmp_path / "bundle")
    assert "evaluations" in document(capfd, "fit", folder, "--policy", "maxprob")
    few = ("--batch-sizes", "1", "--repeats", "1")
    assert "costs_ms" in document(capfd, "profile", folder, *few)
    assert "precisions" in document(capfd, "info", folder)


@pytest.mark.slow
def test_cascade(capfd: pytest.CaptureFixture[str], tmp_path: Path, quick_fits: None) -> None:
    folders = [
        write_image_bundle(tmp_path / name, 8, accuracies).folder
        for name, accuracies in (("small", (0.7,)), ("large", (0.8, 0.95)))
    ]
    flags = ("--out", tmp_path / "both", "--policy", "maxprob")
    assert "float32" in document(capfd, "cascade", *folders, *flags)["precisions"]


def test_simulate(capfd: pytest.CaptureFixture[str]) -> None:
    flags = ("--costs", "1,2", "--exit-rates", "0.5,0.5", "--samples", 100)
    assert "modes" in document(capfd, "simulate", *flags)


def test_what_libraries_print_goes_to_standard_error(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shipped_bundle: Path
) -> None:
    from server.cli import info

    plain = info.describe

    def chatty(bundle: object) -> object:
        print("a word from a library")
        return plain(bundle)  # type: ignore[arg-type]

    monkeypatch.setattr(info, "describe", chatty)
    assert main(["info", str(shipped_bundle), "--json"]) == 0
    printed = capfd.readouterr()
    assert json.loads(printed.out)["task"] == "image"
    assert "a word from a library" in printed.err
