import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.networks.bottleneck_resnet import resnet56_3
from models.networks.densenet import densenet121
from models.networks.multi_exit import MultiExitModel
from models.published import load_published, network_of, published_name

Weights = dict[str, Tensor]

CONFIGS: dict[str, dict[str, Any]] = {
    "resnet56_3": {"num_classes": 5},
    "densenet121_4": {"num_classes": 5},
    "msdnet": {
        "data": "cifar10",
        "base": 1,
        "step": 1,
        "step_mode": "even",
        "num_scales": 2,
        "num_channels": 4,
        "growth_factor": [1, 2],
        "prune": "max",
        "bn_factor": [1, 2],
        "num_blocks": 3,
        "growth_rate": 2,
        "bottleneck": True,
        "compression": 0.5,
        "reduction": 0.5,
    },
    "bert": {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 12,
        "num_labels": 4,
        "exits_after_layer": [1, 3],
    },
}


def golden(name: str) -> Path:
    """Find a file of the published code, which is kept outside the repository."""
    for folder in Path(__file__).resolve().parents:
        if (path := folder / "shared/golden" / name).exists():
            return path
    pytest.skip(f"the golden vectors {name} of the published code are not on this machine")


def network(arch: str) -> MultiExitModel:
    """Make a random network of `CONFIGS[arch]` with random batch norm statistics."""
    torch.manual_seed(1)
    model = network_of(arch, CONFIGS[arch]).build()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0.0, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.8, 1.2)
            module.num_batches_tracked += 3
    return model.eval()


def published(arch: str, model: MultiExitModel) -> Weights:
    """Return the network's weights under their published names."""
    return {published_name(arch, key): value for key, value in model.state_dict().items()}


def inputs(arch: str) -> Tensor:
    torch.manual_seed(2)
    return torch.randint(1, 50, (2, 7)) if arch == "bert" else torch.randn(2, 3, 16, 16)


def write(path: Path, weights: Weights) -> Path:
    """Write weights in the format of the file's suffix, each tensor with its own memory."""
    own = {name: value.clone() for name, value in weights.items()}
    if path.suffix == ".safetensors":
        save_file(own, path)
    else:
        torch.save(own, path)
    return path


@pytest.fixture
def msdnet_weights() -> Weights:
    return published("msdnet", network("msdnet"))


@pytest.mark.parametrize(
    ("arch", "name", "config"),
    [
        ("resnet56_3", "resnet56_3", None),
        ("msdnet", "msdnet_cifar", "msdnet_cifar.json"),
        ("bert", "bert_4_tiny", "bert_4_tiny.json"),
    ],
)
def test_logits_are_those_of_the_published_code(arch: str, name: str, config: str | None) -> None:
    sizes = json.loads(golden(config).read_text()) if config else {}
    model = load_published(arch, golden(f"{name}.safetensors"), **sizes)
    with np.load(golden(f"{name}_io.npz")) as arrays, torch.inference_mode():
        x = arrays["input_ids" if arch == "bert" else "input"]
        logits = model(torch.from_numpy(x)).numpy()
        expected = np.stack([arrays[f"logits_{k}"] for k in range(model.num_exits)])
        assert f"logits_{model.num_exits}" not in arrays
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)


def test_densenet_has_the_keys_and_shapes_of_the_published_one() -> None:
    theirs = json.loads(golden("densenet121_4_keys.json").read_text())
    ours = published("densenet121_4", densenet121(100))
    assert theirs == {
        name: list(value.shape)
        for name, value in ours.items()
        if not name.endswith("num_batches_tracked")
    }


def test_a_file_of_exactly_the_published_densenet_keys_is_read(tmp_path: Path) -> None:
    theirs = json.loads(golden("densenet121_4_keys.json").read_text())
    weights = {name: torch.ones(shape) for name, shape in theirs.items()}
    model = load_published("densenet121_4", write(tmp_path / "net.pth", weights))
    assert model.num_exits == 4
    assert all(bool((value == 1).all()) for value in model.parameters())


@pytest.mark.parametrize(
    ("arch", "names"),
    [
        ("resnet56_3", "conv1.weight layer1.0.8.bn3.bias layer3.1.0.shortcut.1.bias linear.bias"),
        ("resnet56_3", "ee2.0.0.weight ee2.0.11.bias ee3.0.6.weight ee3.0.11.weight"),
        ("densenet121_4", "conv1.weight bn.bias trans1.bn.bias dense4.15.conv2.weight linear.bias"),
        ("densenet121_4", "ee_classifiers.2.6.weight ee_classifiers.0.11.bias"),
        ("msdnet", "blocks.0.0.layers.1.net.0.weight blocks.2.1.m.0.net.1.bias"),
        ("msdnet", "blocks.1.0.layers.1.conv_down.net.3.weight classifier.2.m.1.net.0.weight"),
        ("bert", "bert.embeddings.LayerNorm.bias bert.encoder.layer.2.output.dense.bias"),
        ("bert", "bert.poolers.1.dense.weight classifiers.0.bias"),
    ],
)
def test_keys_are_called_as_the_published_code_calls_them(arch: str, names: str) -> None:
    assert set(names.split()) <= published(arch, network(arch)).keys()


@pytest.mark.parametrize("arch", CONFIGS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pth.tar"])
def test_what_is_written_under_published_names_is_read_back(
    tmp_path: Path, arch: str, suffix: str
) -> None:
    model, x = network(arch), inputs(arch)
    path = write(tmp_path / f"net{suffix}", published(arch, model))
    loaded = load_published(arch, str(path), **CONFIGS[arch])
    assert not loaded.training
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_and_prefixes_of_checkpoints_are_taken_off(
    tmp_path: Path, prefix: str, wrapped: bool, modern: bool
) -> None:
    model, x = network("msdnet"), inputs("msdnet")
    weights = {f"{prefix}{name}": value for name, value in published("msdnet", model).items()}
    saved = {"epoch": 3, "best_acc1": 0.5, "state_dict": weights} if wrapped else weights
    torch.save(saved, tmp_path / "net.tar", _use_new_zipfile_serialization=modern)
    loaded = load_published("msdnet", tmp_path / "net.tar", **CONFIGS["msdnet"])
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        ("msdnet", "switcher.0.weight"),
        ("msdnet", "module.switcher.3.net.bias"),
        ("bert", "bert.embeddings.position_ids"),
    ],
)
def test_keys_that_nothing_uses_are_ignored(tmp_path: Path, arch: str, name: str) -> None:
    model, x = network(arch), inputs(arch)
    prefix = "module." if name.startswith("module.") else ""
    weights = {f"{prefix}{key}": value for key, value in published(arch, model).items()}
    path = write(tmp_path / "net.pth", weights | {name: torch.ones(3)})
    assert torch.equal(load_published(arch, path, **CONFIGS[arch])(x), model(x))


def test_counters_of_norms_may_be_missing(tmp_path: Path, msdnet_weights: Weights) -> None:
    few = {k: v for k, v in msdnet_weights.items() if not k.endswith("num_batches_tracked")}
    assert len(few) < len(msdnet_weights)
    loaded = load_published("msdnet", write(tmp_path / "net.pth", few), **CONFIGS["msdnet"])
    assert torch.equal(loaded(inputs("msdnet")), network("msdnet")(inputs("msdnet")))


def test_missing_extra_and_misshaped_keys_are_named_in_one_sentence(
    tmp_path: Path, msdnet_weights: Weights
) -> None:
    del msdnet_weights["classifier.1.linear.bias"]
    msdnet_weights["blocks.0.0.layers.0.net.1.bias"] = torch.ones(9)
    msdnet_weights["odd.weight"] = torch.ones(1)
    with pytest.raises(ValueError) as error:
        load_published("msdnet", write(tmp_path / "net.pth", msdnet_weights), **CONFIGS["msdnet"])
    assert str(error.value) == (
        f"{tmp_path}/net.pth does not fit this msdnet: it lacks 'classifier.1.linear.bias'; the "
        f"network has no place for 'odd.weight'; it holds 'blocks.0.0.layers.0.net.1.bias' of "
        f"shape (9,) instead of (4,)"
    )


def test_five_keys_of_a_kind_are_named_and_the_others_counted(
    tmp_path: Path, msdnet_weights: Weights
) -> None:
    extra = {f"odd.{i}": torch.ones(1) for i in range(8)}
    path = write(tmp_path / "net.safetensors", msdnet_weights | extra)
    with pytest.raises(ValueError, match=r"'odd.3', 'odd.4', 3 more$"):
        load_published("msdnet", path, **CONFIGS["msdnet"])


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        ("resnet56_3", "switcher.0.weight"),
        ("msdnet", "bert.embeddings.position_ids"),
        ("bert", "bert.pooler.dense.bias"),
    ],
)
def test_other_extra_keys_are_refused(tmp_path: Path, arch: str, name: str) -> None:
    weights = published(arch, network(arch)) | {name: torch.ones(3)}
    with pytest.raises(ValueError, match=f"the network has no place for '{name}'$"):
        load_published(arch, write(tmp_path / "net.pth", weights), **CONFIGS[arch])


@pytest.mark.parametrize(
    ("arch", "changes", "counts"),
    [
        ("resnet56_3", {"num_classes": 10}, "5 classes instead of 10"),
        ("densenet121_4", {"num_classes": 100}, "5 classes instead of 100"),
        ("msdnet", {"data": "cifar100"}, "10 classes instead of 100"),
        ("bert", {"num_labels": 2}, "4 classes instead of 2"),
    ],
)
def test_another_class_count_is_told(
    tmp_path: Path, arch: str, changes: dict[str, Any], counts: str
) -> None:
    path = write(tmp_path / "net.pth", published(arch, network(arch)))
    with pytest.raises(ValueError, match=f"does not fit this {arch}: it has {counts}; it holds '"):
        load_published(arch, path, **CONFIGS[arch] | changes)


def test_a_classifier_that_is_no_vector_is_named(tmp_path: Path, msdnet_weights: Weights) -> None:
    msdnet_weights["classifier.2.linear.bias"] = torch.tensor(1.0)
    path = write(tmp_path / "net.pth", msdnet_weights)
    with pytest.raises(ValueError, match=r"it holds 'classifier.2.linear.bias' of shape \(\) inst"):
        load_published("msdnet", path, **CONFIGS["msdnet"])


def test_without_a_configuration_the_published_class_counts_hold(tmp_path: Path) -> None:
    for arch, make, classes in (
        ("resnet56_3", resnet56_3, 10),
        ("densenet121_4", densenet121, 100),
    ):
        path = write(tmp_path / f"{arch}.pth", published(arch, make(classes)))
        assert load_published(arch, path).heads[0].linear.out_features == classes


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="arch 'vgg' is unknown; use resnet56_3 or densenet121_4"):
        load_published("vgg", tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("arch", "config", "message"),
    [
        ("resnet56_3", {"classes": 10}, "has no classes; its keys are num_classes$"),
        ("densenet121_4", {"num_classes": 0}, "num_classes is 0; it must be a number above 0"),
        ("resnet56_3", {"num_classes": 10.0}, "num_classes is 10.0; it must be"),
        ("msdnet", {}, "msdnet lacks data, base, step, step_mode, num_scales, 9 more; its keys"),
        ("msdnet", CONFIGS["msdnet"] | {"depth": 3}, "of msdnet has no depth; its keys are data"),
        ("bert", {"vocab": 3}, "of bert lacks vocab_size, .* and has no vocab; its keys are"),
        ("bert", CONFIGS["bert"] | {"num_labels": -1}, "num_labels is -1; it must be"),
    ],
)
def test_a_configuration_of_other_keys_or_values_is_refused(
    tmp_path: Path, arch: str, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_published(arch, tmp_path / "net.pth", **config)


@pytest.mark.parametrize("name", ["absent.pth", "folder.pth", "text.txt", "bare"])
def test_a_path_that_is_no_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.pth").mkdir()
    for file in ("text.txt", "bare"):
        (tmp_path / file).write_text("words")
    with pytest.raises(
        ValueError, match=rf"{name} does not exist or is no \.safetensors, \.tar or"
    ):
        load_published("resnet56_3", tmp_path / name)


@pytest.mark.parametrize("suffix", [".safetensors", ".tar", ".pth"])
@pytest.mark.parametrize(
    "content", [b"", b"words that are no weights", b"\x80\x02.", b"PK\x03\x04"]
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"net{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=f"net{suffix} is damaged or holds more than tensors$"):
        load_published("resnet56_3", tmp_path / f"net{suffix}")


def test_a_file_cut_short_is_one_sentence(tmp_path: Path, msdnet_weights: Weights) -> None:
    for suffix in (".safetensors", ".pth"):
        path = write(tmp_path / f"net{suffix}", msdnet_weights)
        path.write_bytes(path.read_bytes()[:-5000])
        with pytest.raises(ValueError, match=r"is damaged or holds more than tensors$"):
            load_published("msdnet", path, **CONFIGS["msdnet"])


class Trap:
    """Writes a file if a reader unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    "save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))]
)
def test_nothing_but_tensors_is_unpickled(tmp_path: Path, save: Callable[..., Any]) -> None:
    save({"state_dict": Trap(tmp_path / "sprung")}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"is damaged or holds more than tensors$"):
        load_published("resnet56_3", tmp_path / "net.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("value", [torch.ones(2), [1, 2], {"epoch": 3}, {1: torch.ones(1)}])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="holds no state dict, neither bare nor under"):
        load_published("resnet56_3", tmp_path / "net.pth")
