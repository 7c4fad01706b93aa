from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.data.dataset import DataConfig
from models.data.load import load_dataset
from models.networks.heads import Conv
from models.networks.multi_exit import MultiExitModel
from models.networks.resnet import BasicBlock, ExitHead, cifar_resnet, load_weights
from models.preprocess import IMAGENET_MEAN, IMAGENET_STD
from models.training.batches import ImageBatches
from models.training.trainer import accuracy_per_exit

REPO = Path(__file__).parents[2]
PRETRAINED = REPO.parent / "shared/data/resnet56_cifar10_pretrained.safetensors"
PLAIN_NAMES = {
    "stages.0.0.0": "conv1",
    "stages.0.0.1": "bn1",
    "stages.0.1": "layer1.0",
    "stages.0.2": "layer2.0",
    "stages.0.3": "layer3.0",
    "heads.0.linear": "linear",
}


def plain_network() -> MultiExitModel:
    """A ResNet-8 without early exits whose batch norms have seen something."""
    model = cifar_resnet(8, 5, (), ())
    model.train()
    for _ in range(3):
        model(torch.randn(4, 3, 8, 8) * 2 + 1)
    return model.eval()


def plain_weights(model: MultiExitModel) -> dict[str, Tensor]:
    """Its weights under the names of a plain ResNet's file."""
    weights = {}
    for key, value in model.state_dict().items():
        prefix = next(p for p in PLAIN_NAMES if key.startswith(f"{p}."))
        weights[PLAIN_NAMES[prefix] + key.removeprefix(prefix)] = value
    return weights


def test_states_shrink_and_every_exit_classifies() -> None:
    model = cifar_resnet(8, 7, (1, 2), ((Conv(4, 2), Conv(6, 1)), ()))
    state, shapes = torch.randn(2, 3, 16, 16), []
    for stage in model.stages:
        state = stage(state)
        shapes.append(tuple(state.shape))
    assert shapes == [(2, 16, 16, 16), (2, 32, 8, 8), (2, 64, 4, 4)]
    assert model(torch.randn(2, 3, 16, 16)).shape == (3, 2, 7)


def test_without_exits_it_is_the_plain_network() -> None:
    model = cifar_resnet(20, 10, (), ())
    assert model.num_exits == 1
    assert sum(isinstance(module, BasicBlock) for module in model.modules()) == 9
    assert sum(value.numel() for value in model.parameters()) == 269_722  # 0.27 M, as published
    assert model(torch.randn(2, 3, 8, 8)).shape == (1, 2, 10)


def test_the_shortcut_subsamples_and_pads_channels_with_zeros() -> None:
    block = BasicBlock(2, 6, 2).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 2, 4, 4)
    out = block(x)
    assert torch.equal(out[:, 2:4], x[:, :, ::2, ::2])
    assert out[:, :2].abs().sum() == out[:, 4:].abs().sum() == 0


def test_a_head_without_convolutions_is_pooling_and_one_linear_layer() -> None:
    head, x = ExitHead(4, (), 3), torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(head(x), head.linear(x.mean((2, 3))))


@pytest.mark.parametrize("depth", [-4, 0, 2, 9, 21])
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=f"depth {depth} is not 6n"):
        cifar_resnet(depth, 10, (), ())


@pytest.mark.parametrize("exits", [(0,), (3,), (4,), (-1,), (2, 1), (1, 1)])
def test_exits_that_do_not_rise_inside_the_network_are_refused(exits: Sequence[int]) -> None:
    with pytest.raises(ValueError, match="must rise and lie between 1 and 2"):
        cifar_resnet(8, 10, exits, [()] * len(exits))


@pytest.mark.parametrize("heads", [(), ((), ())])
def test_as_many_heads_as_early_exits_are_needed(heads: Sequence[Sequence[Conv]]) -> None:
    with pytest.raises(ValueError, match=f"1 early exits need as many heads, got {len(heads)}"):
        cifar_resnet(8, 10, (1,), heads)


@pytest.mark.parametrize("with_counters", [True, False])
def test_plain_weights_make_the_last_exit_the_plain_network(
    tmp_path: Path, with_counters: bool
) -> None:
    plain = plain_network()
    weights = plain_weights(plain)
    if not with_counters:
        weights = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    save_file(weights, tmp_path / "plain.safetensors")
    model = cifar_resnet(8, 5, (1, 2), ((Conv(4, 1),), ())).eval()
    head_before = model.heads[0].convs[0].weight.clone()
    load_weights(model, tmp_path / "plain.safetensors")
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(model(x)[-1], plain(x)[-1])
    assert torch.equal(model.heads[0].convs[0].weight, head_before)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    weights = plain_weights(plain_network())
    del weights["layer2.0.bn1.running_mean"]
    save_file(weights, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match=r"plain.safetensors lacks 'layer2.0.bn1.running_mean'"):
        load_weights(cifar_resnet(8, 5, (), ()), tmp_path / "plain.safetensors")


def test_a_key_without_a_place_is_named(tmp_path: Path) -> None:
    weights = plain_weights(plain_network()) | {"layer1.1.conv1.weight": torch.zeros(16, 16, 3, 3)}
    save_file(weights, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match=r"holds 'layer1.1.conv1.weight', which this network"):
        load_weights(cifar_resnet(8, 5, (1,), ((),)), tmp_path / "plain.safetensors")


def test_a_key_of_another_shape_is_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    save_file(plain_weights(plain_network()), tmp_path / "plain.safetensors")
    model = cifar_resnet(8, 9, (), ())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"'linear.weight'.* has shape \(5, 64\).* \(9, 64\)"):
        load_weights(model, tmp_path / "plain.safetensors")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.skipif(not PRETRAINED.is_file(), reason=f"{PRETRAINED} is not on this machine")
def test_the_published_resnet56_classifies_cifar10_after_loading(tmp_path: Path) -> None:
    model = cifar_resnet(56, 10, (9, 18), ((), ()))
    load_weights(model, PRETRAINED)
    with np.load(REPO / "tests/data/cifar10_test_300.npz") as arrays:
        np.savez(tmp_path / "cifar.npz", **arrays, test=np.arange(300) >= 200)
    images = load_dataset(DataConfig(str(tmp_path / "cifar.npz"), calibration_size=1)).test
    batches = ImageBatches(IMAGENET_MEAN, IMAGENET_STD)
    assert accuracy_per_exit(model, batches, images)[-1] > 0.7


def test_exits_at_other_blocks_start_from_the_weights_that_both_networks_have(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    heads = ((Conv(4, 2),), (Conv(6, 2),), (Conv(8, 2),))
    given = cifar_resnet(20, 5, (2, 4, 6), heads)
    save_file(given.state_dict(), tmp_path / "best.safetensors")
    model = cifar_resnet(20, 5, (3, 4, 6), (heads[0], heads[1], (Conv(7, 2),)))
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    load_weights(model, tmp_path / "best.safetensors")
    given.eval(), model.eval()
    x = torch.randn(2, 3, 16, 16)
    before, after = given(x), model(x)
    torch.testing.assert_close(after[[1, 3]], before[[1, 3]])  # after blocks 4 and 9
    for exit in (0, 2):  # another place, and another shape
        name = f"heads.{exit}.linear.weight"
        assert torch.equal(model.state_dict()[name], fresh[name])
