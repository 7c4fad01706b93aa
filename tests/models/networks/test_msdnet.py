from typing import Any

import pytest
import torch

from models.networks.msdnet import MSDNetConfig, MultiScaleLayer, Transition, msdnet
from models.networks.multi_exit import MultiExitModel

TINY: dict[str, Any] = {
    "data": "cifar10",
    "base": 2,
    "step": 2,
    "step_mode": "even",
    "num_scales": 3,
    "num_channels": 4,
    "growth_factor": [1, 2, 4],
    "prune": "max",
    "bn_factor": [1, 2, 4],
    "num_blocks": 3,
    "growth_rate": 2,
    "bottleneck": True,
    "compression": 0.5,
    "reduction": 0.5,
}


def shapes_behind_stages(model: MultiExitModel, x: torch.Tensor) -> list[list[tuple[int, int]]]:
    """Channels and height of each scale after each stage."""
    state, shapes = x, []
    for stage in model.stages:
        state = stage(state)
        shapes.append([(scale.shape[1], scale.shape[2]) for scale in state])
    return shapes


def test_max_pruning_drops_a_scale_after_each_third_and_halves_the_channels_there() -> None:
    model = msdnet(MSDNetConfig(**TINY)).eval()
    assert shapes_behind_stages(model, torch.randn(2, 3, 32, 32)) == [
        [(8, 32), (16, 16), (32, 8)],  # 4 + 2 + 2
        [(14, 16), (28, 8)],  # (8 + 2) / 2 + 2
        [(24, 8)],  # floor((7 + 2) / 2) + 2
    ]
    assert model(torch.randn(2, 3, 32, 32)).shape == (3, 2, 10)


def test_min_pruning_keeps_scales_while_an_exit_can_see_them() -> None:
    model = msdnet(MSDNetConfig(**TINY | {"prune": "min"})).eval()
    assert shapes_behind_stages(model, torch.randn(2, 3, 32, 32)) == [
        [(4, 32), (8, 16), (16, 8)],  # (4 + 2 + 2) / 2
        [(4, 32), (8, 16), (16, 8)],  # the same again
        [(32, 8)],
    ]


def test_transitions_stand_where_their_reduction_is_above_0() -> None:
    def transitions(**changes: Any) -> list[int]:
        model = msdnet(MSDNetConfig(**TINY | changes))
        return [sum(isinstance(m, Transition) for m in stage.modules()) for stage in model.stages]

    assert transitions() == [0, 1, 1]
    assert transitions(prune="min") == [1, 1, 0]
    assert transitions(reduction=0) == transitions(prune="min", reduction=0) == [0, 0, 0]
    assert transitions(reduction=1) == [0, 1, 1]


@pytest.mark.parametrize(("step_mode", "layers"), [("even", [2, 2, 2]), ("lin_grow", [2, 3, 5])])
def test_steps_stay_or_grow(step_mode: str, layers: list[int]) -> None:
    model = msdnet(MSDNetConfig(**TINY | {"step_mode": step_mode}))
    assert layers == [
        sum(isinstance(m, MultiScaleLayer) for m in stage.modules()) for stage in model.stages
    ]


def test_a_layer_keeps_each_scale_before_what_it_adds() -> None:
    torch.manual_seed(0)
    layer = MultiScaleLayer(MSDNetConfig(**TINY), 4, 3, 2).eval()
    state = tuple(torch.randn(1, 4 * f, 16 // f, 16 // f) for f in (1, 2, 4))
    middle, coarse = layer(state)
    assert torch.equal(middle[:, :8], state[1]) and torch.equal(coarse[:, :16], state[2])
    finer = (state[0], state[1] + 1, state[2])
    assert torch.equal(layer(finer)[0][:, 8:10], middle[:, 8:10])  # made of the finer scale alone
    assert not torch.equal(layer(finer)[0][:, 10:], middle[:, 10:])


@pytest.mark.parametrize("bottleneck", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prune": "min"},
        {"reduction": 0.0},
        {"reduction": 1},
        {"step_mode": "lin_grow", "base": 1, "step": 1, "reduction": 0.25},
        {"num_blocks": 1, "base": 3, "data": "cifar100"},
        {"num_scales": 1, "growth_factor": [2], "bn_factor": [1]},
        {"growth_rate": 3, "growth_factor": [1, 1, 1], "bn_factor": [4, 4, 4], "prune": "min"},
    ],
)
def test_every_parameter_learns(changes: dict[str, Any], bottleneck: bool) -> None:
    torch.manual_seed(0)
    config = MSDNetConfig(**TINY | {"bottleneck": bottleneck} | changes)
    model = msdnet(config).train()
    size = 8 * 2 ** (config.num_scales - 1)
    logits = model(torch.randn(4, 3, size, size))
    assert logits.shape == (config.num_blocks, 4, 100 if config.data == "cifar100" else 10)
    sum(torch.nn.functional.cross_entropy(exit, torch.arange(4)) for exit in logits).backward()
    for name, value in model.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all(), name


def test_imagenet_has_a_stem_of_its_own_and_heads_as_wide_as_their_input() -> None:
    model = msdnet(MSDNetConfig(**TINY | {"data": "imagenet"})).eval()
    state = model.stages[0](torch.randn(1, 3, 128, 128))
    assert [tuple(scale.shape[1:]) for scale in state] == [(8, 32, 32), (16, 16, 16), (32, 8, 8)]
    assert [head.linear.in_features for head in model.heads] == [32, 28, 24]
    assert model(torch.randn(2, 3, 128, 128)).shape == (3, 2, 1000)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data", "mnist", "data is 'mnist'; use cifar10 or cifar100 or imagenet"),
        ("step_mode", "odd", "step_mode is 'odd'; use even or lin_grow"),
        ("prune", None, "prune is None; use max or min"),
        ("base", 0, "base is 0; it must be a number above 0"),
        ("step", "2", "step is '2'; it must be a number above 0"),
        ("growth_factor", [1, 2], r"growth_factor is \[1, 2\]; .* for each of the 3 scales"),
        ("bn_factor", 4, "bn_factor is 4; it must hold a number above 0"),
        ("bottleneck", "no", "bottleneck is 'no'; it must be true or false"),
        ("reduction", 1.5, "reduction is 1.5; it must lie between 0 and 1"),
    ],
)
def test_impossible_parameters_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MSDNetConfig(**TINY | {key: value})
