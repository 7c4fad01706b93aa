"""The table of network families. A new backbone is one new file and one line here.

docs/extending.md shows how. The modules of the table need torch, which takes seconds to import; so
they are imported when one of their networks is used, not when its name is shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from models.networks.family import Family, check_keys

if TYPE_CHECKING:
    from models.networks.multi_exit import MultiExitModel

CIFAR_RESNETS = ("resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110")
IMAGENET_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


class FamilyModule(NamedTuple):
    """One line of the table.

    Attributes:
        module: A module of this package; its dict `FAMILIES` holds a `Family` for each name.
        names: The names after `--arch`.
        summary: The kind of network, in a few words for `--help`.
        by_attach: Whether `eenet attach` makes these networks, and `eenet train` cannot.
    """

    module: str
    names: tuple[str, ...]
    summary: str
    by_attach: bool = False


MODULES = (
    FamilyModule("resnet", CIFAR_RESNETS, "ResNets for images of 32 pixels"),
    FamilyModule("imagenet_resnet", IMAGENET_RESNETS, "ResNets for images of 224 pixels"),
    FamilyModule("bottleneck_resnet", ("resnet56_3",), "the EENet paper's ResNet"),
    FamilyModule("densenet", ("densenet121_4",), "the EENet paper's DenseNet"),
    FamilyModule("msdnet", ("msdnet",), "multi-scale dense network"),
    FamilyModule("encoder", ("bert_4",), "text encoder"),
    FamilyModule("fcn", ("fcn",), "segmentation network"),
    FamilyModule("attach", ("attached-text", "attached-image"), "pretrained encoder", True),
)
FAMILIES: Mapping[str, FamilyModule] = {name: line for line in MODULES for name in line.names}


def trainable_names() -> list[str]:
    """Return the names that `eenet train --arch` accepts."""
    return [name for name, line in FAMILIES.items() if not line.by_attach]


def describe_trainable() -> str:
    """List the networks that `eenet train` can make, for its help."""
    return "; ".join(
        f"{', '.join(line.names)}: {line.summary}" for line in MODULES if not line.by_attach
    )


@dataclass(frozen=True)
class Network:
    """A network as `run.json` stores it: its name and plain settings, the classes among them."""

    arch: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> Family:
        """The family of that name.

        Raises:
            ValueError: If the name is unknown.
        """
        if self.arch not in FAMILIES:
            names = ", ".join(trainable_names())
            raise ValueError(f"architecture {self.arch!r} is unknown; use one of {names}")
        module = import_module(f"models.networks.{FAMILIES[self.arch].module}")
        family: Family = module.FAMILIES[self.arch]
        return family

    def build(self) -> "MultiExitModel":
        """Build the network, randomly initialised.

        Raises:
            ValueError: If a setting is missing, unknown or impossible.
        """
        family = self.family
        check_keys(self.arch, self.settings, family.settings)
        try:
            return family.build(family.settings(**self.settings))
        except TypeError as error:  # for example, a number in place of a list
            raise ValueError(
                f"a setting of {self.arch} has the wrong type ({error}); its settings are "
                f"{dict(self.settings)}"
            ) from error
