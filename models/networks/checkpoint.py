"""Read checkpoints of other programs and compare their tensors with those of a network here."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.networks.family import format_items

NOTHING = r"(?!)"  # a pattern that matches no key


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a state dict, bare or under `state_dict`; drops prefixes `module.`.

    Raises:
        ValueError: If the path is no `.safetensors`, `.tar` or `.pth` file that holds only tensors.
    """
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


def misfits(
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    names: Mapping[str, str],
    ignored: str = NOTHING,
) -> list[str]:
    """List why a checkpoint does not fit a network: missing, unknown and misshaped tensors.

    Args:
        own: The network's state dict.
        weights: The checkpoint's tensors by its own names.
        names: The checkpoint's name of each key of `own`; the batch counters of norms may be
            missing.
        ignored: Pattern of names in the checkpoint that the network need not have.
    """
    extra = weights.keys() - set(names.values())
    missing = [
        name
        for name in names.values()
        if name not in weights and not name.endswith("num_batches_tracked")
    ]
    misshaped = [
        f"{name!r} of shape {tuple(weights[name].shape)} instead of {tuple(own[key].shape)}"
        for key, name in names.items()
        if name in weights and weights[name].shape != own[key].shape
    ]
    over = [repr(name) for name in sorted(extra) if not re.fullmatch(ignored, name)]
    return [
        *format_items("it lacks {}", map(repr, missing)),
        *format_items("the network has no place for {}", over),
        *format_items("it holds {}", misshaped),
    ]
