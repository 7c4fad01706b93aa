"""Checkpoints of the published EENet code (WACV 2024)."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.bottleneck_resnet import resnet56_3
from models.densenet import densenet121
from models.encoder import EncoderConfig, bert_encoder
from models.msdnet import MSDNetConfig, msdnet
from models.multi_exit import MultiExitModel

NAMED = 5  # keys of a kind that an error names


class Architecture(NamedTuple):
    """How a network is made and what the published code calls our keys.

    Attributes:
        settings: Makes what `build` takes from the configuration; its parameters are the keys.
        build: Makes the network.
        names: Patterns at the start of our keys and what stands there in theirs; the first that
            fits holds.
        ignored: Pattern of their keys that their own network does not use either.
    """

    settings: Callable[..., Any]
    build: Callable[[Any], MultiExitModel]
    names: Mapping[str, str]
    ignored: str = r"(?!)"  # fits nothing


def _classes(default: int) -> Callable[..., int]:
    def settings(num_classes: int = default) -> int:
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"num_classes is {num_classes!r}; it must be a number above 0")
        return num_classes

    return settings


ARCHITECTURES = {
    "resnet56_3": Architecture(
        settings=_classes(10),
        build=resnet56_3,
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
    "densenet121_4": Architecture(
        settings=_classes(100),
        build=densenet121,
        names={
            r"stages\.\d\.": "",
            r"heads\.(\d)\.convs\.": r"ee_classifiers.\1.",
            r"heads\.3\.": "",
            r"heads\.(\d)\.linear\.": r"ee_classifiers.\1.11.",
        },
    ),
    "msdnet": Architecture(
        settings=MSDNetConfig,
        build=msdnet,
        names={r"stages\.": "blocks.", r"heads\.": "classifier."},
        ignored=r"switcher\..*",
    ),
    "bert": Architecture(
        settings=EncoderConfig,
        build=bert_encoder,
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
    """Read a checkpoint of the published code into our network, ready to predict.

    Args:
        arch: `resnet56_3`, `densenet121_4`, `msdnet` or `bert`.
        path: A `.safetensors`, or a `.tar` or `.pth` of a state dict, bare or under `state_dict`.
            Prefixes `module.` are taken off; norms may lack their counters of batches.
        **config: `num_classes` for the first two (default 10 and 100), the fields of
            `MSDNetConfig` and of `EncoderConfig` for the others.

    Returns:
        The network in evaluation mode.

    Raises:
        ValueError: If the architecture is unknown, the configuration lacks a key, holds another or
            an impossible value, the path is no such file, or its keys, shapes or classes are not
            those of the network.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch {arch!r} is unknown; use {' or '.join(ARCHITECTURES)}")
    settings, weights = _settings(arch, config), _read(Path(path))
    model = ARCHITECTURES[arch].build(settings)
    own = model.state_dict()
    names = {key: published_name(arch, key) for key in own}
    if problem := _disagreement(arch, own, weights, names):
        raise ValueError(f"{path} does not fit this {arch}: {problem}")
    own.update((key, weights[name]) for key, name in names.items() if name in weights)
    model.load_state_dict(own)
    return model.eval()


def published_name(arch: str, key: str) -> str:
    """What a key of our network's state dict is called in the published code's."""
    for pattern, name in ARCHITECTURES[arch].names.items():
        renamed, found = re.subn(f"^{pattern}", name, key)
        if found:
            return renamed
    raise AssertionError(f"no pattern of {arch} fits {key}; every key of ours has a published name")


def _settings(arch: str, config: Mapping[str, Any]) -> Any:
    """The checked configuration."""
    settings = ARCHITECTURES[arch].settings
    known = inspect.signature(settings).parameters.values()
    needed = [key.name for key in known if key.default is key.empty]
    missing = [name for name in needed if name not in config]
    unknown = config.keys() - {key.name for key in known}
    if missing or unknown:
        faults = _listed("lacks {}", missing) + _listed("knows no {}", sorted(unknown))
        raise ValueError(
            f"the configuration of {arch} {' and '.join(faults)}; its keys are "
            f"{', '.join(key.name for key in known)}"
        )
    return settings(**config)


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their published names."""
    if not path.is_file() or path.suffix not in (".safetensors", ".tar", ".pth"):
        raise ValueError(f"{path} does not exist or is no .safetensors, .tar or .pth file")
    try:
        if path.suffix == ".safetensors":
            weights: Any = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and zipfile raise a dozen types on a damaged file
        raise ValueError(f"{path} is damaged or holds more than tensors") from error
    if isinstance(weights, dict) and isinstance(weights.get("state_dict"), dict):
        weights = weights["state_dict"]
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        raise ValueError(f"{path} holds no state dict, neither bare nor under 'state_dict'")
    if all(name.startswith("module.") for name in weights):
        return {name.removeprefix("module."): value for name, value in weights.items()}
    return weights


def _disagreement(
    arch: str, own: Mapping[str, Tensor], weights: Mapping[str, Tensor], names: Mapping[str, str]
) -> str | None:
    """What keeps a checkpoint from being the network's, None if nothing does.

    Args:
        arch: The architecture.
        own: The network's state dict.
        weights: The checkpoint by published names.
        names: The published name of each of the network's keys.
    """
    ignored = re.compile(ARCHITECTURES[arch].ignored)
    extra = [n for n in weights.keys() - set(names.values()) if not ignored.fullmatch(n)]
    missing = [
        name
        for name in names.values()
        if name not in weights and not name.endswith("num_batches_tracked")
    ]
    shapes = {
        key: (tuple(weights[name].shape), tuple(own[key].shape))
        for key, name in names.items()
        if name in weights and weights[name].shape != own[key].shape
    }
    misshaped = [f"{names[key]!r} of shape {a} instead of {b}" for key, (a, b) in shapes.items()]
    faults = [
        *_listed("it lacks {}", map(repr, missing)),
        *_listed("the network has no place for {}", map(repr, sorted(extra))),
        *_listed("it holds {}", misshaped),
    ]
    bias = [key for key in own if key.endswith(".linear.bias")][-1]
    if bias in shapes and len(shapes[bias][0]) == 1:
        faults.insert(0, "it has {} classes instead of {}".format(*(n for (n,) in shapes[bias])))
    return "; ".join(faults) or None


def _listed(sentence: str, items: Iterable[str]) -> list[str]:
    """The sentence with the first few items in it, or none if there are none."""
    every = list(items)
    more = [f"{len(every) - NAMED} more"] if len(every) > NAMED else []
    return [sentence.format(", ".join(every[:NAMED] + more))] if every else []
