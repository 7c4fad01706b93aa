import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from models.training.run import RunConfig
from scheduler.policies import POLICIES, describe_policies
from server.cli.main import COMMANDS, main
from tests.bundles import variant_of


def serve(*flags: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server.cli.main", "serve", "--port", "0", *flags]
    environment = {**os.environ, **environ}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


@pytest.fixture
def bundle(tmp_path: Path, shipped_bundle: Path) -> Path:
    return Path(shutil.copytree(shipped_bundle, tmp_path / "bundle"))


@pytest.mark.parametrize("which", range(5))
def test_a_missing_or_damaged_file_stops_the_start_with_one_sentence(
    bundle: Path, which: int, capsys: pytest.CaptureFixture[str]
) -> None:
    variant = variant_of(bundle)
    graphs = variant.stage_files[1], variant.head_files[0]
    scheduler = variant.scheduler() / "scheduler.npz"
    file = (bundle / "bundle.json", *graphs, scheduler, variant.predictions)[which]
    whole = file.read_bytes()
    for damaged in (None, whole[: len(whole) // 2]):
        file.unlink(missing_ok=True)
        if damaged is not None:
            file.write_bytes(damaged)
        assert main(["serve", "--bundle", str(bundle), "--log-level", "error"]) == 2
        told = capsys.readouterr().err
        assert str(file) in told and len(told.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--budget-ms", "0"], "budget_ms"),
        (["--window", "many"], "window"),
        (["--config", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_a_bad_setting_stops_the_start_with_one_sentence(
    flags: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *flags]) == 2
    told = capsys.readouterr().err
    assert named in told and len(told.strip().splitlines()) == 1


def test_a_model_that_cannot_start_is_told_without_a_trace() -> None:
    ended = serve("--device", "cuda", "--log-level", "error")
    assert ended.returncode != 0
    assert "install the extra `gpu`" in ended.stderr and "Traceback" not in ended.stderr


def test_an_unknown_variable_stops_the_start() -> None:
    ended = serve(EENET_BUDGET="1")
    assert ended.returncode == 2 and "did you mean 'EENET_BUDGET_MS'?" in ended.stderr


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_every_help_shows_an_example(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    _, _, example = text.partition("example")
    assert f"eenet {' '.join(command)}".strip() in example


@pytest.mark.parametrize("command", ["build", "fit"])
def test_every_policy_may_be_asked_for_and_stopping_is_the_default(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"--policy {{{','.join(POLICIES)}}}" in text
    assert "default: stopping" in text
    assert command == "build" or describe_policies() in text


def test_every_setting_is_a_flag_with_its_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in ("bundle", "device", "budget-ms", "measure", "window", "host", "port"):
        assert f"--{name}" in text
        assert f"$EENET_{name.replace('-', '_').upper()}" in text


DATA = (
    "dataset",
    "text-column",
    "label-column",
    "label-separator",
    "calibration-size",
    "calibration-from",
    "certification-size",
    "image-size",
    "skip-damaged",
)
TRAINING = (
    "out",
    "max-tokens",
    "epochs",
    "batch-size",
    "optimizer",
    "peak-lr",
    "weight-decay",
    "distill-weight",
    "seed",
    "device",
    "compile",
    "json",
)
FLAGS = {
    "train": ("arch", "settings", "exits", "heads", "init", "tokenizer", *DATA, *TRAINING),
    "attach": (
        "backbone",
        "onnx",
        "output",
        "preprocessing",
        "class-names",
        "arch",
        "exits",
        "budget-ms",
        "num-exits",
        "heads-only",
        *DATA,
        *TRAINING,
    ),
    "import": (
        "arch",
        "classes",
        "class-names",
        "settings",
        "latencies",
        "tokenizer",
        "max-tokens",
        "mean",
        "std",
        "out",
        "onnx",
        "triton",
        "num-exits",
        "preprocessing",
        *DATA,
        "json",
    ),
    "build": (
        "out",
        "name",
        *DATA,
        "policy",
        "prior",
        "precision",
        "max-precision-loss",
        "prune-vocabulary",
        "torch-weights",
        "model",
        "weights",
        "preprocessing",
        "license",
        "json",
    ),
}


@pytest.mark.parametrize("command", FLAGS)
def test_every_flag_is_in_the_help_and_explained(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    usage, _, options = text.partition("options:")
    described = re.split(r"\n  (?=-)", options.partition("\nexample:")[0])
    shown = {entry.split()[0]: entry for entry in described if entry.strip()}
    assert set(shown) == {"-h,", *(f"--{flag}" for flag in FLAGS[command])}
    for flag in FLAGS[command]:
        assert f"--{flag}" in usage
        assert re.search(r"[a-z]{3,}.* ", shown[f"--{flag}"].partition(" ")[2]), flag


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("train", ["--arch", "--dataset", "--out"]),
        ("import", ["--out"]),
        ("build", ["--out"]),
    ],
)
def test_what_must_be_given_is_named(
    command: str, needed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command])
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"the following arguments are required: {', '.join(needed)}")


@pytest.mark.parametrize(
    ("arguments", "offered"),
    [
        (["build", "run", "--out", "b", "--precision", "int4"], "did you mean 'int8'?"),
        (["build", "run", "--out", "b", "--policy", "oracle"], "stopping"),
        (["train", "--arch", "x", "--dataset", "d", "--out", "o", "--epochs", "many"], "int"),
        (["import", "c", "--arch", "x", "--classes", "ten", "--out", "o"], "int"),
        (["attach", "--backbone", "b", "--budget-ms", "fast"], "float"),
        (["train", "--arch", "x", "--dataset", "d", "--out", "o", "--colour", "1"], "--colour"),
    ],
)
def test_a_flag_that_cannot_be_read_is_named(
    arguments: list[str], offered: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert offered in capsys.readouterr().err.splitlines()[-1]


def test_build_names_what_a_folder_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(tmp_path), "--out", str(tmp_path / "b")]) == 2
    assert "run.json" in capsys.readouterr().err
    (tmp_path / "run.json").write_text(json.dumps({}))
    assert main(["build", str(tmp_path), "--out", str(tmp_path / "b")]) == 2
    assert "run.json is damaged" in capsys.readouterr().err
    config = RunConfig("resnet8", {"num_classes": 2}, ("ape", "bee"), {}, data={"dataset": "d"})
    (tmp_path / "run.json").write_text(json.dumps(config.to_json()))
    assert main(["build", str(tmp_path), "--out", str(tmp_path / "b")]) == 2
    assert "best.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["serv"], "unknown command 'serv'; did you mean 'serve'?"),
        (["zap"], "unknown command 'zap'; choose from serve, predict, info, train, attach"),
        (["serve", "--budgetms", "1"], "unknown option '--budgetms'; did you mean '--budget-ms'?"),
        (["serve", "--budget_ms=1"], "unknown option '--budget_ms'; did you mean '--budget-ms'?"),
        (["train", "--arh", "x"], "unknown option '--arh'; did you mean '--arch'?"),
        (["train", "--colour", "1"], "unknown option '--colour'; see eenet train --help"),
        (["--vresion"], "unknown option '--vresion'; did you mean '--version'?"),
        (["fit", "b", "--policy", "eennet"], "unknown choice 'eennet'; did you mean 'eenet'?"),
    ],
)
def test_what_was_meant_is_suggested(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--backend", "onxx"], "got 'onxx'; did you mean 'onnx'?"),
        (["--measure", "end-to-end"], "did you mean 'end_to_end'?"),
    ],
)
def test_the_value_of_a_setting_that_was_meant_is_suggested(
    flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *flags]) == 2
    assert sentence in capsys.readouterr().err


def test_values_that_look_like_options_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "nowhere", "--", "--file.jpg"]) == 2
    assert "bundle.json does not exist" in capsys.readouterr().err


def test_a_policy_that_was_meant_is_suggested(
    shipped_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(shipped_bundle), "--policies", "stoping"]) == 2
    assert "unknown policy 'stoping'; did you mean 'stopping'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["train"], ["attach"], ["build"], ["import"]])
def test_help_imports_no_torch(command: list[str]) -> None:
    code = (
        "import sys\n"
        "from server.cli.main import main\n"
        f"try: main([*{command!r}, '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'onnx', 'sklearn'} & set(sys.modules)))\n"
        "print('numpy' in sys.modules)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy, numpy = printed.stdout.splitlines()[-2:]
    assert heavy == "[]"
    assert command or numpy == "False"  # `eenet --help` imports next to nothing
