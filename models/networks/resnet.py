"""ResNets for images of 32 pixels, shortcuts without parameters (He et al. 2016, section 4.2)."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.checkpoint import read_checkpoint
from models.networks.family import Family
from models.networks.heads import Conv
from models.networks.multi_exit import MultiExitModel

WIDTHS = (16, 32, 64)
DEPTHS = (8, 20, 32, 44, 56, 110)
BLOCK_KEY = re.compile(r"stages\.(\d+)\.(\d+)\.conv1\.weight")
EARLY_HEAD = "exit_after_block_"
# The two early heads of the shipped network; docs/training.md explains the choice.
HEADS = (
    (Conv(32, 2), Conv(64, 2), Conv(96, 1), Conv(128, 2)),
    (Conv(64, 2), Conv(128, 2), Conv(128, 1)),
)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut that subsamples and pads with zeros (option A)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.pad = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride > 1 or self.pad:
            x = F.pad(
                x[:, :, :: self.stride, :: self.stride],
                (0, 0, 0, 0, self.pad // 2, self.pad - self.pad // 2),
            )
        return F.relu(out + x)


class ExitHead(nn.Module):
    """3x3 convolutions with batch norm and ReLU, global average pooling, one linear layer.

    Args:
        in_channels: Channels of the state that the head reads.
        convs: The convolutions; empty for the classifier at the end of the network.
        num_classes: C.
    """

    def __init__(self, in_channels: int, convs: Sequence[Conv], num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, stride in convs:
            layers += [
                nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
            in_channels = channels
        self.convs = nn.Sequential(*layers)
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map a state to logits (N, C)."""
        logits: Tensor = self.linear(self.convs(x).mean((2, 3)))
        return logits


def cifar_resnet(
    depth: int, num_classes: int, exits: Sequence[int], heads: Sequence[Sequence[Conv]]
) -> MultiExitModel:
    """Build a ResNet of 6n+2 layers with an exit after each of the given blocks and one at the end.

    Args:
        depth: Layers, 6n+2 (20, 32, 44, 56, 110).
        num_classes: C.
        exits: Blocks, counted from 1, that an early exit follows; empty for the plain network.
        heads: The convolutions of each early exit's head, one list per entry of `exits`.

    Returns:
        The model, randomly initialised, with K = len(exits) + 1.

    Raises:
        ValueError: If the depth is not 6n+2, or the exits do not rise inside the network.
    """
    per_group, rest = divmod(depth - 2, 6)
    if rest or per_group < 1:
        raise ValueError(f"depth {depth} is not 6n+2; use 20, 32, 44, 56 or 110")
    num_blocks = 3 * per_group
    bounds = [0, *exits, num_blocks]
    if any(a >= b for a, b in itertools.pairwise(bounds)):
        raise ValueError(f"exits {list(exits)} must rise and lie between 1 and {num_blocks - 1}")
    if len(heads) != len(exits):
        raise ValueError(f"{len(exits)} early exits need as many heads, got {len(heads)}")

    widths = [WIDTHS[i // per_group] for i in range(num_blocks)]
    blocks = [
        BasicBlock(widths[max(i - 1, 0)], width, 2 if i and width != widths[i - 1] else 1)
        for i, width in enumerate(widths)
    ]
    stem = nn.Sequential(
        nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()
    )
    stages = [nn.Sequential(*blocks[a:b]) for a, b in itertools.pairwise(bounds)]
    stages[0].insert(0, stem)
    convs = [*heads, ()]
    model = MultiExitModel(
        stages,
        [
            ExitHead(widths[end - 1], head, num_classes)
            for end, head in zip(bounds[1:], convs, strict=True)
        ],
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def load_weights(model: MultiExitModel, path: Path) -> None:
    """Start a network from a plain ResNet's weights, or from those of one with other exits.

    The backbone and the last exit start from them; an early exit does if the other network has one
    of the same shape after the same block.

    Args:
        model: A network of `cifar_resnet`.
        path: `best.safetensors` of a run of the same depth, or a checkpoint with the keys `conv1,
            bn1, layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}, linear`.

    Raises:
        ValueError: If a key of the backbone is missing, unknown or has another shape; the message
            names it.
    """
    given = _by_place(read_checkpoint(path))
    own = model.state_dict()
    names = dict(zip(_by_place(own), own, strict=True))
    for place, name in names.items():
        is_early_head = place.startswith(EARLY_HEAD)
        if place not in given:
            if is_early_head or place.endswith("num_batches_tracked"):
                continue
            raise ValueError(
                f"{path} lacks {place!r}; give the weights of a network of the same depth"
            )
        if given[place].shape == own[name].shape:
            own[name] = given[place]
        elif not is_early_head:
            raise ValueError(
                f"{place!r} in {path} has shape {tuple(given[place].shape)}, this network needs "
                f"{tuple(own[name].shape)}"
            )
    if extra := {place for place in given if not place.startswith(EARLY_HEAD)} - names.keys():
        raise ValueError(
            f"{path} holds {min(extra)!r}, which this network has no place for; does it have "
            f"another depth?"
        )
    model.load_state_dict(own)


def _by_place(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name weights as a plain ResNet does, early heads by the number of blocks before them."""
    blocks = sorted(
        tuple(map(int, found.groups())) for key in weights if (found := BLOCK_KEY.fullmatch(key))
    )
    if not blocks:
        return dict(weights)
    places = {"stages.0.0.0.": "conv1.", "stages.0.0.1.": "bn1."}
    for number, (stage, part) in enumerate(blocks):
        group, index = divmod(number, max(len(blocks) // 3, 1))
        places[f"stages.{stage}.{part}."] = f"layer{group + 1}.{index}."
    last = blocks[-1][0]
    for stage in range(last):
        places[f"heads.{stage}."] = f"{EARLY_HEAD}{sum(each[0] <= stage for each in blocks)}."
    places[f"heads.{last}.linear."] = "linear."
    return {_renamed(key, places): value for key, value in weights.items()}


def _renamed(key: str, places: Mapping[str, str]) -> str:
    for prefix, place in places.items():
        if key.startswith(prefix):
            return place + key.removeprefix(prefix)
    return key


class _Settings(NamedTuple):
    depth: int
    num_classes: int
    exits: Sequence[int]
    heads: Sequence[Sequence[Conv]]


def _family(depth: int) -> Family:
    """Describe a ResNet that has an exit after each third, unless the settings place them."""
    third = (depth - 2) // 6

    def settings(
        num_classes: int,
        exits: Sequence[int] = (third, 2 * third),
        heads: Sequence[Sequence[Sequence[int]]] | None = None,
    ) -> _Settings:
        if heads is None:
            heads = HEADS if len(exits) == len(HEADS) else (HEADS[-1],) * len(exits)
        convs = tuple(tuple(Conv(*conv) for conv in head) for head in heads)
        if any(min(conv) < 1 for head in convs for conv in head):
            raise ValueError(f"heads {heads} have channels or a stride below 1")
        return _Settings(depth, num_classes, exits, convs)

    return Family("image", settings, lambda made: cifar_resnet(*made))


FAMILIES = {f"resnet{depth}": _family(depth) for depth in DEPTHS}
