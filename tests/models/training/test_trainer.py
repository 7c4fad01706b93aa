import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import models.training.trainer as training
from models.data.dataset import Dataset, Split
from models.networks.encoder import EncoderConfig, bert_encoder
from models.networks.heads import Conv
from models.networks.multi_exit import MultiExitModel
from models.networks.resnet import cifar_resnet
from models.preprocess import TextPreprocessor
from models.training.batches import ImageBatches, MaskBatches, TextBatches
from models.training.run import TrainConfig
from models.training.trainer import EpochReport, Trainer, accuracy_per_exit, one_cycle

CONFIG = TrainConfig(epochs=2, batch_size=8, distill_from=0.5)
TEXT_CONFIG = replace(CONFIG, optimizer="adamw", peak_lr=1e-2, weight_decay=0.1)
STEPS = 6  # 3 an epoch
IMAGES = ImageBatches((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


class Killed(Exception):
    pass


def make_split(rows: int, seed: int) -> Split:
    """Noise images whose brightness depends on the class."""
    labels = np.arange(rows) % 2
    noise = np.random.default_rng(seed).integers(0, 100, (rows, 4, 4, 3))
    return Split((noise + 150 * labels[:, None, None, None]).astype(np.uint8), labels)


def make_dataset() -> Dataset:
    splits = make_split(26, 0), make_split(8, 1), make_split(8, 2)
    return Dataset("image", ("dark", "bright"), *splits)


def network(seed: int = 0) -> MultiExitModel:
    torch.manual_seed(seed)
    return cifar_resnet(8, 2, (1,), ((Conv(4, 2),),))


def make_texts(rows: int, seed: int) -> Split:
    """Texts of many lengths; one word depends on the class."""
    rng, labels = np.random.default_rng(seed), np.arange(rows) % 2
    texts = [f"{('bad', 'good')[label]}{' film' * rng.integers(0, 9)}" for label in labels]
    return Split(texts, labels)


def make_text_dataset() -> Dataset:
    return Dataset("text", ("no", "yes"), make_texts(26, 0), make_texts(8, 1), make_texts(8, 2))


def encoder(seed: int = 0) -> MultiExitModel:
    """Two layers with a dropout of a tenth."""
    torch.manual_seed(seed)
    return bert_encoder(
        EncoderConfig(
            vocab_size=80,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=12,
            num_labels=2,
            exits_after_layer=(1, 2),
        )
    )


def ticking() -> Callable[[], float]:
    ticks = itertools.count()
    return lambda: float(next(ticks))


def run(out: Path, *, seed: int = 0, kill_at: int | None = None) -> list[EpochReport]:
    """Train with a checkpoint after every step; a kill comes before its step's checkpoint."""
    out.mkdir(exist_ok=True)

    def on_step(step: int, loss: float) -> None:
        if step == kill_at:
            raise Killed

    trainer = Trainer(
        CONFIG,
        make_dataset(),
        IMAGES,
        out,
        network(seed),
        checkpoint_seconds=0,
        clock=ticking(),
    )
    return trainer.run(on_step, lambda report: None)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    run(out)
    return out


def outcome(out: Path) -> Any:
    """Files of a run without durations, each tensor as its hash."""
    reports = json.loads((out / "progress.json").read_text())["reports"]
    for report in reports:
        del report["seconds"]
    return reports, {
        f"{name} {key}": hashlib.sha256(value.numpy().tobytes()).hexdigest()
        for name in ("last.safetensors", "best.safetensors")
        for key, value in load_file(out / name).items()
    }


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    assert (one_cycle(0.0), one_cycle(0.15)) == (pytest.approx(0.1), pytest.approx(1.0))
    assert one_cycle(1.0) == pytest.approx(0.0)
    rates = [one_cycle(i / 100) for i in range(101)]
    assert rates[:16] == sorted(rates[:16]) and rates[15:] == sorted(rates[15:], reverse=True)


def test_accuracy_is_counted_per_exit() -> None:
    class Brightness(torch.nn.Module):
        """Predict class 0 at exit 0, and the class of the brightness at exit 1."""

        def forward(self, x: Tensor) -> Tensor:
            bright = x.mean((1, 2, 3))
            zeros = torch.zeros_like(bright)
            return torch.stack(
                [torch.stack([zeros, zeros - 1], 1), torch.stack([-bright, bright], 1)]
            )

    assert accuracy_per_exit(Brightness(), IMAGES, make_split(10, 0)) == [0.5, 1.0]


def test_accuracy_of_a_segmentation_is_counted_by_pixel() -> None:
    class Half(torch.nn.Module):
        """Predict class 0 everywhere at exit 0, and class 1 in the left half at exit 1."""

        def forward(self, x: Tensor) -> Tensor:
            logits = torch.zeros(2, len(x), 4, 4, 2)
            logits[0, ..., 0] = logits[1, :, :, :2, 1] = logits[1, :, :, 2:, 0] = 1
            return logits

    masks = np.zeros((5, 4, 4), np.int64)
    masks[:, :, 0] = 1  # a quarter
    images = MaskBatches(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    split = Split(np.zeros((5, 4, 4, 3), np.uint8), masks)
    assert accuracy_per_exit(Half(), images, split) == [0.75, 0.75]
    split.labels[0] = 1
    assert accuracy_per_exit(Half(), images, split) == pytest.approx([0.6, 0.7])


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_evaluation_does_not_depend_on_how_the_rows_are_parted(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Path, rows: int
) -> None:
    texts = TextBatches(TextPreprocessor(tokenizer, 12, 0, 1, 1))
    seen: list[Tensor] = []
    for model, batches, split in (
        (network(), IMAGES, make_split(7, 0)),
        (encoder(), texts, make_texts(7, 0)),
    ):
        monkeypatch.setattr(training, "EVALUATION_BATCH_SIZE", 7)
        with torch.inference_mode():
            whole = model.eval()(batches.clean(split.inputs, np.arange(7)))
        right = (whole.argmax(-1) == torch.from_numpy(split.labels)).double().mean(1).tolist()
        model.register_forward_hook(lambda module, x, logits: seen.append(logits))
        monkeypatch.setattr(training, "EVALUATION_BATCH_SIZE", rows)
        assert accuracy_per_exit(model, batches, split) == pytest.approx(right)
        parted, order = torch.cat(seen, 1), batches.order(split.inputs, np.arange(7), rows)
        assert whole.shape == parted.shape == (2, 7, 2)
        torch.testing.assert_close(parted, whole[:, order], atol=1e-5, rtol=0)
        seen.clear()


def test_training_learns_and_reports_each_epoch(tmp_path: Path) -> None:
    steps: list[int] = []
    reports: list[EpochReport] = []
    trainer = Trainer(CONFIG, make_dataset(), IMAGES, tmp_path, network())
    result = trainer.run(lambda step, loss: steps.append(step), reports.append)
    assert steps == list(range(1, STEPS + 1))
    assert result == reports and [report.epoch for report in reports] == [1, 2]
    assert reports[1].train_loss < reports[0].train_loss
    assert all(len(r.test_accuracy) == len(r.calibration_accuracy) == 2 for r in reports)


@pytest.mark.parametrize("kill_at", range(1, STEPS + 1))
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, uninterrupted: Path, kill_at: int
) -> None:
    with pytest.raises(Killed):
        run(tmp_path, kill_at=kill_at)
    run(tmp_path, seed=0 if kill_at == 1 else 99)  # once saved, the network is the file's
    assert outcome(tmp_path) == outcome(uninterrupted)


def kill_while_writing(monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """Simulate a kill before the nth file is put in place."""
    calls, replace = itertools.count(1), os.replace

    def replace_or_die(part: Path, path: Path) -> None:
        if next(calls) == nth:
            raise Killed
        replace(part, path)

    monkeypatch.setattr(os, "replace", replace_or_die)


@pytest.mark.parametrize("nth", range(1, 15))
def test_a_kill_between_any_two_files_loses_nothing(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_while_writing(patch, nth)
        run(tmp_path)
    run(tmp_path)
    assert outcome(tmp_path) == outcome(uninterrupted)


def test_a_finished_run_trains_no_more(uninterrupted: Path) -> None:
    before = outcome(uninterrupted)
    reports = run(uninterrupted, seed=99, kill_at=1)
    assert [report.epoch for report in reports] == [1, 2]
    assert outcome(uninterrupted) == before


def test_checkpoints_come_as_often_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = Trainer._save

    def counted(trainer: Trainer) -> None:
        saved.append(trainer.step)
        save(trainer)

    monkeypatch.setattr(Trainer, "_save", counted)
    trainer = Trainer(
        CONFIG,
        make_dataset(),
        IMAGES,
        tmp_path,
        network(),
        checkpoint_seconds=1.5,
        clock=ticking(),
    )
    trainer.run(lambda step, loss: None, lambda report: None)
    assert saved == [2, 3, 5, 6]  # a step takes a tick; and the end of every epoch, once


def test_the_best_settled_epoch_is_kept_with_kernels_in_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Epochs before the fourth of five are not settled, whatever they seem to reach.
    calibration = [[0.99, 0.99], [0.98, 0.99], [0.97, 0.99], [0.9, 0.7], [0.7, 0.8]]
    accuracies: Iterator[list[float]] = iter(a for each in calibration for a in (each, [0, 0]))
    monkeypatch.setattr(training, "accuracy_per_exit", lambda *given: next(accuracies))
    weights: list[dict[str, Tensor]] = []
    trainer = Trainer(replace(CONFIG, epochs=5), make_dataset(), IMAGES, tmp_path, network())

    def keep(report: EpochReport) -> None:
        weights.append({key: value.clone() for key, value in trainer.model.state_dict().items()})

    trainer.run(lambda step, loss: None, keep)
    best = load_file(tmp_path / "best.safetensors")
    assert best.keys() == weights[3].keys()
    for key, value in best.items():
        expected = weights[3][key].half() if value.ndim > 1 else weights[3][key]
        assert value.dtype == expected.dtype and torch.equal(value, expected), key
    assert {v.dtype for v in best.values() if v.ndim > 1} == {torch.float16}
    network().load_state_dict(best)


def test_a_batch_larger_than_the_training_set_is_refused(tmp_path: Path) -> None:
    config = replace(CONFIG, batch_size=27)
    with pytest.raises(ValueError, match="batch size 27 exceeds the 26 training rows"):
        Trainer(config, make_dataset(), IMAGES, tmp_path, network())


def train_texts(out: Path, tokenizer: Path, *, seed: int = 0, kill_at: int | None = None) -> None:
    """Train an encoder with a checkpoint after every step; a kill comes before its checkpoint."""
    out.mkdir(exist_ok=True)

    def on_step(step: int, loss: float) -> None:
        if step == kill_at:
            raise Killed

    Trainer(
        TEXT_CONFIG,
        make_text_dataset(),
        TextBatches(TextPreprocessor(tokenizer, 12, 0, 1, 1)),
        out,
        encoder(seed),
        checkpoint_seconds=0,
        clock=ticking(),
    ).run(on_step, lambda report: None)


@pytest.mark.parametrize("kill_at", [2, 3, 5])
def test_a_killed_training_with_dropout_and_adamw_goes_on_bit_by_bit(
    tmp_path: Path, tokenizer: Path, kill_at: int
) -> None:
    train_texts(tmp_path / "whole", tokenizer)
    with pytest.raises(Killed):
        train_texts(tmp_path / "killed", tokenizer, kill_at=kill_at)
    torch.manual_seed(1234)  # what is drawn elsewhere must not matter
    train_texts(tmp_path / "killed", tokenizer, seed=99)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    names = load_file(tmp_path / "whole/last.safetensors").keys()
    assert {name.rpartition(".")[2] for name in names if name.startswith("optimizer.")} == {
        "exp_avg",
        "exp_avg_sq",
        "step",
    }


def test_dropout_is_drawn_anew_at_every_step(tmp_path: Path, tokenizer: Path) -> None:
    draws: list[Tensor] = []
    model = encoder()
    model.heads[0].dropout.register_forward_hook(
        lambda module, given, x: draws.append(x == 0) if module.training else None
    )
    batches = TextBatches(TextPreprocessor(tokenizer, 12, 0, 1, 1))
    trainer = Trainer(TEXT_CONFIG, make_text_dataset(), batches, tmp_path, model)
    trainer.run(lambda step, loss: None, lambda report: None)
    assert len(draws) == STEPS
    assert all(0 < dropped.double().mean() < 0.5 for dropped in draws)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(draws, 2))


def test_adamw_decays_matrices_but_neither_norms_nor_biases(
    tmp_path: Path, tokenizer: Path
) -> None:
    batches = TextBatches(TextPreprocessor(tokenizer, 12, 0, 1, 1))
    model = encoder()
    trainer = Trainer(TEXT_CONFIG, make_text_dataset(), batches, tmp_path, model)
    names = {id(value): name for name, value in model.named_parameters()}
    decay = {
        names[id(value)]: group["weight_decay"]
        for group in trainer.optimizer.param_groups
        for value in group["params"]
    }
    assert decay.keys() == set(names.values())
    for name, share in decay.items():
        spared = "LayerNorm" in name or name.endswith("bias")
        assert share == (0.0 if spared else 0.1), name


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("kind", ["images", "texts"])
def test_of_a_frozen_backbone_only_the_heads_learn(
    tmp_path: Path, tokenizer: Path, kind: str, optimizer: str
) -> None:
    config = replace(CONFIG, heads_only=True, optimizer=optimizer)
    texts = TextBatches(TextPreprocessor(tokenizer, 12, 0, 1, 1))
    model, dataset, batches = {
        "images": (network(), make_dataset(), IMAGES),
        "texts": (encoder(), make_text_dataset(), texts),
    }[kind]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    buffers = {key: value.clone() for key, value in model.stages.named_buffers()}
    Trainer(config, dataset, batches, tmp_path, model).run(
        lambda step, loss: None, lambda report: None
    )
    after = model.state_dict()
    assert any(key.endswith("running_mean") for key in after) == (kind == "images")
    for key, value in after.items():
        assert torch.equal(value, before[key]) == key.startswith("stages."), key
    for key, value in model.stages.named_buffers():
        assert torch.equal(value, buffers[key]), key
    saved = load_file(tmp_path / "last.safetensors")
    assert all(torch.equal(saved[f"model.{key}"], value) for key, value in after.items())


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_no_row_is_left_out_of_every_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Path, kind: str
) -> None:
    # 26 rows make 3 batches of 8: two are left out of an epoch, not the same ones each time.
    texts = TextBatches(TextPreprocessor(tokenizer, 12, 0, 1, 1))
    model, dataset, batches = {
        "images": (network(), make_dataset(), IMAGES),
        "texts": (encoder(), make_text_dataset(), texts),
    }[kind]
    seen: list[int] = []
    augmented = batches.augmented

    def watched(inputs: Any, labels: Any, rows: Any, seed: int) -> Any:
        seen.extend(rows.tolist())
        return augmented(inputs, labels, rows, seed)

    monkeypatch.setattr(batches, "augmented", watched)
    trainer = Trainer(replace(CONFIG, epochs=4), dataset, batches, tmp_path, model)
    trainer.run(lambda step, loss: None, lambda report: None)
    epochs = [set(seen[start : start + 24]) for start in range(0, 96, 24)]
    assert [len(rows) for rows in epochs] == [24] * 4
    assert set().union(*epochs) == set(range(26))


def test_a_loss_that_is_no_number_ends_the_training_with_a_sentence(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model.heads[0].linear.bias.fill_(float("nan"))
    trainer = Trainer(CONFIG, make_dataset(), IMAGES, tmp_path, model)
    with pytest.raises(ValueError, match=r"the loss is nan at step 1; .* --peak-lr below 0\.1"):
        trainer.run(lambda step, loss: None, lambda report: None)
    assert not (tmp_path / "best.safetensors").exists()
