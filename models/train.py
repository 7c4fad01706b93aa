"""Joint training of all exits, with self-distillation, checkpoints and resume."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.data import Dataset, Split
from models.multi_exit import MultiExitModel
from models.run import TrainConfig

log = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_PAD = 4
EVALUATE_ROWS = 500
SETTLED_FROM = 0.8  # share of the epochs after which the learning rate has come down


class EpochReport(NamedTuple):
    """What one epoch reached: mean training loss, and accuracy per exit, (K,) each."""

    epoch: int
    train_loss: float
    calibration_accuracy: list[float]
    test_accuracy: list[float]
    seconds: float


def exit_weights(num_exits: int) -> list[float]:
    """gamma_k = k / (K (K + 1)) for k = 1..K, as in Ilhan et al. 2024, section 3.1."""
    return [k / (num_exits * (num_exits + 1)) for k in range(1, num_exits + 1)]


def joint_loss(logits: Tensor, labels: Tensor, distill_weight: float, temperature: float) -> Tensor:
    """Weighted cross-entropy of all exits plus what the last exit teaches the earlier ones.

    `sum_k gamma_k CE_k + alpha_KL sum_{k<K} tau^2 KL(softmax(z_K / tau) || softmax(z_k / tau))`,
    the mean over rows (Ilhan et al. 2024, section 3.1). The teacher is detached.

    Args:
        logits: (K, N, C).
        labels: (N,).
        distill_weight: alpha_KL; 0 leaves the second sum out.
        temperature: tau.

    Returns:
        The loss, a scalar.
    """
    losses = [F.cross_entropy(z, labels) for z in logits]
    loss = torch.stack(
        [gamma * ce for gamma, ce in zip(exit_weights(len(losses)), losses, strict=True)]
    ).sum()
    if distill_weight and len(losses) > 1:
        teacher = F.log_softmax(logits[-1].detach() / temperature, -1)
        students = F.log_softmax(logits[:-1] / temperature, -1)
        divergence = F.kl_div(
            students, teacher.expand_as(students), log_target=True, reduction="none"
        ).sum(-1)
        loss = loss + distill_weight * temperature**2 * divergence.mean(1).sum()
    return loss


def normalise(images: Tensor) -> Tensor:
    """Images (N, H, W, 3) uint8 to network input (N, 3, H, W) float32, channels last in memory."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crop the zero-padded images and flip them, a draw per row; (N, H, W, 3) in and out."""
    rows, height, width, _ = images.shape
    padded = F.pad(images, (0, 0, CROP_PAD, CROP_PAD, CROP_PAD, CROP_PAD))
    top, left = torch.randint(0, 2 * CROP_PAD + 1, (2, rows, 1), generator=generator)
    flip = torch.randint(0, 2, (rows, 1), generator=generator).bool()
    down = top + torch.arange(height)  # (N, H)
    across = torch.arange(width).expand(rows, width)
    across = left + torch.where(flip, width - 1 - across, across)  # (N, W)
    return padded[torch.arange(rows)[:, None, None], down[:, :, None], across[:, None, :]]


@torch.inference_mode()
def predict_logits(model: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits of every exit in float32 and evaluation mode, (K, N, C), for images (N, H, W, 3)."""
    model.eval()
    parts = [
        model(normalise(torch.from_numpy(images[i : i + EVALUATE_ROWS])))
        for i in range(0, len(images), EVALUATE_ROWS)
    ]
    logits: NDArray[np.float32] = torch.cat(parts, 1).numpy()
    return logits


def accuracy_per_exit(model: nn.Module, split: Split) -> list[float]:
    """Share of right answers at each exit, (K,)."""
    right = predict_logits(model, split.images).argmax(-1) == split.labels
    return [float(share) for share in right.mean(1)]


class Trainer:
    """Trains one network into a folder and can be killed at any time.

    After every `checkpoint_seconds` and every epoch the folder holds `last.safetensors` (weights
    and momentum) and `progress.json` (step, reports); `best.safetensors` is the epoch with the
    highest calibration accuracy, averaged over the exits, among the last fifth. Order and
    augmentation are drawn from (seed, epoch, step), so that a resumed run goes on exactly as if it
    had not stopped.

    Args:
        config: The run.
        dataset: Its data, already loaded.
        out: Folder of the run.
        model: The network to start from.
        compiled: Train through `torch.compile`.
        checkpoint_seconds: Longest training lost in a kill.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        out: Path,
        model: MultiExitModel,
        *,
        compiled: bool = False,
        checkpoint_seconds: float = 60.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.out = out
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.forward: Callable[[Tensor], Tensor] = (
            torch.compile(self.model) if compiled else self.model
        )
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=config.peak_lr,
            momentum=0.9,
            nesterov=True,
            weight_decay=config.weight_decay,
        )
        self.steps_per_epoch = len(dataset.train.labels) // config.batch_size
        if not self.steps_per_epoch:
            raise ValueError(
                f"batch size {config.batch_size} exceeds the {len(dataset.train.labels)} "
                f"training images"
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
        for images, labels in self._batches(epoch):
            loss = self._train_step(images, labels)
            self.step += 1
            self.loss_sum += loss
            on_step(self.step, loss)
            # At an epoch's end only with its report: a run resumed there would never make it.
            due = self.clock() - saved > self.checkpoint_seconds
            if due and self.step % self.steps_per_epoch:
                self._save("last")
                saved = self.clock()
        report = EpochReport(
            epoch + 1,
            self.loss_sum / self.steps_per_epoch,
            accuracy_per_exit(self.model, self.dataset.calibration),
            accuracy_per_exit(self.model, self.dataset.test),
            self.clock() - started,
        )
        best = max(map(self._merit, self.reports), default=(False, -1.0))
        self.reports.append(report)
        self.loss_sum = 0.0
        if self._merit(report) > best:
            _save_tensors(_halved(self.model.state_dict()), self.out / "best.safetensors")
        self._save("last")
        return report

    def _merit(self, report: EpochReport) -> tuple[bool, float]:
        # Weights that have seen the calibration images before score best there at the start, while
        # the learning rate has not yet made them forget: only the settled epochs are compared.
        settled = report.epoch >= SETTLED_FROM * self.config.epochs
        return settled, float(np.mean(report.calibration_accuracy))

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The epoch's remaining batches, from where `step` stands."""
        order = np.random.default_rng([self.config.seed, epoch]).permutation(
            len(self.dataset.train.labels)
        )
        size = self.config.batch_size
        for index in range(self.step % self.steps_per_epoch, self.steps_per_epoch):
            rows = order[index * size : (index + 1) * size]
            seed = np.random.SeedSequence([self.config.seed, epoch, index]).generate_state(1)[0]
            generator = torch.Generator().manual_seed(int(seed))
            images = augment(torch.from_numpy(self.dataset.train.images[rows]), generator)
            yield normalise(images), torch.from_numpy(self.dataset.train.labels[rows])

    def _train_step(self, images: Tensor, labels: Tensor) -> float:
        total = self.config.epochs * self.steps_per_epoch
        progress = self.step / total
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.peak_lr * one_cycle(progress)
        distill_weight = self.config.distill_weight if progress >= self.config.distill_from else 0.0
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = self.forward(images)
        loss = joint_loss(logits.float(), labels, distill_weight, self.config.distill_temperature)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item()

    def _save(self, name: str) -> None:
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors[f"momentum.{index}"] = state["momentum_buffer"]
        tensors["step"] = torch.tensor(self.step)
        tensors["loss_sum"] = torch.tensor(self.loss_sum, dtype=torch.float64)
        # Reports first: a kill between the two files leaves a report too many, which the resumed
        # run drops and earns again, never one too few.
        write_json(
            {"step": self.step, "reports": [r._asdict() for r in self.reports]},
            self.out / "progress.json",
        )
        _save_tensors(tensors, self.out / f"{name}.safetensors")

    def _resume(self) -> None:
        path = self.out / "last.safetensors"
        if not path.exists():
            return
        tensors = load_file(path)
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        momentum = {
            int(k[9:]): {"momentum_buffer": v}
            for k, v in tensors.items()
            if k.startswith("momentum.")
        }
        state = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**state, "state": momentum})
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


def write_json(value: Any, path: Path) -> None:
    """Write JSON so that a kill leaves the old file or the new one, never half of it."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, path)


def _halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Kernels and matrices in half precision, as shipped; norms and biases stay single."""
    return {key: value.half() if value.ndim > 1 else value for key, value in tensors.items()}


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    part = path.with_suffix(".part")
    save_file({key: value.detach().contiguous().clone() for key, value in tensors.items()}, part)
    os.replace(part, path)
