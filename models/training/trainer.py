"""Train all exits of a network jointly, with self-distillation, checkpoints and resume."""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.data.dataset import Dataset, Split
from models.networks.multi_exit import MultiExitModel, State
from models.training.batches import Batches
from models.training.loss import joint_loss
from models.training.run import BEST, LAST, TrainConfig, write_json

log = logging.getLogger(__name__)

EVALUATION_BATCH_SIZE = 250
SETTLED_FROM = 0.8  # share of the epochs after which the learning rate is low


class EpochReport(NamedTuple):
    """Result of one epoch: mean training loss, and accuracy of each exit, (K,)."""

    epoch: int
    train_loss: float
    calibration_accuracy: list[float]
    test_accuracy: list[float]
    seconds: float


@torch.inference_mode()
def accuracy_per_exit(
    model: nn.Module, batches: Batches[Any], split: Split, device: str = "cpu"
) -> list[float]:
    """Compute the accuracy at each exit, (K,), in evaluation mode; for segmentation by pixel."""
    model.eval()
    order = batches.order(split.inputs, np.arange(len(split.labels)), EVALUATION_BATCH_SIZE)
    correct: Tensor | float = 0.0
    for start in range(0, len(order), EVALUATION_BATCH_SIZE):
        rows = order[start : start + EVALUATION_BATCH_SIZE]
        logits = model(_to_device(batches.clean(split.inputs, rows), device))
        labels = torch.from_numpy(split.labels[rows]).to(device)
        correct = correct + (logits.argmax(-1) == labels).flatten(1).double().mean(1) * len(rows)
    assert isinstance(correct, Tensor), "no dataset is empty"
    return [float(share) for share in correct / len(order)]


class Trainer:
    """Train one network into a folder; the process may be killed at any time.

    Every `checkpoint_seconds` and after every epoch, the trainer writes `last.safetensors` (weights
    and optimizer state) and `progress.json` (step and reports). `best.safetensors` holds the
    weights with the highest calibration accuracy, averaged over the exits, among the last fifth of
    the epochs. Order, augmentation and dropout depend only on (seed, epoch, step), so a resumed run
    continues exactly as if it had not stopped.

    Args:
        config: Settings of the training.
        dataset: The loaded dataset.
        batches: Turns rows into network input.
        out: Folder of the run.
        model: The network to start from.
        device: Torch device to train on.
        compiled: Whether to train through `torch.compile`.
        checkpoint_seconds: Most training time that a kill can lose.
        clock: Returns seconds; monotonic.

    Raises:
        ValueError: If the batch size exceeds the training set.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        batches: Batches[Any],
        out: Path,
        model: MultiExitModel,
        *,
        device: str = "cpu",
        compiled: bool = False,
        checkpoint_seconds: float = 60.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.batches = batches
        self.out = out
        self.device = device
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.stages.requires_grad_(not config.heads_only)
        self.forward: Callable[[State], Tensor] = (
            torch.compile(self.model) if compiled else self.model
        )
        self.half_arithmetic = has_bfloat16(device)
        self.optimizer = _optimizer(self.model, config)
        self.steps_per_epoch = len(dataset.train.labels) // config.batch_size
        if not self.steps_per_epoch:
            raise ValueError(
                f"batch size {config.batch_size} exceeds the {len(dataset.train.labels)} "
                f"training rows; give a smaller --batch-size"
            )
        self.step = 0
        self.loss_sum = 0.0
        self.reports: list[EpochReport] = []
        self.checkpoint_seconds = checkpoint_seconds
        self.clock = clock

    def run(
        self, on_step: Callable[[int, float], None], on_epoch: Callable[[EpochReport], None]
    ) -> list[EpochReport]:
        """Train to the end, from the folder's checkpoint if there is one.

        Args:
            on_step: Called with the number of finished steps and the step's loss.
            on_epoch: Called with the report of each finished epoch.

        Returns:
            The reports of all epochs, including those before a resume.

        Raises:
            ValueError: If the loss is no longer finite.
        """
        self._resume()
        while self.step < self.config.epochs * self.steps_per_epoch:
            on_epoch(self._run_epoch(on_step))
        return self.reports

    def _run_epoch(self, on_step: Callable[[int, float], None]) -> EpochReport:
        started = last_saved = self.clock()
        epoch = self.step // self.steps_per_epoch
        for inputs, labels in self._batches(epoch):
            loss = self._train_step(inputs, labels)
            if not math.isfinite(loss):
                raise ValueError(
                    f"the loss is {loss} at step {self.step + 1}; train again into another folder "
                    f"with a --peak-lr below {self.config.peak_lr:g}"
                )
            self.step += 1
            self.loss_sum += loss
            on_step(self.step, loss)
            # Not after an epoch's last step: a run resumed from there would never report the epoch.
            is_due = self.clock() - last_saved > self.checkpoint_seconds
            if is_due and self.step % self.steps_per_epoch:
                self._save()
                last_saved = self.clock()
        report = self._evaluate(epoch, started)
        best = max(map(self._merit, self.reports), default=(False, -1.0))
        self.reports.append(report)
        self.loss_sum = 0.0
        if self._merit(report) > best:
            save_weights(self.model, self.out / BEST)
        self._save()
        return report

    def _evaluate(self, epoch: int, started: float) -> EpochReport:
        return EpochReport(
            epoch + 1,
            self.loss_sum / self.steps_per_epoch,
            accuracy_per_exit(self.model, self.batches, self.dataset.calibration, self.device),
            accuracy_per_exit(self.model, self.batches, self.dataset.test, self.device),
            self.clock() - started,
        )

    def _merit(self, report: EpochReport) -> tuple[bool, float]:
        # Pretrained weights may have seen the calibration images. They score best there in the
        # first epochs, before training makes them forget, so the last epochs take precedence.
        is_settled = report.epoch >= SETTLED_FROM * self.config.epochs
        return is_settled, float(np.mean(report.calibration_accuracy))

    def _batches(self, epoch: int) -> Iterator[tuple[State, Tensor]]:
        """Yield the epoch's remaining batches, starting at `step`."""
        train, size = self.dataset.train, self.config.batch_size
        rng = np.random.default_rng([self.config.seed, epoch])
        shuffled = rng.permutation(len(train.labels))[: self.steps_per_epoch * size]
        order = self.batches.order(train.inputs, shuffled, size)
        for index in range(self.step % self.steps_per_epoch, self.steps_per_epoch):
            rows = order[index * size : (index + 1) * size]
            seed = np.random.SeedSequence([self.config.seed, epoch, index]).generate_state(1)[0]
            torch.manual_seed(int(seed))  # for dropout
            yield self.batches.augmented(train.inputs, train.labels, rows, int(seed))

    def _train_step(self, inputs: State, labels: Tensor) -> float:
        total = self.config.epochs * self.steps_per_epoch
        progress = self.step / total
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.peak_lr * one_cycle(progress)
        distill_weight = self.config.distill_weight if progress >= self.config.distill_from else 0.0
        self.model.train()
        if self.config.heads_only:
            self.model.stages.eval()  # norms keep their pretrained statistics
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(
            torch.device(self.device).type, dtype=torch.bfloat16, enabled=self.half_arithmetic
        ):
            logits = self.forward(_to_device(inputs, self.device))
        loss = joint_loss(
            logits.float(),
            labels.to(self.device),
            distill_weight,
            self.config.distill_temperature,
        )
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item()

    def _save(self) -> None:
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"optimizer.{index}.{name}"] = value
        tensors["step"] = torch.tensor(self.step)
        tensors["loss_sum"] = torch.tensor(self.loss_sum, dtype=torch.float64)
        # Reports first: a kill between the two writes then leaves one report too many, which the
        # resumed run drops and makes again. The other order could lose a report.
        write_json(
            {"step": self.step, "reports": [report._asdict() for report in self.reports]},
            self.out / "progress.json",
        )
        _save_tensors(tensors, self.out / LAST)

    def _resume(self) -> None:
        path = self.out / LAST
        if not path.exists():
            return
        tensors = load_file(path)
        self.model.load_state_dict(
            {
                key.removeprefix("model."): value
                for key, value in tensors.items()
                if key.startswith("model.")
            }
        )
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                states.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})
        self.step, self.loss_sum = int(tensors["step"]), float(tensors["loss_sum"])
        finished_epochs = self.step // self.steps_per_epoch
        progress = json.loads((self.out / "progress.json").read_text())
        self.reports = [EpochReport(**report) for report in progress["reports"][:finished_epochs]]
        log.info("resuming %s at step %d", self.out, self.step)


def has_bfloat16(device: str) -> bool:
    """Return whether bfloat16 arithmetic is faster than float32 on a torch device.

    A CPU without instructions for it emulates it, ten times slower.
    """
    if torch.device(device).type != "cpu":
        return True
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


def one_cycle(progress: float, warm_up: float = 0.15) -> float:
    """Return the share of the peak learning rate: linear warm-up, then cosine decay to 0."""
    if progress < warm_up:
        return 0.1 + 0.9 * progress / warm_up
    return float(0.5 * (1 + np.cos(np.pi * (progress - warm_up) / (1 - warm_up))))


def save_weights(model: nn.Module, path: Path) -> None:
    """Write kernels and matrices in half precision, norms and biases in single precision."""
    _save_tensors(
        {
            key: value.half() if value.ndim > 1 and value.is_floating_point() else value
            for key, value in model.state_dict().items()
        },
        path,
    )


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            trainable,
            lr=config.peak_lr,
            momentum=0.9,
            nesterov=True,
            weight_decay=config.weight_decay,
        )
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},  # norms, biases
    ]
    return torch.optim.AdamW(groups, lr=config.peak_lr)


def _to_device(state: State, device: str) -> State:
    if isinstance(state, Tensor):
        return state.to(device)
    return tuple(part.to(device) for part in state)


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    part = path.with_suffix(".part")
    save_file({key: value.detach().contiguous().clone() for key, value in tensors.items()}, part)
    os.replace(part, path)
