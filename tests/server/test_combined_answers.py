"""Combined answers from fit to served answer: evaluate, certify and the server agree exactly."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from models.bundle import LABEL_FREE
from models.preprocess import ImagePreprocessor
from models.runtime.replay_backend import ReplayBackend
from models.stage_costs import StageCosts
from profiling.calibration import Predictions, Recorded
from scheduler.combiner import log_softmax
from scheduler.fitted import Scheduler, load_scheduler
from scheduler.policy import exits_taken, replay
from server.app import create_app
from server.cli.main import main
from server.pipeline.refit import refit
from server.processes.messages import pack_scheduler, unpack_scheduler
from server.settings import Settings
from tests.bundles import recorded_of, scheduler_of, variant_of
from tests.server.conftest import write_bundle

pytestmark = pytest.mark.usefixtures("quick_fits")

ROWS = {"calibration": 600, "certification": 500, "test": 150}
BUDGET = 1.8
Ints = NDArray[np.intp]


def independent(rows: int, seed: int) -> Predictions:
    """Three heads of evidence of their own, so that all together are better than the last."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, rows)
    logits = 1.5 * (rng.normal(size=(3, rows, 4)) + 1.5 * np.eye(4)[labels])
    log_probs = np.stack([log_softmax(each) for each in logits])
    return Predictions(log_probs.astype(np.float16), labels)


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded(*(independent(rows, seed) for seed, rows in enumerate(ROWS.values())))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, recorded: Recorded) -> Path:
    """A bundle with schedulers fitted to labels and without; it starts with the former."""
    folder = write_bundle(tmp_path_factory.mktemp("combined") / "bundle", recorded)
    refit(folder, policy="stopping", label_free=True)
    refit(folder, policy="stopping")
    return folder


@pytest.fixture
def client(bundle: Path, tmp_path: Path) -> Iterator[TestClient]:
    """Serves the recorded test rows; stages take the time that the schedulers were fitted for."""
    costs = tmp_path / "costs.json"
    costs.write_text(json.dumps(StageCosts((1,), np.array([[1.0], [1.0], [1.3]])).to_json()))
    settings = Settings(bundle=(bundle,), backend="replay", replay_costs=costs, audit_share=1.0)
    with TestClient(create_app(settings)) as client:
        yield client


def images(count: int) -> list[bytes]:
    rng, files = np.random.default_rng(0), []
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(file, "PNG")
        files.append(file.getvalue())
    return files


def rows_of(bundle: Path, files: list[bytes]) -> list[int]:
    """The recorded row that the replaying server takes for each image."""
    preprocess = variant_of(bundle).bundle.preprocessor(10**6)
    assert isinstance(preprocess, ImagePreprocessor)
    log_probs = recorded_of(bundle).test.log_probs
    backend = ReplayBackend(log_probs, StageCosts((1,), np.zeros((3, 1))))
    return [int(backend.run_stage(0, preprocess(file).state)[0][0]) for file in files]


def offline(scheduler: Scheduler, log_probs: NDArray[np.floating], parameter: float) -> Ints:
    """Exits and answers (2, N) of a replay."""
    answers = scheduler.combiner.combine_all(log_probs)
    exits = exits_taken(scheduler.policy, replay(scheduler.policy, answers), parameter)
    return np.stack([exits, answers.argmax(-1)[exits, np.arange(len(exits))]])


def arrays_in(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def test_a_fit_combines_and_gains_by_it(bundle: Path, recorded: Recorded) -> None:
    scheduler = scheduler_of(bundle)
    assert not scheduler.combiner.empty
    combined = recorded.test.combined(scheduler.combiner)
    right = [part.correct.mean(0) for part in (recorded.test, combined)]
    assert (right[1][1:] > right[0][1:] + 0.02).all()
    told = scheduler.frontier.expected_accuracy[-1]
    assert told == pytest.approx(right[1][-1], abs=0.05)


def test_a_fit_without_labels_leaves_the_last_exit_as_it_is(bundle: Path) -> None:
    combiner = load_scheduler(variant_of(bundle).scheduler("stopping" + LABEL_FREE)).combiner
    assert not combiner.empty and combiner.weights[-1] is None


def test_evaluate_writes_what_a_replay_answers(
    bundle: Path, recorded: Recorded, tmp_path: Path
) -> None:
    asked = ["--policies", "stopping,maxprob,oracle", "--budgets", str(BUDGET)]
    out = ["--exits", str(tmp_path / "exits.npz"), "--json", str(tmp_path / "figures.json")]
    assert main(["evaluate", str(bundle), *asked, *out]) == 0
    written = arrays_in(tmp_path / "exits.npz")
    scheduler = scheduler_of(bundle)
    parameter = scheduler.frontier.at_cost(BUDGET).parameter
    exits, answers = offline(scheduler, recorded.test.log_probs, parameter)
    assert np.array_equal(written[f"stopping@{BUDGET}"], exits)
    assert np.array_equal(written[f"stopping@{BUDGET}/answers"], answers)
    # All that are fitted to the same labels share their combiner.
    maxprob = written[f"maxprob@{BUDGET}"]
    combined = scheduler.combiner.combine_all(recorded.test.log_probs).argmax(-1)
    served = combined[maxprob, np.arange(len(maxprob))]
    assert np.array_equal(written[f"maxprob@{BUDGET}/answers"], served)
    results = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert all(row["feasible"] for row in results)
    right = {row["policy"]: row["test_accuracy"] for row in results}
    assert right["oracle"] >= max(right.values())


@pytest.mark.parametrize(
    ("promise", "name"),
    [("--max-disagreement", "stopping" + LABEL_FREE), ("--max-accuracy-loss", "stopping")],
)
def test_certify_writes_what_a_replay_answers(
    bundle: Path, recorded: Recorded, tmp_path: Path, promise: str, name: str
) -> None:
    out = ["--exits", str(tmp_path / "exits.npz"), "--json", str(tmp_path / "figures.json")]
    assert main(["certify", str(bundle), promise, "0.1", *out]) == 0
    written = arrays_in(tmp_path / "exits.npz")
    document = json.loads((tmp_path / "figures.json").read_text())
    scheduler = load_scheduler(variant_of(bundle).scheduler(name))
    exits, answers = offline(scheduler, recorded.test.log_probs, document["parameter"])
    assert np.array_equal(written["exits"], exits)
    assert np.array_equal(written["answers"], answers)
    _, last = offline(scheduler, recorded.test.log_probs, scheduler.policy.never_exit_parameter)
    assert np.array_equal(written["last"], last)


@pytest.mark.slow
def test_served_answers_are_those_of_a_replay(client: TestClient, bundle: Path) -> None:
    """The parameter may move between two answers; those during which it did do not count."""
    files = images(40)
    rows, scheduler = rows_of(bundle, files), scheduler_of(bundle)
    log_probs = recorded_of(bundle).test.log_probs[:, rows].astype(np.float32)
    combined = scheduler.combiner.combine_all(log_probs)
    compared = list[int]()
    for budget_ms in (None, BUDGET, 1e-3):
        client.put("/budget", json={"budget_ms": budget_ms, "max_disagreement": 0})
        for row, file in enumerate(files):
            before = client.get("/budget").json()["models"][0]["parameter"]
            answer = client.post(
                "/predict?trace=true", content=file, headers={"content-type": "image/png"}
            ).json()
            for entry in answer["trace"]:
                assert entry["confidence"] == pytest.approx(
                    np.exp(combined[entry["exit"], row]).max(), rel=1e-5
                )
            assert answer["confidence"] == answer["trace"][-1]["confidence"]
            assert answer["class_id"] == combined[answer["exit"], row].argmax()
            if before == client.get("/budget").json()["models"][0]["parameter"]:
                exit, answered = offline(scheduler, log_probs[:, row : row + 1], before)[:, 0]
                assert (answer["exit"], answer["class_id"]) == (exit, answered)
                compared.append(answer["exit"])
    assert len(compared) > 40 and {0, 2} <= set(compared)


def audit_of(client: TestClient) -> dict[str, Any]:
    (state,) = client.get("/audit").json()["models"]
    return state


def test_audits_compare_combined_answers_and_keep_the_heads_own_outputs(
    client: TestClient, bundle: Path
) -> None:
    client.put("/budget", json={"budget_ms": 1e-3})
    files = images(30)
    for file in files:
        client.post("/predict", content=file, headers={"content-type": "image/png"})
    state = audit_of(client)
    while state["samples"] + state["skipped"] < len(files):  # the last ones are still on their way
        state = audit_of(client)
    content = client.get("/audit/rows", params={"model": "pets"}).content
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        heads, exits = arrays["log_probs"], arrays["exits"]
    recorded = {rows.tobytes() for rows in recorded_of(bundle).test.log_probs.swapaxes(0, 1)}
    assert heads.shape[1] > 10
    assert all(np.ascontiguousarray(rows).tobytes() in recorded for rows in heads.swapaxes(0, 1))
    answers = scheduler_of(bundle).combiner.combine_all(heads.astype(np.float32)).argmax(-1)
    alike = answers[exits, np.arange(len(exits))] == answers[-1]
    assert state["agreement"] == pytest.approx(alike[exits < 2].mean())


def test_engines_of_other_processes_get_the_combiner(bundle: Path) -> None:
    scheduler = scheduler_of(bundle)
    packed = pack_scheduler("activate", scheduler, model=0)
    combiner = unpack_scheduler(packed).combiner
    for weights, again in zip(scheduler.combiner.weights, combiner.weights, strict=True):
        assert np.array_equal(weights, again)
