"""Load checkpoints of the published EENet code (WACV 2024)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from models.networks.checkpoint import NOTHING, misfits, read_checkpoint
from models.networks.families import Network
from models.networks.family import check_keys
from models.networks.multi_exit import MultiExitModel

FAMILY_NAMES = {"bert": "bert_4"}  # our names, where they differ


class Published(NamedTuple):
    """Names of one architecture's weights in the published code.

    Attributes:
        names: Replacements for the start of our keys, by pattern; the first match applies.
        ignored: Pattern of their keys that their own network does not use either.
        defaults: Default settings.
    """

    names: Mapping[str, str]
    ignored: str = NOTHING
    defaults: Mapping[str, Any] = {}


ARCHITECTURES = {
    "resnet56_3": Published(
        defaults={"num_classes": 10},
        names={
            r"stages\.0\.layer1\.": "layer1.0.",
            r"stages\.\d\.layer(\d)\.": r"layer\1.1.",
            r"stages\.0\.": "",
            r"heads\.0\.convs\.": "ee2.0.",
            r"heads\.0\.linear\.": "ee2.0.11.",
            r"heads\.1\.convs\.": "ee3.0.",
            r"heads\.1\.linear\.": "ee3.0.11.",
            r"heads\.2\.": "",
        },
    ),
    "densenet121_4": Published(
        defaults={"num_classes": 100},
        names={
            r"stages\.\d\.": "",
            r"heads\.(\d)\.convs\.": r"ee_classifiers.\1.",
            r"heads\.3\.": "",
            r"heads\.(\d)\.linear\.": r"ee_classifiers.\1.11.",
        },
    ),
    "msdnet": Published(
        names={r"stages\.": "blocks.", r"heads\.": "classifier."},
        ignored=r"switcher\..*",
    ),
    "bert": Published(
        names={
            r"stages\.0\.0\.": "bert.",
            r"stages\.[\d.]+\.layers\.": "bert.encoder.layer.",
            r"heads\.(\d+)\.pooler\.": r"bert.poolers.\1.dense.",
            r"heads\.(\d+)\.linear\.": r"classifiers.\1.",
        },
        ignored=r".*\.position_ids",
    ),
}


def load_published(arch: str, path: str | Path, **config: Any) -> MultiExitModel:
    """Load a checkpoint of the published code into our network, ready to predict.

    Args:
        arch: `resnet56_3`, `densenet121_4`, `msdnet` or `bert`.
        path: A `.safetensors` file, or a `.tar` or `.pth` file of a state dict, bare or under
            `state_dict`. Prefixes `module.` are removed; norms may lack their batch counters.
        **config: `num_classes` for the first two (default 10 and 100); the fields of
            `MSDNetConfig` and of `EncoderConfig` for the others.

    Returns:
        The network in evaluation mode.

    Raises:
        ValueError: If the architecture is unknown, the configuration lacks a key or holds an
            unknown key or an invalid value, the file cannot be read, or its keys, shapes or classes
            do not fit the network.
    """
    network = network_of(arch, config)
    check_keys(arch, network.settings, network.family.settings)
    model = network.build()
    weights = read_checkpoint(Path(path))
    own = model.state_dict()
    names = {key: published_name(arch, key) for key in own}
    if faults := [
        *_other_classes(own, weights, names),
        *misfits(own, weights, names, ARCHITECTURES[arch].ignored),
    ]:
        raise ValueError(f"{path} does not fit this {arch}: {'; '.join(faults)}")
    own.update((key, weights[name]) for key, name in names.items() if name in weights)
    model.load_state_dict(own)
    return model.eval()


def network_of(arch: str, config: Mapping[str, Any]) -> Network:
    """Return the family and settings of a published architecture, as a run stores them.

    Raises:
        ValueError: If there is no such architecture.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch {arch!r} is unknown; use {' or '.join(ARCHITECTURES)}")
    return Network(FAMILY_NAMES.get(arch, arch), {**ARCHITECTURES[arch].defaults, **config})


def published_name(arch: str, key: str) -> str:
    """Translate a key of our network's state dict to the published code's name."""
    for pattern, name in ARCHITECTURES[arch].names.items():
        renamed, found = re.subn(f"^{pattern}", name, key)
        if found:
            return renamed
    raise AssertionError(f"no pattern of {arch} matches our key {key}; add one to ARCHITECTURES")


def _other_classes(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], names: Mapping[str, str]
) -> list[str]:
    """Describe a difference in the number of classes, if there is one, as a list of one fault."""
    key = [key for key in own if key.endswith(".linear.bias")][-1]
    theirs = weights.get(names[key])
    if theirs is None or theirs.ndim != 1 or len(theirs) == len(own[key]):
        return []
    return [f"it has {len(theirs)} classes instead of {len(own[key])}"]
