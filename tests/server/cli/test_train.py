from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from models.networks.families import Network
from models.networks.heads import Conv
from models.networks.resnet import cifar_resnet
from models.training.run import read_run
from models.training.trainer import Trainer
from server.cli.main import build_parser, main
from server.cli.options import parse_exits
from server.cli.train import settings_of

CLASSES = ("bright", "dark")


def make_images(folder: Path, train: int = 10, test: int = 3, size: int = 8) -> Path:
    """Images of two classes."""
    random = np.random.default_rng(0)
    for part, rows in (("train", train), ("test", test)):
        for name, base in (("bright", 150), ("dark", 0)):
            (folder / part / name).mkdir(parents=True)
            for i in range(rows):
                pixels = (base + random.integers(0, 100, (size, size, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty training and six test images, 8x8, two classes."""
    return make_images(tmp_path_factory.mktemp("data") / "images")


def command(dataset: object, out: Path, *more: str) -> list[str]:
    settings = ["--arch", "resnet8", "--exits", "1", "--heads", "4/2", "--calibration-size", "4"]
    sizes = ["--batch-size", "8", "--epochs", "2"]
    return ["train", "--dataset", str(dataset), "--out", str(out), *settings, *sizes, *more]


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `command`."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    assert main(command(dataset, folder)) == 0
    return folder


def test_training_fills_the_run_folder_and_reports(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs/mine"
    assert main(command(dataset, out, "--json")) == 0
    said = capsys.readouterr()
    reports = json.loads(said.out)
    assert [report["epoch"] for report in reports] == [1, 2]
    assert all(len(report["test_accuracy"]) == 2 for report in reports)
    assert [line.split(":")[0] for line in said.err.splitlines()] == ["epoch 1", "epoch 2"]
    run = read_run(out)
    assert run.classes == CLASSES
    assert run.settings == {"num_classes": 2, "exits": [1], "heads": [[[4, 2]]]}
    assert run.training is not None and (run.training.epochs, run.training.batch_size) == (2, 8)
    assert run.data is not None and run.data["dataset"] == str(dataset)
    cifar_resnet(8, 2, (1,), ((Conv(4, 2),),)).load_state_dict(load_file(out / "best.safetensors"))


def test_a_finished_run_is_reported_again_and_not_trained(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(command(dataset, out, "--json")) == 0
    first, weights = capsys.readouterr(), (out / "last.safetensors").read_bytes()
    assert main(command(dataset, out, "--json")) == 0
    second = capsys.readouterr()
    assert second.out == first.out and second.err == ""
    assert (out / "last.safetensors").read_bytes() == weights


def test_a_run_from_before_rows_were_drawn_by_class_goes_on_with_its_rows(
    trained: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(trained, tmp_path / "run"))
    run = json.loads((out / "run.json").read_text())
    assert run["data"].pop("stratified") is True
    (out / "run.json").write_text(json.dumps(run))
    assert main(command(dataset, out)) == 0, capsys.readouterr().err
    assert json.loads((out / "run.json").read_text())["data"]["stratified"] is False


def test_the_rows_of_every_class_are_told(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "models"):
        assert main(command(dataset, tmp_path / "run")) == 0
    assert "rows: train 16, calibration 4, test 6" in caplog.text
    counts = {line.split()[0]: line.split()[1:] for line in caplog.text.splitlines() if line}
    assert counts["bright"] == counts["dark"] == ["8", "2", "3"]


def test_without_json_nothing_is_printed_on_stdout(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(dataset, tmp_path / "run", "--epochs", "1")) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("flags", "name", "before", "now"),
    [
        (["--arch", "resnet20"], "arch", "'resnet8'", "'resnet20'"),
        (["--exits", "2"], "exits", r"\[1\]", r"\[2\]"),
        (["--heads", "4/1"], "heads", r"\[\[\[4, 2\]\]\]", r"\[\[\[4, 1\]\]\]"),
        (["--calibration-size", "7"], "calibration_size", "4", "7"),
        (["--calibration-from", "test"], "calibration_from", "'train'", "'test'"),
        (["--certification-size", "2"], "certification_size", "0", "2"),
        (["--image-size", "12"], "image_size", "None", "12"),
        (["--epochs", "7"], "epochs", "2", "7"),
        (["--batch-size", "7"], "batch_size", "8", "7"),
        (["--optimizer", "adamw"], "optimizer", "'sgd'", "'adamw'"),
        (["--peak-lr", "0.7"], "peak_lr", "0.1", "0.7"),
        (["--weight-decay", "0.7"], "weight_decay", "0.0005", "0.7"),
        (["--distill-weight", "0.7"], "distill_weight", "0.05", "0.7"),
        (["--seed", "7"], "seed", "0", "7"),
    ],
)
def test_a_folder_of_other_settings_is_refused_and_left_alone(
    trained: Path,
    dataset: Path,
    sentence: Callable[..., str],
    flags: list[str],
    name: str,
    before: str,
    now: str,
) -> None:
    files = {path: path.read_bytes() for path in trained.iterdir()}
    said = sentence(*command(dataset, trained, *flags))
    wanted = f"holds a run with {name} = {before}, not {now}; give another --out"
    assert re.search(wanted, said), said
    assert {path: path.read_bytes() for path in trained.iterdir()} == files


def test_a_folder_of_another_data_set_is_refused(
    trained: Path, dataset: Path, tmp_path: Path, sentence: Callable[..., str]
) -> None:
    moved = shutil.copytree(dataset, tmp_path / "moved")
    assert "holds a run with dataset = " in sentence(*command(moved, trained))


def test_a_folder_of_another_start_is_refused(
    trained: Path, dataset: Path, tmp_path: Path, sentence: Callable[..., str]
) -> None:
    plain = plain_weights(tmp_path / "plain.safetensors")
    said = sentence(*command(dataset, trained, "--init", str(plain)))
    assert f"holds a run with start = None, not '{plain}'" in said


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--batch-size", "17"), "batch size 17 exceeds the 16 training rows"),
        (("--batch-size", "0"), "batch_size is 0; it must be above 0"),
        (("--epochs", "0"), "epochs is 0; it must be above 0"),
        (("--optimizer", "adam"), "optimizer is 'adam'; use sgd or adamw"),
        (("--calibration-size", "20"), "calibration size 20 must lie between 1 and 19"),
        (("--calibration-size", "0"), "calibration_size is 0; it must be 1 or more"),
        (("--certification-size", "-1"), "certification_size is -1; it must be 0 or more"),
        (("--certification-size", "6"), "6 rows cannot be held out of 6 test rows"),
        (("--calibration-from", "test", "--calibration-size", "6"), "hold out at most 5"),
        (("--dataset", "nowhere"), "dataset nowhere is neither"),
        (("--exits", "7"), "must rise and lie between 1 and 2"),
        (("--exits", "0"), "must rise and lie between 1 and 2"),
        (("--exits", "1,2"), "2 early exits need as many heads, got 1"),
        (("--heads", "4/0"), "heads '4/0'"),
        (("--arch", "resnet9"), "architecture 'resnet9' is unknown; did you mean 'resnet"),
        (("--arch", "attached-text"), "attached-text is made by `eenet attach`"),
        (("--arch", "fcn"), "the configuration of fcn has no exits, heads"),
        (("--seed", "-1"), "seed is -1; it must be 0 or more"),
        (("--device", "gpu"), "device 'gpu' is unknown; use auto, cpu or cuda"),
        (("--device", "cuda:0"), "device 'cuda:0' is not available"),
        (("--init", "nowhere.safetensors"), "nowhere.safetensors does not exist"),
    ],
)
def test_a_setting_that_fails_is_one_sentence_and_claims_no_folder(
    dataset: Path,
    tmp_path: Path,
    sentence: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, str],
    expected: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert expected in sentence(*command(dataset, tmp_path / "run", *more))
    assert not (tmp_path / "run/run.json").exists()


def plain_weights(path: Path) -> Path:
    """A plain ResNet-8 of two classes under the names that `--init` takes."""
    plain = cifar_resnet(8, 2, (), ())
    names = {"stages.0.0.0.": "conv1.", "stages.0.0.1.": "bn1.", "heads.0.linear.": "linear."}
    names |= {f"stages.0.{block}.": f"layer{block}.0." for block in (1, 2, 3)}
    renamed = {
        next(new + key.removeprefix(old) for old, new in names.items() if key.startswith(old)): v
        for key, v in plain.state_dict().items()
    }
    save_file(renamed, path)
    return path


def test_training_may_start_from_a_plain_network(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = plain_weights(tmp_path / "plain.safetensors")
    flags = ["--init", str(plain), "--epochs", "1", "--peak-lr", "1e-12"]
    assert main(command(dataset, tmp_path / "run", *flags)) == 0
    assert read_run(tmp_path / "run").start == str(plain)
    learnt = load_file(tmp_path / "run/best.safetensors")
    first = load_file(plain)["conv1.weight"]
    assert torch.allclose(learnt["stages.0.0.0.weight"].float(), first, atol=1e-3)


def test_a_plain_network_that_lacks_weights_is_named(
    dataset: Path, tmp_path: Path, sentence: Callable[..., str]
) -> None:
    weights = load_file(plain_weights(tmp_path / "plain.safetensors"))
    save_file({"conv1.weight": weights["conv1.weight"]}, tmp_path / "plain.safetensors")
    said = sentence(*command(dataset, tmp_path / "run", "--init", f"{tmp_path}/plain.safetensors"))
    assert "plain.safetensors lacks 'bn1.weight'" in said


def settings(*flags: str) -> dict[str, Any]:
    command = ["train", "--arch", "resnet20", "--dataset", "d", "--out", "run", *flags]
    return settings_of(build_parser().parse_args(command))


def test_the_command_line_becomes_the_networks_settings(tmp_path: Path) -> None:
    made = settings("--exits", "3,6", "--heads", "8/2,8/1;4/1")
    assert made == {
        "exits": [3, 6],
        "heads": ((Conv(8, 2), Conv(8, 1)), (Conv(4, 1),)),
    }
    assert settings() == {}
    assert settings("--arch", "bert_4", "--exits", "3,6") == {"exits_after_layer": [3, 6]}


def test_flags_go_before_the_settings_file(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"exits": [1], "heads": [[[4, 2]]]}')
    made = settings("--settings", str(tmp_path / "s.json"), "--exits", "2")
    assert made == {"exits": [2], "heads": [[[4, 2]]]}


def test_no_exits_make_a_plain_network() -> None:
    for more in ((), ("--heads", "4/2")):
        made = settings("--exits", "none", *more)
        assert made == {"exits": [], "heads": []}
        assert Network("resnet20", {"num_classes": 2, **made}).build().num_exits == 1


@pytest.mark.parametrize(
    ("arch", "meant"),
    [
        ("resnet56x", "resnet56"),
        ("ResNet56", "resnet56"),
        ("msd-net", "msdnet"),
        ("brt_4", "bert_4"),
    ],
)
def test_an_architecture_that_was_meant_is_suggested(
    dataset: Path, tmp_path: Path, sentence: Callable[..., str], arch: str, meant: str
) -> None:
    said = sentence(*command(dataset, tmp_path / "run", "--arch", arch))
    assert f"architecture '{arch}' is unknown; did you mean '{meant}'?" in said


@pytest.mark.parametrize("arch", ["vgg16", "alexnet", ""])
def test_an_unknown_architecture_is_named(
    dataset: Path, tmp_path: Path, sentence: Callable[..., str], arch: str
) -> None:
    said = sentence(*command(dataset, tmp_path / "run", "--arch", arch))
    assert f"architecture '{arch}' is unknown; use one of resnet8, resnet20" in said


@pytest.mark.parametrize("exits", ["", "9,", "a", "9;18", "1.5", "None"])
def test_exits_that_are_no_numbers_are_named(exits: str) -> None:
    with pytest.raises(ValueError, match=f"exits '{exits}' are not numbers of blocks"):
        parse_exits(exits)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "holds no JSON object"),
        ('{"depth": 9}', "has no depth; its keys are num_classes, exits, heads"),
        ("\xff", "cannot be read as JSON"),
        (None, "cannot be read as JSON"),
    ],
)
def test_settings_that_are_none_are_named(
    dataset: Path,
    tmp_path: Path,
    sentence: Callable[..., str],
    content: str | None,
    expected: str,
) -> None:
    if content is not None:
        (tmp_path / "s.json").write_bytes(content.encode("latin-1"))
    arguments = command(dataset, tmp_path / "run", "--settings", str(tmp_path / "s.json"))
    assert expected in sentence(*arguments)


BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "exits_after_layer": [1, 2],
}


@pytest.fixture
def bert(tmp_path: Path, tokenizer: Tokenizer) -> list[str]:
    """Flags of a tiny BERT that is trained from scratch."""
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    described = {**BERT, "vocab_size": tokenizer.get_vocab_size()}
    (tmp_path / "bert.json").write_text(json.dumps(described))
    return ["--arch", "bert_4", "--settings", str(tmp_path / "bert.json")]


def test_a_bert_is_trained_from_scratch_on_a_table(
    bert: list[str], reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, flags = tmp_path / "run", ["--epochs", "1", "--batch-size", "8", "--json"]
    more = ["--dataset", str(reviews), "--tokenizer", str(tmp_path), "--out", str(out)]
    assert main(["train", *bert, *more, *flags]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert len(report["test_accuracy"]) == 2
    run = read_run(out)
    assert (run.arch, run.classes) == ("bert_4", ("blame", "praise"))
    assert run.settings["num_labels"] == 2
    assert run.input == {"max_tokens": 20, "pad_id": 0}
    assert run.training is not None
    assert (run.training.optimizer, run.training.peak_lr) == ("adamw", 5e-4)
    assert (out / "tokenizer.json").read_text() == (tmp_path / "tokenizer.json").read_text()
    Network(run.arch, run.settings).build().load_state_dict(load_file(out / "best.safetensors"))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--max-tokens", "21"], "--max-tokens is 21; this network takes 3 to 20"),
        (["--max-tokens", "2"], "--max-tokens is 2; this network takes 3 to 20"),
        (["--max-tokens", "0"], "--max-tokens is 0; this network takes 3 to 20"),
        (["--max-tokens", "-5"], "--max-tokens is -5; this network takes 3 to 20"),
        (["--exits", "1,3"], "exits_after_layer is [1, 3]; it must rise from 1 or more and end"),
        (["--text-column", "review"], "has the columns 'text', 'label', not 'review' and 'label'"),
        (["--image-size", "8"], "holds texts; leave it out"),
        (["--tokenizer", "nowhere.json"], "nowhere.json does not exist"),
    ],
)
def test_a_text_setting_that_fails_is_one_sentence(
    bert: list[str],
    reviews: Path,
    tmp_path: Path,
    sentence: Callable[..., str],
    flags: list[str],
    expected: str,
) -> None:
    more = ["--dataset", reviews, "--tokenizer", tmp_path, "--out", tmp_path / "run", *flags]
    assert expected in sentence("train", *bert, *more)
    assert not (tmp_path / "run/run.json").exists()


def test_a_text_network_needs_a_tokenizer(
    bert: list[str], reviews: Path, tmp_path: Path, sentence: Callable[..., str]
) -> None:
    said = sentence("train", *bert, "--dataset", reviews, "--out", tmp_path / "run")
    assert "needs --tokenizer" in said


def test_what_is_no_tokenizer_is_named(
    bert: list[str], reviews: Path, tmp_path: Path, sentence: Callable[..., str]
) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    more = ["--dataset", reviews, "--tokenizer", tmp_path, "--out", tmp_path / "run"]
    assert "tokenizer.json is no tokenizer" in sentence("train", *bert, *more)


def test_a_tokenizer_of_more_tokens_than_the_network_is_named(
    bert: list[str], reviews: Path, tmp_path: Path, sentence: Callable[..., str]
) -> None:
    (tmp_path / "bert.json").write_text(json.dumps({**BERT, "vocab_size": 10}))
    more = ["--dataset", reviews, "--tokenizer", tmp_path, "--out", tmp_path / "run"]
    assert "vocab_size" in sentence("train", *bert, *more)


def test_data_of_another_task_is_one_sentence(
    dataset: Path,
    reviews: Path,
    bert: list[str],
    tmp_path: Path,
    sentence: Callable[..., str],
    drawing_few: Callable[[], AbstractContextManager[None]],
) -> None:
    out = ["--out", tmp_path / "run"]
    said = sentence("train", "--arch", "resnet8", "--dataset", reviews, *out)
    assert "resnet8 is trained for the task image" in said and "of the task text" in said
    said = sentence("train", *bert, "--tokenizer", tmp_path, "--dataset", dataset, *out)
    assert "bert_4 is trained for the task text" in said and "of the task image" in said
    said = sentence("train", "--arch", "fcn", "--dataset", dataset, *out)
    assert "fcn is trained for the task segmentation" in said
    with drawing_few():
        said = sentence("train", "--arch", "resnet8", "--dataset", "shapes", *out)
    assert "shapes is a dataset of the task segmentation" in said
    assert not (tmp_path / "run").exists()


def test_images_that_are_no_data_set_are_one_sentence(
    dataset: Path, tmp_path: Path, sentence: Callable[..., str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds 0 class folders" in sentence(*command(empty, tmp_path / "run"))
    other = make_images(tmp_path / "other")
    (other / "test/dark").rename(other / "test/grey")
    assert "lack the class" in sentence(*command(other, tmp_path / "run"))
    mixed = make_images(tmp_path / "mixed")
    Image.new("RGB", (9, 8)).save(mixed / "train/dark/wide.png")
    assert "give --image-size" in sentence(*command(mixed, tmp_path / "run"))
    (mixed / "train/dark/wide.png").write_bytes(b"no image")
    assert "wide.png is damaged" in sentence(*command(mixed, tmp_path / "run"))


def test_labels_that_differ_between_tables_are_one_sentence(
    bert: list[str], tmp_path: Path, sentence: Callable[..., str]
) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    rows = [
        (f"the film {word} was good", label) for word, label in zip("abcd", "xyxy", strict=True)
    ]
    for part, kept in (("train", "xy"), ("test", "x")):
        lines = [f"{part} {text},{label}" for text, label in rows if label in kept]
        (folder / f"{part}.csv").write_text("\n".join(["text,label", *lines]))
    more = ["--tokenizer", tmp_path, "--dataset", folder, "--out", tmp_path / "run"]
    assert "the test rows of" in (said := sentence("train", *bert, *more)) and "'y'" in said


MSDNET = {
    "base": 1,
    "step": 1,
    "num_scales": 2,
    "num_channels": 4,
    "growth_factor": [1, 2],
    "bn_factor": [1, 2],
    "num_blocks": 2,
    "growth_rate": 2,
}


def test_an_msdnet_takes_its_classes_from_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_images(tmp_path / "data", size=32)
    (tmp_path / "s.json").write_text(json.dumps(MSDNET))
    flags = ["--settings", f"{tmp_path}/s.json", "--epochs", "1", "--batch-size", "8"]
    out = ["--dataset", str(data), "--out", str(tmp_path / "run")]
    assert main(["train", "--arch", "msdnet", *out, *flags]) == 0
    run = read_run(tmp_path / "run")
    assert (run.settings["num_classes"], run.settings["num_blocks"]) == (2, 2)
    assert run.settings["compression"] == 0.5  # what the file leaves open is the paper's


def test_a_segmentation_is_trained_on_shapes(mask_run: Path) -> None:
    run = read_run(mask_run)
    assert (run.arch, len(run.classes)) == ("fcn", 5)
    assert run.settings["widths"] == [4, 6] and run.settings["num_classes"] == 5
    assert run.data is not None and run.data["dataset"] == "shapes"
    assert not (mask_run / "tokenizer.json").exists()
    Network(run.arch, run.settings).build().load_state_dict(
        load_file(mask_run / "best.safetensors")
    )


class Killed(Exception):
    pass


def test_a_killed_training_goes_on_to_the_same_weights(
    trained: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, done = Trainer._train_step, iter(range(100))

    def dying(trainer: Trainer, *batch: Any) -> float:
        if next(done) == 3:  # in the second epoch
            raise Killed
        return step(trainer, *batch)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "_train_step", dying)
        main(command(dataset, tmp_path / "run"))
    assert main(command(dataset, tmp_path / "run")) == 0
    for name in ("best.safetensors", "last.safetensors"):
        expected, found = load_file(trained / name), load_file(tmp_path / "run" / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_damaged_run_is_not_gone_on_with(
    dataset: Path, tmp_path: Path, sentence: Callable[..., str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{")
    assert "run.json is damaged" in sentence(*command(dataset, tmp_path / "run"))


def test_images_too_small_for_the_network_are_one_sentence(
    image_folder: Path, tmp_path: Path, sentence: Callable[..., str]
) -> None:
    flags = [
        "--arch",
        "msdnet",
        "--dataset",
        image_folder,
        "--image-size",
        "8",
        "--out",
        tmp_path / "r",
    ]
    assert "msdnet cannot read images of 8x8" in sentence("train", *flags)


def test_settings_of_the_wrong_kind_are_one_sentence(
    image_folder: Path, tmp_path: Path, sentence: Callable[..., str]
) -> None:
    (tmp_path / "odd.json").write_text('{"heads": [1]}')
    flags = [
        "--settings",
        tmp_path / "odd.json",
        "--dataset",
        image_folder,
        "--out",
        tmp_path / "r",
    ]
    said = sentence("train", "--arch", "resnet8", *flags)
    assert "a setting of resnet8 has the wrong type" in said
    (tmp_path / "odd.json").write_text('{"heads": [[[4, 0]], [[4, 2]]]}')
    said = sentence("train", "--arch", "resnet8", *flags)
    assert "heads [[[4, 0]], [[4, 2]]] have channels or a stride below 1" in said


def test_weights_to_start_from_are_those_of_a_resnet(
    image_folder: Path, tmp_path: Path, sentence: Callable[..., str]
) -> None:
    flags = ["--init", tmp_path / "w.pth", "--dataset", image_folder, "--out", tmp_path / "r"]
    assert "msdnet is none" in sentence("train", "--arch", "msdnet", *flags)
    (tmp_path / "w.pth").write_bytes(b"no tensors")
    said = sentence("train", "--arch", "resnet8", *flags)
    assert "w.pth is damaged or holds more than tensors" in said
