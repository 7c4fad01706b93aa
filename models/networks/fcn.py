"""A small fully-convolutional network with exits that predicts a class for every pixel."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.networks.family import Family
from models.networks.multi_exit import MultiExitModel

STRIDE = 4  # of the state; the heads bring logits back to the image's size
GRID = 8  # cells along each side of the grid that policies read


@dataclass(frozen=True)
class FCNConfig:
    """The settings of the network.

    Attributes:
        num_classes: C.
        stem_width: Channels of the stem's first convolution.
        widths: Channels of each stage, (K,).
        dilations: The dilations of each stage's residual blocks. They let deeper stages see more of
            the image at the same resolution. The first stage, which holds the stem, may have none.
    """

    num_classes: int
    stem_width: int = 24
    widths: Sequence[int] = (48, 64, 64)
    dilations: Sequence[Sequence[int]] = ((), (1,), (2, 4))

    def __post_init__(self) -> None:
        if not self.widths or len(self.widths) != len(self.dilations):
            raise ValueError(
                f"widths is {self.widths!r} and dilations {self.dilations!r}; give a width and a "
                f"list of dilations for each stage, at least one"
            )
        if not all(self.dilations[1:]):
            raise ValueError(
                f"dilations is {self.dilations!r}; give every stage but the first a block or more"
            )
        parts = {
            "num_classes": [self.num_classes],
            "stem_width": [self.stem_width],
            "widths": self.widths,
            "dilations": [dilation for stage in self.dilations for dilation in stage],
        }
        for name, numbers in parts.items():
            if not all(isinstance(number, int) and number > 0 for number in numbers):
                raise ValueError(f"{name} is {getattr(self, name)!r}; give whole numbers above 0")


class DilatedBlock(nn.Module):
    """Two 3x3 convolutions of one dilation and a shortcut, projected if the width changes."""

    def __init__(self, in_channels: int, channels: int, dilation: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *_conv(in_channels, channels, dilation=dilation),
            nn.ReLU(),
            *_conv(channels, channels, dilation=dilation),
        )
        self.shortcut = (
            nn.Sequential(*_conv(in_channels, channels, kernel=1))
            if in_channels != channels
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H, W)."""
        return F.relu(self.convs(x) + self.shortcut(x))


class MaskHead(nn.Module):
    """Classify every pixel of the state and interpolate to the pixels of the image."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map a state (N, D, H / 4, W / 4) to logits (N, H, W, C)."""
        coarse = self.conv(x)
        logits = F.interpolate(coarse, scale_factor=STRIDE, mode="bilinear", align_corners=False)
        return logits.permute(0, 2, 3, 1)


def fcn(config: FCNConfig) -> MultiExitModel:
    """Build the network, for images whose sides are multiples of 8; its state is one tensor.

    Args:
        config: Widths and depths.

    Returns:
        The model, randomly initialised, with an exit per stage; logits are (K, N, H, W, C).
    """
    width = config.widths[0]
    stem: list[nn.Module] = [*_conv(3, config.stem_width, stride=2), nn.ReLU()]
    stem += [*_conv(config.stem_width, config.stem_width), nn.ReLU()]
    stem += [*_conv(config.stem_width, width, stride=2), nn.ReLU()]
    stages: list[nn.Module] = []
    for channels, dilations in zip(config.widths, config.dilations, strict=True):
        blocks: list[nn.Module] = []
        for dilation in dilations:
            blocks.append(DilatedBlock(width, channels, dilation))
            width = channels
        stages.append(nn.Sequential(*(blocks if stages else [*stem, *blocks])))
    model = MultiExitModel(
        stages, [MaskHead(channels, config.num_classes) for channels in config.widths]
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def coarse_grid(logits: Tensor) -> Tensor:
    """Reduce logits (N, H, W, C) to log-probabilities of 8 x 8 cells, (N, 64, C), for policies.

    The logits of a cell are the mean of those of its pixels; H and W are multiples of 8.
    """
    _, height, width, classes = logits.shape
    cells = logits.reshape(-1, GRID, height // GRID, GRID, width // GRID, classes).mean((2, 4))
    return cells.flatten(1, 2).log_softmax(-1)


def coarse_labels(masks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the most frequent class of each cell of the grid; masks (N, H, W) to (N, 64).

    Of two equally frequent classes it is the lower one.
    """
    rows, height, width = masks.shape
    cells = masks.reshape(rows, GRID, height // GRID, GRID, width // GRID).swapaxes(2, 3)
    cells = cells.reshape(rows, GRID * GRID, -1)  # (N, 64, pixels of a cell)
    counts = [(cells == label).sum(-1) for label in range(int(masks.max()) + 1)]
    labels: NDArray[np.int64] = np.argmax(counts, axis=0)
    return labels


def _conv(
    in_channels: int, channels: int, *, kernel: int = 3, stride: int = 1, dilation: int = 1
) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    return [
        nn.Conv2d(in_channels, channels, kernel, stride, padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(channels),
    ]


FAMILIES = {"fcn": Family("segmentation", FCNConfig, fcn)}
