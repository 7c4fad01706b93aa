import dataclasses
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from models.bundle import load_bundle
from models.data import Dataset, load_dataset
from models.onnx_backend import OnnxBackend
from models.resnet import cifar_resnet
from models.run import Conv, TrainConfig
from models.train import predict_logits
from profiling.calibration import load_recorded
from profiling.evaluate import spread_budgets
from scheduler.frontier import Frontier
from scheduler.scheduler import load_scheduler
from server.build import Built, Run, build_bundle, default_budget_ms, load_run
from server.train_command import claim_folder

pytestmark = pytest.mark.usefixtures("quick_fits")


class Case(NamedTuple):
    run_folder: Path
    run: Run
    data: Dataset
    built: Built
    said: list[str]


def make_dataset(folder: Path, classes: tuple[str, ...] = ("ape", "bee", "cat")) -> Path:
    """Ten training and eight test pictures of noise for each class, 8x8."""
    random = np.random.default_rng(0)
    for part, rows in (("train", 10), ("test", 8)):
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            for i in range(rows):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return folder


def make_run(folder: Path, dataset: Path, *, exits: tuple[int, ...]) -> Path:
    """A run folder as training leaves it, of a network that has learnt nothing."""
    heads = ((Conv(4, 2),),) * len(exits)
    config = TrainConfig(8, exits, heads, str(dataset), calibration_size=12)
    torch.manual_seed(0)
    model = cifar_resnet(8, 3, exits, heads)
    claim_folder(folder, config, ("ape", "bee", "cat"))
    halved = {k: v.half() if v.ndim > 1 else v for k, v in model.state_dict().items()}
    save_file(halved, folder / "best.safetensors")
    return folder


def build(run: Run, out: Path, **changes: object) -> Built:
    options = {"name": "pets", "dataset": None, "policy": "maxprob", "say": lambda step: None}
    return build_bundle(run, out, **options | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, quick_fits: None) -> Case:
    folder = tmp_path_factory.mktemp("build")
    dataset = make_dataset(folder / "data")
    run_folder = make_run(folder / "run", dataset, exits=(1,))
    run, said = load_run(run_folder), list[str]()
    built = build(run, folder / "bundle", say=said.append)
    data = load_dataset(dataset, calibration_size=12, seed=0)
    return Case(run_folder, run, data, built, said)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_is_read_with_its_weights(case: Case) -> None:
    assert (case.run.config.depth, case.run.config.exits) == (8, (1,))
    assert case.run.classes == ("ape", "bee", "cat")
    saved = load_file(case.run_folder / "best.safetensors")
    for key, value in case.run.model.state_dict().items():
        assert torch.equal(value, saved[key].to(value.dtype)), key


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no run\.json"):
        load_run(tmp_path)


def test_a_run_without_an_epoch_is_refused(case: Case, tmp_path: Path) -> None:
    shutil.copy(case.run_folder / "run.json", tmp_path)
    with pytest.raises(ValueError, match=r"holds no best\.safetensors yet"):
        load_run(tmp_path)


def test_the_bundle_is_whole_and_says_what_it_is(case: Case) -> None:
    manifest = load_bundle(case.built.bundle.folder).manifest
    assert manifest == case.built.bundle.manifest
    assert (manifest.name, manifest.num_exits) == ("pets", 2)
    assert manifest.classes == ("ape", "bee", "cat")
    assert (manifest.preprocessing.height, manifest.preprocessing.width) == (8, 8)
    assert manifest.training["arch"] == "resnet8" and manifest.training["heads"] == "4/2"
    assert manifest.default_budget_ms is not None and manifest.default_budget_ms > 0
    assert not case.built.bundle.folder.with_name("bundle.part").exists()


def test_the_steps_are_told_in_order(case: Case) -> None:
    assert [line.split()[0] for line in case.said] == [
        "reading",
        "exporting",
        "recording",
        "profiling",
        "fitting",
    ]


def test_recorded_predictions_are_those_of_the_network(case: Case) -> None:
    recorded = load_recorded(case.built.bundle.folder / "calibration.npz")
    parts = ((recorded.calibration, case.data.calibration), (recorded.test, case.data.test))
    for found, split in parts:
        logits = torch.from_numpy(predict_logits(case.run.model, split.images))
        np.testing.assert_allclose(found.log_probs, logits.log_softmax(-1), rtol=1e-3, atol=1e-3)
        assert found.labels.tolist() == split.labels.tolist()
    assert case.built.exit_accuracy == pytest.approx(recorded.test.correct.mean(0).tolist())
    assert case.built.disagreement < 1e-4


def test_the_bundles_graphs_answer_its_pictures_as_the_network_does(case: Case) -> None:
    bundle, image = case.built.bundle, case.data.test.images[0]
    backend = OnnxBackend(bundle.stage_files, bundle.head_files)
    state = backend.run_stage(0, bundle.preprocessor(10_000).normalise(image[None]))
    expected = predict_logits(case.run.model, image[None])[0]
    np.testing.assert_allclose(backend.run_head(0, state).logits, expected, atol=1e-4)


def test_the_scheduler_loads_with_the_profiled_costs(case: Case) -> None:
    policy, frontier = load_scheduler(case.built.bundle.folder)
    profile = json.loads((case.built.bundle.folder / "profile.json").read_text())
    assert (policy.kind, policy.num_exits) == ("maxprob", 2)
    np.testing.assert_allclose(frontier.costs_ms, profile["costs_ms"], atol=1e-4)
    assert 0 < frontier.costs_ms[0] < frontier.costs_ms[1]


def test_evaluations_run_over_the_budgets(case: Case) -> None:
    assert [row.policy for row in case.built.evaluations] == ["maxprob"] * 7
    budgets = [row.budget for row in case.built.evaluations]
    costs = load_scheduler(case.built.bundle.folder).frontier.costs_ms
    assert budgets == spread_budgets(costs)
    assert all(row.calibration_cost <= row.budget * (1 + 1e-9) for row in case.built.evaluations)
    assert all(sum(row.exit_rates) == pytest.approx(1) for row in case.built.evaluations)


@pytest.mark.parametrize(("given_up", "budget_ms"), [(0.004, 1.24), (0.006, 2.0)])
def test_the_default_budget_gives_up_half_a_point(given_up: float, budget_ms: float) -> None:
    frontier = Frontier(
        parameters=np.array([0.0, 1.0]),
        exit_rates=np.array([[0.767, 0.233], [0.0, 1.0]]),
        expected_accuracy=np.array([0.9 - given_up, 0.9]),
        costs_ms=np.array([1.0, 2.0]),
    )
    assert default_budget_ms(frontier) == budget_ms


def test_a_folder_with_other_files_is_refused_and_left_alone(case: Case, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is something else than a bundle"):
        build(case.run, tmp_path / "out")
    assert contents(tmp_path) == {"out/thesis.tex": b"years of work"}


def test_a_data_set_of_other_classes_is_refused(case: Case, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "data", ("ape", "bee", "cow"))
    with pytest.raises(ValueError, match=r"'cow'.* the run .*'cat'"):
        build(case.run, tmp_path / "bundle", dataset=other)
    assert not (tmp_path / "bundle").exists()


@pytest.fixture
def plain(case: Case, tmp_path: Path) -> Run:
    """A run without early exits, quicker to build."""
    return load_run(make_run(tmp_path / "plain", Path(case.run.config.dataset), exits=()))


class Interrupted(Exception):
    pass


def test_an_old_bundle_survives_a_build_that_fails(case: Case, plain: Run, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(case.built.bundle.folder, out)
    before = contents(tmp_path)

    def say(step: str) -> None:
        if step.startswith("profiling"):
            raise Interrupted

    with pytest.raises(Interrupted):
        build(plain, out, say=say)
    assert contents(tmp_path) == before


def test_a_new_bundle_replaces_the_old_one_whole(case: Case, plain: Run, tmp_path: Path) -> None:
    out, data = tmp_path / "bundle", Path(plain.config.dataset)
    shutil.copytree(case.built.bundle.folder, out)
    moved = plain._replace(config=dataclasses.replace(plain.config, dataset="gone"))
    build(moved, out, dataset=data, name="plain")
    manifest = load_bundle(out).manifest
    assert (manifest.name, manifest.num_exits) == ("plain", 1)
    assert set(contents(out)) == {*manifest.files, "bundle.json"}
