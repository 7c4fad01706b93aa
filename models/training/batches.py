"""What a network reads of a dataset, in training and as serving makes it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.bundle import Task
from models.data.dataset import Images
from models.networks.multi_exit import State
from models.preprocess import TextPreprocessor

Rows = NDArray[np.intp]
Inputs_contra = TypeVar("Inputs_contra", contravariant=True)

CROP_SHARE = 8  # images are padded by an eighth of their side before a crop is drawn
POOL_BATCHES = 32  # texts of so many batches are sorted by length together


class Batches(Protocol[Inputs_contra]):
    """Turns rows of a dataset into a network's input."""

    def order(self, inputs: Inputs_contra, rows: Rows, size: int) -> Rows:
        """Shuffled rows in the order in which batches of `size` take them."""

    def clean(self, inputs: Inputs_contra, rows: Rows) -> State:
        """Rows as serving makes them."""

    def augmented(
        self, inputs: Inputs_contra, labels: NDArray[np.int64], rows: Rows, seed: int
    ) -> tuple[State, Tensor]:
        """Inputs and labels of rows as training takes them."""


class ImageBatches:
    """Images, normalised; in training a crop of the padded image, flipped or not.

    Args:
        mean: Per channel, on a scale of 0 to 1.
        std: Per channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)

    def order(self, inputs: Images, rows: Rows, size: int) -> Rows:
        """As they come."""
        return rows

    def clean(self, inputs: Images, rows: Rows) -> Tensor:
        """Network input (N, 3, H, W)."""
        return self._normalised(torch.from_numpy(inputs[rows]))

    def augmented(
        self, inputs: Images, labels: NDArray[np.int64], rows: Rows, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Network input (N, 3, H, W) and labels (N,)."""
        generator = torch.Generator().manual_seed(seed)
        images = crop_and_flip(torch.from_numpy(inputs[rows]), generator)
        return self._normalised(images), torch.from_numpy(labels[rows])

    def _normalised(self, images: Tensor) -> Tensor:
        return normalise(images, self.mean, self.std)


class MaskBatches(ImageBatches):
    """Images with a class for every pixel; in training both are flipped together."""

    def augmented(
        self, inputs: Images, labels: NDArray[np.int64], rows: Rows, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Network input (N, 3, H, W) and masks (N, H, W)."""
        generator = torch.Generator().manual_seed(seed)
        flip = torch.randint(0, 2, (len(rows),), generator=generator).bool()
        images, masks = torch.from_numpy(inputs[rows]), torch.from_numpy(labels[rows])
        images = torch.where(flip[:, None, None, None], images.flip(2), images)
        return self._normalised(images), torch.where(flip[:, None, None], masks.flip(2), masks)


class TextBatches:
    """Token ids and masks, as long as a batch's longest text; texts of like length together.

    Args:
        preprocess: The tokenizer and its limit.
    """

    def __init__(self, preprocess: TextPreprocessor) -> None:
        self.preprocess = preprocess

    def order(self, inputs: Sequence[str], rows: Rows, size: int) -> Rows:
        """Sorted by length within pools of batches; the batches of a pool stay shuffled.

        The shuffle of the batches is that of their first rows in `rows`, so that it is drawn once.
        """
        lengths = np.array([len(inputs[row]) for row in rows])
        batches: list[Rows] = []
        for start in range(0, len(rows), POOL_BATCHES * size):
            pool = np.arange(start, min(start + POOL_BATCHES * size, len(rows)))
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            whole = [pool[i : i + size] for i in range(0, len(pool), size)]
            batches += sorted(whole, key=lambda batch: (len(batch) < size, batch[0]))
        return rows[np.concatenate(batches)]

    def clean(self, inputs: Sequence[str], rows: Rows) -> tuple[Tensor, ...]:
        """Token ids and mask, (N, L) each."""
        state = self.preprocess.batch([inputs[row] for row in rows])
        return tuple(torch.from_numpy(array) for array in state)

    def augmented(
        self, inputs: Sequence[str], labels: NDArray[np.int64], rows: Rows, seed: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Token ids and mask, (N, L) each, and labels (N,)."""
        return self.clean(inputs, rows), torch.from_numpy(labels[rows])


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Images (N, H, W, 3) uint8 to network input (N, 3, H, W) float32, channels last in memory."""
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crop the zero-padded images and flip them, a draw per row; (N, H, W, 3) in and out."""
    rows, height, width, _ = images.shape
    pad = max(height // CROP_SHARE, 1)
    padded = F.pad(images, (0, 0, pad, pad, pad, pad))
    top, left = torch.randint(0, 2 * pad + 1, (2, rows, 1), generator=generator)
    flip = torch.randint(0, 2, (rows, 1), generator=generator).bool()
    down = top + torch.arange(height)  # (N, H)
    across = torch.arange(width).expand(rows, width)
    across = left + torch.where(flip, width - 1 - across, across)  # (N, W)
    return padded[torch.arange(rows)[:, None, None], down[:, :, None], across[:, None, :]]


def batches_for(task: Task, input: Mapping[str, Any], tokenizer: Path) -> Batches[Any]:
    """The batches of a run.

    Args:
        task: The run's.
        input: What its `run.json` says of its input.
        tokenizer: Path of its `tokenizer.json`, for texts alone.
    """
    if task == "text":
        return TextBatches(TextPreprocessor(tokenizer, **input, length_step=1, typical_tokens=1))
    return (MaskBatches if task == "segmentation" else ImageBatches)(**input)
