"""Checkpoints of the published code: into runs, and on to bundles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from models.backend import State
from models.bundle import Bundle, TextInput, load_bundle
from models.data.dataset import DataConfig, Dataset, Split
from models.data.load import load_dataset
from models.networks.multi_exit import MultiExitModel
from models.published import network_of, published_name
from models.runtime.onnx_backend import OnnxBackend
from models.training.run import read_run
from server.cli.main import main
from server.pipeline.builder import in_order
from server.pipeline.runs import load_run
from tests.bundles import recorded_of, scheduler_of

pytestmark = pytest.mark.usefixtures("quick_builds")

Sentence = Callable[..., str]
MSDNET = {
    "data": "cifar10",
    "base": 1,
    "step": 1,
    "step_mode": "even",
    "num_scales": 2,
    "num_channels": 4,
    "growth_factor": [1, 2],
    "prune": "max",
    "bn_factor": [1, 2],
    "num_blocks": 2,
    "growth_rate": 2,
    "bottleneck": False,
    "compression": 0.5,
    "reduction": 0,
}
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "exits_after_layer": [1, 2],
}


def golden(name: str) -> Path:
    """A file made by the published code, kept beside the repository and not in it."""
    for folder in Path(__file__).resolve().parents:
        if (path := folder / "shared/golden" / name).exists():
            return path
    pytest.skip(f"the golden vectors {name} of the published code are not on this machine")


class Checkpoint(NamedTuple):
    """A random network's file under the published names, and flags that import it."""

    path: Path
    model: MultiExitModel
    flags: list[str]

    def command(self, out: Path, *more: object) -> list[str]:
        return ["import", str(self.path), *self.flags, "--out", str(out), *map(str, more)]


def checkpoint(folder: Path, arch: str, name: str, settings: dict[str, Any]) -> Checkpoint:
    """Write one; `arch` as `models.published` has it, `name` as the command does."""
    torch.manual_seed(0)
    model = network_of(arch, settings).build().eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if "running_var" in key:
                value.uniform_(0.5, 2.0)
            elif key.endswith(("bias", "running_mean")) or "embeddings" in key:
                value.normal_(0, 0.3)
    weights = {published_name(arch, k): v.clone() for k, v in model.state_dict().items()}
    save_file(weights, folder / "published.safetensors")
    (folder / "settings.json").write_text(json.dumps(settings))
    classes = settings.get("num_labels", settings.get("num_classes", 10))
    flags = ["--arch", name, "--classes", str(classes)]
    if arch in ("msdnet", "bert"):
        flags += ["--settings", str(folder / "settings.json")]
    return Checkpoint(folder / "published.safetensors", model, flags)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Checkpoint:
    folder = tmp_path_factory.mktemp("bert")
    tokenizer.save(str(folder / "tokenizer.json"))
    sizes = {**BERT, "vocab_size": tokenizer.get_vocab_size(), "num_labels": 2}
    made = checkpoint(folder, "bert", "bert_4", sizes)
    return made._replace(flags=[*made.flags, "--tokenizer", str(folder)])


@pytest.fixture(scope="module")
def msdnet(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return checkpoint(tmp_path_factory.mktemp("msdnet"), "msdnet", "msdnet", MSDNET)


@pytest.fixture(scope="module")
def ten_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of noise, 32x32, of ten classes: five to train and two to test each."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("ten")
    for part, rows in (("train", 5), ("test", 2)):
        for name in "abcdefghij":
            (folder / part / name).mkdir(parents=True)
            for index in range(rows):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{index}.png")
    return folder


def noise(rows: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(rows, 3, 32, 32)).astype(np.float32)


def through(bundle: Bundle, state: State) -> NDArray[np.float32]:
    """The logits of a bundle's graphs, (K, N, C)."""
    variant = bundle.variant()
    backend, logits = OnnxBackend(variant.stage_files, variant.head_files), []
    for k in range(backend.num_exits):
        state = backend.run_stage(k, state)
        logits.append(backend.run_head(k, state).logits)
    return np.stack(logits)


@torch.inference_mode()
def logits_of(model: MultiExitModel, *state: Tensor) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = model.eval()(state[0] if len(state) == 1 else state).numpy()
    return logits


def build(run: Path, out: Path, *more: object) -> Bundle:
    flags = ["--policy", "maxprob", "--calibration-size", "12", *more]
    assert main(["build", str(run), "--out", str(out), *map(str, flags)]) == 0
    return load_bundle(out)


def test_an_imported_run_is_the_checkpoint(
    msdnet: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs/published"
    assert main(msdnet.command(out)) == 0
    said = capsys.readouterr()
    assert f"eenet build {out} --dataset" in said.out and said.err == ""
    run = read_run(out)
    assert (run.arch, run.classes) == ("msdnet", ())
    assert run.settings == {**MSDNET, "num_classes": 10}
    assert (run.data, run.training, run.costs_ms) == (None, None, None)
    assert run.start == str(msdnet.path)
    assert run.input == {"mean": [0.4914, 0.4824, 0.4467], "std": [0.2471, 0.2435, 0.2616]}
    for key, value in load_run(out).model.state_dict().items():
        assert torch.equal(value, msdnet.model.state_dict()[key]), key
    assert main(msdnet.command(out)) == 0  # again


def test_normalisation_latencies_and_limits_are_kept(
    msdnet: Checkpoint, bert: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "seconds.csv").write_text("0.0023,0.0041\n")
    more = ["--mean", "0.5,0.4,0.3", "--std", "1,2,3.5", "--latencies", tmp_path / "seconds.csv"]
    assert main(msdnet.command(tmp_path / "a", *more)) == 0
    run = read_run(tmp_path / "a")
    assert run.input == {"mean": [0.5, 0.4, 0.3], "std": [1, 2, 3.5]}
    assert run.costs_ms == pytest.approx((2.3, 4.1))
    assert main(bert.command(tmp_path / "b", "--max-tokens", "12")) == 0
    assert read_run(tmp_path / "b").input == {"max_tokens": 12, "pad_id": 0}
    assert main(bert.command(tmp_path / "c")) == 0
    assert read_run(tmp_path / "c").input == {"max_tokens": 40, "pad_id": 0}


@pytest.mark.parametrize(
    ("classes", "mean"), [(10, 0.4914), (100, 0.5071), (5, 0.485)], ids=["10", "100", "other"]
)
def test_images_are_normalised_as_the_published_code_does(
    tmp_path: Path, classes: int, mean: float
) -> None:
    made = checkpoint(tmp_path, "resnet56_3", "resnet56_3", {"num_classes": classes})
    assert main(made.command(tmp_path / "run")) == 0
    assert read_run(tmp_path / "run").input["mean"][0] == mean


@pytest.mark.parametrize("form", ["bare", "wrapped", "parallel"])
def test_a_file_of_torch_is_read_too(msdnet: Checkpoint, tmp_path: Path, form: str) -> None:
    from safetensors.torch import load_file

    weights: Any = load_file(msdnet.path)
    if form == "parallel":
        weights = {f"module.{name}": value for name, value in weights.items()}
    if form != "bare":
        weights = {"state_dict": weights, "epoch": 3}
    torch.save(weights, tmp_path / "model_best.pth.tar")
    moved = msdnet._replace(path=tmp_path / "model_best.pth.tar")
    assert main(moved.command(tmp_path / "run")) == 0
    images = torch.from_numpy(noise(2))
    found = logits_of(load_run(tmp_path / "run").model, images)
    assert np.array_equal(found, logits_of(msdnet.model, images))


@pytest.fixture(scope="module")
def latencies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latencies") / "seconds.csv"
    path.write_text("0.0023\n0.0041\n")
    return path


class Built(NamedTuple):
    run: Path
    bundle: Bundle
    printed: list[str]
    json: str


@pytest.fixture(scope="module")
def small(
    bert: Checkpoint,
    reviews: Path,
    latencies: Path,
    tmp_path_factory: pytest.TempPathFactory,
    quick_builds: None,
) -> Built:
    """A BERT of foreign latencies whose classes stand in another order than those of the data,
    without the words that are not used.
    """
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    folder, out, shown = tmp_path_factory.mktemp("small"), StringIO(), StringIO()
    more = ["--latencies", latencies, "--class-names", "praise,blame"]
    assert main(bert.command(folder / "run", *more)) == 0
    flags = ["--dataset", reviews, "--prune-vocabulary", "--json"]
    with redirect_stdout(out), redirect_stderr(shown):
        bundle = build(folder / "run", folder / "small", *flags)
    return Built(folder / "run", bundle, shown.getvalue().splitlines(), out.getvalue())


@pytest.mark.slow
def test_its_manifest_tells_what_it_reaches(small: Built) -> None:
    variant = small.bundle.variant()
    manifest, measured = small.bundle.manifest, variant.entry.measured
    assert (manifest.name, manifest.task, variant.precision) == ("small", "text", "float32")
    assert manifest.classes == ("praise", "blame")
    assert measured is not None and measured == manifest.trained
    assert len(measured.accuracy) == len(measured.latency_ms) == 2
    profile = json.loads(variant.profile.read_text())
    assert list(measured.latency_ms) == pytest.approx(profile["costs_ms"], abs=1e-4)
    assert manifest.training["dataset"] == "reviews" and manifest.training["epochs"] is None
    assert manifest.training["test_accuracy"] == list(measured.accuracy)
    assert json.loads(small.json)["bundle"] == str(small.bundle.folder)


@pytest.mark.slow
def test_labels_are_numbered_as_the_checkpoint_numbers_its_classes(
    small: Built, reviews: Path
) -> None:
    test = recorded_of(small.bundle.folder).test
    in_order = load_dataset(DataConfig(str(reviews), calibration_size=12)).test.labels
    assert np.array_equal(test.labels, 1 - in_order)
    measured = small.bundle.variant().entry.measured
    assert measured is not None
    assert measured.accuracy == pytest.approx(test.correct.mean(0), abs=1e-4)


@pytest.mark.slow
def test_the_scheduler_is_fitted_to_the_latencies_given(small: Built) -> None:
    frontier = scheduler_of(small.bundle.folder).frontier
    assert frontier.costs_ms.tolist() == pytest.approx([2.3, 4.1])
    assert 2.3 <= (small.bundle.variant().entry.default_budget_ms or 0) <= 4.1


@pytest.mark.slow
def test_unused_words_are_gone_and_can_still_be_spelt(small: Built, tokenizer: Tokenizer) -> None:
    pruned = Tokenizer.from_file(str(small.bundle.folder / "tokenizer.json"))
    before, after = tokenizer.get_vocab(), pruned.get_vocab()
    assert before.keys() - after.keys() == {"unseen", "##seen", "wordless"}
    assert sorted(after.values()) == list(range(len(before) - 3))
    for text in ("the good film was very dull", "A bad, bad film!"):
        assert pruned.encode(text).tokens == tokenizer.encode(text).tokens
    assert pruned.encode("unseen").tokens == ["[CLS]", *["u", "##n", "##s", "##e", "##e", "##n"],
                                              "[SEP]"]  # fmt: skip
    own = (small.run / "tokenizer.json").read_text()
    assert Tokenizer.from_str(own).get_vocab() == before  # the run stays as it is


@pytest.mark.slow
def test_a_bundle_without_unused_words_answers_as_the_network(
    small: Built, bert: Checkpoint, tokenizer: Tokenizer
) -> None:
    assert isinstance(small.bundle.manifest.input, TextInput)
    preprocess: Any = small.bundle.preprocessor(1)
    texts = ["the good film was very dull", "bad", "a great and fine film and a very good film"]
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text).ids])
        expected = logits_of(bert.model, ids, torch.ones_like(ids))
        found = through(small.bundle, preprocess(text).state)
        np.testing.assert_allclose(found, expected, atol=1e-4)


GOLDEN = {
    "resnet56_3": ["--arch", "resnet56_3", "--classes", "10"],
    "msdnet_cifar": ["--arch", "msdnet", "--classes", "10", "--settings"],
    "bert_4_tiny": ["--arch", "bert_4", "--classes", "4", "--settings"],
}


def import_golden(name: str, out: Path, tokenizer: Tokenizer) -> None:
    flags: list[object] = [*GOLDEN[name]]
    if flags[-1] == "--settings":
        flags.append(golden(f"{name}.json"))
    if name == "bert_4_tiny":
        tokenizer.save(str(out.with_name("tokenizer.json")))
        flags += ["--tokenizer", out.with_name("tokenizer.json")]
    command = ["import", golden(f"{name}.safetensors"), *flags, "--out", out]
    assert main([str(argument) for argument in command]) == 0


def golden_vectors(name: str) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Input, and the logits of every exit (K, N, C)."""
    with np.load(golden(f"{name}_io.npz")) as arrays:
        exits = sum(key.startswith("logits_") for key in arrays)
        given = arrays["input_ids"] if "input_ids" in arrays else arrays["input"]
        return given, np.stack([arrays[f"logits_{k}"] for k in range(exits)])


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_checkpoint_becomes_a_run_that_answers_as_published(
    name: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    import_golden(name, tmp_path / "run", tokenizer)
    given, expected = golden_vectors(name)
    found = logits_of(load_run(tmp_path / "run").model, torch.from_numpy(given))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_a_golden_checkpoint_becomes_a_bundle_that_answers_as_published(
    ten_classes: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    import_golden("resnet56_3", tmp_path / "run", tokenizer)
    bundle = build(tmp_path / "run", tmp_path / "published", "--dataset", ten_classes)
    assert (bundle.manifest.num_exits, bundle.precisions) == (3, ("float32",))
    given, expected = golden_vectors("resnet56_3")
    np.testing.assert_allclose(through(bundle, (given,)), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--classes", "5"], "settings.json has 10 classes, but --classes is 5"),
        (["--arch", "vgg"], "arch 'vgg' is unknown; use resnet56_3 or densenet121_4 or msdnet"),
        (["--arch", "resnet56"], "arch 'resnet56' is unknown"),
        (["--settings", "nowhere.json"], "nowhere.json cannot be read as JSON"),
        (["--settings", "{half}"], "cannot be read as JSON"),
        (["--settings", "{list}"], "holds no JSON object"),
        (["--settings", "{blocks}"], "does not fit this msdnet: it lacks"),
        (["--settings", "{odd}"], "data is"),
        (["--latencies", "nowhere.csv"], "nowhere.csv does not hold plain numbers only"),
        (["--latencies", "{words}"], "does not hold plain numbers only"),
        (["--latencies", "{three}"], "holds 3 numbers"),
        (["--latencies", "{falling}"], "give 2, the seconds until each exit, rising"),
        (["--latencies", "{zero}"], "give 2, the seconds until each exit, rising"),
        (["--latencies", "{endless}"], "give 2, the seconds until each exit, rising"),
        (["--class-names", "a,b"], "--class-names holds 2 names, but --classes is 10"),
        (["--mean", "0.5"], "--mean is 0.5; give three numbers"),
        (["--mean", "a,b,c"], "--mean and --std take three numbers"),
        (["--std", "1,0,1"], "--std is 1,0,1; give three numbers"),
        (["--std", "1,-1,1"], "--std is 1,-1,1; give three numbers"),
        (["--std", "1,nan,1"], "--std is 1,nan,1; give three numbers"),
        (["--mean", "0,inf,0"], "--mean is 0,inf,0; give three numbers"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_claims_no_folder(
    msdnet: Checkpoint, tmp_path: Path, sentence: Sentence, more: list[str], expected: str
) -> None:
    files = {
        "half": '{"data":',
        "list": "[]",
        "blocks": json.dumps({**MSDNET, "num_blocks": 3}),
        "odd": json.dumps({**MSDNET, "data": ["cifar10"]}),
        "words": "fast,slow",
        "three": "1,2,3",
        "falling": "2,1",
        "zero": "0,1",
        "endless": "1,inf",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    flags = [flag.format_map({name: tmp_path / name for name in files}) for flag in more]
    assert expected in sentence(*msdnet.command(tmp_path / "run", *flags))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_class_count_is_one_sentence(
    bert: Checkpoint, tmp_path: Path, sentence: Sentence
) -> None:
    sizes = json.loads((bert.path.parent / "settings.json").read_text())
    (tmp_path / "three.json").write_text(json.dumps({**sizes, "num_labels": 3}))
    more = ["--classes", "3", "--settings", tmp_path / "three.json"]
    assert "it has 2 classes instead of 3" in sentence(*bert.command(tmp_path / "run", *more))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--tokenizer", "nowhere.json"], "nowhere.json does not exist; --tokenizer takes"),
        (["--tokenizer", "{broken}"], "is no tokenizer"),
        (["--settings", "{broken}"], "bert_4 needs --settings, the JSON of its sizes"),
        (["--settings", "{few}"], "the configuration of bert lacks hidden_size"),
        (["--max-tokens", "41"], "--max-tokens is 41; this network takes 3 to 40"),
        (["--max-tokens", "0"], "--max-tokens is 0; this network takes 3 to 40"),
    ],
)
def test_what_does_not_fit_a_text_network_is_one_sentence(
    bert: Checkpoint, tmp_path: Path, sentence: Sentence, more: list[str], expected: str
) -> None:
    (tmp_path / "broken.json").write_text("{}")
    (tmp_path / "few.json").write_text('{"vocab_size": 99}')
    names = {name: tmp_path / f"{name}.json" for name in ("broken", "few")}
    flags = [flag.format_map(names) for flag in more]
    assert expected in sentence(*bert.command(tmp_path / "run", *flags))
    assert not (tmp_path / "run").exists()


def test_what_must_be_given_is_named(
    bert: Checkpoint, msdnet: Checkpoint, tmp_path: Path, sentence: Sentence
) -> None:
    out = ["--out", tmp_path / "run"]
    said = sentence("import", msdnet.path, "--arch", "msdnet", "--classes", "10", *out)
    assert "msdnet needs --settings" in said
    said = sentence("import", bert.path, "--arch", "bert_4", "--classes", "2", *out)
    assert "bert_4 needs --settings" in said
    said = sentence("import", bert.path, *bert.flags[:-2], *out)
    assert "needs --tokenizer, a tokenizer.json" in said


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("nowhere.safetensors", None, "does not exist or is no .safetensors, .tar or .pth file"),
        ("weights.bin", b"abc", "does not exist or is no .safetensors, .tar or .pth file"),
        ("weights.pth", b"abc", "is damaged or holds more than tensors"),
        ("weights.safetensors", b"abc", "is damaged or holds more than tensors"),
    ],
)
def test_what_is_no_checkpoint_is_one_sentence(
    msdnet: Checkpoint,
    tmp_path: Path,
    sentence: Sentence,
    name: str,
    content: bytes | None,
    expected: str,
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    other = msdnet._replace(path=tmp_path / name)
    assert f"{name} {expected}" in sentence(*other.command(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_is_refused_and_left_alone(
    msdnet: Checkpoint, mask_run: Path, tmp_path: Path, sentence: Sentence
) -> None:
    files = {path: path.read_bytes() for path in mask_run.iterdir()}
    assert "holds a run with" in sentence(*msdnet.command(mask_run))
    assert main(msdnet.command(tmp_path / "run")) == 0
    said = sentence(*msdnet.command(tmp_path / "run", "--std", "1,1,1"))
    assert "holds a run with std = [0.2471, 0.2435, 0.2616], not [1.0, 1.0, 1.0]" in said
    assert {path: path.read_bytes() for path in mask_run.iterdir()} == files


def test_an_imported_run_is_built_only_with_data_that_fits(
    msdnet: Checkpoint,
    image_folder: Path,
    ten_classes: Path,
    reviews: Path,
    tmp_path: Path,
    sentence: Sentence,
) -> None:
    assert main(msdnet.command(tmp_path / "run")) == 0
    build = ["build", tmp_path / "run", "--out", tmp_path / "bundle"]
    assert "was imported, not trained here; give --dataset" in sentence(*build)
    said = sentence(*build, "--dataset", image_folder)
    assert "the dataset has 3 classes, the network 10; give the dataset that it was" in said
    said = sentence(*build, "--dataset", ten_classes, "--calibration-size", 9)
    assert "there are 9 calibration rows; give a --calibration-size of 10 or more" in said
    said = sentence(*build, "--dataset", ten_classes, "--calibration-size", 50)
    assert "calibration size 50 must lie between 1 and 49" in said
    said = sentence(*build, "--dataset", reviews)
    assert "the dataset is of the task text, but the run is of image" in said
    assert not (tmp_path / "bundle").exists()


def test_class_names_are_kept_and_put_the_data_in_their_order(
    msdnet: Checkpoint, tmp_path: Path, sentence: Sentence
) -> None:
    names = ",".join("jihgfedcba")
    assert main([*msdnet.command(tmp_path / "run"), "--class-names", names]) == 0
    classes = read_run(tmp_path / "run").classes
    assert classes == tuple("jihgfedcba")
    labels = np.array([0, 9, 3])
    split = Split(np.zeros((3, 4, 4, 3), np.uint8), labels)
    given = Dataset("image", tuple("abcdefghij"), split, split, split)
    ordered = in_order(given, classes)
    assert ordered.classes == classes
    assert [ordered.classes[label] for label in ordered.test.labels] == ["a", "j", "d"]
    assert in_order(given, given.classes) is given and in_order(given, ()) is given
    said = sentence(*msdnet.command(tmp_path / "other"), "--class-names", "a,b")
    assert "--class-names holds 2 names, but --classes is 10" in said
