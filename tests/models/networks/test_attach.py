import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from models.networks.attach import (
    LAYOUTS,
    AttachedConfig,
    attach,
    attached_encoder,
    describe,
    image_input,
    max_tokens,
)
from models.networks.multi_exit import MultiExitModel, State

EXITS = (1, 3, 4)
LABELS = 3
COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_labels": LABELS,
    "initializer_range": 0.3,  # large enough to tell inputs apart
}
TEXT: dict[str, Any] = COMMON | {
    "intermediate_size": 48,
    "vocab_size": 50,
    "max_position_embeddings": 20,
}
PICTURE: dict[str, Any] = COMMON | {"intermediate_size": 48, "image_size": [8, 12], "patch_size": 4}
SIZES: dict[str, dict[str, Any]] = {
    "bert": TEXT,
    "roberta": TEXT,
    "xlm-roberta": TEXT,
    "distilbert": TEXT | {"hidden_dim": 48},
    "electra": TEXT | {"embedding_size": 24},
    "albert": TEXT | {"embedding_size": 24, "num_hidden_groups": 2},
    "mpnet": TEXT | {"pad_token_id": 1},
    "deberta-v2": TEXT
    | {
        "relative_attention": True,
        "position_buckets": 4,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "conv_kernel_size": 3,
    },
    "modernbert": TEXT | {"local_attention": 4, "pad_token_id": 0},
    "vit": PICTURE,
    "deit": PICTURE,
}
TEXTS = [name for name, sizes in SIZES.items() if sizes is not PICTURE]
IMAGES = [name for name, sizes in SIZES.items() if sizes is PICTURE]


class Saved(NamedTuple):
    """A fine-tuned classifier of transformers, and its folder."""

    folder: Path
    classifier: Any

    @property
    def pad_id(self) -> int:
        return int(self.classifier.config.pad_token_id)

    def attach(self) -> tuple[AttachedConfig, MultiExitModel]:
        config, model = attach(self.folder, EXITS, LABELS)
        return config, model.eval()

    def inputs(self) -> dict[str, Tensor]:
        """Two rows by the names of transformers, of texts the second shorter than the first."""
        if not hasattr(self.classifier.config, "pad_token_id"):
            return {"pixel_values": torch.randn(2, 3, 8, 12)}
        ids = texts(2, 7)
        ids[1, 5:] = self.pad_id
        return {"input_ids": ids, "attention_mask": (ids != self.pad_id).long()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saved]:
    """One of each family, no norm or bias of which is trivial."""
    import transformers

    networks = {}
    for name, sizes in SIZES.items():
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(name, **sizes)
        classifier = getattr(transformers, LAYOUTS[name].classifier)(config).eval()
        with torch.no_grad():
            for value in classifier.parameters():
                value += 0.1 * torch.randn_like(value)
        folder = tmp_path_factory.mktemp(name)
        classifier.save_pretrained(folder)
        networks[name] = Saved(folder, classifier)
    return networks


@pytest.fixture
def bert(saved: dict[str, Saved]) -> Saved:
    return saved["bert"]


def texts(rows: int, tokens: int) -> Tensor:
    return torch.randint(3, 50, (rows, tokens), generator=torch.Generator().manual_seed(rows))


def ours(inputs: dict[str, Tensor]) -> State:
    """Inputs by the names of transformers as our networks take them."""
    values = tuple(inputs.values())
    return values if len(values) > 1 else values[0]


def states(model: MultiExitModel, x: State) -> list[Tensor]:
    """Hidden states after each stage."""
    hidden = []
    for stage in model.stages:
        x = stage(x)
        hidden.append(x if isinstance(x, Tensor) else x[0])
    return hidden


def write_config(folder: Path, source: Saved, **changes: Any) -> Path:
    """The configuration of a saved network with changes, in a folder of its own."""
    values = json.loads((source.folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))
    return folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_last_exit_answers_as_the_fine_tuned_classifier(
    saved: dict[str, Saved], name: str
) -> None:
    inputs = saved[name].inputs()
    _, model = saved[name].attach()
    logits, expected = model(ours(inputs)), saved[name].classifier(**inputs).logits
    assert logits.shape == (len(EXITS), 2, LABELS)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits[-1], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", LAYOUTS)
def test_stages_end_behind_the_layers_named(saved: dict[str, Saved], name: str) -> None:
    inputs = saved[name].inputs()
    _, model = saved[name].attach()
    expected = saved[name].classifier.base_model(**inputs, output_hidden_states=True).hidden_states
    hidden = states(model, ours(inputs))
    if name == "modernbert":  # transformers reports its last state after the norm
        hidden[-1] = model.heads[-1].norm(hidden[-1])
    for layer, state in zip(EXITS, hidden, strict=True):
        torch.testing.assert_close(state, expected[layer], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_backbone_without_a_classifier_will_do(
    saved: dict[str, Saved], name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    saved[name].classifier.base_model.save_pretrained(tmp_path)
    inputs = saved[name].inputs()
    _, model = attach(str(tmp_path), EXITS, 5)
    assert "LOAD REPORT" not in capfd.readouterr().err
    expected = states(saved[name].attach()[1], ours(inputs))
    for state, other in zip(states(model.eval(), ours(inputs)), expected, strict=True):
        torch.testing.assert_close(state, other, atol=1e-5, rtol=0)
    assert model(ours(inputs)).shape == (len(EXITS), 2, 5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_configuration_and_weights_rebuild_the_network(saved: dict[str, Saved], name: str) -> None:
    config, model = saved[name].attach()
    rebuilt = attached_encoder(AttachedConfig(**json.loads(json.dumps(asdict(config))))).eval()
    rebuilt.load_state_dict(model.state_dict())
    x = ours(saved[name].inputs())
    assert torch.equal(rebuilt(x), model(x))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_backbone_can_be_described_before_exits_are_chosen(
    saved: dict[str, Saved], name: str
) -> None:
    config = describe(saved[name].folder)
    assert (config.exits_after_layer, config.num_labels) == ((4,), 1)
    attached, _ = saved[name].attach()
    assert config.backbone == attached.backbone
    assert config.backbone["id2label"] == {str(i): f"LABEL_{i}" for i in range(LABELS)}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_parameter_learns(saved: dict[str, Saved], name: str) -> None:
    config, _ = saved[name].attach()
    torch.manual_seed(0)
    model = attached_encoder(config).train()
    logits = model(ours(saved[name].inputs()))
    sum(nn.functional.cross_entropy(exit, torch.arange(2)) for exit in logits).backward()
    for key, value in model.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all(), key


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("padding", [1, 9])
def test_padding_changes_no_answer(saved: dict[str, Saved], name: str, padding: int) -> None:
    _, model = saved[name].attach()
    ids = texts(3, 7)
    padded = torch.cat([ids, torch.full((3, padding), saved[name].pad_id)], 1)
    torch.testing.assert_close(model(padded), model(ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", TEXTS)
def test_rows_do_not_depend_on_their_batch_nor_on_what_the_mask_hides(
    saved: dict[str, Saved], name: str
) -> None:
    _, model = saved[name].attach()
    batch, lengths = texts(4, 9), (9, 6, 3, 1)
    mask = (torch.arange(9) < torch.tensor(lengths)[:, None]).long()
    padded = batch.where(mask == 1, saved[name].pad_id)
    by_id, by_mask, zeros = model(padded), model((batch, mask)), model((batch * mask, mask))
    for row, tokens in enumerate(lengths):
        alone = model(batch[row : row + 1, :tokens])[:, 0]
        for together in (by_id, by_mask, zeros):
            torch.testing.assert_close(together[:, row], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "tokens"), [("bert", 20), ("roberta", 18), ("xlm-roberta", 18)])
def test_texts_of_as_many_tokens_as_promised_are_taken(
    saved: dict[str, Saved], name: str, tokens: int
) -> None:
    config, model = saved[name].attach()
    assert max_tokens(config) == tokens and image_input(config) is None
    assert model(texts(1, tokens)).isfinite().all()
    with pytest.raises(Exception, match=r"index|size"):
        model(texts(1, tokens + 1))


@pytest.mark.parametrize("name", IMAGES)
def test_images_have_a_size_and_no_tokens(saved: dict[str, Saved], name: str) -> None:
    config, _ = saved[name].attach()
    assert image_input(config) == (8, 12) and max_tokens(config) is None
    square = replace(config, backbone={**config.backbone, "image_size": 16})
    assert image_input(square) == (16, 16)


@pytest.mark.parametrize("name", IMAGES)
def test_each_exit_has_a_norm_of_its_own_that_starts_as_the_last(
    saved: dict[str, Saved], name: str
) -> None:
    _, model = saved[name].attach()
    weights = [head.norm.weight for head in model.heads]
    assert len({id(weight) for weight in weights}) == len(EXITS)
    assert all(torch.equal(weight, weights[-1]) for weight in weights)
    assert weights[-1].std() > 0


def test_another_number_of_labels_keeps_the_pooler_and_starts_a_new_classifier(bert: Saved) -> None:
    config, model = attach(bert.folder, EXITS, 5)
    assert config.num_labels == 5
    assert model.heads[-1].linear.out_features == 5
    assert torch.equal(model.heads[-1].pooler.weight, bert.classifier.bert.pooler.dense.weight)


def test_half_precision_is_widened(bert: Saved, tmp_path: Path) -> None:
    import transformers

    half = transformers.BertForSequenceClassification.from_pretrained(bert.folder).half()
    half.save_pretrained(tmp_path)
    config, model = attach(tmp_path, EXITS, LABELS)
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert {value.dtype for value in attached_encoder(config).parameters()} == {torch.float32}
    kept = model.heads[-1].linear.weight
    assert torch.equal(kept, bert.classifier.classifier.weight.half().float())


@pytest.mark.parametrize(
    ("name", "changes", "dropout"),
    [
        ("bert", {"hidden_dropout_prob": 0.3}, 0.3),
        ("roberta", {"hidden_dropout_prob": 0.3, "classifier_dropout": 0.0}, 0.0),
        ("distilbert", {"seq_classif_dropout": 0.4}, 0.4),
        ("vit", {"hidden_dropout_prob": 0.2}, 0.2),
    ],
)
def test_heads_drop_as_much_as_the_backbones_classifier(
    saved: dict[str, Saved], name: str, changes: dict[str, float], dropout: float
) -> None:
    config, _ = saved[name].attach()
    model = attached_encoder(replace(config, backbone={**config.backbone, **changes}))
    assert [head.dropout.p for head in model.heads] == [dropout] * len(EXITS)


def test_the_log_level_of_transformers_stays(bert: Saved, tmp_path: Path) -> None:
    from transformers.utils.logging import get_verbosity

    before = get_verbosity()
    bert.attach()
    with pytest.raises(ValueError, match="cannot load"):
        attach(write_config(tmp_path, bert), EXITS, LABELS)
    assert get_verbosity() == before


@pytest.mark.parametrize("model_type", ["t5", "gpt2", "unheard-of", None])
def test_other_backbones_are_refused_by_name(
    bert: Saved, tmp_path: Path, model_type: str | None
) -> None:
    folder = write_config(tmp_path, bert, model_type=model_type)
    expected = f"of model_type {model_type!r}; use bert, roberta, xlm-roberta, distilbert, electra,"
    with pytest.raises(ValueError, match=expected):
        attach(folder, EXITS, LABELS)


@pytest.mark.parametrize(
    ("exits", "labels", "message"),
    [
        ((), 3, r"exits_after_layer is \(\); it must rise from 1 or more and end with .* layer, 4"),
        ((2, 5), 3, r"exits_after_layer is \(2, 5\); it must rise .* end with the last layer, 4"),
        ((0, 4), 3, "must rise from 1 or more"),
        ((3, 2, 4), 3, "must rise from 1 or more"),
        ((2, 4), 0, "num_labels is 0; it must be a number above 0"),
    ],
)
def test_impossible_exits_are_refused(
    saved: dict[str, Saved], exits: tuple[int, ...], labels: int, message: str
) -> None:
    for name in ("bert", "distilbert", "vit"):
        with pytest.raises(ValueError, match=message):
            attach(saved[name].folder, exits, labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"is_decoder": True},
            "backbone's is_decoder is True; .* only if .* is_decoder is False",
        ),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key';"),
        (
            {"num_channels": 1},
            "num_channels is 1; exits can be added only if its num_channels",
        ),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}; exits can be"),
        ({"hidden_size": "wide"}, r"the config.json of .* holds a value that transformers refuses"),
        ({"num_attention_heads": 5}, "cannot load the weights that belong to it; give the folder"),
        ({"hidden_size": 64}, r"lacks 'bert.embeddings.LayerNorm.bias' of its bert or holds it in"),
    ],
)
def test_what_a_backbone_must_not_be_is_told(
    bert: Saved, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    weights = (bert.folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match=message):
        attach(write_config(tmp_path, bert, **changes), EXITS, LABELS)


def test_layers_without_weights_are_told(bert: Saved, tmp_path: Path) -> None:
    weights = (bert.folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    folder = write_config(tmp_path, bert, num_hidden_layers=5)
    with pytest.raises(ValueError, match=r"lacks 'bert.encoder.layer.4.* such in all; give the f"):
        attach(folder, (5,), LABELS)


@pytest.mark.parametrize("content", [None, b"no tensors"])
def test_weights_that_are_missing_or_damaged_are_told(
    bert: Saved, tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    message = "cannot load the weights that belong to it; give the fol"
    if content is not None:
        message = r"model\.safetensors is damaged or cut off .*; copy it again"
    with pytest.raises(ValueError, match=message):
        attach(write_config(tmp_path, bert), EXITS, LABELS)


def test_adapters_must_be_merged_first(bert: Saved, tmp_path: Path) -> None:
    (write_config(tmp_path, bert) / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds adapters; merge them into their backbone \(peft"):
        attach(tmp_path, EXITS, LABELS)


def test_what_is_neither_folder_nor_reachable_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "config.json").write_text("{")
    for name in ("no/such/folder", "somebody/some-bert", tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match=rf"{name} is neither a folder with the config.json"):
            attach(name, EXITS, LABELS)
