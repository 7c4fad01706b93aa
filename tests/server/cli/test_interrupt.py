"""Ctrl-C: exit status 130, no traceback, and a sentence that says how to go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models.training.trainer import EpochReport, Trainer
from server.cli.main import COMMANDS, main

RESNET = ("--arch", "resnet8", "--exits", "1", "--heads", "4/2", "--batch-size", "8")


def ended(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The last line of a command that Ctrl-C ends."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 130
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err and printed.out == ""
    return printed.err.splitlines()[-1]


def press_ctrl_c(*given: object, **named: object) -> None:
    raise KeyboardInterrupt


def test_a_training_says_whether_there_is_a_checkpoint(
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    train = ("train", *RESNET, "--epochs", 2, "--dataset", image_folder, "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr("models.data.load.load_dataset", press_ctrl_c)
        assert ended(capsys, *train) == (
            "eenet: stopped; nothing was written; run the same command again"
        )
        assert not out.exists()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", press_ctrl_c)
        assert ended(capsys, *train) == (
            f"eenet: stopped before the first checkpoint; the same command starts {out} again"
        )
    run_epoch, reports = Trainer._run_epoch, []

    def one_epoch(self: Trainer, on_step: object) -> EpochReport:
        if reports:
            raise KeyboardInterrupt
        reports.append(run_epoch(self, on_step))  # type: ignore[arg-type]
        return reports[0]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_run_epoch", one_epoch)
        assert ended(capsys, *train) == (
            f"eenet: stopped; the same command resumes from the last checkpoint in {out}"
        )
    assert main([str(word) for word in train]) == 0  # and so it does
    assert [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch 1")
    ] == []


def test_a_build_leaves_the_older_bundle_and_no_remains(
    text_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.pipeline.runs.export_graphs", press_ctrl_c)
    out = tmp_path / "bundle"
    assert ended(capsys, "build", text_run, "--out", out) == (
        f"eenet: stopped; {out} is as it was; the same command builds it from the start"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "patched", "sentence"),
    [
        (["fit", "B"], "server.pipeline.refit.fit_kind", "keeps the scheduler that it had"),
        (["profile", "B"], "server.cli.profile.measure_latency", "keeps the profile that it had"),
        (["evaluate", "B"], "profiling.evaluation.evaluate.compare", "comparison is not kept"),
        (
            ["certify", "B", "--max-disagreement", "0.01"],
            "server.cli.certify.bound_policy",
            "nothing was written",
        ),
        (["simulate", "B"], "server.cli.simulate.simulate", "nothing was written"),
        (["info", "B"], "server.cli.info.describe", "nothing was written"),
        (["predict", "B", "x.jpg"], "server.cli.predict.measure_costs", "have no prediction"),
    ],
)
def test_other_commands_say_what_they_leave(
    arguments: list[str],
    patched: str,
    sentence: str,
    shipped_bundle: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patched, press_ctrl_c)
    before = {path: path.read_bytes() for path in shipped_bundle.rglob("*") if path.is_file()}
    given = [str(shipped_bundle) if word == "B" else word for word in arguments]
    assert sentence in ended(capsys, *given)
    assert before == {p: p.read_bytes() for p in shipped_bundle.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_signal_during_the_imports_of_a_real_process_leaves_no_trace(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "server.cli.main", "evaluate", str(tmp_path)]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ)
    time.sleep(0.6)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    # 2: it was quicker; killed by the signal: it came before Python had a handler.
    assert process.returncode in (130, 2, -signal.SIGINT) and "Traceback" not in told


def test_every_command_has_its_sentence() -> None:
    import importlib

    for module, _ in COMMANDS.values():
        assert callable(importlib.import_module(f"server.cli.{module}").interrupted)
