"""Store a network's weights in a bundle for the torch backend."""

import copy
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from models.bundle import TORCH_WEIGHTS
from models.networks.multi_exit import MultiExitModel
from models.training.run import RunConfig


def store_network(
    model: MultiExitModel, config: RunConfig, folder: Path, pad_id: int | None
) -> dict[str, Any]:
    """Write the weights, in half precision if that holds them exactly.

    Args:
        model: The network.
        config: The configuration of its run.
        folder: The bundle.
        pad_id: For texts, the padding id of the bundle's tokenizer.

    Returns:
        The field `network` of the manifest, from which the network can be rebuilt.
    """
    weights = {name: _halve_if_exact(value) for name, value in model.state_dict().items()}
    save_file(weights, folder / TORCH_WEIGHTS)
    return {"arch": config.arch, "settings": _settings(model, config, pad_id)}


def _halve_if_exact(value: Tensor) -> Tensor:
    halved = value.half() if value.is_floating_point() else value
    exact = halved.to(value.dtype).equal(value)
    # A copy, because safetensors refuses tensors that share memory.
    return (halved if exact else value).detach().clone().contiguous()


def _settings(model: MultiExitModel, config: RunConfig, pad_id: int | None) -> dict[str, Any]:
    """Return the run's settings, with the vocabulary size and padding id left after pruning."""
    settings = copy.deepcopy(config.settings)
    sizes = settings.get("backbone", settings)
    for name, module in model.named_modules():
        if name.endswith("word_embeddings") and isinstance(module, nn.Embedding):
            if sizes["vocab_size"] != module.num_embeddings and "pad_token_id" in sizes:
                sizes["pad_token_id"] = pad_id
            sizes["vocab_size"] = module.num_embeddings
    return settings
