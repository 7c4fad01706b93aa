"""Preprocessing from JSON, and as Hugging Face writes it."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from models.onnx_import.preprocessing import (
    ImageSettings,
    TextInputs,
    read_image_settings,
    read_text_inputs,
)

HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def read(folder: Path, name: str, **values: Any) -> ImageSettings:
    (folder / name).write_text(json.dumps(values))
    return read_image_settings(folder / name)


def test_our_own_json(tmp_path: Path) -> None:
    found = read(tmp_path, "p.json", size=[192, 256], resize="stretch", crop=0.9, channels="BGR")
    assert (found.size, found.resize, found.crop) == ((192, 256), "stretch", 0.9)
    assert found.channels == "BGR" and found.scale == 1 / 255


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sise": 3}, "sise is 3: Extra inputs are not permitted; its fields are size, resize"),
        ({"crop": 2}, "crop is 2: Input should be less than or equal to 1"),
        ({"channels": "RBG"}, "channels is 'RBG'"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(tmp_path, "p.json", **values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (  # ViT
            {"size": {"height": 224, "width": 224}, "do_center_crop": False, **HALF},
            {"size": (224, 224), "resize": "stretch", "crop": 1.0, "mean": (0.5,) * 3},
        ),
        (  # ResNet, as CLIP
            {"size": {"shortest_edge": 256}, "do_center_crop": True,
             "crop_size": {"height": 224, "width": 224}, **HALF},
            {"size": (224, 224), "resize": "cover", "crop": 0.875},
        ),
        (  # ConvNeXt
            {"size": {"shortest_edge": 224}, "crop_pct": 0.875, **HALF},
            {"size": (224, 224), "resize": "cover", "crop": 0.875},
        ),
        (  # MobileViT
            {"size": {"shortest_edge": 288}, "crop_size": {"height": 256, "width": 256},
             "do_center_crop": True, "do_flip_channel_order": True, "do_normalize": False},
            {"size": (256, 256), "channels": "BGR", "mean": 0.0, "std": 1.0},
        ),
        ({"size": 224, "do_rescale": False, **HALF}, {"size": (224, 224), "scale": 1.0}),
    ],
)  # fmt: skip
def test_a_processor_of_transformers(
    tmp_path: Path, values: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = read(tmp_path, "preprocessor_config.json", **values)
    assert {name: getattr(found, name) for name in expected} == expected
    assert read_image_settings(tmp_path) == found


def test_a_processor_without_a_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not say to which size images are resized"):
        read(tmp_path, "preprocessor_config.json", do_resize=False, **HALF)


def save_tokenizer(folder: Path, pad: str = "[PAD]") -> Path:
    folder.mkdir(exist_ok=True)
    vocabulary = {"[UNK]": 0, "good": 1, pad: 2}
    Tokenizer(WordLevel(vocabulary, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_a_tokenizer_alone_and_in_a_folder(tmp_path: Path) -> None:
    file = save_tokenizer(tmp_path)
    assert read_text_inputs(file) == read_text_inputs(tmp_path) == TextInputs(file, 128, 2)
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    assert read_text_inputs(tmp_path).max_tokens == 64


def test_our_own_json_names_a_tokenizer(tmp_path: Path) -> None:
    file = save_tokenizer(tmp_path / "words", pad="nothing")
    with pytest.raises(ValueError, match=r"has no token .* for padding; name it as pad_token"):
        read_text_inputs(file)
    settings = tmp_path / "p.json"
    settings.write_text(
        json.dumps({"tokenizer": "words", "max_tokens": 32, "pad_token": "nothing"})
    )
    assert read_text_inputs(settings) == TextInputs(file, 32, 2)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer.json does not exist; give a tokenizer.json"):
        read_text_inputs(tmp_path)
