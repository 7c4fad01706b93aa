"""Joining bundles: which exits stay, what is refused, and what the new bundle holds."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

import server.pipeline.cascade
from models.bundle import Bundle, BundleError, load_bundle, rewrite_manifest, write_manifest
from models.data.dataset import DataConfig
from models.known_answers import TOLERANCE, largest_difference, load_known_answers
from models.several_inputs import SeveralImages, SeveralTexts
from profiling.latency import measure_latency
from server.cli.main import main
from server.loading import open_backend, reload
from server.pipeline.cascade import CascadeOptions, CascadeResult, join_bundles
from server.settings import Settings
from tests.backends import answers
from tests.bundles import offline_log_probs, recorded_of
from tests.small_bundles import CLASSES, write_image_bundle, write_text_bundle

pytestmark = pytest.mark.slow
OPTIONS = CascadeOptions("both", "maxprob")
TURNED = ("cat", "ape", "bee")


@pytest.fixture(autouse=True)
def quick_fits(
    fitting_quickly: Callable[[], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    def measure(backend, example):  # type: ignore[no-untyped-def]
        return measure_latency(backend, example, batch_sizes=(1, 2), warm_up=1, repeats=3)

    monkeypatch.setattr(server.pipeline.cascade, "measure_latency", measure)
    monkeypatch.setattr(server.pipeline.cascade, "SIDE_BY_SIDE", ())
    with fitting_quickly():
        yield


def join(tmp_path: Path, *bundles: Bundle, **options: object) -> CascadeResult:
    given = dataclasses.replace(OPTIONS, **options)  # type: ignore[arg-type]
    folders = [bundle.folder for bundle in bundles]
    return join_bundles(folders, tmp_path / "both", given, lambda step: None)


def image_bundles(
    tmp_path: Path, small: Sequence[float] = (0.7,), large: Sequence[float] = (0.8, 0.95)
) -> tuple[Bundle, Bundle]:
    """A network for 8x8 images, and one for 12x12 that has its classes in another order."""
    return (
        write_image_bundle(tmp_path / "small", 8, small),
        write_image_bundle(tmp_path / "large", 12, large, classes=TURNED, weights_seed=1),
    )


def photo(shade: int = 200) -> Image.Image:
    return Image.linear_gradient("L").resize((30, 20)).convert("RGB").point(lambda p: p % shade)


def png(tmp_path: Path) -> bytes:
    photo().save(tmp_path / "photo.png")
    return (tmp_path / "photo.png").read_bytes()


def test_all_exits_answer_as_each_network_does(tmp_path: Path) -> None:
    small, large = image_bundles(tmp_path)
    joined = join(tmp_path, small, large)
    bundle = load_bundle(joined.bundle.folder)
    assert bundle.manifest.num_exits == 3 and bundle.manifest.classes == CLASSES
    assert [(each.name, each.first_stage) for each in bundle.manifest.cascade] == [
        ("small", 0),
        ("large", 1),
    ]
    assert list(bundle.manifest.inputs) == ["image", "image-2"] and not joined.left_out
    preprocess, data = bundle.preprocessor(10**6), png(tmp_path)
    assert isinstance(preprocess, SeveralImages)
    backend = open_backend(bundle.variant(), Settings(bundle=(bundle.folder,)))
    found = [output.log_probs[0] for output in answers(backend, preprocess(data).state)]
    (own,) = offline_log_probs(small.variant(), [data])[:, 0][None]
    turned = offline_log_probs(large.variant(), [data])[:, 0, [1, 2, 0]]
    np.testing.assert_allclose(found, [*own, *turned], atol=1e-6)


def test_predictions_and_known_answers_are_those_of_all_exits(tmp_path: Path) -> None:
    small, large = image_bundles(tmp_path)
    bundle = join(tmp_path, small, large).bundle
    variant = bundle.variant()
    recorded, own = recorded_of(bundle.folder), recorded_of(large.folder)
    assert recorded.certification is not None
    assert recorded.calibration.correct.mean(0).round(2).tolist() == [0.7, 0.8, 0.95]
    np.testing.assert_array_equal(recorded.test.log_probs[1:], own.test.log_probs[..., [1, 2, 0]])
    assert variant.known_answers is not None
    known = load_known_answers(variant.known_answers)
    backend = open_backend(variant, Settings(bundle=(bundle.folder,)))
    assert len(known.log_probs) == 3
    assert largest_difference(backend, known) < TOLERANCE
    assert reload(variant, None)[0].bundle.manifest == bundle.manifest


def test_exits_after_the_best_are_left_out(tmp_path: Path) -> None:
    joined = join(tmp_path, *image_bundles(tmp_path, large=(0.8, 0.95, 0.9, 0.85)))
    assert joined.bundle.manifest.num_exits == 3
    (reason,) = joined.left_out
    assert "the exits after 2 are left out: it is right on 95.00 %" in reason
    assert "those after it on 90.00, 85.00 %" in reason


def test_networks_that_never_are_best_are_left_out(tmp_path: Path) -> None:
    third = write_image_bundle(tmp_path / "third", 8, (0.9,), weights_seed=2)
    joined = join(tmp_path, *image_bundles(tmp_path), third)
    assert [each.name for each in joined.bundle.manifest.cascade] == ["small", "large"]


def test_a_cascade_that_gains_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"small, which is on 96\.25 %; serve that bundle alone"):
        join(tmp_path, *image_bundles(tmp_path, small=(0.9625,)))
    assert not (tmp_path / "both").exists()


def test_networks_that_read_alike_share_one_input(tmp_path: Path) -> None:
    small = write_image_bundle(tmp_path / "small", 8, (0.7,))
    large = write_image_bundle(tmp_path / "large", 8, (0.9,), weights_seed=1)
    bundle = join(tmp_path, small, large).bundle
    assert list(bundle.manifest.inputs) == ["image"]
    preprocess, data = bundle.preprocessor(10**6), png(tmp_path)
    assert not isinstance(preprocess, SeveralImages)
    backend = open_backend(bundle.variant(), Settings(bundle=(bundle.folder,)))
    found = [output.log_probs[0] for output in answers(backend, preprocess(data).state)]
    own = [offline_log_probs(each.variant(), [data])[0, 0] for each in (small, large)]
    np.testing.assert_allclose(found, own, atol=1e-6)


def test_texts_are_tokenised_for_each_network(tmp_path: Path, tokenizer: Tokenizer) -> None:
    small = write_text_bundle(tmp_path / "small", tokenizer, (0.7,))
    large = write_text_bundle(tmp_path / "large", tokenizer, (0.9,), length_step=1, weights_seed=1)
    bundle = load_bundle(join(tmp_path, small, large).bundle.folder)
    preprocess = bundle.preprocessor(10**6)
    assert isinstance(preprocess, SeveralTexts)
    assert "tokenizer-text-2.json" in bundle.manifest.files
    backend = open_backend(bundle.variant(), Settings(bundle=(bundle.folder,)))
    found = [output.log_probs[0] for output in answers(backend, preprocess("good film").state)]
    own = [offline_log_probs(each.variant(), ["good film"])[0, 0] for each in (small, large)]
    np.testing.assert_allclose(found, own, atol=1e-6)


def test_other_classes_are_refused_by_name(tmp_path: Path) -> None:
    small = write_image_bundle(tmp_path / "small", 8, (0.7,))
    large = write_image_bundle(tmp_path / "large", 8, (0.9,), classes=("ape", "bee", "Cat"))
    with pytest.raises(ValueError, match=r"large has other .* lacks 'cat' and has 'Cat'"):
        join(tmp_path, small, large)


def test_other_tasks_and_single_bundles_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    small = write_image_bundle(tmp_path / "small", 8, (0.7,))
    texts = write_text_bundle(tmp_path / "texts", tokenizer, (0.9,))
    with pytest.raises(ValueError, match=r"task image, .*texts of text; join bundles of one task"):
        join(tmp_path, small, texts)
    with pytest.raises(ValueError, match="joins two bundles or more"):
        join(tmp_path, small)


def test_a_cascade_of_cascades_is_refused(tmp_path: Path) -> None:
    small, large = image_bundles(tmp_path)
    both = join(tmp_path, small, large).bundle
    with pytest.raises(ValueError, match="both is a cascade itself"):
        join_bundles([small.folder, both.folder], tmp_path / "more", OPTIONS, lambda step: None)
    with pytest.raises(ValueError, match="both is one of the bundles to join"):
        join_bundles([small.folder, both.folder], both.folder, OPTIONS, lambda step: None)


@pytest.mark.parametrize(
    ("training", "fault"), [({"seed": 1}, "seed differs"), ({"dataset": "zoo"}, "dataset differs")]
)
def test_other_rows_are_refused(tmp_path: Path, training: dict[str, object], fault: str) -> None:
    small = write_image_bundle(tmp_path / "small", 8, (0.7,))
    large = write_image_bundle(tmp_path / "large", 8, (0.9,), **training)
    with pytest.raises(ValueError, match=rf"the same rows \(their {fault}\); give --dataset"):
        join(tmp_path, small, large)


def test_labels_that_differ_are_other_rows(tmp_path: Path) -> None:
    small = write_image_bundle(tmp_path / "small", 8, (0.7,))
    large = write_image_bundle(tmp_path / "large", 8, (0.9,))
    predictions = large.variant().predictions
    with np.load(predictions) as arrays:
        changed = dict(arrays)
    changed["test_labels"] = changed["test_labels"][::-1]
    np.savez(predictions, **changed)
    with pytest.raises(ValueError, match=r"same rows \(their labels differ\)"):
        join(tmp_path, small, rewrite_manifest(large))


def write_photos(folder: Path) -> Path:
    """60 images to train on and 60 to test on, whose class is their shade."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for place, name in enumerate(CLASSES):
            (folder / part / name).mkdir(parents=True)
            for row in range(20):
                shade = rng.normal(60 + 70 * place, 20, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(shade).save(folder / part / name / f"{row}.png")
    return folder


def test_a_dataset_is_run_through_each_network(tmp_path: Path) -> None:
    small, large = image_bundles(tmp_path)
    data = DataConfig(str(write_photos(tmp_path / "photos")), calibration_size=20)
    try:
        bundle = join(tmp_path, small, large, data=data).bundle
    except ValueError as error:  # whichever random network is better, the rows were run
        assert "serve that bundle alone" in str(error)
        bundle = join(tmp_path, large, small, data=data).bundle
    recorded = recorded_of(bundle.folder)
    assert len(recorded.calibration.labels) == 20 and len(recorded.test.labels) == 60
    assert bundle.manifest.training["dataset"] == "photos"


def test_rows_that_a_network_may_have_seen_are_refused(tmp_path: Path) -> None:
    small = write_image_bundle(tmp_path / "small", 8, (0.7,))
    large = write_image_bundle(tmp_path / "large", 8, (0.9,), stratified=False)
    data = DataConfig("photos", calibration_size=20)
    with pytest.raises(ValueError, match=r"large was trained with another stratified .*from test"):
        join(tmp_path, small, large, data=data)


def test_manifests_that_contradict_themselves_are_refused(tmp_path: Path) -> None:
    bundle = join(tmp_path, *image_bundles(tmp_path)).bundle
    fields = bundle.manifest.model_dump(exclude={"format_version", "files"})
    first, second = fields["cascade"]
    for cascade, fault in (
        ((first, {**second, "first_stage": 3}), "start at the stages"),
        (({**first, "first_stage": 1}, second), "start at the stages"),
        ((first, {**second, "input": "image"}), "reads the inputs"),
        ((), "this version serves one input"),
    ):
        with pytest.raises(ValueError, match=fault):
            write_manifest(bundle.folder, **fields | {"cascade": cascade})
    (bundle.folder / "bundle.json").write_text("{}")
    with pytest.raises(BundleError):
        load_bundle(bundle.folder)


def test_other_bundles_are_written_as_before(tmp_path: Path) -> None:
    small = write_image_bundle(tmp_path / "small", 8, (0.7,))
    assert '"cascade"' not in (small.folder / "bundle.json").read_text()


def test_the_torch_backend_refuses_cascades(tmp_path: Path) -> None:
    bundle = join(tmp_path, *image_bundles(tmp_path)).bundle
    settings = Settings(bundle=(bundle.folder,), backend="torch")
    with pytest.raises(ValueError, match="is a cascade, which the torch backend does not run"):
        open_backend(bundle.variant(), settings)


def test_the_command_prints_every_exit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(each.folder) for each in image_bundles(tmp_path, large=(0.8, 0.95, 0.9))]
    out = tmp_path / "both"
    assert main(["cascade", *folders, "--out", str(out), "--policy", "maxprob"]) == 0
    printed = capsys.readouterr().out
    assert "3 exits of 2 networks" in printed and "the exits after 2 are left out" in printed
    assert main(["info", str(out)]) == 0
