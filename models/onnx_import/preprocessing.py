"""Read how a network wants its images or texts, from a JSON file or as Hugging Face writes it.

docs/own-models.md documents the JSON file.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tokenizers import Tokenizer

from models.bundle import TOKENIZER
from models.preprocess import IMAGENET_MEAN, IMAGENET_STD

PROCESSOR = "preprocessor_config.json"
MAX_TOKENS = 128
PAD_TOKENS = ("[PAD]", "<pad>", "<|padding|>", "PAD")
LEVELS = 255.0

Side = Annotated[int, Field(gt=0)]
Channels = Literal["RGB", "BGR", "grey"]
PerChannel = float | tuple[float] | tuple[float, float, float]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Settings = TypeVar("Settings", bound=_Strict)


class ImageSettings(_Strict):
    """How an image becomes the network's input: `(pixel * scale - mean) / std`.

    Attributes:
        size: Height and width of the input, or the side of a square; None: the graph's own.
        resize: `cover`: scale until the image covers the input, then crop to the centre; `stretch`:
            scale each side by itself.
        crop: Share of the scaled image's sides that the crop keeps, such as 224 / 256.
        scale: Factor of pixels of 0 to 255.
        mean: Subtracted from each channel after scaling, in the order of `channels`.
        std: Each channel is divided by it.
        channels: Order of the channels that the network reads.
    """

    size: Side | tuple[Side, Side] | None = None
    resize: Literal["cover", "stretch"] = "cover"
    crop: float = Field(default=1.0, gt=0, le=1)
    scale: float = Field(default=1 / LEVELS, gt=0)
    mean: PerChannel = IMAGENET_MEAN
    std: PerChannel = IMAGENET_STD
    channels: Channels = "RGB"

    @property
    def normalisation(self) -> dict[str, tuple[float, ...]]:
        """Mean and standard deviation of R, G and B, on a scale of 0 to 1."""
        to_unit = 1 / (LEVELS * self.scale)
        values = {
            "mean": tuple(value * to_unit for value in _three(self.mean)),
            "std": tuple(value * to_unit for value in _three(self.std)),
        }
        if self.channels == "BGR":
            return {name: each[::-1] for name, each in values.items()}
        return values


class TextSettings(_Strict):
    """How a text becomes the network's input.

    Attributes:
        tokenizer: A `tokenizer.json` or its folder, relative to the file that names it.
        max_tokens: Longer texts are cut.
        pad_token: Token of padding; None: the tokenizer's own.
    """

    tokenizer: Path
    max_tokens: int = Field(default=MAX_TOKENS, gt=2)
    pad_token: str | None = None


class TextInputs(NamedTuple):
    """A `tokenizer.json` and its settings, as in `TextPreprocessor`."""

    tokenizer: Path
    max_tokens: int
    pad_id: int


def read_image_settings(path: Path) -> ImageSettings:
    """Read the settings of images from our JSON or from a `preprocessor_config.json`.

    Args:
        path: The file, or a folder with a `preprocessor_config.json`.

    Raises:
        ValueError: If the file cannot be read, or asks for what a server cannot do.
    """
    file = path / PROCESSOR if path.is_dir() else path
    values = _read_object(file)
    is_processor = file.name == PROCESSOR or "image_processor_type" in values
    return _checked(ImageSettings, _from_processor(values, file) if is_processor else values, file)


def read_text_inputs(path: Path) -> TextInputs:
    """Read tokenizer and settings of texts.

    Args:
        path: Our JSON, a `tokenizer.json`, or a folder with one, such as `save_pretrained` writes.

    Raises:
        ValueError: If there is no tokenizer, or it has no token for padding.
    """
    if path.is_dir() or path.name == TOKENIZER:
        settings = TextSettings(tokenizer=path, max_tokens=_max_tokens_beside(path))
    else:
        settings = _checked(TextSettings, _read_object(path), path)
    where = path if path.is_dir() else path.parent
    file = where / settings.tokenizer if not path.is_dir() else path
    file = file / TOKENIZER if file.is_dir() else file
    if path.name == TOKENIZER:
        file = path
    if not file.is_file():
        raise ValueError(
            f"{file} does not exist; give a tokenizer.json, or a folder that holds one, as "
            f"--preprocessing"
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"{file} is not a tokenizer: {error}") from error
    return TextInputs(file, settings.max_tokens, _pad_id(tokenizer, settings, file))


def _pad_id(tokenizer: Tokenizer, settings: TextSettings, file: Path) -> int:
    own = tokenizer.padding
    names = (settings.pad_token,) if settings.pad_token is not None else PAD_TOKENS
    if settings.pad_token is None and own is not None:
        return int(own["pad_id"])
    for name in names:
        pad_id = tokenizer.token_to_id(name)
        if pad_id is not None:
            return int(pad_id)
    raise ValueError(
        f"{file} has no token {' or '.join(names)} for padding; name it as pad_token in a file of "
        f"--preprocessing"
    )


def _max_tokens_beside(path: Path) -> int:
    """The length that a tokenizer's folder gives, at most `MAX_TOKENS`."""
    folder = path if path.is_dir() else path.parent
    for name, key in (
        ("tokenizer_config.json", "model_max_length"),
        ("config.json", "max_position_embeddings"),
    ):
        if (folder / name).is_file():
            most = _read_object(folder / name).get(key)
            if isinstance(most, int) and 2 < most < MAX_TOKENS:
                return most
    return MAX_TOKENS


def _from_processor(values: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Translate the fields of an image processor of transformers."""
    resizes, crops = values.get("do_resize", True), values.get("do_center_crop", False)
    size, crop_size = _sides(values.get("size")), _sides(values.get("crop_size"))
    share = float(values.get("crop_pct") or 1.0)
    target = (crop_size if crops else size) or size
    if not resizes or target is None:
        raise ValueError(
            f"{file} does not say to which size images are resized; write a file of "
            f"--preprocessing with size, mean and std"
        )
    if crops and size is not None and crop_size is not None:
        share = min(crop_size[0] / size[0], 1.0)
    normalises = values.get("do_normalize", True)
    scale = values.get("rescale_factor", 1 / LEVELS) if values.get("do_rescale", True) else 1.0
    return {
        "size": target,
        "resize": "cover" if _keeps_shape(values.get("size")) else "stretch",
        "crop": share,
        "scale": scale,
        "mean": tuple(values.get("image_mean") or IMAGENET_MEAN) if normalises else 0.0,
        "std": tuple(values.get("image_std") or IMAGENET_STD) if normalises else 1.0,
        "channels": "BGR" if values.get("do_flip_channel_order") else "RGB",
    }


def _sides(size: Any) -> tuple[int, int] | None:
    """Height and width of a size as transformers writes it."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping):
        if "shortest_edge" in size:
            return size["shortest_edge"], size["shortest_edge"]
        if {"height", "width"} <= size.keys():
            return size["height"], size["width"]
    return None


def _keeps_shape(size: Any) -> bool:
    """Whether only the short side is given, so that the image keeps its shape."""
    return isinstance(size, Mapping) and "shortest_edge" in size


def _three(values: PerChannel) -> Sequence[float]:
    each = (values,) if isinstance(values, float | int) else values
    return tuple(each) * 3 if len(each) == 1 else tuple(each)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object; docs/own-models.md shows one")
    return values


def _checked(kind: type[Settings], values: Mapping[str, Any], path: Path) -> Settings:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{path}: {name} is {first.get('input')!r}: {first['msg']}; its fields are "
            f"{', '.join(kind.model_fields)}"
        ) from error
