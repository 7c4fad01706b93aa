"""Turn rows of a dataset into network input, for training and for evaluation as served."""

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
from models.preprocess import Text, TextPreprocessor

Rows = NDArray[np.intp]
Inputs_contra = TypeVar("Inputs_contra", contravariant=True)

CROP_SHARE = 8  # images are padded by an eighth of their height before a random crop
POOL_BATCHES = 32  # texts of this many batches are sorted by length together


class Batches(Protocol[Inputs_contra]):
    """Turns rows of a dataset into a network's input."""

    def order(self, inputs: Inputs_contra, rows: Rows, size: int) -> Rows:
        """Arrange shuffled rows in the order in which batches of `size` take them."""

    def clean(self, inputs: Inputs_contra, rows: Rows) -> State:
        """Prepare rows without augmentation, as in serving."""

    def augmented(
        self, inputs: Inputs_contra, labels: NDArray[np.int64], rows: Rows, seed: int
    ) -> tuple[State, Tensor]:
        """Prepare inputs and labels of rows for training."""


class ImageBatches:
    """Batches of normalised images; training crops the padded images and flips half of them.

    Args:
        mean: Mean of each channel, on a scale of 0 to 1.
        std: Standard deviation of each channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)

    def order(self, inputs: Images, rows: Rows, size: int) -> Rows:
        """Keep the shuffled order."""
        return rows

    def clean(self, inputs: Images, rows: Rows) -> Tensor:
        """Prepare network input (N, 3, H, W)."""
        return self._normalise(torch.from_numpy(inputs[rows]))

    def augmented(
        self, inputs: Images, labels: NDArray[np.int64], rows: Rows, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Prepare network input (N, 3, H, W) and labels (N,)."""
        generator = torch.Generator().manual_seed(seed)
        images = crop_and_flip(torch.from_numpy(inputs[rows]), generator)
        return self._normalise(images), torch.from_numpy(labels[rows])

    def _normalise(self, images: Tensor) -> Tensor:
        return normalise(images, self.mean, self.std)


class MaskBatches(ImageBatches):
    """Batches of images with a class for every pixel; training flips half of both."""

    def augmented(
        self, inputs: Images, labels: NDArray[np.int64], rows: Rows, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Prepare network input (N, 3, H, W) and masks (N, H, W)."""
        generator = torch.Generator().manual_seed(seed)
        flip = torch.randint(0, 2, (len(rows),), generator=generator).bool()
        images, masks = torch.from_numpy(inputs[rows]), torch.from_numpy(labels[rows])
        images = torch.where(flip[:, None, None, None], images.flip(2), images)
        return self._normalise(images), torch.where(flip[:, None, None], masks.flip(2), masks)


class TextBatches:
    """Batches of texts of similar length, padded to the longest text of the batch.

    Args:
        preprocess: The tokenizer and its length limit.
    """

    def __init__(self, preprocess: TextPreprocessor) -> None:
        self.preprocess = preprocess

    def order(self, inputs: Sequence[Text], rows: Rows, size: int) -> Rows:
        """Sort rows by length within pools of batches, and keep the batches of a pool shuffled.

        The order of the batches follows from that of their first rows in `rows`, so no second
        random draw is needed.
        """
        lengths = np.array([_length(inputs[row]) for row in rows])
        batches: list[Rows] = []
        for start in range(0, len(rows), POOL_BATCHES * size):
            pool = np.arange(start, min(start + POOL_BATCHES * size, len(rows)))
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            of_pool = [pool[i : i + size] for i in range(0, len(pool), size)]
            # A smaller batch goes last, so that all others start at multiples of `size`.
            batches += sorted(of_pool, key=lambda batch: (len(batch) < size, batch[0]))
        return rows[np.concatenate(batches)]

    def clean(self, inputs: Sequence[Text], rows: Rows) -> tuple[Tensor, ...]:
        """Prepare token ids and mask, (N, L) each."""
        state = self.preprocess.batch([inputs[row] for row in rows])
        return tuple(torch.from_numpy(array) for array in state)

    def augmented(
        self, inputs: Sequence[Text], labels: NDArray[np.int64], rows: Rows, seed: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Prepare token ids and mask, (N, L) each, and labels (N,)."""
        return self.clean(inputs, rows), torch.from_numpy(labels[rows])


def _length(text: Text) -> int:
    return len(text) if isinstance(text, str) else sum(map(len, text))


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise images (N, H, W, 3) uint8 to (N, 3, H, W) float32, channels last in memory."""
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crop the zero-padded images at random and flip half of them; (N, H, W, 3) in and out."""
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
    """Create the batches for a run.

    Args:
        task: The run's task.
        input: Settings of the input from `run.json`.
        tokenizer: Path of the run's `tokenizer.json`; read for texts only.
    """
    if task == "text":
        return TextBatches(TextPreprocessor(tokenizer, **input, length_step=1, typical_tokens=1))
    return (MaskBatches if task == "segmentation" else ImageBatches)(**input)
