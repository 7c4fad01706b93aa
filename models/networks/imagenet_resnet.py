"""ResNets for images of 224 pixels, with exits between their blocks (He et al. 2016)."""

import itertools
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.bottleneck_resnet import EXPANSION, Bottleneck
from models.networks.checkpoint import misfits, read_checkpoint
from models.networks.family import Family, check_count
from models.networks.heads import Conv
from models.networks.multi_exit import MultiExitModel
from models.networks.resnet import ExitHead

WIDTHS = (64, 128, 256, 512)
BLOCKS = {  # blocks in each of the four layers, by depth
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
BOTTLENECKS_FROM = 50
POOLING = (4, 2, 1, 1)  # before the heads in each layer: to a sixteenth of the side or less


@dataclass(frozen=True)
class ImageNetResNetConfig:
    """The settings of the network.

    Attributes:
        depth: Layers: 18, 34, 50, 101 or 152.
        num_classes: C.
        exits: Residual blocks, counted from 1, that an early exit follows; empty for the plain
            network.
        heads: The convolutions of each early exit's head, after an average pooling to a sixteenth
            of the image's side. None: two convolutions, at a thirty-second of the side, with two
            and four times the channels of the exit, at most 256 and 512.
    """

    depth: int
    num_classes: int
    exits: Sequence[int]
    heads: Sequence[Sequence[Conv]] | None = None

    def __post_init__(self) -> None:
        if self.depth not in BLOCKS:
            raise ValueError(f"depth {self.depth} is none of {', '.join(map(str, BLOCKS))}")
        check_count("num_classes", self.num_classes)
        last = sum(BLOCKS[self.depth])
        if any(a >= b for a, b in itertools.pairwise([0, *self.exits, last])):
            raise ValueError(
                f"exits {list(self.exits)} must rise and lie between 1 and {last - 1}, the blocks "
                f"before the last of a ResNet-{self.depth}"
            )
        if self.heads is not None and len(self.heads) != len(self.exits):
            raise ValueError(
                f"{len(self.exits)} early exits need as many heads, got {len(self.heads)}"
            )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected if the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride > 1 or in_channels != channels:
            self.shortcut.append(nn.Conv2d(in_channels, channels, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


def imagenet_resnet(config: ImageNetResNetConfig) -> MultiExitModel:
    """Build a ResNet with an exit after each of the given blocks and one at the end.

    The input is pixels (N, 3, H, W); pretrained weights expect 224 a side.

    Args:
        config: Depth, classes and exits.

    Returns:
        The model, randomly initialised, with K = len(exits) + 1.
    """
    block: Callable[[int, int, int], nn.Module] = BasicBlock
    expansion = 1
    if config.depth >= BOTTLENECKS_FROM:
        block, expansion = Bottleneck, EXPANSION
    layers = [layer for layer, count in enumerate(BLOCKS[config.depth]) for _ in range(count)]
    channels = [expansion * WIDTHS[layer] for layer in layers]  # after each block
    parts: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, WIDTHS[0], 7, 2, 3, bias=False),
        "bn1": nn.BatchNorm2d(WIDTHS[0]),
        "relu": nn.ReLU(),
        "maxpool": nn.MaxPool2d(3, 2, 1),
    }
    bounds = [0, *(len(parts) + exit for exit in config.exits), len(parts) + len(layers)]
    for i, layer in enumerate(layers):
        before = channels[i - 1] if i else WIDTHS[0]
        stride = 2 if i and layer > layers[i - 1] else 1
        name = f"layer{layer + 1}_{i - layers.index(layer)}"
        parts[name] = block(before, WIDTHS[layer], stride)
    named = list(parts.items())
    stages = [nn.Sequential(OrderedDict(named[a:b])) for a, b in itertools.pairwise(bounds)]

    ends = [(layers[exit - 1], channels[exit - 1]) for exit in config.exits]
    convs = config.heads or [_default_head(*end) for end in ends]
    heads: list[nn.Module] = [
        nn.Sequential(nn.AvgPool2d(POOLING[layer]), ExitHead(width, head, config.num_classes))
        for (layer, width), head in zip(ends, convs, strict=True)
    ]
    heads.append(ExitHead(channels[-1], (), config.num_classes))
    model = MultiExitModel(stages, heads)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def load_torchvision_weights(model: MultiExitModel, path: str | Path) -> None:
    """Start the backbone and the last exit from the weights of torchvision's ResNet.

    A classifier `fc` with another number of classes is ignored: the last exit then starts from
    random weights. The batch counters of norms may be missing.

    Args:
        model: A network of `imagenet_resnet`.
        path: A `.pth`, `.tar` or `.safetensors` of torchvision's state dict.

    Raises:
        ValueError: If the path is no such file, or keys are missing, unknown or have another
            shape; the message names them.
    """
    path, own = Path(path), model.state_dict()
    weights = read_checkpoint(path)
    last = f"heads.{model.num_exits - 1}."
    names = {key: _torchvision_name(key) for key in own if key.startswith(("stages.", last))}
    head = {_torchvision_name(key): own[key] for key in own if key.startswith(last)}
    if "fc.bias" in weights and weights["fc.bias"].shape != head["fc.bias"].shape:
        weights |= head
    if faults := misfits(own, weights, names):
        raise ValueError(
            f"{path} does not fit this network, give torchvision's weights of the same depth: "
            f"{'; '.join(faults)}"
        )
    own.update((key, weights[name]) for key, name in names.items() if name in weights)
    model.load_state_dict(own)


def _default_head(layer: int, channels: int) -> tuple[Conv, Conv]:
    """Return two convolutions at a thirty-second of the image's side."""
    stride = 1 if layer == len(WIDTHS) - 1 else 2
    return Conv(min(2 * channels, 256), stride), Conv(min(4 * channels, 512), 1)


def _torchvision_name(key: str) -> str:
    """Return torchvision's name of a key of the backbone or the last exit."""
    name = re.sub(r"^stages\.\d+\.", "", key)
    name = re.sub(r"^heads\.\d+\.linear\.", "fc.", name)
    name = re.sub(r"^(layer\d)_(\d+)\.", r"\1.\2.", name)
    return name.replace(".shortcut.", ".downsample.")


FAMILIES = {
    f"resnet{depth}": Family(
        "image",
        partial(ImageNetResNetConfig, depth),
        imagenet_resnet,
        defaults={"exits": (sum(blocks[:2]), sum(blocks[:3]))},
    )
    for depth, blocks in BLOCKS.items()
}
