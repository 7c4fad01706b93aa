import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.export.onnx_graphs import export_graphs, largest_disagreement, write_graphs
from models.networks.fcn import FCNConfig, coarse_grid, coarse_labels, fcn
from models.networks.multi_exit import MultiExitModel

SMALL = FCNConfig(3, stem_width=4, widths=(6, 8), dilations=((), (1, 2)))


@pytest.fixture(scope="module")
def network() -> MultiExitModel:
    torch.manual_seed(0)
    return fcn(SMALL).eval()


def noise(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (64, 64), (24, 40)])
def test_every_exit_gives_logits_for_every_pixel(
    network: MultiExitModel, height: int, width: int
) -> None:
    with torch.inference_mode():
        logits = network(torch.zeros(2, 3, height, width))
    assert logits.shape == (2, 2, height, width, 3)
    assert logits.flatten(1, -2).shape == (2, 2 * height * width, 3)


def test_the_state_is_one_tensor_at_a_quarter_of_the_size(network: MultiExitModel) -> None:
    state = torch.zeros(2, 3, 64, 64)
    for stage, width in zip(network.stages, SMALL.widths, strict=True):
        state = stage(state)
        assert state.shape == (2, width, 16, 16)


def test_rows_do_not_influence_each_other(network: MultiExitModel) -> None:
    images = torch.from_numpy(noise(3, 3, 32, 32))
    with torch.inference_mode():
        together = network(images)
        alone = torch.cat([network(images[row : row + 1]) for row in range(3)], 1)
    torch.testing.assert_close(together, alone)


def seen_from_the_middle(model: MultiExitModel) -> list[int]:
    """How many columns of the image each exit's answer in its middle depends on."""
    image, seen = torch.zeros(1, 3, 128, 128, requires_grad=True), []
    torch.nn.init.normal_(image, generator=torch.Generator().manual_seed(0))
    for logits in model.eval()(image):
        (slope,) = torch.autograd.grad(logits[0, 64, 64].sum(), image, retain_graph=True)
        seen.append(int(slope.abs().sum((0, 1, 2)).count_nonzero()))
    return seen


def test_deeper_exits_see_more_of_the_image() -> None:
    torch.manual_seed(0)
    seen = seen_from_the_middle(fcn(FCNConfig(5)))
    assert len(seen) == 3 and seen == sorted(seen)
    assert seen[0] < 20 and seen[1] > 2 * seen[0] and seen[2] > 64


def test_the_usual_network_fits_in_600_kb_at_half_precision() -> None:
    values = sum(parameter.numel() for parameter in fcn(FCNConfig(5)).parameters())
    assert 2 * values < 600_000


def test_it_learns_an_image(network: MultiExitModel) -> None:
    """A few steps on one image bring every exit's loss down."""
    torch.manual_seed(0)
    model = fcn(SMALL).train()
    image, mask = torch.rand(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.long)
    mask[:, 8:24, 8:24] = 1
    image[:, :, 8:24, 8:24] += 1
    optimizer, losses = torch.optim.Adam(model.parameters(), 1e-2), []
    for _ in range(30):
        logits = model(image)
        each = torch.stack(
            [torch.nn.functional.cross_entropy(z.flatten(0, 2), mask.flatten()) for z in logits]
        )
        losses.append(each.detach())
        optimizer.zero_grad()
        each.sum().backward()
        optimizer.step()
    assert (losses[-1] < 0.5 * losses[0]).all()


def test_a_configuration_survives_json() -> None:
    config = FCNConfig(
        **json.loads(json.dumps(asdict(FCNConfig(7, dilations=((1,), (2,), (3, 1))))))
    )
    with torch.inference_mode():
        assert fcn(config).eval()(torch.zeros(1, 3, 16, 16)).shape == (3, 1, 16, 16, 7)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_classes": 0}, "num_classes is 0; give whole numbers above 0"),
        ({"stem_width": -1}, "stem_width is -1; give"),
        ({"widths": (8, 0, 8)}, r"widths is \(8, 0, 8\); give"),
        ({"widths": (8, 8.0, 8)}, r"widths is \(8, 8.0, 8\); give"),
        ({"dilations": ((1,), (0,), (2,))}, r"dilations is \(\(1,\), \(0,\), \(2,\)\); give whole"),
        ({"dilations": ((1,), (), (2,))}, "give every stage but the first a block or more"),
        ({"widths": (8, 8)}, r"widths is \(8, 8\) and dilations \(\(\), .*; give a width and"),
        ({"widths": (), "dilations": ()}, "at least one"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FCNConfig(**{"num_classes": 5} | settings)


# The grid that policies read


@pytest.mark.parametrize(("height", "width"), [(8, 8), (64, 64), (24, 40)])
def test_the_grid_is_the_log_softmax_of_mean_logits(height: int, width: int) -> None:
    logits = noise(2, height, width, 5)
    grid = coarse_grid(torch.from_numpy(logits))
    assert grid.shape == (2, 64, 5)
    high, wide = height // 8, width // 8
    for row, down, across in ((0, 0, 0), (1, 2, 5), (0, 7, 7)):
        cell = logits[
            row, down * high : (down + 1) * high, across * wide : (across + 1) * wide
        ].mean((0, 1))
        expected = cell - np.log(np.exp(cell).sum())
        assert grid[row, 8 * down + across].numpy() == pytest.approx(expected, abs=1e-5)


def test_a_cell_has_the_class_that_most_of_its_pixels_have() -> None:
    masks = np.zeros((2, 16, 24), np.int64)
    masks[0, 0:2, 0:3] = [[4, 4, 0], [4, 4, 0]]  # the first cell is 2 x 3 pixels
    masks[1, 14:16, 21:24] = [[2, 2, 2], [1, 1, 1]]  # as many of both: the lower
    labels = coarse_labels(masks)
    assert labels.shape == (2, 64)
    assert labels[0].tolist() == [4] + [0] * 63
    assert labels[1].tolist() == [0] * 63 + [1]


def test_labels_and_grid_lie_in_the_same_order() -> None:
    masks = np.random.default_rng(0).integers(0, 5, (3, 8, 8)).repeat(4, 1).repeat(8, 2)
    logits = 10 * torch.eye(5)[torch.from_numpy(masks)]
    assert np.array_equal(coarse_grid(logits).argmax(-1).numpy(), coarse_labels(masks))


@pytest.mark.slow
def test_exported_graphs_give_logits_and_grid_for_any_number_of_rows(
    network: MultiExitModel, tmp_path: Path
) -> None:
    graphs = export_graphs(network, (noise(2, 3, 16, 24),), (noise(3, 3, 16, 24),))
    backend = write_graphs(graphs, tmp_path)
    for rows in (1, 3, 5):
        images = noise(rows, 3, 16, 24)
        assert largest_disagreement(network, backend, (images,)) < 1e-4
        state: tuple[NDArray[np.float32], ...] = (images,)
        for k in range(2):
            state = backend.run_stage(k, state)
            logits, log_probs = backend.run_head(k, state)
            assert logits.shape == (rows, 16, 24, 3) and log_probs.shape == (rows, 64, 3)
            expected = coarse_grid(torch.from_numpy(logits)).numpy()
            assert log_probs == pytest.approx(expected, abs=1e-4)
