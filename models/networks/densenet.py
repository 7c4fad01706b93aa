"""DenseNets for images of 32 pixels with an exit after each block (Huang et al. 2017)."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.family import Family, class_count
from models.networks.heads import Conv
from models.networks.multi_exit import MultiExitModel
from models.networks.resnet import ExitHead

BOTTLENECK = 4  # channels after a layer's 1x1 convolution, as a multiple of the growth


class DenseLayer(nn.Module):
    """1x1 and 3x3 convolutions, each after its norm; the new channels precede the old ones."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        inner = BOTTLENECK * growth
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, growth + C_in, H, W)."""
        new = self.conv1(F.relu(self.bn1(x)))
        new = self.conv2(F.relu(self.bn2(new)))
        return torch.cat([new, x], 1)


class Transition(nn.Module):
    """Halve the channels and the sides of the image."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, in_channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_in / 2, H / 2, W / 2)."""
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


def densenet121(num_classes: int) -> MultiExitModel:
    """Build the EENet paper's DenseNet for CIFAR-100: 58 layers of growth 12, K = 4."""
    return densenet((6, 12, 24, 16), 12, num_classes)


def densenet(blocks: Sequence[int], growth: int, num_classes: int) -> MultiExitModel:
    """Build a DenseNet with an exit after every transition, and one at the end.

    Modules have the names of the published network, so that its weights can be loaded.

    Args:
        blocks: Layers per block; a transition ends each but the last.
        growth: Channels that each layer adds.
        num_classes: C.

    Returns:
        The model, randomly initialised, with K = len(blocks).

    Raises:
        ValueError: If there is no block, or one is empty, or the growth is below 1.
    """
    if not blocks or min(*blocks, growth) < 1:
        raise ValueError(f"blocks {list(blocks)} and growth {growth} must be numbers above 0")
    stages: list[nn.Module] = []
    heads: list[nn.Module] = []
    channels = 2 * growth
    parts: dict[str, nn.Module] = {"conv1": nn.Conv2d(3, channels, 3, 1, 1, bias=False)}
    for k, depth in enumerate(blocks, start=1):
        dense = nn.Sequential(*(DenseLayer(channels + i * growth, growth) for i in range(depth)))
        channels += depth * growth
        parts[f"dense{k}"] = dense
        convs: Sequence[Conv] = ()
        if k < len(blocks):
            parts[f"trans{k}"] = Transition(channels)
            channels //= 2
            convs = (Conv(channels // 4, 1),) * 3
        else:
            parts |= {"bn": nn.BatchNorm2d(channels), "relu": nn.ReLU()}
        stages.append(nn.Sequential(OrderedDict(parts)))
        heads.append(ExitHead(channels, convs, num_classes))
        parts = {}
    return MultiExitModel(stages, heads)


FAMILIES = {"densenet121_4": Family("image", class_count, densenet121)}
