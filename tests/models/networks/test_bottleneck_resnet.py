from collections.abc import Sequence

import pytest
import torch

from models.networks.bottleneck_resnet import Bottleneck, bottleneck_resnet, resnet56_3


def test_states_shrink_and_every_group_classifies() -> None:
    model = bottleneck_resnet((1, 2, 1), 7)
    state, shapes = torch.randn(2, 3, 16, 16), []
    for stage in model.stages:
        state = stage(state)
        shapes.append(tuple(state.shape))
    assert shapes == [(2, 64, 16, 16), (2, 128, 8, 8), (2, 256, 4, 4)]
    assert model(torch.randn(2, 3, 16, 16)).shape == (3, 2, 7)


def test_the_published_one_has_nine_blocks_a_group() -> None:
    model = resnet56_3(10)
    blocks = [sum(isinstance(m, Bottleneck) for m in stage.modules()) for stage in model.stages]
    assert blocks == [9, 9, 9]


@pytest.mark.parametrize(
    ("in_channels", "stride", "projected"), [(8, 1, False), (8, 2, True), (3, 1, True)]
)
def test_a_shortcut_is_projected_only_where_the_shape_changes(
    in_channels: int, stride: int, projected: bool
) -> None:
    block = Bottleneck(in_channels, 2, stride).eval()
    torch.nn.init.zeros_(block.bn3.weight)
    x = torch.rand(2, in_channels, 4, 4)
    out = block(x)
    assert out.shape == (2, 8, 4 // stride, 4 // stride)
    assert bool(len(block.shortcut)) == projected
    torch.testing.assert_close(out, torch.relu(block.shortcut(x)))


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    model = bottleneck_resnet((1, 1, 1), 5).train()
    logits = model(torch.randn(4, 3, 16, 16))
    sum(torch.nn.functional.cross_entropy(exit, torch.arange(4)) for exit in logits).backward()
    for name, value in model.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all(), name
        assert value.grad.any(), name


@pytest.mark.parametrize("blocks", [(), (9, 9), (9, 9, 9, 9), (1, 0, 1)])
def test_three_groups_of_one_or_more_are_needed(blocks: Sequence[int]) -> None:
    with pytest.raises(ValueError, match="must be 3 numbers above 0"):
        bottleneck_resnet(blocks, 10)
