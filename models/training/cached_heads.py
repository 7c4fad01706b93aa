"""Train classifiers on cached features of a frozen network, with distillation from its answers."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.training.run import TrainConfig
from models.training.trainer import one_cycle

MAX_HIDDEN = 256
SMALLEST_STD = 1e-4  # of a feature that hardly varies


class CachedRows(NamedTuple):
    """What a classifier is trained on.

    Attributes:
        features: (N, F).
        labels: True classes, (N,).
        teacher: Log-probabilities that the whole network answers, (N, C).
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    teacher: NDArray[np.float32]


class Classifier(NamedTuple):
    """Weights of `relu(x @ hidden + hidden_bias) @ output + output_bias` on standardised features.

    Attributes:
        mean: Mean of each feature, (F,).
        std: Standard deviation of each feature, (F,).
        hidden: (F, H).
        hidden_bias: (H,).
        output: (H, C).
        output_bias: (C,).
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    hidden: NDArray[np.float32]
    hidden_bias: NDArray[np.float32]
    output: NDArray[np.float32]
    output_bias: NDArray[np.float32]


def train_head(
    rows: CachedRows, config: TrainConfig, on_epoch: Callable[[int, float], None]
) -> Classifier:
    """Train one classifier: standardised features, a hidden layer, one logit per class.

    The loss is `CE(labels) + alpha tau^2 KL(teacher || student)`.

    Args:
        rows: Features, labels and the teacher's answers.
        config: Settings; the optimizer is AdamW.
        on_epoch: Called with the number of each finished epoch and its mean loss.

    Raises:
        ValueError: If there are fewer rows than in a batch of two.
    """
    if len(rows.labels) < 2:
        raise ValueError(f"there are {len(rows.labels)} training rows; give at least 2")
    mean = rows.features.mean(0)
    std = np.maximum(rows.features.std(0), SMALLEST_STD)
    features = torch.from_numpy((rows.features - mean) / std)
    labels, teacher = torch.from_numpy(rows.labels), torch.from_numpy(rows.teacher)
    width, classes = features.shape[1], teacher.shape[1]
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = nn.Sequential(
            nn.Linear(width, min(MAX_HIDDEN, 2 * width)),
            nn.ReLU(),
            nn.Linear(min(MAX_HIDDEN, 2 * width), classes),
        )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.peak_lr, weight_decay=config.weight_decay
    )
    size = min(config.batch_size, len(labels))
    steps = len(labels) // size
    for epoch in range(config.epochs):
        order, total = torch.randperm(len(labels), generator=generator), 0.0
        for step in range(steps):
            progress = (epoch * steps + step) / (config.epochs * steps)
            for group in optimizer.param_groups:
                group["lr"] = config.peak_lr * one_cycle(progress)
            batch = order[step * size : (step + 1) * size]
            loss = _loss(model(features[batch]), labels[batch], teacher[batch], config)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item()
        on_epoch(epoch + 1, total / steps)
    first, last = model[0], model[2]
    return Classifier(
        mean,
        std,
        *(_array(each) for each in (first.weight.T, first.bias, last.weight.T, last.bias)),
    )


def _loss(logits: Tensor, labels: Tensor, teacher: Tensor, config: TrainConfig) -> Tensor:
    temperature = config.distill_temperature
    soft = F.log_softmax(teacher / temperature, -1)
    student = F.log_softmax(logits / temperature, -1)
    divergence = F.kl_div(student, soft, log_target=True, reduction="batchmean")
    return F.cross_entropy(logits, labels) + config.distill_weight * temperature**2 * divergence


def _array(values: object) -> NDArray[np.float32]:
    assert isinstance(values, Tensor)
    return np.asarray(values.detach().contiguous().numpy(), np.float32)
