"""MSDNet: a dense network that keeps the image at several scales (Huang et al. 2018)."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.networks.family import Family
from models.networks.multi_exit import MultiExitModel

CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
CIFAR_HEAD_WIDTH = 128
PAPER = {  # the EENet paper's network for CIFAR
    "data": "cifar10",
    "base": 4,
    "step": 2,
    "step_mode": "even",
    "num_scales": 3,
    "num_channels": 16,
    "growth_factor": (1, 2, 4),
    "prune": "max",
    "bn_factor": (1, 2, 4),
    "num_blocks": 5,
    "growth_rate": 6,
    "bottleneck": True,
    "compression": 0.5,
    "reduction": 0.5,
}


@dataclass(frozen=True)
class MSDNetConfig:
    """The parameters of the published code, under its names.

    Attributes:
        data: `cifar10`, `cifar100` or `imagenet`; sets stem, heads and classes.
        base: Layers before the first exit.
        step: Layers between exits; with `lin_grow`, the increase from each exit to the next.
        step_mode: `even` or `lin_grow`.
        num_scales: S, the scales at the start, each with half the resolution of the one before.
        num_channels: Channels after the stem, times the scale's growth factor.
        growth_factor: Multiplier of the channels of each scale, (S,).
        prune: `max` drops the finest scale after each S-th of the layers, `min` only when no exit
            can use it any more.
        bn_factor: Width of a bottleneck relative to its output, for each scale, (S,).
        num_blocks: K, the number of exits.
        growth_rate: Channels that a layer adds, times the scale's growth factor.
        bottleneck: Whether a 1x1 convolution precedes each 3x3.
        compression: One of the published parameters; the network does not use it.
        reduction: Share of the channels that a transition keeps; 0: no transitions.
        num_classes: C; None: the number of classes of `data`.
    """

    data: str
    base: int
    step: int
    step_mode: str
    num_scales: int
    num_channels: int
    growth_factor: Sequence[int]
    prune: str
    bn_factor: Sequence[int]
    num_blocks: int
    growth_rate: int
    bottleneck: bool
    compression: float
    reduction: float
    num_classes: int | None = None

    def __post_init__(self) -> None:
        for name, choices in (
            ("data", tuple(CLASSES)),
            ("step_mode", ("even", "lin_grow")),
            ("prune", ("max", "min")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; use {' or '.join(choices)}")
        counts = ["base", "step", "num_scales", "num_channels", "num_blocks", "growth_rate"]
        if self.num_classes is not None:
            counts.append("num_classes")
        for name in counts:
            if not _is_count(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a number above 0")
        for name in ("growth_factor", "bn_factor"):
            factors = getattr(self, name)
            is_list = isinstance(factors, Sequence) and all(map(_is_count, factors))
            if not is_list or len(factors) != self.num_scales:
                raise ValueError(
                    f"{name} is {factors!r}; it must hold a number above 0 for each of the "
                    f"{self.num_scales} scales"
                )
        if not isinstance(self.bottleneck, bool):
            raise ValueError(f"bottleneck is {self.bottleneck!r}; it must be true or false")
        if not isinstance(self.reduction, int | float) or not 0 <= self.reduction <= 1:
            raise ValueError(f"reduction is {self.reduction!r}; it must lie between 0 and 1")

    @property
    def steps(self) -> list[int]:
        """Layers of each stage, (K,)."""
        grows = self.step_mode == "lin_grow"
        later = [self.step * k + 1 if grows else self.step for k in range(1, self.num_blocks)]
        return [self.base, *later]

    def scales_after(self, layer: int) -> int:
        """Return the number of (coarsest) scales after a layer, counted from 1; 0 is the stem."""
        total = sum(self.steps)
        if self.prune == "min":
            return min(self.num_scales, total - layer + 1)
        return self.num_scales - max(0, layer - 1) // math.ceil(total / self.num_scales)

    def reduced(self, channels: int, layer: int) -> int | None:
        """Return the channels after the transition that follows a layer; None if none follows."""
        total = sum(self.steps)
        if self.prune == "min":
            follows = layer in (total // 3, 2 * total // 3)
        else:
            follows = self.scales_after(layer) < self.scales_after(layer - 1)
        return math.floor(self.reduction * channels) if follows and self.reduction else None


class Stem(nn.Module):
    """Turn the image into features at every scale."""

    def __init__(self, config: MSDNetConfig) -> None:
        super().__init__()
        widths = [config.num_channels * factor for factor in config.growth_factor]
        finest = (
            _conv(3, widths[0], 3)
            if config.data.startswith("cifar")
            else nn.Sequential(
                nn.Conv2d(3, widths[0], 7, 2, 3),
                nn.BatchNorm2d(widths[0]),
                nn.ReLU(),
                nn.MaxPool2d(3, 2, 1),
            )
        )
        coarser = [_conv(a, b, 3, stride=2) for a, b in itertools.pairwise(widths)]
        self.layers = nn.ModuleList([finest, *coarser])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map (N, 3, H, W) to S tensors, finest first."""
        scales = []
        for layer in self.layers:
            x = layer(x)
            scales.append(x)
        return tuple(scales)


class MultiScaleLayer(nn.Module):
    """Add channels to each scale, computed from that scale and the next finer one.

    Args:
        config: Growth, factors and bottlenecks.
        channels: Input channels, times the scale's growth factor.
        scales_in: Number of input scales.
        scales_out: Number of output scales; the finest ones are dropped.
    """

    def __init__(
        self, config: MSDNetConfig, channels: int, scales_in: int, scales_out: int
    ) -> None:
        super().__init__()

        def conv(scale: int, out_channels: int, stride: int) -> nn.Module:
            in_channels = channels * config.growth_factor[scale]
            inner = min(in_channels, config.bn_factor[scale] * out_channels)
            return _conv(
                in_channels, out_channels, 3, stride, inner=inner if config.bottleneck else None
            )

        self.layers = nn.ModuleList()
        for scale in range(config.num_scales - scales_out, config.num_scales):
            new = config.growth_rate * config.growth_factor[scale]
            parts = nn.ModuleDict()
            if scale > config.num_scales - scales_in:
                parts["conv_down"] = conv(scale - 1, new // 2, 2)
                new -= new // 2
            parts["conv_normal"] = conv(scale, new, 1)
            self.layers.append(parts)

    def forward(self, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Map the input scales to the output scales, finest first."""
        scales = []
        for i, parts in enumerate(self.layers, start=len(state) - len(self.layers)):
            assert isinstance(parts, nn.ModuleDict), "a layer holds its two convolutions by name"
            grown = [state[i]]
            if "conv_down" in parts:
                grown.append(parts["conv_down"](state[i - 1]))
            grown.append(parts["conv_normal"](state[i]))
            scales.append(torch.cat(grown, 1))
        return tuple(scales)


class Transition(nn.Module):
    """Reduce the channels of every scale by a 1x1 convolution; widths are per growth factor."""

    def __init__(self, factors: Sequence[int], channels: int, reduced: int) -> None:
        super().__init__()
        self.m = nn.ModuleList(_conv(channels * f, reduced * f, 1) for f in factors)

    def forward(self, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return every scale with fewer channels."""
        return tuple(conv(x) for conv, x in zip(self.m, state, strict=True))


class CoarsestHead(nn.Module):
    """Classify from the coarsest scale alone."""

    def __init__(self, in_channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.m = nn.Sequential(
            _conv(in_channels, width, 3, stride=2),
            _conv(width, width, 3, stride=2),
            nn.AvgPool2d(2),
        )
        self.linear = nn.Linear(width, num_classes)

    def forward(self, state: tuple[Tensor, ...]) -> Tensor:
        """Map a state to logits (N, C)."""
        logits: Tensor = self.linear(self.m(state[-1]).mean((2, 3)))
        return logits


def msdnet(config: MSDNetConfig) -> MultiExitModel:
    """Build an MSDNet; its state is a tuple of one tensor per scale, finest first.

    Modules have the names of the published network, so that its weights can be loaded.

    Args:
        config: The published parameters.

    Returns:
        The model, randomly initialised, with K = num_blocks.
    """
    stages: list[nn.Module] = []
    heads: list[nn.Module] = []
    channels, layers = config.num_channels, itertools.count(1)
    classes = CLASSES[config.data] if config.num_classes is None else config.num_classes
    for step in config.steps:
        stage = nn.Sequential() if stages else nn.Sequential(Stem(config))
        for layer in itertools.islice(layers, step):
            scales = config.scales_after(layer)
            stage.append(MultiScaleLayer(config, channels, config.scales_after(layer - 1), scales))
            channels += config.growth_rate
            if reduced := config.reduced(channels, layer):
                stage.append(Transition(config.growth_factor[-scales:], channels, reduced))
                channels = reduced
        stages.append(stage)
        coarsest = channels * config.growth_factor[-1]
        width = CIFAR_HEAD_WIDTH if config.data.startswith("cifar") else coarsest
        heads.append(CoarsestHead(coarsest, width, classes))
    model = MultiExitModel(stages, heads)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def _conv(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, inner: int | None = None
) -> nn.Module:
    """Return convolution, norm and ReLU, after a 1x1 convolution to `inner` channels if given."""
    layers: list[nn.Module] = []
    if inner is not None:
        layers += [nn.Conv2d(in_channels, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()]
        in_channels = inner
    layers += [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]
    return nn.Sequential(OrderedDict(net=nn.Sequential(*layers)))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value > 0


FAMILIES = {"msdnet": Family("image", MSDNetConfig, msdnet, defaults=PAPER)}
