from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from models.networks.families import Network
from models.networks.imagenet_resnet import ImageNetResNetConfig, imagenet_resnet
from models.networks.multi_exit import MultiExitModel
from models.training.run import read_run
from models.training.trainer import EpochReport, Trainer
from server.cli.main import main

Sentence = Callable[..., str]
QUICKLY = ("--epochs", "1", "--batch-size", "8")
TWO = ("--num-exits", "2", "--budget-ms")


def command(backbone: object, dataset: object, out: object, *more: object) -> list[str]:
    """Exits after both layers of a backbone, unless told otherwise."""
    given = ["--backbone", backbone, "--dataset", dataset, "--out", out, *QUICKLY, *more]
    return ["attach", *map(str, given if "--budget-ms" in given else ["--exits", "1", *given])]


def weights_of(run: Path) -> dict[str, Tensor]:
    return load_file(run / "best.safetensors")


def test_a_run_holds_all_that_rebuilds_the_network(
    text_run: Path, backbone: Path, reviews: Path, tokenizer: Tokenizer
) -> None:
    run = read_run(text_run)
    assert (run.arch, run.classes) == ("attached-text", ("blame", "praise"))
    assert run.settings["exits_after_layer"] == [1, 2] and run.settings["num_labels"] == 2
    assert run.settings["backbone"]["hidden_size"] == 32
    assert run.input == {"max_tokens": 40, "pad_id": 0}
    assert run.start == str(backbone)
    assert run.data is not None and run.data["dataset"] == str(reviews)
    training = run.training
    assert training is not None and not training.heads_only
    assert (training.optimizer, training.peak_lr, training.epochs) == ("adamw", 5e-5, 1)
    own = Tokenizer.from_file(str(text_run / "tokenizer.json"))
    for text in ("The film was GOOD!", "zebra", "ünseen"):
        assert own.encode(text).ids == tokenizer.encode(text).ids
    Network(run.arch, run.settings).build().load_state_dict(weights_of(text_run))


def test_reports_are_one_json_document(
    backbone: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(backbone, reviews, tmp_path / "run", "--json")) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["epoch"] == 1 and len(report["test_accuracy"]) == 2


@pytest.mark.parametrize("heads_only", [True, False])
def test_heads_only_leaves_the_backbone_as_it_is(
    backbone: Path, reviews: Path, tmp_path: Path, heads_only: bool
) -> None:
    more = ["--heads-only"] if heads_only else []
    assert main(command(backbone, reviews, tmp_path / "run", *more, "--peak-lr", "0.01")) == 0
    before, after = load_file(backbone / "model.safetensors"), weights_of(tmp_path / "run")
    same = []
    for layer in (0, 1):
        key = f"encoder.layer.{layer}.attention.self.query.weight"
        (found,) = [v for k, v in after.items() if k.endswith(key.removeprefix("encoder.layer."))]
        same.append(torch.equal(found, before[key].half()))
    assert same == [heads_only] * 2
    assert read_run(tmp_path / "run").training.heads_only is heads_only  # type: ignore[union-attr]


class Chosen:
    """What is printed of a choice of exits."""

    def __init__(self, printed: str) -> None:
        lines = printed.splitlines()
        assert lines[0] == "layer: ms until its end"
        found = [re.fullmatch(r" *(\d+): +([\d.]+)(  exit)?", line) for line in lines[1:-1]]
        rows = [match.groups() for match in found if match]
        assert len(rows) == len(lines) - 2
        self.layers = [int(layer) for layer, _, _ in rows]
        self.ends_ms = [float(ms) for _, ms, _ in rows]
        self.exits = [int(layer) for layer, _, exit in rows if exit]
        self.told = lines[-1]


def test_without_data_exits_are_suggested_and_nothing_is_written(
    backbone: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    untrained: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--budget-ms", "1000", "--num-exits", "2"]
    assert main(["attach", "--backbone", str(backbone), *flags]) == 0
    chosen = Chosen(capsys.readouterr().out)
    assert chosen.layers == [1, 2] and 0 < chosen.ends_ms[0] < chosen.ends_ms[1]
    assert chosen.exits == [1, 2]
    assert chosen.told == "exits for a mean of 1000 ms: --exits 1,2"
    assert list(tmp_path.iterdir()) == []


def test_exits_are_chosen_for_a_budget(
    backbone: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--budget-ms", "1000", "--num-exits", "2"]
    assert main(command(backbone, reviews, tmp_path / "run", *flags)) == 0
    chosen = Chosen(capsys.readouterr().out)
    assert chosen.exits == [1, 2] == read_run(tmp_path / "run").settings["exits_after_layer"]


def test_a_run_goes_on_with_the_exits_that_were_chosen_for_it(
    text_run: Path,
    backbone: Path,
    reviews: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Path(shutil.copytree(text_run, tmp_path / "run"))
    assert main(command(backbone, reviews, run, "--budget-ms", "1000", "--num-exits", "2")) == 0
    said = capsys.readouterr()
    assert said.out == "" and said.err == ""  # nothing is chosen anew, nothing trained
    assert read_run(run).settings["exits_after_layer"] == [1, 2]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--exits", "3"], "exits_after_layer is (3, 2); it must rise from 1 or more"),
        (["--exits", "0"], "exits_after_layer is (0, 2); it must rise from 1 or more"),
        (["--exits", "2,1"], "exits_after_layer is (2, 1, 2); it must rise"),
        (["--exits", "1,1"], "exits_after_layer is (1, 1, 2); it must rise"),
        (["--exits", ""], "exits '' are not numbers of blocks or layers"),
        (["--exits", "one"], "exits 'one' are not numbers of blocks or layers"),
        (["--max-tokens", "41"], "--max-tokens is 41;"),
        (["--max-tokens", "2"], "--max-tokens is 2;"),
        (["--max-tokens", "0"], "--max-tokens is 0;"),
        (["--calibration-size", "1000"], "calibration size 1000 must lie between 1 and"),
        (["--batch-size", "1000"], "batch size 1000 exceeds the"),
        (["--device", "abacus"], "device 'abacus' is unknown; use auto, cpu or cuda"),
        (["--optimizer", "lion"], "optimizer is 'lion'; use sgd or adamw"),
        (["--label-column", "stars"], "not 'text' and 'stars'; name the right ones with"),
        (["--dataset", "nowhere.csv"], "dataset nowhere.csv is neither a file or folder here nor"),
        (["--image-size", "8"], "holds texts"),
    ],
)
def test_a_setting_that_fails_is_one_sentence_and_claims_no_folder(
    backbone: Path,
    reviews: Path,
    tmp_path: Path,
    sentence: Sentence,
    more: list[str],
    expected: str,
) -> None:
    assert expected in sentence(*command(backbone, reviews, tmp_path / "run", *more))
    assert not (tmp_path / "run/run.json").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "give --exits, or --budget-ms to have them chosen"),
        (["--exits", "1"], "give both --dataset and --out to train"),
        (["--exits", "1", "--dataset", "d.csv"], "give both --dataset and --out to train"),
        (["--budget-ms", "5", "--out", "run"], "give both --dataset and --out to train"),
        (["--budget-ms", "5"], "num_exits is 4; it must lie between 2 and the 2 layers"),
        ([*TWO, "1e-6"], "budget_ms 1e-06 cannot be kept: the first layer alone takes"),
        ([*TWO, "0"], "budget_ms 0 cannot be kept"),
        (["--budget-ms", "5", "--num-exits", "1"], "num_exits is 1; it must lie between 2 and"),
        (["--budget-ms", "5", "--num-exits", "3"], "num_exits is 3; it must lie between 2 and"),
    ],
)
def test_flags_that_do_not_fit_together_are_one_sentence(
    backbone: Path,
    tmp_path: Path,
    sentence: Sentence,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in sentence("attach", "--backbone", backbone, *flags)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_backbone_is_one_sentence(
    backbone: Path, reviews: Path, tmp_path: Path, sentence: Sentence
) -> None:
    said = sentence(*command(tmp_path / "nowhere", reviews, tmp_path / "run"))
    assert f"{tmp_path}/nowhere is neither a folder with the config.json" in said
    shutil.copytree(backbone, tmp_path / "other")
    config = json.loads((backbone / "config.json").read_text())
    (tmp_path / "other/config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    said = sentence(*command(tmp_path / "other", reviews, tmp_path / "run"))
    assert "exits cannot be added to a backbone of model_type 'gpt2'; use bert" in said
    (tmp_path / "other/config.json").write_text(json.dumps({**config, "hidden_size": 48}))
    said = sentence(*command(tmp_path / "other", reviews, tmp_path / "run"))
    assert "give the folder that save_pretrained wrote" in said
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_is_named_as_no_backbone(
    reviews: Path, tmp_path: Path, sentence: Sentence
) -> None:
    (tmp_path / "empty").mkdir()
    said = sentence(*command(tmp_path / "empty", reviews, tmp_path / "run"))
    assert f"{tmp_path}/empty is neither a folder with the config.json" in said


def test_a_backbone_without_a_tokenizer_is_one_sentence(
    backbone: Path, reviews: Path, tmp_path: Path, sentence: Sentence
) -> None:
    shutil.copytree(backbone, tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bare" / name).unlink()
    said = sentence(*command(tmp_path / "bare", reviews, tmp_path / "run"))
    assert "has no tokenizer that can be read" in said


def test_a_tokenizer_of_more_tokens_than_the_backbone_is_one_sentence(
    backbone: Path, reviews: Path, tmp_path: Path, sentence: Sentence
) -> None:
    shutil.copytree(backbone, tmp_path / "grown")
    grown = Tokenizer.from_file(str(backbone / "tokenizer.json"))
    grown.add_tokens(["film!"])
    grown.save(str(tmp_path / "grown/tokenizer.json"))
    said = sentence(*command(tmp_path / "grown", reviews, tmp_path / "run"))
    assert "give the tokenizer that belongs to it" in said


def test_data_of_another_task_is_one_sentence(
    backbone: Path, image_folder: Path, tmp_path: Path, sentence: Sentence
) -> None:
    said = sentence(*command(backbone, image_folder, tmp_path / "run"))
    assert f"{backbone} reads texts, {image_folder} is a dataset of the task image" in said


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--heads-only"], "heads_only = False, not True"),
        (["--exits", "2"], r"exits_after_layer = \[1, 2\], not \[2\]"),
        (["--max-tokens", "20"], "max_tokens = 40, not 20"),
        (["--epochs", "2"], "epochs = 1, not 2"),
    ],
)
def test_a_folder_of_other_settings_is_refused_and_left_alone(
    text_run: Path,
    backbone: Path,
    reviews: Path,
    sentence: Sentence,
    flags: list[str],
    name: str,
) -> None:
    files = {path: path.read_bytes() for path in text_run.iterdir()}
    said = sentence(*command(backbone, reviews, text_run, *flags))
    assert re.search(f"holds a run with {name}; give another --out", said), said
    assert {path: path.read_bytes() for path in text_run.iterdir()} == files


def test_a_run_of_another_command_is_refused(
    mask_run: Path, backbone: Path, reviews: Path, sentence: Sentence
) -> None:
    files = {path: path.read_bytes() for path in mask_run.iterdir()}
    for exits in (["--exits", "1"], [*TWO, "1000"]):
        said = sentence(*command(backbone, reviews, mask_run, *exits))
        assert "holds a run with" in said and "give another --out" in said
    assert {path: path.read_bytes() for path in mask_run.iterdir()} == files


def with_other_tokenizer(backbone: Path, folder: Path) -> Path:
    """The same backbone, whose tokenizer swaps two words."""
    shutil.copytree(backbone, folder)
    described = json.loads((folder / "tokenizer.json").read_text())
    vocab = described["model"]["vocab"]
    vocab["good"], vocab["bad"] = vocab["bad"], vocab["good"]
    (folder / "tokenizer.json").write_text(json.dumps(described))
    return folder


def test_a_run_of_another_tokenizer_is_refused(
    text_run: Path, backbone: Path, reviews: Path, tmp_path: Path, sentence: Sentence
) -> None:
    run, moved = tmp_path / "run", tmp_path / "tiny-bert"
    shutil.copytree(text_run, run)
    config = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**config, "start": str(moved)}))
    with_other_tokenizer(backbone, moved)
    before = (run / "tokenizer.json").read_bytes()
    assert "holds a run with another tokenizer" in sentence(*command(moved, reviews, run))
    assert (run / "tokenizer.json").read_bytes() == before


def test_a_tokenizer_left_by_a_run_that_never_began_is_not_taken(
    backbone: Path,
    reviews: Path,
    tmp_path: Path,
    sentence: Sentence,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sentence(*command(backbone, reviews, tmp_path / "run", "--batch-size", "1000"))
    other = with_other_tokenizer(backbone, tmp_path / "other")
    monkeypatch.setattr(Trainer, "run", lambda trainer, *told: [])
    assert main(command(other, reviews, tmp_path / "run")) == 0
    ids = [
        Tokenizer.from_file(str(folder / "tokenizer.json")).encode("good bad").ids
        for folder in (other, tmp_path / "run")
    ]
    assert ids[0] == ids[1]


class Killed(Exception):
    pass


def test_a_killed_training_goes_on_to_the_same_weights(
    text_run: Path, backbone: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Dropout, the order of the batches and the heads' first weights come out as before.
    run, done, step = tmp_path / "run", iter(range(100)), Trainer._train_step

    def dying(trainer: Trainer, *batch: Any) -> float:
        if next(done) == 5:
            trainer._save()
            raise Killed
        return step(trainer, *batch)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "_train_step", dying)
        main(command(backbone, reviews, run))
    assert not (run / "best.safetensors").exists()
    torch.manual_seed(1234)
    assert main(command(backbone, reviews, run)) == 0
    for name in ("best.safetensors", "last.safetensors"):
        expected, found = load_file(text_run / name), load_file(run / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)


class Trained(Exception):
    """Where training would begin."""

    def __init__(self, trainer: Trainer) -> None:
        self.model: MultiExitModel = trainer.model
        self.trainer = trainer


@pytest.fixture
def about_to_train(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Trained]:
    """Runs a command up to where it would train."""

    def run(trainer: Trainer, *told: object) -> list[EpochReport]:
        raise Trained(trainer)

    def reaching(arguments: list[str]) -> Trained:
        monkeypatch.setattr(Trainer, "run", run)
        with pytest.raises(Trained) as reached:
            main(arguments)
        return reached.value

    return reaching


def test_a_fine_tuned_classifier_is_brought_into_the_order_of_the_classes(
    backbone: Path,
    reviews: Path,
    tmp_path: Path,
    tokenizer: Tokenizer,
    about_to_train: Callable[[list[str]], Trained],
) -> None:
    import transformers

    torch.manual_seed(0)
    tuned = transformers.BertForSequenceClassification.from_pretrained(
        backbone, id2label={0: "praise", 1: "blame"}, label2id={"praise": 0, "blame": 1}
    )
    torch.nn.init.normal_(tuned.classifier.bias)
    shutil.copytree(backbone, tmp_path / "tuned")
    tuned.save_pretrained(tmp_path / "tuned")
    model = about_to_train(command(tmp_path / "tuned", reviews, tmp_path / "run")).model.eval()
    ids = torch.tensor([tokenizer.encode("the good film").ids])
    with torch.inference_mode():
        expected = tuned.eval()(ids).logits[:, [1, 0]]
        found = model((ids, torch.ones_like(ids)))[-1]
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    """A ViT of two layers for images of 16x16, with statistics of its own."""
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ViTConfig(
        **sizes, intermediate_size=24, image_size=16, patch_size=8, num_labels=2
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    described = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.2, 0.1]}
    (tmp_path / "vit/preprocessor_config.json").write_text(json.dumps(described))
    return tmp_path / "vit"


def test_exits_are_put_onto_an_encoder_of_images(
    vit: Path, image_folder: Path, tmp_path: Path
) -> None:
    assert main(command(vit, image_folder, tmp_path / "run")) == 0
    run = read_run(tmp_path / "run")
    assert (run.arch, run.classes) == ("attached-image", ("ape", "bee", "cat"))
    assert run.input == {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.1]}
    assert run.data is not None and run.data["image_size"] == 16
    assert run.settings["exits_after_layer"] == [1, 2]
    assert not (tmp_path / "run/tokenizer.json").exists()
    Network(run.arch, run.settings).build().load_state_dict(weights_of(tmp_path / "run"))


def test_an_encoder_of_images_takes_its_own_size_and_no_texts(
    vit: Path, image_folder: Path, reviews: Path, tmp_path: Path, sentence: Sentence
) -> None:
    said = sentence(*command(vit, image_folder, tmp_path / "run", "--image-size", "24"))
    assert f"--image-size is 24; {vit} reads images of 16x16" in said
    said = sentence(*command(vit, reviews, tmp_path / "run"))
    assert "texts" in said
    assert not (tmp_path / "run/run.json").exists()


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state dict of a plain ResNet-18 of ten classes under torchvision's names."""
    from models.networks.imagenet_resnet import _torchvision_name

    torch.manual_seed(0)
    plain = imagenet_resnet(ImageNetResNetConfig(18, 10, ()))
    path = tmp_path_factory.mktemp("resnet") / "resnet18.safetensors"
    save_file({_torchvision_name(key): value for key, value in plain.state_dict().items()}, path)
    return path


def test_exits_are_put_onto_torchvisions_weights(
    resnet: Path,
    image_folder: Path,
    tmp_path: Path,
    about_to_train: Callable[[list[str]], Trained],
) -> None:
    more = ["--arch", "resnet18", "--exits", "2,5"]
    reached = about_to_train(command(resnet, image_folder, tmp_path / "run", *more))
    run, own = read_run(tmp_path / "run"), reached.model.state_dict()
    assert run.settings == {"num_classes": 3, "exits": [2, 5]}
    assert run.data is not None and run.data["image_size"] == 224
    training = reached.trainer.config
    assert (training.optimizer, training.peak_lr) == ("sgd", 0.02)
    given = load_file(resnet)
    assert torch.equal(own["stages.0.conv1.weight"], given["conv1.weight"])
    assert torch.equal(own["stages.2.layer4_1.conv2.weight"], given["layer4.1.conv2.weight"])
    assert reached.model.num_exits == 3


def test_the_end_of_a_resnet_may_be_named_as_an_exit(
    resnet: Path,
    image_folder: Path,
    tmp_path: Path,
    about_to_train: Callable[[list[str]], Trained],
) -> None:
    more = ["--arch", "resnet18", "--exits", "2,5,8"]
    assert (
        about_to_train(command(resnet, image_folder, tmp_path / "run", *more)).model.num_exits == 3
    )
    assert read_run(tmp_path / "run").settings["exits"] == [2, 5]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], "is a file; of which network are its weights? give --arch resnet18, resnet34"),
        (["--arch", "resnet56"], "is a file; of which network are its weights?"),
        (["--arch", "resnet34"], "does not fit this network"),
        (["--arch", "resnet18", "--exits", "9"], "must rise and lie between 1 and 7"),
    ],
)
def test_weights_of_a_resnet_that_do_not_fit_are_one_sentence(
    resnet: Path,
    image_folder: Path,
    tmp_path: Path,
    sentence: Sentence,
    more: list[str],
    expected: str,
) -> None:
    assert expected in sentence(*command(resnet, image_folder, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_a_file_that_holds_no_weights_is_one_sentence(
    image_folder: Path, tmp_path: Path, sentence: Sentence
) -> None:
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    arguments = command(
        tmp_path / "weights.pth", image_folder, tmp_path / "run", "--arch", "resnet18"
    )
    assert "weights.pth is damaged or holds more than tensors" in sentence(*arguments)


def test_blocks_of_a_resnet_are_suggested(
    resnet: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.cli.attach.IMAGENET_SIZE", 32)
    flags = ["--arch", "resnet18", "--budget-ms", "1000", "--num-exits", "3"]
    assert main(["attach", "--backbone", str(resnet), *flags]) == 0
    chosen = Chosen(capsys.readouterr().out)
    assert chosen.layers == list(range(1, 9)) and chosen.exits[-1] == 8
    assert chosen.told == f"exits for a mean of 1000 ms: --exits {','.join(map(str, chosen.exits))}"


def test_images_may_be_of_any_size(vit: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("ape", "bee"):
        (tmp_path / "mixed" / name).mkdir(parents=True)
        for index in range(12):
            size = (*random.integers(5, 40, 2), 3)
            pixels = random.integers(0, 256, size, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"mixed/{name}/{index}.png")
    assert main(command(vit, tmp_path / "mixed", tmp_path / "run")) == 0


def test_an_encoder_of_oblong_images_is_refused(
    vit: Path, image_folder: Path, tmp_path: Path, sentence: Sentence
) -> None:
    config = json.loads((vit / "config.json").read_text())
    (vit / "config.json").write_text(json.dumps({**config, "image_size": [8, 16]}))
    said = sentence(*command(vit, image_folder, tmp_path / "run"))
    assert f"{vit} reads images of 16x8; only square images are supported" in said


def test_chosen_exits_stay_when_the_run_goes_on(
    backbone: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = command(backbone, reviews, tmp_path / "run", "--budget-ms", "1000", "--num-exits", "2")
    assert main(run) == 0

    def measured_again(*given: object) -> None:
        raise AssertionError("a run that goes on has its exits")

    monkeypatch.setattr("models.training.exit_placement.layer_latencies", measured_again)
    assert main(run) == 0


@pytest.mark.slow
def test_the_last_block_of_a_resnet_may_be_named(
    resnet: Path, image_folder: Path, tmp_path: Path
) -> None:
    flags = ["--arch", "resnet18", "--exits", "4,8", "--image-size", "32"]
    assert main(command(resnet, image_folder, tmp_path / "run", *flags)) == 0
    assert read_run(tmp_path / "run").settings["exits"] == [4]


@pytest.mark.parametrize(
    ("described", "mean"),
    [
        ('{"do_normalize": false, "image_mean": [0.5, 0.5, 0.5]}', [0.0, 0.0, 0.0]),
        ('{"image_mean": null}', [0.485, 0.456, 0.406]),
        (None, [0.485, 0.456, 0.406]),
    ],
)
def test_images_are_normalised_as_the_backbone_says(
    vit: Path, image_folder: Path, tmp_path: Path, described: str | None, mean: list[float]
) -> None:
    (vit / "preprocessor_config.json").unlink()
    if described is not None:
        (vit / "preprocessor_config.json").write_text(described)
    assert main(command(vit, image_folder, tmp_path / "run")) == 0
    assert read_run(tmp_path / "run").input["mean"] == mean
