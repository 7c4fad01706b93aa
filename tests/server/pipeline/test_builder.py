import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient

import server.pipeline.builder
from models.bundle import CARD, Bundle, load_bundle
from models.data.dataset import DataConfig, Dataset
from models.data.load import load_dataset
from models.known_answers import TOLERANCE, largest_difference, load_known_answers
from models.networks.families import Network
from models.networks.fcn import coarse_grid, coarse_labels
from models.networks.multi_exit import MultiExitModel
from models.preprocess import IMAGENET_MEAN, IMAGENET_STD
from models.runtime.onnx_backend import OnnxBackend
from models.runtime.torch_backend import open_torch_backend
from models.training.batches import ImageBatches, batches_for
from models.training.run import RunConfig, TrainConfig, create_run_dir
from profiling.calibration import load_recorded
from profiling.evaluation.evaluate import spread_budgets
from scheduler.fitted import load_scheduler
from scheduler.frontier import Frontier
from server.app import create_app
from server.cli.main import main
from server.pipeline.builder import (
    BuildOptions,
    BuildResult,
    build_bundle,
)
from server.pipeline.fitting import default_budget_ms
from server.pipeline.runs import Run, load_run
from server.settings import Settings

pytestmark = pytest.mark.usefixtures("quick_builds")


class Case(NamedTuple):
    run_folder: Path
    run: Run
    data: Dataset
    built: BuildResult
    said: list[str]


def make_dataset(
    folder: Path, classes: tuple[str, ...] = ("ape", "bee", "cat"), train_rows: int = 10
) -> Path:
    """Training images of noise and eight test images for each class, 8x8."""
    random = np.random.default_rng(0)
    for part, rows in (("train", train_rows), ("test", 8)):
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            for i in range(rows):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return folder


def make_run(folder: Path, dataset: Path, *, exits: tuple[int, ...]) -> Path:
    """A run folder as training leaves it, of a network that has learnt nothing."""
    settings = {"num_classes": 3, "exits": list(exits), "heads": [[[4, 2]]] * len(exits)}
    config = RunConfig(
        arch="resnet8",
        settings=settings,
        classes=("ape", "bee", "cat"),
        input={"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
        data=dataclasses.asdict(data_of(dataset)),
        training=TrainConfig(),
    )
    torch.manual_seed(0)
    model = Network("resnet8", settings).build()
    create_run_dir(folder, config)
    halved = {k: v.half() if v.ndim > 1 else v for k, v in model.state_dict().items()}
    save_file(halved, folder / "best.safetensors")
    return folder


def data_of(dataset: Path) -> DataConfig:
    return DataConfig(str(dataset), calibration_size=12)


def build(
    run: Run, out: Path, say: Callable[[str], None] = lambda step: None, **changes: object
) -> BuildResult:
    assert run.config.data is not None
    options = BuildOptions(name="pets", data=DataConfig(**run.config.data), policy="maxprob")
    return build_bundle(run, out, dataclasses.replace(options, **changes), say)


@torch.inference_mode()
def logits_of(model: MultiExitModel, images: np.ndarray) -> np.ndarray:
    """What the network says of images (N, H, W, 3), (K, N, C)."""
    batches = ImageBatches(IMAGENET_MEAN, IMAGENET_STD)
    logits: np.ndarray = model.eval()(batches.clean(images, np.arange(len(images)))).numpy()
    return logits


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, quick_builds: None) -> Case:
    folder = tmp_path_factory.mktemp("build")
    dataset = make_dataset(folder / "data")
    run_folder = make_run(folder / "run", dataset, exits=(1,))
    run, said = load_run(run_folder), list[str]()
    built = build(run, folder / "bundle", say=said.append)
    data = load_dataset(data_of(dataset))
    return Case(run_folder, run, data, built, said)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_is_read_with_its_weights(case: Case) -> None:
    assert (case.run.config.arch, case.run.config.settings["exits"]) == ("resnet8", [1])
    assert case.run.config.classes == ("ape", "bee", "cat")
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
    assert (manifest.input.height, manifest.input.width) == (8, 8)
    assert manifest.training["arch"] == "resnet8"
    assert manifest.training["settings"]["heads"] == [[[4, 2]]]
    (entry,) = manifest.precisions.values()
    assert entry.default_budget_ms is not None and entry.default_budget_ms > 0
    assert not case.built.bundle.folder.with_name("bundle.part").exists()


def test_the_steps_are_told_in_order(case: Case) -> None:
    assert [line.split()[0] for line in case.said] == [
        "reading",
        "exporting",
        *["float32:"] * 6,
    ]


def test_the_default_the_label_free_fit_and_eenet_are_fitted_beside_the_policy(case: Case) -> None:
    variant = case.built.bundle.variant()
    names = ["maxprob", "stopping", "stopping-label-free", "eenet"]
    assert (list(variant.entry.schedulers), variant.entry.policy) == (names, "maxprob")
    fits = {name: load_scheduler(variant.scheduler(name)) for name in names}
    kinds = [(fit.policy.kind, fit.frontier.reference) for fit in fits.values()]
    assert kinds == [
        ("maxprob", "labels"),
        ("stopping", "labels"),
        ("stopping", "last_exit"),
        ("eenet", "labels"),
    ]
    profile = json.loads(variant.profile.read_text())
    for fit in fits.values():
        np.testing.assert_allclose(fit.frontier.costs_ms, profile["costs_ms"], atol=1e-4)


def imbalanced(folder: Path) -> DataConfig:
    """Three training images of each class but apes, of which there are 24."""
    dataset = make_dataset(folder, train_rows=24)
    for name in ("bee", "cat"):
        for path in sorted((dataset / "train" / name).iterdir())[3:]:
            path.unlink()
    return DataConfig(str(dataset), calibration_size=12)


@pytest.mark.slow
def test_all_schedulers_are_fitted_for_the_prior(
    case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prior, data = tmp_path / "prior.json", imbalanced(tmp_path / "data")
    prior.write_text(json.dumps({"cat": 0.98, "ape": 0.01, "bee": 0.01}))
    bundle = build(case.run, tmp_path / "bundle", data=data, prior=str(prior)).bundle
    assert "imbalanced" not in caplog.text
    calibration = load_recorded(bundle.variant().predictions).calibration
    for name in ("maxprob", "stopping", "eenet"):
        frontier = load_scheduler(bundle.variant().scheduler(name)).frontier
        right = calibration.correct[calibration.labels == 2].mean(0)  # of the cats
        assert frontier.expected_accuracy[[0, -1]] == pytest.approx(right, abs=0.02)


def test_a_prior_that_names_no_class_stops_a_build_before_it_exports(
    case: Case, tmp_path: Path
) -> None:
    prior, said = tmp_path / "prior.json", list[str]()
    prior.write_text(json.dumps({"cow": 1.0}))
    with pytest.raises(ValueError, match="there is no class 'cow'"):
        build(case.run, tmp_path / "bundle", said.append, prior=str(prior))
    assert said == ["reading the dataset"]


@pytest.mark.slow
def test_imbalanced_calibration_rows_are_told(
    case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(case.run, tmp_path / "bundle", data=imbalanced(tmp_path / "data"))
    assert "calibration rows are imbalanced: 'ape'" in caplog.text


def test_recorded_predictions_are_those_of_the_network(case: Case) -> None:
    recorded = load_recorded(case.built.bundle.variant().predictions)
    parts = ((recorded.calibration, case.data.calibration), (recorded.test, case.data.test))
    for found, split in parts:
        logits = torch.from_numpy(logits_of(case.run.model, np.asarray(split.inputs[:])))
        np.testing.assert_allclose(found.log_probs, logits.log_softmax(-1), rtol=1e-3, atol=1e-3)
        assert found.labels.tolist() == split.labels.tolist()
    measured = case.built.bundle.variant().entry.measured
    assert measured is not None and measured == case.built.bundle.manifest.trained
    assert measured.accuracy == pytest.approx(recorded.test.correct.mean(0).tolist(), abs=1e-4)
    assert case.built.disagreement < 1e-4


def test_the_bundles_graphs_answer_its_images_as_the_network_does(case: Case) -> None:
    bundle, images = case.built.bundle, np.asarray(case.data.test.inputs[:1])
    backend = OnnxBackend(bundle.variant().stage_files, bundle.variant().head_files)
    image = Path(case.run.config.data["dataset"]) / "test/ape/0.png"
    state = backend.run_stage(0, bundle.preprocessor(10_000)(image.read_bytes()).state)
    expected = logits_of(case.run.model, images)[0]
    np.testing.assert_allclose(backend.run_head(0, state).logits, expected, atol=1e-4)


def test_the_scheduler_loads_with_the_profiled_costs(case: Case) -> None:
    policy, frontier, _ = load_scheduler(case.built.bundle.variant().scheduler())
    profile = json.loads(case.built.bundle.variant().profile.read_text())
    assert (policy.kind, policy.num_exits) == ("maxprob", 2)
    np.testing.assert_allclose(frontier.costs_ms, profile["costs_ms"], atol=1e-4)
    assert 0 < frontier.costs_ms[0] < frontier.costs_ms[1]


def test_evaluations_run_over_the_budgets(case: Case) -> None:
    (rows,) = case.built.evaluations.values()
    assert [row.policy for row in rows] == ["maxprob"] * 7
    budgets = [row.budget for row in rows]
    costs = load_scheduler(case.built.bundle.variant().scheduler()).frontier.costs_ms
    assert budgets == spread_budgets(costs)
    assert all(row.calibration_cost <= row.budget * (1 + 1e-9) for row in rows)
    assert all(sum(row.exit_rates) == pytest.approx(1) for row in rows)


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
    with pytest.raises(ValueError, match="is not a bundle"):
        build(case.run, tmp_path / "out")
    assert contents(tmp_path) == {"out/thesis.tex": b"years of work"}


def test_a_data_set_of_other_classes_is_refused(case: Case, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "data", ("ape", "bee", "cow"))
    with pytest.raises(ValueError, match=r"'cow'.* the run .*'cat'"):
        build(case.run, tmp_path / "bundle", data=data_of(other))
    assert not (tmp_path / "bundle").exists()


@pytest.fixture
def plain(case: Case, tmp_path: Path) -> Run:
    """A run without early exits, quicker to build."""
    return load_run(make_run(tmp_path / "plain", Path(case.run.config.data["dataset"]), exits=()))


class Interrupted(Exception):
    pass


@pytest.mark.slow
def test_an_old_bundle_survives_a_build_that_fails(case: Case, plain: Run, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(case.built.bundle.folder, out)
    before = contents(tmp_path)

    def say(step: str) -> None:
        if "profiling" in step:
            raise Interrupted

    with pytest.raises(Interrupted):
        build(plain, out, say=say)
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_a_new_bundle_replaces_the_old_one_whole(case: Case, plain: Run, tmp_path: Path) -> None:
    out, data = tmp_path / "bundle", data_of(Path(plain.config.data["dataset"]))
    shutil.copytree(case.built.bundle.folder, out)
    moved = plain._replace(config=dataclasses.replace(plain.config, data={"dataset": "gone"}))
    build(moved, out, data=data, name="plain")
    manifest = load_bundle(out).manifest
    assert (manifest.name, manifest.num_exits) == ("plain", 1)
    assert set(contents(out)) == {*manifest.files, "bundle.json", CARD}


@pytest.mark.parametrize("name", ["", "my bundle", "a/b", "ä", "x" * 65])
def test_a_name_that_requests_cannot_give_is_refused_before_anything_is_done(
    case: Case, tmp_path: Path, name: str
) -> None:
    said: list[str] = []
    with pytest.raises(ValueError, match="not a valid name of a model; give a --name of"):
        build(case.run, tmp_path / "bundle", said.append, name=name)
    assert said == [] and list(tmp_path.iterdir()) == []


def test_the_folders_name_is_the_models_unless_told_otherwise(
    case: Case, tmp_path: Path, sentence: Callable[..., str]
) -> None:
    said = sentence("build", case.run_folder, "--out", tmp_path / "my bundle")
    assert "'my bundle' is not a valid name of a model" in said


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--prune-vocabulary"], "reads no texts, so there is no vocabulary to prune"),
        (["--calibration-size", "9"], "there are 9 calibration rows; give a --calibration-size"),
        (["--calibration-size", "30"], "--calibration-size 30 would calibrate on rows that"),
        (
            ["--precision", "int8"],
            "int8 needs 100 or more training rows to fix its scales, and there",
        ),
        (["--dataset", "nowhere"], "dataset nowhere is neither a file or folder here nor"),
        (["--dataset", "{reviews}"], "the dataset is of the task text, but the run is of image"),
        (["--image-size", "0"], "image_size is 0; it must be 1 or more"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(
    case: Case,
    reviews: Path,
    tmp_path: Path,
    sentence: Callable[..., str],
    flags: list[str],
    expected: str,
) -> None:
    given = [flag.format(reviews=reviews) for flag in flags]
    assert expected in sentence("build", case.run_folder, "--out", tmp_path / "bundle", *given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_bundle_of_two_precisions_serves_both(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", train_rows=40)
    run_folder, out = make_run(tmp_path / "run", dataset, exits=(1,)), tmp_path / "bundle"
    flags = ("--precision", "int8", "--max-precision-loss", "1", "--policy", "maxprob")
    assert main(["build", str(run_folder), "--out", str(out), *flags]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "data", "run"]
    bundle = load_bundle(out)
    assert bundle.precisions == ("int8", "float32")
    assert set(contents(out)) == {*bundle.manifest.files, "bundle.json", CARD}
    assert bundle.variant("float32").entry.measured is not None
    assert bundle.variant("int8").entry.method["scale_rows"] == 108
    test = load_dataset(data_of(dataset)).test
    image = (dataset / "test/bee/3.png").read_bytes()
    (row,) = np.flatnonzero(
        (np.asarray(test.inputs[:]) == np.asarray(Image.open(io.BytesIO(image)))).all((1, 2, 3))
    )
    answers = []
    for precision in bundle.precisions:
        variant = bundle.variant(precision)
        assert variant.known_answers is not None
        known = load_known_answers(variant.known_answers)
        backend = OnnxBackend(variant.stage_files, variant.head_files)
        assert largest_difference(backend, known) <= TOLERANCE
        assert load_scheduler(variant.scheduler()).policy.num_exits == 2
        recorded = load_recorded(variant.predictions).test
        assert recorded.labels.tolist() == test.labels.tolist()
        with TestClient(create_app(Settings(bundle=(out,), precision=precision))) as client:
            asked = {"content": image, "headers": {"content-type": "image/png"}}
            answer = client.post("/predict?budget_ms=1e6", **asked).json()
        answers.append([each["probability"] for each in answer["top_k"]])
        expected = np.exp(recorded.log_probs[-1, row].astype(np.float64))
        assert answers[-1] == pytest.approx(sorted(expected, reverse=True), abs=0.01)
    assert answers[0] != answers[1]  # two networks indeed


def test_the_old_flag_of_weights_means_the_precision(
    case: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked: list[BuildOptions] = []

    def stop(run: Run, out: Path, options: BuildOptions, log_step: object) -> None:
        asked.append(options)
        raise ValueError("this is enough")

    monkeypatch.setattr(server.pipeline.builder, "build_bundle", stop)
    out = str(tmp_path / "bundle")
    assert main(["build", str(case.run_folder), "--out", out, "--weights", "int8"]) == 2
    assert [options.precision for options in asked] == ["int8"]
    assert "--weights is called --precision now; this build computes in int8" in caplog.text


@pytest.mark.parametrize("share", ["-0.1", "1.5", "nan"])
def test_a_loss_that_is_no_share_is_refused(
    case: Case, tmp_path: Path, sentence: Callable[..., str], share: str
) -> None:
    flags = ("--precision", "int8", "--max-precision-loss", share)
    said = sentence("build", case.run_folder, "--out", tmp_path / "bundle", *flags)
    assert f"--max-precision-loss is {share}; give a share" in said
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_of_another_class_count_is_refused(plain: Run, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", ("ape", "bee"))
    imported = plain._replace(config=dataclasses.replace(plain.config, classes=()))
    with pytest.raises(ValueError, match="the dataset has 2 classes, the network 3"):
        build(imported, tmp_path / "bundle", data=data_of(dataset))


def test_a_text_bundle_says_how_texts_are_read(text_bundle: Path, text_run: Path) -> None:
    manifest = load_bundle(text_bundle).manifest
    assert (manifest.name, manifest.task, manifest.num_exits) == ("reviews", "text", 2)
    assert manifest.classes == ("blame", "praise")
    assert list(manifest.inputs) == ["text"]
    assert manifest.input.model_dump() == {
        "kind": "text",
        "max_tokens": 40,
        "pad_id": 0,
        "length_step": 8,
        "typical_tokens": 8,
        "pair": False,
    }
    assert list(manifest.precisions) == ["float32"]
    recorded = load_recorded(load_bundle(text_bundle).variant().predictions)
    assert recorded.test.log_probs.shape == (2, 12, 2)
    assert recorded.calibration.log_probs.shape == (2, 21, 2)
    same = [(folder / "tokenizer.json").read_bytes() for folder in (text_bundle, text_run)]
    assert same[0] == same[1] and "tokenizer.json" in manifest.files


def test_recorded_predictions_of_texts_are_those_of_the_network(
    text_bundle: Path, text_run: Path
) -> None:
    run, recorded = (
        load_run(text_run),
        load_recorded(load_bundle(text_bundle).variant().predictions),
    )
    assert run.config.data is not None
    data, batches = load_dataset(DataConfig(**run.config.data)), batches_for(
        "text", run.config.input, text_run / "tokenizer.json"
    )  # fmt: skip
    for found, split in ((recorded.calibration, data.calibration), (recorded.test, data.test)):
        with torch.inference_mode():
            logits = run.model.eval()(batches.clean(split.inputs, np.arange(len(split.labels))))
        np.testing.assert_allclose(found.log_probs, logits.log_softmax(-1), rtol=1e-3, atol=2e-3)
        assert found.labels.tolist() == split.labels.tolist()


def disagreement(bundle: Bundle) -> float:
    """Largest difference of any logit between the bundle's graphs and its network in torch."""
    graphs = OnnxBackend(bundle.variant().stage_files, bundle.variant().head_files)
    network = open_torch_backend(bundle, "cpu")
    one = other = bundle.preprocessor(10_000).example
    differences = []
    for exit in range(graphs.num_exits):
        one, other = graphs.run_stage(exit, one), network.run_stage(exit, other)
        said, again = graphs.run_head(exit, one), network.run_head(exit, other)
        differences += [np.abs(a - b).max() for a, b in zip(said, again, strict=True)]
    return float(max(differences))


@pytest.mark.slow
def test_a_bundle_holds_the_network_for_torch_if_asked(plain: Run, tmp_path: Path) -> None:
    data = data_of(Path(plain.config.data["dataset"]))
    bundle = load_bundle(build(plain, tmp_path / "bundle", data=data, torch=True).bundle.folder)
    assert bundle.torch_weights is not None and disagreement(bundle) < 1e-4
    kinds = {k: v.dtype for k, v in load_file(bundle.torch_weights).items() if v.ndim > 1}
    assert set(kinds.values()) == {torch.float16}  # as the run holds them


@pytest.mark.slow
def test_a_bundle_of_texts_holds_a_network_that_needs_nothing_else(
    text_run: Path, tmp_path: Path
) -> None:
    run = load_run(text_run)
    options = {"name": "reviews", "torch": True, "prune_vocabulary": True}
    built = build(run, tmp_path / "built", **options)
    moved = shutil.copytree(built.bundle.folder, tmp_path / "moved")
    shutil.rmtree(built.bundle.folder)
    bundle = load_bundle(moved)
    assert bundle.manifest.network is not None
    settings = bundle.manifest.network.settings["backbone"]
    assert settings["vocab_size"] < run.config.settings["backbone"]["vocab_size"]
    assert disagreement(bundle) < 1e-4


def test_a_segmentation_is_recorded_on_the_grid_of_its_policies(
    mask_bundle: Path, mask_run: Path, drawing_few: Callable[[], AbstractContextManager[None]]
) -> None:
    manifest = load_bundle(mask_bundle).manifest
    assert (manifest.name, manifest.task, len(manifest.classes)) == ("shapes", "segmentation", 5)
    shown = manifest.input.model_dump()
    assert (shown["height"], shown["width"], shown["fit"]) == (16, 16, "stretch")
    run, recorded = (
        load_run(mask_run),
        load_recorded(load_bundle(mask_bundle).variant().predictions),
    )
    assert run.config.data is not None
    with drawing_few():
        data = load_dataset(DataConfig(**run.config.data))
    assert recorded.calibration.log_probs.shape == (2, 12, 64, 5)
    assert np.array_equal(recorded.test.labels, coarse_labels(data.test.labels))
    batches = batches_for("segmentation", run.config.input, Path("none"))
    with torch.inference_mode():
        logits = run.model.eval()(batches.clean(data.test.inputs, np.arange(6)))
    for found, expected in zip(recorded.test.log_probs, logits, strict=True):
        np.testing.assert_allclose(found, coarse_grid(expected), rtol=1e-3, atol=2e-3)


@pytest.mark.slow
def test_short_texts_and_few_of_them_make_a_bundle_for_longer_ones(
    backbone: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "short"
    folder.mkdir()
    random, lines = np.random.default_rng(0), set[str]()
    while len(lines) < 40:
        lines.add(" ".join(random.choice(("the", "film", "was", "good", "a", "bad"), 4)))
    rows = [f"{text},{'ab'[index % 2]}" for index, text in enumerate(sorted(lines))]
    for part, kept in (("train", rows[2:]), ("test", rows[:2])):
        (folder / f"{part}.csv").write_text("\n".join(["text,label", *kept]))
    run, out = tmp_path / "run", tmp_path / "bundle"
    flags = ["--epochs", "1", "--batch-size", "8", "--calibration-size", "12", "--exits", "2"]
    data = ["--dataset", str(folder), "--out", str(run)]
    assert main(["attach", "--backbone", str(backbone), *data, *flags]) == 0
    assert main(["build", str(run), "--out", str(out)]) == 0
    bundle = load_bundle(out)
    backend, preprocess = (
        OnnxBackend(bundle.variant().stage_files, bundle.variant().head_files),
        bundle.preprocessor(1),
    )
    for text in ("good", "the very good film " * 8):
        state = preprocess(text).state  # type: ignore[arg-type]
        said = backend.run_head(0, backend.run_stage(0, state))
        assert said.log_probs.shape == (1, 2)
