import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from models.networks.heads import Conv
from models.networks.imagenet_resnet import (
    ImageNetResNetConfig,
    imagenet_resnet,
    load_torchvision_weights,
)
from models.networks.multi_exit import MultiExitModel

Weights = dict[str, Tensor]
CLASSES = 7
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def torchvision_weights(depth: int) -> Weights:
    """Random weights under the names and in the shapes of torchvision, written from its layout."""
    torch.manual_seed(depth)
    weights: Weights = {}

    def convolution(name: str, out: int, inside: int, side: int) -> None:
        weights[f"{name}.weight"] = torch.randn(out, inside, side, side) / (inside * side**2) ** 0.5

    def norm(name: str, channels: int) -> None:
        weights[f"{name}.weight"] = torch.rand(channels) + 0.5
        weights[f"{name}.bias"] = torch.randn(channels) / 4
        weights[f"{name}.running_mean"] = torch.randn(channels) / 4
        weights[f"{name}.running_var"] = torch.rand(channels) + 0.5
        weights[f"{name}.num_batches_tracked"] = torch.tensor(3)

    convolution("conv1", 64, 3, 7)
    norm("bn1", 64)
    channels = 64
    for layer, (width, count) in enumerate(zip((64, 128, 256, 512), BLOCKS[depth], strict=True), 1):
        for i in range(count):
            block = f"layer{layer}.{i}"
            out = 4 * width if depth >= 50 else width
            sizes = [(width, 3), (width, 3)] if depth < 50 else [(width, 1), (width, 3), (out, 1)]
            inside = channels
            for j, (to, side) in enumerate(sizes, 1):
                convolution(f"{block}.conv{j}", to, inside, side)
                norm(f"{block}.bn{j}", to)
                inside = to
            if i == 0 and (layer > 1 or depth >= 50):
                convolution(f"{block}.downsample.0", out, channels, 1)
                norm(f"{block}.downsample.1", out)
            channels = out
    weights["fc.weight"] = torch.randn(CLASSES, channels) / channels**0.5
    weights["fc.bias"] = torch.randn(CLASSES)
    return weights


def reference(depth: int, weights: Weights, x: Tensor) -> Tensor:
    """Logits of torchvision's ResNet, written from its definition."""

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias)

    x = F.relu(norm("bn1", F.conv2d(x, weights["conv1.weight"], stride=2, padding=3)))
    x = F.max_pool2d(x, 3, 2, 1)
    for layer, count in enumerate(BLOCKS[depth], 1):
        for i in range(count):
            block, stride = f"layer{layer}.{i}", 2 if layer > 1 and i == 0 else 1
            strides = (stride, 1) if depth < 50 else (1, stride, 1)
            out, shortcut = x, x
            for j, step in enumerate(strides, 1):
                kernel = weights[f"{block}.conv{j}.weight"]
                out = F.conv2d(out, kernel, stride=step, padding=kernel.shape[-1] // 2)
                out = norm(f"{block}.bn{j}", out)
                out = F.relu(out) if j < len(strides) else out
            if f"{block}.downsample.0.weight" in weights:
                kernel = weights[f"{block}.downsample.0.weight"]
                shortcut = norm(f"{block}.downsample.1", F.conv2d(x, kernel, stride=stride))
            x = F.relu(out + shortcut)
    return F.linear(
        F.adaptive_avg_pool2d(x, 1).flatten(1), weights["fc.weight"], weights["fc.bias"]
    )


def write(path: Path, weights: Weights) -> Path:
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    return path


def resnet18(exits: Sequence[int] = (), num_classes: int = CLASSES) -> MultiExitModel:
    return imagenet_resnet(ImageNetResNetConfig(18, num_classes, exits)).eval()


@pytest.fixture(scope="module")
def weights18() -> Weights:
    return torchvision_weights(18)


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
def test_without_exits_it_is_the_plain_network(depth: int, parameters: int) -> None:
    with torch.device("meta"):
        model = imagenet_resnet(ImageNetResNetConfig(depth, 1000, ()))
    assert model.num_exits == 1
    assert sum(value.numel() for value in model.parameters()) == parameters  # as published


@pytest.mark.parametrize(
    ("depth", "exits", "suffix"),
    [
        (18, (2, 5), ".pth"),
        pytest.param(34, (16 - 1,), ".safetensors", marks=pytest.mark.slow),
        pytest.param(50, (1, 7, 13), ".pth", marks=pytest.mark.slow),
    ],
)
def test_torchvisions_weights_make_the_last_exit_torchvisions_network(
    tmp_path: Path, depth: int, exits: tuple[int, ...], suffix: str
) -> None:
    weights = torchvision_weights(depth)
    model = imagenet_resnet(ImageNetResNetConfig(depth, CLASSES, exits)).eval()
    heads = [value.clone() for head in model.heads[:-1] for value in head.state_dict().values()]
    load_torchvision_weights(model, write(tmp_path / f"net{suffix}", weights))
    x = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        logits, expected = model(x), reference(depth, weights, x)
    assert logits.shape == (len(exits) + 1, 2, CLASSES) and expected.std() > 0.1
    torch.testing.assert_close(logits[-1], expected, atol=1e-4, rtol=1e-4)
    after = [value for head in model.heads[:-1] for value in head.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(heads, after, strict=True))


def test_states_shrink_and_heads_work_on_a_sixteenth_of_the_side() -> None:
    model = imagenet_resnet(ImageNetResNetConfig(18, CLASSES, (2, 4, 6, 7))).eval()
    state, shapes, read = torch.randn(1, 3, 128, 96), [], []
    for stage, head in zip(model.stages, model.heads, strict=True):
        state = stage(state)
        shapes.append(tuple(state.shape[1:]))
        read.append(tuple(head[0](state).shape[2:]) if len(read) < 4 else ())
        assert head(state).shape == (1, CLASSES)
    assert shapes == [(64, 32, 24), (128, 16, 12), (256, 8, 6), (512, 4, 3), (512, 4, 3)]
    assert read == [(8, 6), (8, 6), (8, 6), (4, 3), ()]


def test_default_heads_suit_the_channels_of_their_exit() -> None:
    model = imagenet_resnet(ImageNetResNetConfig(18, CLASSES, (1, 4, 6, 7)))
    shapes = [
        [(conv.in_channels, conv.out_channels, conv.stride[0]) for conv in head[1].convs[::3]]
        for head in model.heads[:-1]
    ]
    assert shapes == [
        [(64, 128, 2), (128, 256, 1)],
        [(128, 256, 2), (256, 512, 1)],
        [(256, 256, 2), (256, 512, 1)],
        [(512, 256, 1), (256, 512, 1)],
    ]


def test_heads_may_be_given_and_a_configuration_survives_json() -> None:
    config = ImageNetResNetConfig(18, CLASSES, (1, 3), ((Conv(8, 2), Conv(16, 1)), ()))
    model = imagenet_resnet(ImageNetResNetConfig(**json.loads(json.dumps(asdict(config)))))
    assert [head[1].linear.in_features for head in model.heads[:-1]] == [16, 128]
    assert model.state_dict().keys() == imagenet_resnet(config).state_dict().keys()


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    model = imagenet_resnet(ImageNetResNetConfig(18, CLASSES, (1, 4))).train()
    logits = model(torch.randn(4, 3, 64, 64))
    sum(F.cross_entropy(exit, torch.arange(4)) for exit in logits).backward()
    for name, value in model.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all(), name
        assert value.grad.any(), name


def test_a_classifier_of_other_classes_is_left_out(tmp_path: Path, weights18: Weights) -> None:
    model = resnet18((3,), num_classes=5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_torchvision_weights(model, write(tmp_path / "net.pth", weights18))
    after = model.state_dict()
    assert torch.equal(after["heads.1.linear.weight"], before["heads.1.linear.weight"])
    assert torch.equal(after["stages.0.conv1.weight"], weights18["conv1.weight"])
    assert torch.equal(after["stages.1.layer4_1.bn2.bias"], weights18["layer4.1.bn2.bias"])


def test_counters_of_norms_may_be_missing(tmp_path: Path, weights18: Weights) -> None:
    few = {k: v for k, v in weights18.items() if not k.endswith("num_batches_tracked")}
    model = resnet18()
    load_torchvision_weights(model, write(tmp_path / "net.safetensors", few))
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(x)[0], reference(18, few, x), atol=1e-4, rtol=1e-4)


def test_missing_extra_and_misshaped_keys_are_named_and_nothing_is_loaded(
    tmp_path: Path, weights18: Weights
) -> None:
    odd = weights18 | {f"odd.{i}": torch.ones(1) for i in range(7)} | {"bn1.bias": torch.ones(3)}
    del odd["layer3.0.downsample.0.weight"]
    model = resnet18((3,))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_torchvision_weights(model, write(tmp_path / "net.pth", odd))
    assert str(error.value) == (
        f"{tmp_path}/net.pth does not fit this network, give torchvision's weights of the same "
        f"depth: it lacks 'layer3.0.downsample.0.weight'; the network has no place for 'odd.0', "
        f"'odd.1', 'odd.2', 'odd.3', 'odd.4', 2 more; it holds 'bn1.bias' of shape (3,) instead of "
        f"(64,)"
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_missing_classifier_is_named(tmp_path: Path, weights18: Weights) -> None:
    weights = {key: value for key, value in weights18.items() if not key.startswith("fc.")}
    with pytest.raises(ValueError, match=r"it lacks 'fc.weight', 'fc.bias'$"):
        load_torchvision_weights(resnet18(), write(tmp_path / "net.pth", weights))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.pth", None, r"absent.pth does not exist or is no .safetensors, .tar or .pth file"),
        ("net.bin", b"", r"net.bin does not exist or is no .safetensors, .tar or .pth file"),
        ("net.pth", b"no tensors", "net.pth is damaged or holds more than tensors"),
        ("net.safetensors", b"", "net.safetensors is damaged or holds more than tensors"),
    ],
)
def test_a_path_that_is_no_state_dict_is_refused(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_torchvision_weights(resnet18(), tmp_path / name)


@pytest.mark.parametrize("value", [torch.ones(2), {"epoch": 3}])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        load_torchvision_weights(resnet18(), tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("depth", "classes", "exits", "heads", "message"),
    [
        (20, 10, (), None, "depth 20 is none of 18, 34, 50, 101, 152"),
        (18, 0, (), None, "num_classes is 0; it must be a number above 0"),
        (18, 10, (0,), None, r"exits \[0\] must rise and lie between 1 and 7, the blocks before"),
        (18, 10, (8,), None, r"exits \[8\] must rise and lie between 1 and 7"),
        (50, 10, (3, 2), None, r"exits \[3, 2\] must rise and lie between 1 and 15.* ResNet-50"),
        (18, 10, (2, 3), ((),), "2 early exits need as many heads, got 1"),
        (18, 10, (2,), (), "1 early exits need as many heads, got 0"),
    ],
)
def test_impossible_networks_are_refused(
    depth: int,
    classes: int,
    exits: tuple[int, ...],
    heads: tuple[tuple[Conv, ...], ...] | None,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        ImageNetResNetConfig(depth, classes, exits, heads)
