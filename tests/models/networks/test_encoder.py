from typing import Any

import pytest
import torch

from models.networks.encoder import EncoderConfig, PooledHead, bert_encoder
from models.networks.multi_exit import MultiExitModel

TINY: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "num_labels": 4,
    "exits_after_layer": [1, 3],
}


@pytest.fixture(scope="module")
def model() -> MultiExitModel:
    """Two exits, and weights that are large enough to tell tokens apart."""
    torch.manual_seed(0)
    model = bert_encoder(EncoderConfig(**TINY)).eval()
    with torch.no_grad():
        for value in model.parameters():
            value += 0.2 * torch.randn_like(value)
    return model


def texts(rows: int, tokens: int) -> torch.Tensor:
    return torch.randint(1, 50, (rows, tokens), generator=torch.Generator().manual_seed(rows))


def test_every_exit_classifies_from_the_layers_before_it(model: MultiExitModel) -> None:
    hidden, mask = model.stages[0](texts(2, 5))
    assert hidden.shape == (2, 5, 16) and mask.shape == (2, 5)
    assert model(texts(2, 5)).shape == (2, 2, 4)
    assert [key for key, _ in model.named_modules() if key.split(".")[-1].isdigit()] == [
        "stages.0",
        "stages.0.0",
        "stages.0.1",
        "stages.0.1.layers.0",
        "stages.1",
        "stages.1.layers.1",
        "stages.1.layers.2",
        "heads.0",
        "heads.1",
    ]


def test_the_mask_travels_in_int64_and_is_no_input_of_the_stage_it_leaves(
    model: MultiExitModel,
) -> None:
    ids = torch.tensor([[7, 8, 0], [9, 0, 0]])
    expected = torch.tensor([[1, 1, 0], [1, 0, 0]])
    for x in (ids, (ids, expected.bool()), (ids, expected.float()), (ids, expected)):
        state = model.stages[0](x)
        after = model.stages[1](state)
        for _, mask in (state, after):
            assert mask.dtype == torch.int64 and torch.equal(mask, expected)
        assert after[1] is not state[1]


def test_every_stage_reads_the_mask_it_is_given(model: MultiExitModel) -> None:
    hidden, mask = model.stages[0](texts(2, 6))
    hidden_short, mask_short = hidden[:, :4], mask[:, :4]
    mask[:, 4:] = 0
    masked = model.heads[1](model.stages[1]((hidden, mask)))
    short = model.heads[1](model.stages[1]((hidden_short, mask_short)))
    torch.testing.assert_close(masked, short, atol=1e-5, rtol=0)


def test_hidden_states_alone_have_no_padding(model: MultiExitModel) -> None:
    hidden, mask = model.stages[0](texts(2, 6))
    alone = model.stages[1](hidden)
    together, _ = model.stages[1]((hidden, mask))
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.heads[1](alone), model.heads[1]((together, mask)))


def test_a_head_normalises_first_where_it_is_told_to() -> None:
    norm, hidden = torch.nn.LayerNorm(4), torch.randn(2, 3, 4) * 5 + 2
    torch.nn.init.normal_(norm.weight)
    pooler, linear = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)
    head = PooledHead(pooler, linear, 0.5, torch.nn.ReLU(), norm).eval()
    expected = linear(torch.relu(pooler(norm(hidden)[:, 0])))
    torch.testing.assert_close(head(hidden), expected)
    assert not torch.equal(head.train()(hidden), expected)


@pytest.mark.parametrize("padding", [1, 7])
def test_padding_changes_no_answer(model: MultiExitModel, padding: int) -> None:
    ids = texts(3, 5)
    padded = torch.cat([ids, ids.new_zeros(3, padding)], 1)
    torch.testing.assert_close(model(padded), model(ids), atol=1e-5, rtol=0)


def test_rows_do_not_depend_on_their_batch(model: MultiExitModel) -> None:
    batch = texts(4, 9)
    for row, tokens in enumerate((9, 6, 3, 1)):
        batch[row, tokens:] = 0
    together = model(batch)
    for row, tokens in enumerate((9, 6, 3, 1)):
        alone = model(batch[row : row + 1, :tokens])
        torch.testing.assert_close(together[:, row : row + 1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_a_mask_hides_tokens_whatever_they_are(model: MultiExitModel, dtype: torch.dtype) -> None:
    ids = texts(2, 6)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]] * 2).to(dtype)
    torch.testing.assert_close(model((ids, mask)), model(ids[:, :4]), atol=1e-5, rtol=0)
    seen = model((ids, torch.ones_like(mask)))
    assert (seen - model((ids, mask))).abs().max() > 1e-3
    torch.testing.assert_close(seen, model(ids))


def test_a_mask_can_show_what_looks_like_padding(model: MultiExitModel) -> None:
    ids = texts(1, 4)
    ids[0, 2] = 0
    assert not torch.allclose(model(ids), model((ids, torch.ones_like(ids))), atol=1e-3)


def test_a_text_of_padding_alone_has_finite_logits(model: MultiExitModel) -> None:
    assert model(torch.zeros(1, 4, dtype=torch.int64)).isfinite().all()


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    model = bert_encoder(EncoderConfig(**TINY)).train()
    logits = model(texts(4, 6))
    sum(torch.nn.functional.cross_entropy(exit, torch.arange(4)) for exit in logits).backward()
    for name, value in model.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vocab_size", 0, "vocab_size is 0; it must be a number above 0"),
        ("num_labels", "4", "num_labels is '4'; it must be a number above 0"),
        ("num_attention_heads", 3, "hidden_size 16 cannot be shared by 3 attention heads"),
        ("exits_after_layer", [], "must rise from 1 or more and end with the last layer, 3"),
        ("exits_after_layer", [0, 3], "must rise from 1 or more"),
        ("exits_after_layer", [2, 1, 3], "must rise from 1 or more"),
        ("exits_after_layer", [1, 2], "end with the last layer, 3"),
        ("exits_after_layer", 3, "exits_after_layer is 3; it must rise"),
    ],
)
def test_impossible_sizes_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig(**TINY | {key: value})
