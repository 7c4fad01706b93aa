"""Predictions of small multi-exit networks trained here, to judge policies on.

    .venv/bin/python -m benchmarks.predictions digits --seed 0 --out digits0.npz
    .venv/bin/python -m benchmarks.predictions fashion --seed 0 --out fashion0.npz

`digits`: scikit-learn's 8x8 digits, rotated, shifted, scaled and noisy (453 images for training,
450 for calibration, 894 for the test; 20, 11 and 33 distortions of each, none shared). `fashion`:
Fashion-MNIST as Debian's package dataset-fashion-mnist installs it. Four exits each; `eenet
evaluate --predictions` reads the file. JSON on the last line.
"""

import gzip
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.harness import make_parser, print_report
from models.networks.multi_exit import MultiExitModel

FASHION = Path("/usr/share/datasets/fashion-mnist")
CENTRE = np.array([3.5, 3.5])
# Of each digit: to train on, to fit to, to judge on. With 11 to judge on, the worst difference of
# two policies at any budget moved by more than the bar allows with the rounding of the CPU.
COPIES = (20, 11, 33)
EPOCHS = {"digits": 12, "fashion": 5}
BATCH, LR, PEAK_LR, WEIGHT_DECAY = 128, 2e-3, 8e-3, 1e-2


class Split(NamedTuple):
    """Images (N, 1, H, W) and labels (N,)."""

    images: Tensor
    labels: Tensor


def digits(seed: int, copies: tuple[int, int, int]) -> list[Split]:
    """Training, calibration and test split of distorted digits, so many copies of each image."""
    rng, data = np.random.default_rng(seed), load_digits()
    order = rng.permutation(len(data.target))
    parts = []
    for rows, times in zip(np.split(order, [453, 903]), copies, strict=True):
        distorted = [_distorted(data.images[row] / 16, rng) for row in rows for _ in range(times)]
        images = np.stack(distorted)[:, None].astype(np.float32)
        labels = np.repeat(data.target[rows], times)
        parts.append(Split(torch.from_numpy(images), torch.from_numpy(labels)))
    return parts


def fashion(seed: int) -> list[Split]:
    """50,000 images for training, 5,000 for calibration, the 10,000 of the test set."""
    images = _idx("train-images-idx3", 16).reshape(-1, 1, 28, 28).astype(np.float32) / 255
    labels = _idx("train-labels-idx1", 8)
    order = np.random.default_rng(seed).permutation(len(labels))
    test_images = _idx("t10k-images-idx3", 16).reshape(-1, 1, 28, 28).astype(np.float32) / 255
    test_labels = _idx("t10k-labels-idx1", 8).astype(np.int64)
    return [
        Split(torch.from_numpy(images[rows]), torch.from_numpy(labels[rows].astype(np.int64)))
        for rows in (order[:50000], order[50000:55000])
    ] + [Split(torch.from_numpy(test_images), torch.from_numpy(test_labels))]


def network(kind: str) -> MultiExitModel:
    """Four stages of few convolutions, with a linear head after each."""
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
    steps_per_epoch = len(split.labels) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LR, total_steps=epochs * steps_per_epoch
    )
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(split.labels))[: steps_per_epoch * BATCH]
        for rows in order.reshape(steps_per_epoch, BATCH):
            logits = model(split.images[rows])
            losses = [nn.functional.cross_entropy(exit, split.labels[rows]) for exit in logits]
            weights = torch.arange(1, len(losses) + 1) / 20
            optimizer.zero_grad()
            (weights @ torch.stack(losses)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def predict(model: MultiExitModel, images: Tensor) -> NDArray[np.float32]:
    """Probabilities of every exit, (K, N, C)."""
    model.eval()
    with torch.no_grad():
        parts = [model(part).softmax(-1) for part in torch.split(images, 1000)]
    probs: NDArray[np.float32] = torch.cat(parts, 1).numpy()
    return probs


def main() -> None:
    """Train a network and write its predictions."""
    parser = make_parser(__doc__)
    parser.add_argument("kind", choices=("digits", "fashion"), nargs="?", default="digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="required, but for a smoke run")
    args = parser.parse_args()
    if args.out is None and not args.smoke:
        parser.error("give --out FILE.npz")
    torch.manual_seed(args.seed)
    copies, epochs = ((1, 1, 1), 1) if args.smoke else (COPIES, EPOCHS[args.kind])
    splits = digits(args.seed, copies) if args.kind == "digits" else fashion(args.seed)
    model = network(args.kind)
    train(model, splits[0], epochs)
    arrays: dict[str, Any] = {}
    accuracy = {}
    for name, split in zip(("calibration", "test"), splits[1:], strict=True):
        arrays[f"{name}_probs"] = predict(model, split.images)
        arrays[f"{name}_labels"] = split.labels.numpy()
        right = (arrays[f"{name}_probs"].argmax(-1) == arrays[f"{name}_labels"]).mean(1)
        accuracy[name] = (100 * right).round(2).tolist()
        print(f"{args.kind} {args.seed} {name}: {accuracy[name]} % accuracy at the exits")
    with tempfile.TemporaryDirectory() as folder:
        out = args.out or Path(folder) / "predictions.npz"
        np.savez_compressed(out, allow_pickle=False, **arrays)
    print_report({"kind": args.kind, "seed": args.seed, "accuracy": accuracy}, smoke=args.smoke)


def _distorted(image: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    angle, scale = np.deg2rad(rng.normal(0, 20)), np.exp(rng.normal(0, 0.15))
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    offset = CENTRE - turn @ CENTRE + rng.normal(0, 0.8, 2)
    moved = ndimage.affine_transform(image, turn, offset, order=1)
    noisy: NDArray[np.float64] = moved + rng.normal(0, rng.uniform(0, 0.35), moved.shape)
    return noisy


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
