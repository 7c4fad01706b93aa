"""Networks of users' own torch modules."""

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import models
from models.networks.multi_exit import MultiExitModel
from server.pipeline.own_module import OwnModule, load_own

MODULE = """
import torch
from torch import nn
from models import MultiExitModel

def part(*layers):
    return nn.Sequential(*layers)

def make(classes=("blue", "red"), width=2):
    stages = [part(nn.Conv2d(3, 4, 3)), part(nn.Conv2d(4, 4, 3))]
    heads = [part(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, width)) for _ in stages]
    return MultiExitModel(stages, heads, classes)

def lacking():
    return nn.Linear(2, 2)

def once():
    return make(classes=("blue",))

def wide():
    return make(width=3)

def broken():
    return 1 / 0

def uneven():
    model = make()
    model.heads = model.heads[:1]
    return model

def mismatched():
    model = make()
    model.stages[1] = nn.Conv2d(5, 4, 3)
    return model

class Flat(nn.Module):
    def forward(self, state):
        return state.sum()

def flat():
    model = make()
    model.stages[0] = Flat()
    return model

class Tied(MultiExitModel):
    def __init__(self):
        conv = nn.Conv2d(3, 3, 3, padding=1)
        head = part(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        super().__init__([part(conv), part(conv)], [head, head], ("blue", "red"))
"""
NAMES = iter(range(1000))


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes the module under a new name into the current folder; names one of its functions."""
    monkeypatch.chdir(tmp_path)
    name = f"own_network_{next(NAMES)}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(MODULE))
    return lambda function: f"{name}:{function}"


def weights_of(spec: str, path: Path) -> Path:
    import importlib
    import sys

    name, _, function = spec.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        model = getattr(importlib.import_module(name), function)()
    finally:
        sys.path.pop(0)
    save_file({key: value.clone() for key, value in model.state_dict().items()}, path)
    return path


def test_the_model_is_imported_by_its_short_name() -> None:
    assert models.MultiExitModel is MultiExitModel
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        _ = models.Other


def test_a_module_of_the_current_folder_gets_its_weights(
    spec: Callable[[str], str], tmp_path: Path
) -> None:
    path = weights_of(spec("make"), tmp_path / "own.safetensors")
    run = load_own(OwnModule(spec("make"), path, image_size=8), tmp_path)
    assert run.config.classes == ("blue", "red") and run.num_exits == 2
    assert run.images is not None and run.images.size == (8, 8)
    again = load_own(OwnModule(spec("make"), path, image_size=8), tmp_path)
    x = torch.ones(1, 3, 8, 8)
    assert torch.equal(run.model(x), again.model(x))


def test_tensors_that_are_shared_may_be_stored_once(
    spec: Callable[[str], str], tmp_path: Path
) -> None:
    path = weights_of(spec("Tied"), tmp_path / "tied.safetensors")
    from safetensors.torch import load_file

    kept = {key: value for key, value in load_file(path).items() if ".0." in key}
    save_file(kept, path)
    run = load_own(OwnModule(spec("Tied"), path, image_size=8), tmp_path)
    assert torch.equal(run.model.state_dict()["stages.1.0.weight"], kept["stages.0.0.weight"])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("mak", "has no function 'mak'; did you mean 'make'"),
        ("absent", "has no function 'absent'; define it there"),
        ("lacking", "returns a Linear without stages, heads, classes; return a models.Mult"),
        ("once", r"has the classes \['blue'\]; give the names of at least two"),
        ("wide", r"head 0 returns \(2, 3\) for two inputs in place of \(2, 2\): 2 classes"),
        ("broken", "calling it fails: ZeroDivisionError: division by zero"),
        ("uneven", "got 2 stages and 1 heads"),
        ("mismatched", r"stage 1 fails on a state of shape \(2, 4, 6, 6\): RuntimeError"),
        ("flat", "stage 0 returns no tensor or tuple of tensors with a row for each"),
    ],
)
def test_modules_that_are_no_network_are_one_sentence(
    spec: Callable[[str], str], tmp_path: Path, function: str, message: str
) -> None:
    path = tmp_path / "own.safetensors"
    if function in ("wide", "uneven", "mismatched", "flat"):
        weights_of(spec(function), path)
    with pytest.raises(ValueError, match=message) as caught:
        load_own(OwnModule(spec(function), path, image_size=8), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("make", "--model is 'make'; give PACKAGE.MODULE:FUNCTION"),
        ("a/b.py:make", "give PACKAGE.MODULE:FUNCTION"),
        ("absent_module:make", "there is no module 'absent_module'; .* has no such .py file"),
        ("torch.absent_module:make", "there is no module 'torch.absent_module'"),
    ],
)
def test_names_that_lead_nowhere_are_one_sentence(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_own(OwnModule(name, tmp_path / "own.safetensors", image_size=8), tmp_path)


def test_weights_that_do_not_fit_are_one_sentence(
    spec: Callable[[str], str], tmp_path: Path
) -> None:
    path = weights_of(spec("make"), tmp_path / "own.safetensors")

    def sentence(weights: Path, size: int | None = 8) -> str:
        with pytest.raises(ValueError, match=r".+") as caught:
            load_own(OwnModule(spec("make"), weights, image_size=size), tmp_path)
        return str(caught.value)

    assert "only .safetensors is read" in sentence(tmp_path / "model.pt")
    assert "which does not exist" in sentence(tmp_path / "absent.safetensors")
    assert "needs the size of its images" in sentence(path, None)
    other = weights_of(spec("wide"), tmp_path / "wide.safetensors")
    assert "'heads.0.2.bias' of shape (3,) instead of (2,)" in sentence(other)
    few = tmp_path / "few.safetensors"
    save_file({"more": torch.zeros(1)}, few)
    assert "it lacks 'stages.0.0.weight'" in sentence(few)
    assert "the network has no place for 'more'" in sentence(few)
    path.write_bytes(path.read_bytes()[:-9])
    assert "is damaged or cut off" in sentence(path)
