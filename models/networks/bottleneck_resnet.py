"""Bottleneck ResNets for images of 32 pixels, an exit after each group (He et al. 2016)."""

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.family import Family, class_count
from models.networks.heads import Conv
from models.networks.multi_exit import MultiExitModel
from models.networks.resnet import WIDTHS, ExitHead

EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut, projected if the shape changes."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        channels = EXPANSION * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride > 1 or in_channels != channels:
            self.shortcut.append(nn.Conv2d(in_channels, channels, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, 4 width, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.shortcut(x))


def resnet56_3(num_classes: int) -> MultiExitModel:
    """Build the EENet paper's ResNet for CIFAR-10: 9 bottlenecks a group, K = 3."""
    return bottleneck_resnet((9, 9, 9), num_classes)


def bottleneck_resnet(blocks: Sequence[int], num_classes: int) -> MultiExitModel:
    """Build a bottleneck ResNet of three groups with an exit after each.

    Modules have the names of the published network, so that its weights can be loaded.

    Args:
        blocks: Bottlenecks in each of the three groups; the second and third halve the image.
        num_classes: C.

    Returns:
        The model, randomly initialised, with K = 3.

    Raises:
        ValueError: If there are not three groups, or one is empty.
    """
    if len(blocks) != len(WIDTHS) or min(blocks) < 1:
        raise ValueError(f"blocks {list(blocks)} must be {len(WIDTHS)} numbers above 0")
    stages: list[nn.Module] = []
    heads: list[nn.Module] = []
    channels = WIDTHS[0]
    stem: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, channels, 3, 1, 1, bias=False),
        "bn1": nn.BatchNorm2d(channels),
        "relu": nn.ReLU(),
    }
    for k, (width, depth) in enumerate(zip(WIDTHS, blocks, strict=True)):
        layer = nn.Sequential()
        for i in range(depth):
            layer.append(Bottleneck(channels, width, 2 if k and not i else 1))
            channels = EXPANSION * width
        stages.append(nn.Sequential(OrderedDict({**stem, f"layer{k + 1}": layer})))
        stem = {}
        convs = () if width == WIDTHS[-1] else (Conv(channels // 4, 1),) * 3
        heads.append(ExitHead(channels, convs, num_classes))
    return MultiExitModel(stages, heads)


FAMILIES = {"resnet56_3": Family("image", class_count, resnet56_3)}
