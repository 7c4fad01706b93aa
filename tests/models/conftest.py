from pathlib import Path

import pytest
import torch

from models.export import export_onnx
from models.multi_exit import MultiExitModel
from models.onnx_backend import OnnxBackend
from models.resnet import cifar_resnet
from models.run import Conv


@pytest.fixture(scope="session")
def network() -> MultiExitModel:
    """Two exits for 8x8 pictures and batch norms with a past; stage and head 0 fit in half."""
    torch.manual_seed(1)
    model = cifar_resnet(8, 3, (1,), ((Conv(8, 2),),))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0.0, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0.0, 0.5)
    with torch.no_grad():
        for part in (model.stages[0], model.heads[0]):
            for value in part.parameters():
                value.copy_(value.half())
    return model


@pytest.fixture(scope="session")
def exported(
    network: MultiExitModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, OnnxBackend]:
    """The network's graphs: their folder and the backend that the export gave."""
    folder = tmp_path_factory.mktemp("exported")
    return folder, export_onnx(network, torch.zeros(1, 3, 8, 8), folder)
