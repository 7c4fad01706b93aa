"""A network of a user's own torch module, with weights from a file of safetensors."""

import importlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.bundle import TOKENIZER, Task
from models.networks.checkpoint import misfits
from models.networks.multi_exit import MultiExitModel, State
from models.onnx_import.preprocessing import ImageSettings, read_image_settings, read_text_inputs
from models.training.run import RunConfig
from server.pipeline.runs import OwnRun
from server.spelling import did_you_mean

SPEC = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
SHAPES = "stages map a state to a state, heads a state to logits (rows, classes)"


@dataclass(frozen=True)
class OwnModule:
    """What `eenet build --model` is given.

    Attributes:
        spec: `PACKAGE.MODULE:FUNCTION`.
        weights: Its state dict, a `.safetensors`.
        preprocessing: As `read_image_settings` or `read_text_inputs` take it; None: images,
            normalised as for ImageNet.
        image_size: Side of the images, if `preprocessing` gives none.
    """

    spec: str
    weights: Path
    preprocessing: Path | None = None
    image_size: int | None = None


def load_own(module: OwnModule, folder: Path) -> OwnRun:
    """Import the module, call its function, and load the weights.

    Args:
        module: What to load; its code runs.
        folder: Where the run's tokenizer goes.

    Raises:
        ValueError: If there is no such module or function, it returns no multi-exit network, the
            weights do not fit it, or stages and heads do not fit each other.
    """
    task: Task = "text" if _is_text(module.preprocessing) else "image"
    input = _text_input(module, folder) if task == "text" else _image_input(module)
    given = _call(module.spec, _function(module.spec))
    model = _checked(module.spec, given)
    _load(given if isinstance(given, nn.Module) else model, module.weights)
    model.eval()
    _try_out(module.spec, model, _example(task, input))
    config = RunConfig(
        arch=module.spec,
        settings={"task": task},
        classes=model.classes,
        input=input,
        start=str(module.weights),
    )
    return OwnRun(folder, config, model)


def _function(spec: str) -> Callable[[], Any]:
    """Find the function; the current folder comes before installed packages."""
    if not SPEC.fullmatch(spec):
        raise ValueError(
            f"--model is {spec!r}; give PACKAGE.MODULE:FUNCTION, such as my_models.tiny:make"
        )
    name, _, function = spec.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ValueError(f"--model {spec}: {name} needs {error.name}: install it") from error
        raise ValueError(
            f"--model {spec}: there is no module {error.name!r}; {here} has no such .py file or "
            f"folder, and it is not installed"
        ) from error
    except Exception as error:  # whatever the user's code raises
        raise ValueError(f"--model {spec}: importing {name} fails: {_said(error)}") from error
    finally:
        sys.path.remove(here)
    found = getattr(module, function, None)
    if not callable(found):
        known = [each for each, value in vars(module).items() if callable(value)]
        hint = did_you_mean(function, known) or "; define it there, without arguments"
        raise ValueError(f"--model {spec}: {name} has no function {function!r}{hint}")
    callback: Callable[[], Any] = found
    return callback


def _call(spec: str, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:  # whatever the user's code raises
        raise ValueError(f"--model {spec}: calling it fails: {_said(error)}") from error


def _checked(spec: str, given: Any) -> MultiExitModel:
    """The stages, heads and classes of what a function returned."""
    names = ("stages", "heads", "classes")
    parts: dict[str, Any] = {name: getattr(given, name, None) for name in names}
    lacking = [name for name, part in parts.items() if part is None]
    if lacking:
        raise ValueError(
            f"--model {spec} returns a {type(given).__name__} without {', '.join(lacking)}; return "
            f"a models.MultiExitModel(stages, heads, classes)"
        )
    classes = list(parts["classes"])
    if len(set(classes)) < max(len(classes), 2) or not all(isinstance(c, str) for c in classes):
        raise ValueError(
            f"--model {spec} has the classes {classes!r}; give the names of at least two, each "
            f"once, in the order of the logits"
        )
    for name in ("stages", "heads"):
        if not all(isinstance(part, nn.Module) for part in parts[name]):
            raise ValueError(f"--model {spec}: its {name} are not all torch modules")
    try:
        return MultiExitModel(list(parts["stages"]), list(parts["heads"]), classes)
    except ValueError as error:
        raise ValueError(f"--model {spec}: {error}") from error


def _load(model: nn.Module, path: Path) -> None:
    weights, own = _read(path), model.state_dict()
    # A tensor that several modules share may be stored once, under any of its names.
    stored = {_place(own[name]): name for name in weights if name in own}
    names = {name: name if name in weights else stored.get(_place(own[name]), name) for name in own}
    if faults := misfits(own, weights, names):
        raise ValueError(f"{path} does not fit the model: {'; '.join(faults)}")
    kept: Mapping[str, Tensor] = {
        name: weights[source] for name, source in names.items() if source in weights
    }
    model.load_state_dict(kept, strict=False)


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        raise ValueError(
            f"--weights is {path}; only .safetensors is read, since other files of weights can run "
            f"code: write one with safetensors.torch.save_file(model.state_dict(), ...)"
        )
    if not path.is_file():
        raise ValueError(f"--weights is {path}, which does not exist")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or cut off ({error}); write it again") from error


@torch.inference_mode()
def _try_out(spec: str, model: MultiExitModel, inputs: State) -> None:
    """Run two rows through all stages and heads.

    Raises:
        ValueError: If one fails, or its result has another shape than the next part takes.
    """
    state: Any = inputs
    for exit, (stage, head) in enumerate(zip(model.stages, model.heads, strict=True)):
        state = _run(spec, f"stage {exit}", stage, state)
        tensors = state if isinstance(state, tuple) else (state,)
        if not all(isinstance(part, Tensor) and part.ndim and len(part) == 2 for part in tensors):
            raise ValueError(
                f"--model {spec}: stage {exit} returns no tensor or tuple of tensors with a row "
                f"for each of two inputs; {SHAPES}"
            )
        logits = _run(spec, f"head {exit}", head, state)
        expected = (2, len(model.classes))
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if shape != expected:
            raise ValueError(
                f"--model {spec}: head {exit} returns {shape} for two inputs in place of "
                f"{expected}: {len(model.classes)} classes; {SHAPES}"
            )


def _run(spec: str, name: str, part: nn.Module, state: Any) -> Any:
    try:
        return part(state)
    except Exception as error:  # whatever the user's code raises
        shapes = [tuple(each.shape) for each in (state if isinstance(state, tuple) else (state,))]
        shown = ", ".join(map(str, shapes))
        raise ValueError(
            f"--model {spec}: {name} fails on a state of shape {shown}: {_said(error)}"
        ) from error


def _said(error: Exception) -> str:
    first, *_ = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {first}"


def _is_text(preprocessing: Path | None) -> bool:
    if preprocessing is None:
        return False
    if preprocessing.is_dir():
        return (preprocessing / TOKENIZER).is_file()
    if preprocessing.name == TOKENIZER:
        return True
    try:
        return "tokenizer" in json.loads(preprocessing.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{preprocessing} cannot be read as JSON: {error}") from error


def _text_input(module: OwnModule, folder: Path) -> dict[str, Any]:
    assert module.preprocessing is not None, "texts need a tokenizer"
    found = read_text_inputs(module.preprocessing)
    shutil.copyfile(found.tokenizer, folder / TOKENIZER)
    return {"max_tokens": found.max_tokens, "pad_id": found.pad_id}


def _image_input(module: OwnModule) -> dict[str, Any]:
    settings = ImageSettings()
    if module.preprocessing is not None:
        settings = read_image_settings(module.preprocessing)
    if settings.channels != "RGB":
        raise ValueError(
            f"{module.preprocessing}: channels are {settings.channels}; a torch module reads RGB: "
            f"change their order in its first stage"
        )
    size = settings.size or module.image_size
    if size is None:
        raise ValueError(
            "--model needs the size of its images: --image-size, or size in a file of "
            "--preprocessing"
        )
    height, width = (size, size) if isinstance(size, int) else size
    return {
        "height": height,
        "width": width,
        **settings.normalisation,
        "fit": settings.resize,
        "crop": settings.crop,
    }


def _example(task: Task, input: Mapping[str, Any]) -> State:
    """An input of two rows."""
    if task == "image":
        return torch.zeros((2, 3, input["height"], input["width"]))
    ids = torch.full((2, min(8, input["max_tokens"])), input["pad_id"])
    return ids, torch.ones_like(ids)
