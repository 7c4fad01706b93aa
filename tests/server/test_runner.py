from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.bundle import load_bundle
from server.engine.request import InferenceRequest, Prediction
from server.lifespan import until_next_s
from server.runner import ModelRunner
from server.settings import Settings

ROW = (np.zeros((1, 3, 32, 32), np.float32),)
BROKEN_ROW = (np.zeros((1, 3, 32, 32)),)  # float64, which the graphs do not take


@pytest.fixture
def runner(shipped_bundle: Path) -> ModelRunner:
    """A runner without workers."""
    settings = Settings(bundle=(shipped_bundle,), max_batch=1, precision="float32")
    runner = ModelRunner(load_bundle(shipped_bundle), settings)
    runner.engine.workers = 0
    return runner


def run_out(runner: ModelRunner) -> None:
    while runner.engine.run_batch():
        pass


def test_it_is_quiet_unless_a_report_has_something_to_say(runner: ModelRunner) -> None:
    done: list[InferenceRequest] = []
    runner.start(done.extend)
    assert runner.is_quiet
    runner.submit([InferenceRequest(ROW)])
    assert not runner.is_quiet, "a request waits"
    run_out(runner)
    assert isinstance(done[0].result, Prediction)
    assert not runner.is_quiet, "batches are to be reported"
    assert len(runner.take_work().stages) == 3
    assert runner.is_quiet


@pytest.mark.parametrize("is_broken", [False, True])
def test_after_a_failure_it_is_quiet_again_once_a_probe_has_passed(
    runner: ModelRunner, is_broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.start(lambda requests: None)
    runner.submit([InferenceRequest(BROKEN_ROW)])
    run_out(runner)
    assert not runner.is_quiet
    if is_broken:
        monkeypatch.setattr(runner.engine.backend, "run_stage", lambda stage, state: 1 / 0)
    assert runner.take_work().fault is None
    run_out(runner)
    assert not runner.is_quiet, "the probe's result is to be read"
    assert (runner.take_work().fault is not None) is is_broken
    assert runner.is_quiet is not is_broken


@pytest.mark.parametrize(
    ("period_s", "now_s", "left_s"), [(0.5, 10.0, 0.5), (0.5, 10.2, 0.3), (0.25, 10.2, 0.05)]
)
def test_processes_wake_together(period_s: float, now_s: float, left_s: float) -> None:
    assert until_next_s(period_s, now_s) == pytest.approx(left_s)
