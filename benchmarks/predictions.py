"""Multi-exit predictions to judge policies on, from small networks trained here.

    .venv/bin/python -m benchmarks.predictions digits --seed 0 --out digits0.npz
    .venv/bin/python -m benchmarks.predictions fashion --seed 0 --out fashion0.npz

`digits`: scikit-learn's 8x8 digits, turned, shifted, scaled and noisy (453 images for training,
450 for calibration, 894 for the test; eleven distortions of each, none shared). `fashion`:
Fashion-MNIST as Debian's package dataset-fashion-mnist installs it. Four exits each; the file is
what `eenet evaluate --predictions` reads.
"""

import argparse
import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.datasets import load_digits
from torch import Tensor, nn

from models.networks.multi_exit import MultiExitModel

FASHION = Path("/usr/share/datasets/fashion-mnist")
CENTRE = np.array([3.5, 3.5])
COPIES_TO_TRAIN, COPIES = 20, 11
BATCH, LR, PEAK_LR, WEIGHT_DECAY = 128, 2e-3, 8e-3, 1e-2


class Split(NamedTuple):
    """Images (N, 1, H, W) and labels (N,)."""

    images: Tensor
    labels: Tensor


def digits(seed: int) -> list[Split]:
    """Training, calibration and test split of distorted digits."""
    rng, data = np.random.default_rng(seed), load_digits()
    order = rng.permutation(len(data.target))
    parts = []
    for rows, copies in (
        (order[:453], COPIES_TO_TRAIN),
        (order[453:903], COPIES),
        (order[903:], COPIES),
    ):
        pictures = [_distorted(data.images[row] / 16, rng) for row in rows for _ in range(copies)]
        images = np.stack(pictures)[:, None].astype(np.float32)
        labels = np.repeat(data.target[rows], copies)
        parts.append(Split(torch.from_numpy(images), torch.from_numpy(labels)))
    return parts


def fashion(seed: int) -> list[Split]:
    """50,000 images for training, 5,000 for calibration, the 10,000 of the test set."""
    images, labels = _idx("train-images-idx3", 16), _idx("train-labels-idx1", 8)
    images = images.reshape(-1, 1, 28, 28).astype(np.float32) / 255
    order = np.random.default_rng(seed).permutation(len(labels))
    test_images = _idx("t10k-images-idx3", 16).reshape(-1, 1, 28, 28).astype(np.float32) / 255
    test_labels = _idx("t10k-labels-idx1", 8).astype(np.int64)
    return [
        Split(torch.from_numpy(images[rows]), torch.from_numpy(labels[rows].astype(np.int64)))
        for rows in (order[:50000], order[50000:55000])
    ] + [Split(torch.from_numpy(test_images), torch.from_numpy(test_labels))]


def network(kind: str) -> MultiExitModel:
    """Four stages of few convolutions, a linear head behind each."""
    if kind == "digits":
        stages = [
            _conv(1, 12),
            _conv(12, 16, 2),
            _conv(16, 32),
            nn.Sequential(_conv(32, 64, 2), _conv(64, 64)),
        ]
        return MultiExitModel(stages, [_head(12, 4), _head(16, 4), _head(32, 2), _head(64, 2)])
    stages = [_conv(1, 8, 2), _conv(8, 16, 2), _conv(16, 32), _conv(32, 64, 2)]
    return MultiExitModel(stages, [_head(channels, 2) for channels in (8, 16, 32, 64)])


def train(model: MultiExitModel, split: Split, epochs: int) -> None:
    """One-cycle AdamW on the joint loss, exit weights k / (K (K + 1))."""
    steps = epochs * (len(split.labels) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(split.labels)).split(BATCH)[: len(split.labels) // BATCH]:
            logits = model(split.images[rows])
            losses = [nn.functional.cross_entropy(exit, split.labels[rows]) for exit in logits]
            optimizer.zero_grad()
            sum((k + 1) * loss / 20 for k, loss in enumerate(losses)).backward()
            optimizer.step()
            schedule.step()


def predict(model: MultiExitModel, images: Tensor) -> NDArray[np.float32]:
    """Probabilities of every exit, (K, N, C)."""
    model.eval()
    with torch.no_grad():
        parts = [model(part).softmax(-1) for part in images.split(1000)]
    return torch.cat(parts, 1).numpy()


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("digits", "fashion"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    splits = digits(args.seed) if args.kind == "digits" else fashion(args.seed)
    model = network(args.kind)
    train(model, splits[0], epochs=12 if args.kind == "digits" else 5)
    arrays = {}
    for name, split in zip(("calibration", "test"), splits[1:], strict=True):
        arrays[f"{name}_probs"] = predict(model, split.images)
        arrays[f"{name}_labels"] = split.labels.numpy()
        right = (arrays[f"{name}_probs"].argmax(-1) == arrays[f"{name}_labels"]).mean(1)
        print(f"{args.kind} {args.seed} {name}: {(100 * right).round(2)} % right at the exits")
    np.savez_compressed(args.out, **arrays)


def _distorted(image: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    angle, scale = np.deg2rad(rng.normal(0, 20)), np.exp(rng.normal(0, 0.15))
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    offset = CENTRE - turn @ CENTRE + rng.normal(0, 0.8, 2)
    moved = ndimage.affine_transform(image, turn, offset, order=1)
    return moved + rng.normal(0, rng.uniform(0, 0.35), moved.shape)


def _idx(name: str, header: int) -> NDArray[np.uint8]:
    path = FASHION / f"{name}-ubyte.gz"
    if not path.exists():
        raise SystemExit(f"{path} is missing; install the package dataset-fashion-mnist")
    return np.frombuffer(gzip.open(path).read(), np.uint8, offset=header)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _head(channels: int, side: int) -> nn.Module:
    pool = nn.AdaptiveAvgPool2d(side)
    return nn.Sequential(pool, nn.Flatten(), nn.Linear(side * side * channels, 10))


if __name__ == "__main__":
    main()
