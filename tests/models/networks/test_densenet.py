from collections.abc import Sequence

import pytest
import torch

from models.networks.densenet import DenseLayer, densenet, densenet121


def test_states_shrink_and_every_block_classifies() -> None:
    model = densenet((2, 1, 3), 4, 7)
    state, shapes = torch.randn(2, 3, 16, 16), []
    for stage in model.stages:
        state = stage(state)
        shapes.append(tuple(state.shape))
    assert shapes == [(2, 8, 8, 8), (2, 6, 4, 4), (2, 18, 4, 4)]
    assert model(torch.randn(2, 3, 16, 16)).shape == (3, 2, 7)


def test_new_maps_go_before_the_old_ones() -> None:
    layer, x = DenseLayer(6, 4).eval(), torch.randn(2, 6, 4, 4)
    out = layer(x)
    assert out.shape == (2, 10, 4, 4)
    assert torch.equal(out[:, 4:], x)


def test_the_published_one_has_58_layers_and_four_exits() -> None:
    model = densenet121(100)
    layers = [sum(isinstance(m, DenseLayer) for m in stage.modules()) for stage in model.stages]
    assert layers == [6, 12, 24, 16]
    assert model.eval()(torch.randn(1, 3, 32, 32)).shape == (4, 1, 100)


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    model = densenet((1, 2), 4, 5).train()
    logits = model(torch.randn(4, 3, 8, 8))
    sum(torch.nn.functional.cross_entropy(exit, torch.arange(4)) for exit in logits).backward()
    for name, value in model.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all(), name
        assert value.grad.any(), name


@pytest.mark.parametrize(("blocks", "growth"), [((), 4), ((2, 0), 4), ((2, 2), 0)])
def test_empty_blocks_and_no_growth_are_refused(blocks: Sequence[int], growth: int) -> None:
    with pytest.raises(ValueError, match="must be numbers above 0"):
        densenet(blocks, growth, 10)
