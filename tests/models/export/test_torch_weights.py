from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models.export.torch_weights import store_network
from models.networks.families import Network
from models.networks.multi_exit import MultiExitModel
from models.training.run import RunConfig

IMAGES = {"num_classes": 2, "exits": [1], "heads": [[[4, 2]]]}
BERT = {
    "model_type": "bert",
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 16,
    "pad_token_id": 29,
}


def of(arch: str, settings: dict[str, Any]) -> tuple[MultiExitModel, RunConfig]:
    torch.manual_seed(0)
    return Network(arch, settings).build(), RunConfig(arch, settings, ("a", "b"), {})


def test_weights_that_half_precision_holds_are_stored_in_it(tmp_path: Path) -> None:
    model, config = of("resnet8", IMAGES)
    with torch.no_grad():
        for value in model.stages.parameters():
            value.copy_(value.half())
    network = store_network(model, config, tmp_path, None)
    assert network == {"arch": "resnet8", "settings": IMAGES}
    stored, own = load_file(tmp_path / "weights.safetensors"), model.state_dict()
    assert stored.keys() == own.keys()
    for name, value in stored.items():
        assert value.to(own[name].dtype).equal(own[name]), name
    kinds = {name: value.dtype for name, value in stored.items()}
    assert all(kinds[name] == torch.float16 for name, _ in model.stages.named_parameters("stages"))
    assert torch.float32 in kinds.values() and torch.int64 in kinds.values()


@pytest.mark.slow
@pytest.mark.parametrize(("left", "pad_id"), [(30, 29), (12, 11)])
def test_the_network_of_a_pruned_vocabulary_is_rebuilt_with_what_is_left(
    tmp_path: Path, left: int, pad_id: int
) -> None:
    settings = {"backbone": BERT, "exits_after_layer": [1], "num_labels": 2}
    model, config = of("attached-text", settings)
    words = next(m for n, m in model.named_modules() if n.endswith("word_embeddings"))
    assert isinstance(words, torch.nn.Embedding)
    words.weight = torch.nn.Parameter(words.weight.detach()[:left])
    words.num_embeddings = left
    network = store_network(model, config, tmp_path, pad_id)
    kept = network["settings"]["backbone"]
    assert (kept["vocab_size"], kept["pad_token_id"]) == (left, pad_id)
    assert config.settings["backbone"] == BERT
    rebuilt = Network(**network).build()
    rebuilt.load_state_dict(load_file(tmp_path / "weights.safetensors"))
