import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import tasks
from benchmarks.peers.tasks import PlainNetwork, Replay, Task, image_task, judge_of_peer, text_task
from models.bundle import Precision, load_bundle, rewrite_manifest
from profiling.calibration import load_recorded
from profiling.loadtest.load import LoadResult
from scheduler.fitted import load_scheduler

INPUTS = 4


def result(answers: Sequence[dict[str, object]], calls: Sequence[int]) -> LoadResult:
    """Answers to some calls, and one call without an answer."""
    bodies = [*(json.dumps(answer).encode() for answer in answers), b""]
    zeros = np.zeros(len(bodies))
    outcome = np.array(["200"] * len(answers) + ["timed out"])
    return LoadResult(np.array([*calls, 0]), zeros, zeros, zeros, outcome, bodies)


def bundle_with(precisions: Sequence[Precision], shipped: Path, folder: Path) -> Path:
    """A copy of a bundle that says it has these precisions; all have the graphs of float32."""
    shutil.copytree(shipped, folder)
    bundle = load_bundle(folder)
    entry = bundle.variant("float32").entry
    rewrite_manifest(bundle, precisions=dict.fromkeys(precisions, entry))
    return folder


def test_a_peer_is_judged_by_the_graph_that_it_serves() -> None:
    judge = judge_of_peer(PlainNetwork("int8", Path("graph.onnx"), np.array([3, 5])))
    assert judge(result([{"class_id": 5}, {"class_id": 3}, {"class_id": 5}], [1, 0, 0])) == 1


def test_images_have_a_plain_network_in_both_precisions() -> None:
    task = image_task(["float32", "int8"], INPUTS)
    assert [plain.precision for plain in task.plain] == ["float32", "int8"]
    assert len({plain.graph for plain in task.plain}) == 2
    assert all(plain.classes.shape == (INPUTS,) for plain in task.plain)
    assert task.accuracy["int8"] == pytest.approx(task.accuracy["float32"], abs=0.005)
    assert not task.left_out


def test_texts_without_int8_leave_only_that_row_out(
    shipped_text_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = bundle_with(["float32"], shipped_text_bundle, tmp_path / "single")
    monkeypatch.setattr(tasks, "TEXT_BUNDLE", single)
    monkeypatch.setattr(tasks, "BUILD", tmp_path)
    task = text_task(["float32", "int8"], INPUTS)
    assert [plain.precision for plain in task.plain] == ["float32"]
    (reason,) = task.left_out.values()
    assert "holds no int8 network" in reason
    test = load_recorded(load_bundle(single).variant("float32").predictions).test
    assert task.accuracy == {"float32": pytest.approx(test.correct[:, -1].mean())}


def test_texts_take_each_plain_network_from_its_own_precision(
    shipped_text_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = bundle_with(["int8", "float32"], shipped_text_bundle, tmp_path / "both")
    monkeypatch.setattr(tasks, "TEXT_BUNDLE", both)
    monkeypatch.setattr(tasks, "BUILD", tmp_path)
    task = text_task(["int8"], INPUTS)
    assert [plain.graph.name for plain in task.plain] == ["minilm-int8.onnx"]
    assert set(task.accuracy) == {"float32", "int8"}  # float32's is the bar even if it has no row


@pytest.fixture(scope="module")
def image() -> tuple[Task, Replay]:
    task = image_task(["float32"], INPUTS)
    return task, Replay(task, task.bundle.variant("float32"))


def test_our_answers_are_judged_by_the_graphs_at_their_exits(image: tuple[Task, Replay]) -> None:
    task, replay = image
    best = tasks.log_probs_alone(task.bundle.variant("float32"), task.bodies).argmax(-1)  # (K, N)
    last = len(best) - 1
    answers = [
        {"exit": exit, "class_id": int(best[exit, call])} for exit in (0, last) for call in (0, 1)
    ]
    calls = [0, 1, 0, 1]
    assert replay.count_wrong(result(answers, calls), to_the_end=False) == 0
    assert replay.count_wrong(result(answers, calls), to_the_end=True) == 2
    answers[3]["class_id"] = (int(best[last, 1]) + 1) % 10
    assert replay.count_wrong(result(answers, calls), to_the_end=False) == 1


def test_at_the_last_exit_the_accuracy_is_that_of_the_recorded_predictions(
    image: tuple[Task, Replay],
) -> None:
    task, replay = image
    variant = task.bundle.variant("float32")
    scheduler = load_scheduler(variant.scheduler())
    test = load_recorded(variant.predictions).test.combined(scheduler.combiner)
    never = scheduler.policy.never_exit_parameter
    assert replay.accuracy(never) == pytest.approx(test.correct[:, -1].mean())
    assert replay.exit_rates(never).tolist() == [0] * (task.bundle.manifest.num_exits - 1) + [1]
