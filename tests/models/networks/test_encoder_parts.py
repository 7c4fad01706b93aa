import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.export.onnx_graphs import export_graphs, write_graphs
from models.networks.attach import LAYOUTS, attach
from models.networks.encoder_parts import distances

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 60,
    "max_position_embeddings": 80,
    "num_labels": 3,
    "initializer_range": 0.3,  # large enough to tell inputs apart
}
DEBERTA: dict[str, Any] = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
}
# Name, kind and settings.
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ALBERT": ("albert", {"embedding_size": 16}),
    "MPNet": ("mpnet", {"pad_token_id": 1}),
    "DeBERTa v2": ("deberta-v2", DEBERTA | {"conv_kernel_size": 3, "type_vocab_size": 2}),
    "DeBERTa v3": ("deberta-v2", DEBERTA | {"share_att_key": True}),
    "DeBERTa without distances": ("deberta-v2", {}),
    "ModernBERT": ("modernbert", {"local_attention": 8, "pad_token_id": 0}),
    "ModernBERT of means": (
        "modernbert",
        {"local_attention": 8, "pad_token_id": 0, "classifier_pooling": "mean"},
    ),
}


def save_encoder(folder: Path, kind: str, **settings: Any) -> Any:
    """A tiny random classifier of transformers, no norm or bias of which is trivial."""
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **SIZES | settings)
    classifier = getattr(transformers, LAYOUTS[kind].classifier)(config).eval()
    with torch.no_grad():
        for value in classifier.parameters():
            value += 0.1 * torch.randn_like(value)
    classifier.save_pretrained(folder)
    return classifier


def rows(count: int, tokens: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Texts of different lengths and their mask."""
    generator = torch.Generator().manual_seed(count)
    ids = torch.randint(3, 60, (count, tokens), generator=generator)
    mask = (torch.arange(tokens) < torch.arange(tokens, tokens - count, -1)[:, None]).long()
    return torch.where(mask == 1, ids, pad_id), mask


def test_distances_are_those_from_the_second_place_to_the_first() -> None:
    assert distances(torch.zeros(1, 3, 2)).tolist() == [[0, -1, -2], [1, 0, -1], [2, 1, 0]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_exported_stages_answer_as_transformers_at_every_length(tmp_path: Path, name: str) -> None:
    kind, settings = ENCODERS[name]
    classifier = save_encoder(tmp_path, kind, **settings)
    _, model = attach(tmp_path, (1, 3), 3)
    pad_id = int(classifier.config.pad_token_id)
    small, large = (
        tuple(each.numpy() for each in rows(*size, pad_id)) for size in ((2, 15), (3, 16))
    )
    backend = write_graphs(export_graphs(model, small, large), tmp_path)
    for size in ((1, 5), (4, 24), (2, 70)):
        ids, mask = rows(*size, pad_id)
        given = classifier(ids, mask, output_hidden_states=True)
        real = mask.numpy()[:, :, None] == 1
        first = backend.run_stage(0, (ids.numpy(), mask.numpy()))
        expected = given.hidden_states[1].detach().numpy()
        assert np.abs(np.where(real, first[0] - expected, 0)).max() < 1e-4
        last = backend.run_stage(1, first)
        if kind != "modernbert":  # transformers reports its last state after the norm
            expected = given.hidden_states[3].detach().numpy()
            assert np.abs(np.where(real, last[0] - expected, 0)).max() < 1e-4
        logits = backend.run_head(1, last).logits
        assert np.abs(logits - given.logits.detach().numpy()).max() < 1e-4


@pytest.mark.parametrize("inside", ["", "0_Transformer"])
def test_exits_on_sentence_transformers_read_the_mean_of_the_tokens(
    tmp_path: Path, inside: str
) -> None:
    classifier = save_encoder(tmp_path / inside, "mpnet", pad_token_id=1)
    (tmp_path / "1_Pooling").mkdir()
    pooling = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(pooling))
    modules = [{"idx": 0, "path": inside}, {"idx": 1, "path": "1_Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    config, model = attach(tmp_path, (1, 3), 3)
    assert config.pooling == "mean"
    read = list[Tensor]()
    model.heads[0].pooler.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    ids, mask = rows(2, 6, 1)
    model.eval()((ids, mask))
    hidden = classifier.base_model(ids, mask, output_hidden_states=True).hidden_states[1]
    for row, tokens in enumerate(mask.sum(1)):
        expected = hidden[row, :tokens].mean(0)
        torch.testing.assert_close(read[0][row], expected, atol=1e-5, rtol=0)


def test_a_model_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    save_encoder(tmp_path, "mpnet", pad_token_id=1)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text()) | {"auto_map": {"AutoModel": "code.Model"}}
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"needs code of its own \(auto_map in its config.json\)"):
        attach(tmp_path, (1, 3), 3)
