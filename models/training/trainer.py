"""Joint training of all exits, with self-distillation, checkpoints and resume."""

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

EVALUATE_ROWS = 250
SETTLED_FROM = 0.8  # share of the epochs after which the learning rate has come down


class EpochReport(NamedTuple):
    """What one epoch reached: mean training loss, and accuracy per exit, (K,) each."""

    epoch: int
    train_loss: float
    calibration_accuracy: list[float]
    test_accuracy: list[float]
    seconds: float


@torch.inference_mode()
def accuracy_per_exit(
    model: nn.Module, batches: Batches[Any], split: Split, device: str = "cpu"
) -> list[float]:
    """Share of right answers at each exit, (K,), in evaluation mode; of a segmentation by pixel."""
    model.eval()
    every = np.arange(len(split.labels))
    order = batches.order(split.inputs, every, EVALUATE_ROWS)
    right: Tensor | float = 0.0
    for start in range(0, len(order), EVALUATE_ROWS):
        rows = order[start : start + EVALUATE_ROWS]
        logits = model(_moved(batches.clean(split.inputs, rows), device))
        labels = torch.from_numpy(split.labels[rows]).to(device)
        right = right + (logits.argmax(-1) == labels).flatten(1).double().mean(1) * len(rows)
    assert isinstance(right, Tensor), "no dataset is empty"
    return [float(share) for share in right / len(order)]


class Trainer:
    """Trains one network into a folder and can be killed at any time.

    After every `checkpoint_seconds` and every epoch the folder holds `last.safetensors` (weights
    and the optimizer's state) and `progress.json` (step, reports); `best.safetensors` is the epoch
    with the highest calibration accuracy, averaged over the exits, among the last fifth. Order,
    augmentation and dropout are drawn from (seed, epoch, step), so that a resumed run goes on
    exactly as if it had not stopped.

    Args:
        config: How to train.
        dataset: The data, already loaded.
        batches: What turns rows into inputs.
        out: Folder of the run.
        model: The network to start from.
        device: Where to train, a device of torch.
        compiled: Train through `torch.compile`.
        checkpoint_seconds: Longest training lost in a kill.
        clock: Seconds, monotonic.
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
        """Train to the end from wherever the folder's checkpoint stands.

        Args:
            on_step: Told the number of steps done and the step's loss.
            on_epoch: Told each finished epoch's report.

        Returns:
            The reports of all epochs, those before a resume included.
        """
        self._resume()
        while self.step < self.config.epochs * self.steps_per_epoch:
            on_epoch(self._run_epoch(on_step))
        return self.reports

    def _run_epoch(self, on_step: Callable[[int, float], None]) -> EpochReport:
        started = saved = self.clock()
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
            # At an epoch's end only with its report: a run resumed there would never make it.
            due = self.clock() - saved > self.checkpoint_seconds
            if due and self.step % self.steps_per_epoch:
                self._save()
                saved = self.clock()
        report = EpochReport(
            epoch + 1,
            self.loss_sum / self.steps_per_epoch,
            accuracy_per_exit(self.model, self.batches, self.dataset.calibration, self.device),
            accuracy_per_exit(self.model, self.batches, self.dataset.test, self.device),
            self.clock() - started,
        )
        best = max(map(self._merit, self.reports), default=(False, -1.0))
        self.reports.append(report)
        self.loss_sum = 0.0
        if self._merit(report) > best:
            save_weights(self.model, self.out / BEST)
        self._save()
        return report

    def _merit(self, report: EpochReport) -> tuple[bool, float]:
        # Weights that have seen the calibration images before score best there at the start, while
        # the learning rate has not yet made them forget: only the settled epochs are compared.
        settled = report.epoch >= SETTLED_FROM * self.config.epochs
        return settled, float(np.mean(report.calibration_accuracy))

    def _batches(self, epoch: int) -> Iterator[tuple[State, Tensor]]:
        """The epoch's remaining batches, from where `step` stands."""
        train, size = self.dataset.train, self.config.batch_size
        rng = np.random.default_rng([self.config.seed, epoch])
        drawn = rng.permutation(len(train.labels))[: self.steps_per_epoch * size]
        order = self.batches.order(train.inputs, drawn, size)
        for index in range(self.step % self.steps_per_epoch, self.steps_per_epoch):
            rows = order[index * size : (index + 1) * size]
            seed = np.random.SeedSequence([self.config.seed, epoch, index]).generate_state(1)[0]
            torch.manual_seed(int(seed))  # dropout
            yield self.batches.augmented(train.inputs, train.labels, rows, int(seed))

    def _train_step(self, inputs: State, labels: Tensor) -> float:
        total = self.config.epochs * self.steps_per_epoch
        progress = self.step / total
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.peak_lr * one_cycle(progress)
        distill_weight = self.config.distill_weight if progress >= self.config.distill_from else 0.0
        self.model.train()
        if self.config.heads_only:
            self.model.stages.eval()  # norms keep the statistics of the pretraining
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16):
            logits = self.forward(_moved(inputs, self.device))
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
        # Reports first: a kill between the two files leaves a report too many, which the resumed
        # run drops and earns again, never one too few.
        write_json(
            {"step": self.step, "reports": [r._asdict() for r in self.reports]},
            self.out / "progress.json",
        )
        _save_tensors(tensors, self.out / LAST)

    def _resume(self) -> None:
        path = self.out / LAST
        if not path.exists():
            return
        tensors = load_file(path)
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                states.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})
        self.step, self.loss_sum = int(tensors["step"]), float(tensors["loss_sum"])
        done = self.step // self.steps_per_epoch
        progress = json.loads((self.out / "progress.json").read_text())
        self.reports = [EpochReport(**r) for r in progress["reports"]][:done]
        log.info("resuming %s at step %d", self.out, self.step)


def one_cycle(progress: float, warm_up: float = 0.15) -> float:
    """Share of the peak learning rate: linear up, then a cosine down to 0."""
    if progress < warm_up:
        return 0.1 + 0.9 * progress / warm_up
    return float(0.5 * (1 + np.cos(np.pi * (progress - warm_up) / (1 - warm_up))))


def save_weights(model: nn.Module, path: Path) -> None:
    """Kernels and matrices in half precision, as shipped; norms and biases stay single."""
    weights = model.state_dict()
    kernels = {k for k, value in weights.items() if value.ndim > 1 and value.is_floating_point()}
    _save_tensors({k: v.half() if k in kernels else v for k, v in weights.items()}, path)


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            trained,
            lr=config.peak_lr,
            momentum=0.9,
            nesterov=True,
            weight_decay=config.weight_decay,
        )
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.peak_lr)


def _moved(state: State, device: str) -> State:
    if isinstance(state, Tensor):
        return state.to(device)
    return tuple(part.to(device) for part in state)


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    part = path.with_suffix(".part")
    save_file({key: value.detach().contiguous().clone() for key, value in tensors.items()}, part)
    os.replace(part, path)
