"""Check the files of a pretrained backbone before any work: its task, and its weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from models.file_kinds import is_lfs_pointer

CONFIG, MODULES = "config.json", "modules.json"  # the latter: of sentence-transformers
POOLING = "pooling_mode_"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
POINTER_BYTES = 1024  # Git LFS leaves less than this in place of a file
MULTI_LABEL = "multi_label_classification"
# Ends of the names of architectures whose heads are no classifiers of whole inputs.
OTHER_TASKS = {
    "ForTokenClassification": "token classification",
    "ForQuestionAnswering": "question answering",
    "ForMultipleChoice": "multiple choice",
    "ForCausalLM": "generation",
    "LMHeadModel": "generation",
    "ForConditionalGeneration": "generation",
    "ForSeq2SeqLM": "generation",
    "DoubleHeadsModel": "generation",
    "ForObjectDetection": "object detection",
    "ForSemanticSegmentation": "segmentation",
    "ForMaskedImageModeling": "masked image modelling",
}
CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification")


def check_task(backbone: str | Path, config: Mapping[str, Any]) -> None:
    """Refuse a backbone whose head predicts something other than classes of a whole input.

    Args:
        backbone: Its name, for messages.
        config: Its `config.json`.

    Raises:
        ValueError: If it was made for regression, token classification, generation or another task.
    """
    architecture = next(iter(config.get("architectures") or ()), "")
    for end, task in OTHER_TASKS.items():
        if architecture.endswith(end):
            raise ValueError(
                f"{backbone} was made for {task} ({architecture}), and exits classify whole texts "
                f"or images; give the encoder that it was made from, or a classifier"
            )
    is_classifier = architecture.endswith(CLASSIFIERS)
    outputs = len(config.get("id2label") or ()) or config.get("num_labels")
    if config.get("problem_type") == "regression" or (is_classifier and outputs == 1):
        raise ValueError(
            f"{backbone} was made for regression (one number, or problem_type regression), and "
            f"exits predict classes; give the encoder that it was made from, or a classifier"
        )


def check_files(backbone: str | Path) -> None:
    """Refuse a local folder whose files are not those of an encoder.

    Raises:
        ValueError: If a file is a pointer of Git LFS, or weights are damaged.
    """
    folder = Path(backbone)
    if not folder.is_dir():
        return
    weights = [path for pattern in WEIGHTS for path in sorted(folder.glob(pattern))]
    for path in [folder / CONFIG, folder / "tokenizer.json", *weights]:
        if path.is_file() and _is_pointer(path):
            raise ValueError(
                f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in {folder}"
            )
    for path in weights:
        if path.suffix == ".safetensors":
            _check_safetensors(path)


def encoder_of(backbone: str | Path) -> str | Path:
    """Return the place of the encoder: a sub-folder in some folders of sentence-transformers."""
    folder = Path(backbone)
    if not folder.is_dir() or (folder / CONFIG).is_file():
        return backbone
    return _encoder_inside(folder) or backbone


def pooling_of(backbone: str | Path) -> Literal["mean"] | None:
    """Return how a folder of sentence-transformers pools tokens; None: the first token.

    Raises:
        ValueError: If it pools in a way that exits cannot.
    """
    folder = Path(backbone)
    places = sorted(folder.glob("*_Pooling/config.json")) if folder.is_dir() else []
    if not places:
        return None
    values = json.loads(places[0].read_text())
    old = [name for name, value in values.items() if name.startswith(POOLING) and value is True]
    modes = [name.removeprefix(POOLING) for name in old] or [str(values.get("pooling_mode"))]
    if modes in (["mean_tokens"], ["mean"]):
        return "mean"
    if modes in (["cls_token"], ["cls"]):
        return None
    raise ValueError(
        f"{places[0]} pools by {', '.join(modes)}; exits pool by the mean or the first token: give "
        f"the folder without its pooling"
    )


def _encoder_inside(folder: Path) -> Path | None:
    """Return the sub-folder with the encoder of a folder of sentence-transformers."""
    try:
        modules = json.loads((folder / MODULES).read_text())
        places = [folder / module["path"] for module in modules]
    except (OSError, ValueError, KeyError, TypeError):
        places = sorted(folder.glob("0_*"))
    return next((place for place in places if (place / CONFIG).is_file()), None)


def _is_pointer(path: Path) -> bool:
    return path.stat().st_size <= POINTER_BYTES and is_lfs_pointer(path.read_bytes())


def _check_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # reads the header, which knows the file's size
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or cut off ({error}); copy it again") from error
