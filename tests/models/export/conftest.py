import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch

from models.backend import State
from models.export.onnx_graphs import Graphs, export_graphs
from models.networks.densenet import densenet
from tests.models.conftest import ExportedOnce
from tests.models.networks.test_families import NETWORKS, C

SIDE = 16
TEXTS = ("bert_4",)
# A kind of network for every kind of graph: exporting takes seconds each.
FAMILIES = (
    "resnet8",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("densenet", "msdnet", "fcn", "bert_4", "vit")
    ),
)


class Exported(NamedTuple):
    """The graphs of a family's tiny network, in single precision."""

    name: str
    graphs: Graphs

    def inputs(self, rows: int, tokens: int = 9, seed: int = 0) -> State:
        """Random rows; the second half of every second text is padding."""
        rng = np.random.default_rng([seed, rows, tokens])
        if self.name not in TEXTS:
            return (rng.normal(size=(rows, 3, SIDE, SIDE)).astype(np.float32),)
        ids, mask = rng.integers(1, 80, (rows, tokens)), np.ones((rows, tokens), np.int64)
        ids[1::2, tokens // 2 :] = mask[1::2, tokens // 2 :] = 0
        return ids, mask

    def batches(self, count: int, rows: int, seed: int = 0) -> list[State]:
        """Batches; the texts of each have another length."""
        return [self.inputs(rows, 4 + i % 5, seed + i) for i in range(count)]


def export(name: str) -> Exported:
    torch.manual_seed(0)
    # The full DenseNet has only its classes as a setting.
    model = densenet((1, 2), 4, C) if name == "densenet" else NETWORKS[name].build()
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim < 3:  # no norm or bias is trivial then
                value += 0.2 * torch.randn_like(value)
    empty = Exported(name, Graphs([], []))
    first = torch.from_numpy(empty.inputs(64)[0])
    if name not in TEXTS:
        with torch.no_grad():
            model.train()(first)  # gives norms statistics, and so activations of size one
    return Exported(name, export_graphs(model, empty.inputs(2, 8), empty.inputs(3, 9)))


@pytest.fixture(scope="session")
def family_of(exported_once: ExportedOnce) -> Callable[[str], Exported]:
    """Gives the graphs of a family by its name."""

    @functools.cache
    def made(name: str) -> Exported:
        return Exported(name, exported_once(name, lambda: export(name).graphs))

    return made


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest, family_of: Callable[[str], Exported]) -> Exported:
    """Each kind of network in turn."""
    return family_of(request.param)


@pytest.fixture(scope="session")
def resnet(family_of: Callable[[str], Exported]) -> Exported:
    """A ResNet of two exits."""
    return family_of("resnet8")
