"""The networks that can be trained, imported and built, by name."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from models.bundle import Task
from models.networks.attach import AttachedConfig, attached_encoder
from models.networks.bottleneck_resnet import resnet56_3
from models.networks.checkpoint import format_items
from models.networks.densenet import densenet121
from models.networks.encoder import EncoderConfig, bert_encoder
from models.networks.fcn import FCNConfig, fcn
from models.networks.heads import Conv
from models.networks.imagenet_resnet import BLOCKS, ImageNetResNetConfig, imagenet_resnet
from models.networks.msdnet import MSDNetConfig, msdnet
from models.networks.multi_exit import MultiExitModel
from models.networks.resnet import cifar_resnet

# What the shipped network's two early heads are made of: see docs/training.md.
HEADS = (
    (Conv(32, 2), Conv(64, 2), Conv(96, 1), Conv(128, 2)),
    (Conv(64, 2), Conv(128, 2), Conv(128, 1)),
)


class Family(NamedTuple):
    """How a network is made from plain settings.

    Attributes:
        task: What its exits answer, and so what it reads.
        settings: Makes what `build` takes; its parameters are the names of the settings.
        build: Makes the network.
        defaults: Settings of a training that gives none.
        classes: The setting that holds C.
    """

    task: Task
    settings: Callable[..., Any]
    build: Callable[[Any], MultiExitModel]
    defaults: Mapping[str, Any] = {}
    classes: str = "num_classes"


def _num_classes(num_classes: int) -> int:
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes is {num_classes!r}; it must be a number above 0")
    return num_classes


class _ResNet(NamedTuple):
    depth: int
    num_classes: int
    exits: Sequence[int]
    heads: Sequence[Sequence[Conv]]


def _resnet(depth: int) -> Family:
    """A ResNet of the CIFAR kind, unless told otherwise with an exit after each third."""
    third = (depth - 2) // 6

    def settings(
        num_classes: int,
        exits: Sequence[int] = (third, 2 * third),
        heads: Sequence[Sequence[Sequence[int]]] | None = None,
    ) -> _ResNet:
        if heads is None:
            heads = HEADS if len(exits) == len(HEADS) else (HEADS[-1],) * len(exits)
        convs = tuple(tuple(Conv(*conv) for conv in head) for head in heads)
        if any(min(conv) < 1 for head in convs for conv in head):
            raise ValueError(f"heads {heads} have channels or a stride below 1")
        return _ResNet(depth, num_classes, exits, convs)

    return Family("image", settings, lambda made: cifar_resnet(*made))


# The MSDNet of the EENet paper for CIFAR, and BERT-base.
_MSDNET = {
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
_BERT = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "exits_after_layer": (3, 6, 9, 12),
}

FAMILIES: Mapping[str, Family] = {
    **{f"resnet{depth}": _resnet(depth) for depth in (8, 20, 32, 44, 56, 110)},
    **{
        f"resnet{depth}": Family(
            "image",
            partial(ImageNetResNetConfig, depth),
            imagenet_resnet,
            {"exits": (sum(blocks[:2]), sum(blocks[:3]))},
        )
        for depth, blocks in BLOCKS.items()
    },
    "resnet56_3": Family("image", _num_classes, resnet56_3),
    "densenet121_4": Family("image", _num_classes, densenet121),
    "msdnet": Family("image", MSDNetConfig, msdnet, _MSDNET),
    "bert_4": Family("text", EncoderConfig, bert_encoder, _BERT, classes="num_labels"),
    "fcn": Family("segmentation", FCNConfig, fcn),
    "attached-text": Family("text", AttachedConfig, attached_encoder, classes="num_labels"),
    "attached-image": Family("image", AttachedConfig, attached_encoder, classes="num_labels"),
}


@dataclass(frozen=True)
class Network:
    """A network as `run.json` keeps it: by name and plain settings, the classes among them."""

    arch: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> Family:
        """Its family.

        Raises:
            ValueError: If there is none of that name.
        """
        if self.arch not in FAMILIES:
            offered = ", ".join(name for name in FAMILIES if not name.startswith("attached"))
            raise ValueError(f"architecture {self.arch!r} is unknown; use one of {offered}")
        return FAMILIES[self.arch]

    def build(self) -> MultiExitModel:
        """The network, randomly initialised.

        Raises:
            ValueError: If a setting is missing, unknown or impossible.
        """
        family = self.family
        check_keys(self.arch, self.settings, family.settings)
        try:
            return family.build(family.settings(**self.settings))
        except TypeError as error:  # a number where a list is wanted, or the reverse
            raise ValueError(
                f"a setting of {self.arch} is of the wrong kind ({error}); its settings are "
                f"{dict(self.settings)}"
            ) from error


def check_keys(name: str, given: Mapping[str, Any], settings: Callable[..., Any]) -> None:
    """Compare given settings with those that there are.

    Raises:
        ValueError: Naming what is missing and what is unknown.
    """
    known = inspect.signature(settings).parameters.values()
    missing = [key.name for key in known if key.default is key.empty and key.name not in given]
    unknown = sorted(given.keys() - {key.name for key in known})
    if missing or unknown:
        faults = format_items("lacks {}", missing) + format_items("knows no {}", unknown)
        raise ValueError(
            f"the configuration of {name} {' and '.join(faults)}; its keys are "
            f"{', '.join(key.name for key in known)}"
        )
