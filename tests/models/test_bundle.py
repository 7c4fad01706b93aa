import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.bundle import BundleError, load_bundle, rewrite_manifest, write_manifest
from models.preprocess import ImagePreprocessor, TextPreprocessor

NAMES = (
    "stages/0.onnx",
    "stages/1.onnx",
    "heads/0.onnx",
    "heads/1.onnx",
    "scheduler.json",
    "scheduler.npz",
    "calibration.npz",
    "profile.json",
)


IMAGES = {"height": 8, "width": 9, "mean": (0.5, 0.5, 0.5), "std": (1, 1, 1)}
TEXTS = {"max_tokens": 20, "pad_id": 0, "length_step": 8, "typical_tokens": 16}


def make_bundle(folder: Path, **changes: Any) -> Path:
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"content of {name}".encode())
    fields = {
        "name": "cats",
        "version": "1",
        "task": "image",
        "classes": ("cat", "dog"),
        "num_exits": 2,
        "preprocessing": IMAGES,
        "default_budget_ms": 1.5,
        "training": {"epochs": 3},
    }
    write_manifest(folder, **fields | changes)
    return folder


def make_text_bundle(folder: Path, tokenizer: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return make_bundle(folder, task="text", preprocessing=TEXTS)


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    change(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_written_is_loaded(tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path))
    manifest = bundle.manifest
    assert (manifest.name, manifest.classes, manifest.num_exits) == ("cats", ("cat", "dog"), 2)
    assert (manifest.default_budget_ms, manifest.training) == (1.5, {"epochs": 3})
    assert set(manifest.files) == set(NAMES)
    assert bundle.stage_files == [tmp_path / "stages/0.onnx", tmp_path / "stages/1.onnx"]
    assert bundle.head_files == [tmp_path / "heads/0.onnx", tmp_path / "heads/1.onnx"]


def test_the_preprocessor_is_of_the_manifest_and_the_operators_limit(tmp_path: Path) -> None:
    preprocess = load_bundle(make_bundle(tmp_path)).preprocessor(max_pixels=77)
    assert (preprocess.height, preprocess.width, preprocess.max_pixels) == (8, 9, 77)
    assert preprocess.mean == (0.5, 0.5, 0.5)
    assert isinstance(preprocess, ImagePreprocessor) and preprocess.fit == "cover"


def test_a_bundle_of_masks_may_stretch_its_images(tmp_path: Path) -> None:
    make_bundle(tmp_path, task="segmentation", preprocessing={**IMAGES, "fit": "stretch"})
    preprocess = load_bundle(tmp_path).preprocessor(max_pixels=77)
    assert isinstance(preprocess, ImagePreprocessor) and preprocess.fit == "stretch"
    edit(tmp_path, lambda m: m["preprocessing"].update(fit="tile"))
    assert "preprocessing.image.fit" in refusal(tmp_path)


def test_a_bundle_of_texts_has_a_preprocessor_of_texts(tmp_path: Path, tokenizer: Path) -> None:
    bundle = load_bundle(make_text_bundle(tmp_path, tokenizer))
    preprocess = bundle.preprocessor(max_pixels=77)
    assert isinstance(preprocess, TextPreprocessor)
    assert preprocess == TextPreprocessor(tmp_path / "tokenizer.json", **TEXTS)
    ids, mask = preprocess("good film").state
    assert ids.shape == (1, 8) and mask.sum() == 4
    assert [array.shape for array in preprocess.example] == [(1, 16), (1, 16)]


def test_a_bundle_of_texts_lists_its_tokenizer(tmp_path: Path, tokenizer: Path) -> None:
    edit(make_text_bundle(tmp_path, tokenizer), lambda m: m["files"].pop("tokenizer.json"))
    assert "does not list tokenizer.json" in refusal(tmp_path)


def test_a_changed_tokenizer_is_damage(tmp_path: Path, tokenizer: Path) -> None:
    path = make_text_bundle(tmp_path, tokenizer) / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    assert f"{path} is damaged" in refusal(tmp_path)


def test_a_bundle_whose_tokenizer_is_none_says_so(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "words.json").write_text("{}")
    bundle = load_bundle(make_text_bundle(tmp_path / "bundle", tmp_path / "words.json"))
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer: "):
        bundle.preprocessor(max_pixels=77)


@pytest.mark.parametrize("task", ["image", "segmentation", "text"])
def test_task_and_preprocessing_must_agree(tmp_path: Path, task: str) -> None:
    make_bundle(tmp_path)

    def swap(manifest: dict[str, Any]) -> None:
        manifest.update(task=task, preprocessing=IMAGES if task == "text" else TEXTS)

    edit(tmp_path, swap)
    assert f"the preprocessing does not fit the task {task}" in refusal(tmp_path)
    with pytest.raises(ValueError, match=f"does not fit the task {task}"):
        make_bundle(tmp_path, task=task, preprocessing=IMAGES if task == "text" else TEXTS)


@pytest.mark.parametrize("key", TEXTS)
@pytest.mark.parametrize("value", [-1, "many", 1.5, None])
def test_a_bad_value_of_the_texts_is_named(
    tmp_path: Path, tokenizer: Path, key: str, value: object
) -> None:
    edit(make_text_bundle(tmp_path, tokenizer), lambda m: m["preprocessing"].update({key: value}))
    assert f"not a bundle manifest: preprocessing.text.{key}" in refusal(tmp_path)


def test_ways_of_storing_weights_are_measured_and_told(tmp_path: Path) -> None:
    measured = {
        "float32": {"accuracy": [0.5, 0.75], "latency_ms": [1.0, 2.0]},
        "int8": {"accuracy": [0.5, 0.7], "latency_ms": [1.0, 1.5]},
    }
    make_bundle(tmp_path, weights="int8", measured=measured)
    manifest = load_bundle(tmp_path).manifest
    assert manifest.weights == "int8"
    assert manifest.measured["int8"].accuracy == (0.5, 0.7)
    edit(tmp_path, lambda m: m.update(weights="int4"))
    assert "bundle.json is not a bundle manifest: weights" in refusal(tmp_path)


def test_an_older_manifest_stores_single_precision(tmp_path: Path) -> None:
    def forget(manifest: dict[str, Any]) -> None:
        del manifest["weights"], manifest["measured"], manifest["preprocessing"]["fit"]

    edit(make_bundle(tmp_path), forget)
    manifest = load_bundle(tmp_path).manifest
    assert (manifest.weights, manifest.measured) == ("float32", {})


def test_a_changed_bundle_is_described_again_and_keeps_its_other_fields(
    tmp_path: Path, tokenizer: Path
) -> None:
    before = load_bundle(make_text_bundle(tmp_path, tokenizer))
    (tmp_path / "scheduler.json").write_text("another")
    rewrite_manifest(before, default_budget_ms=2.5)
    after = load_bundle(tmp_path).manifest
    assert after.default_budget_ms == 2.5
    assert after.files["scheduler.json"].bytes == len("another")
    same = {"files", "default_budget_ms"}
    assert after.model_dump(exclude=same) == before.manifest.model_dump(exclude=same)


def test_a_manifest_may_leave_the_budget_open(tmp_path: Path) -> None:
    edit(make_bundle(tmp_path), lambda m: m.update(default_budget_ms=None))
    assert load_bundle(tmp_path).manifest.default_budget_ms is None


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    assert f"{tmp_path}/bundle.json does not exist" in refusal(tmp_path)
    assert "bundle.json does not exist" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (make_bundle(tmp_path) / name).unlink()
    assert f"{tmp_path / name} is missing" in refusal(tmp_path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: b"", lambda data: b"C" + data[1:], lambda d: d + b"\0"],
    ids=["truncated", "emptied", "changed", "grown"],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    path = make_bundle(tmp_path) / name
    path.write_bytes(damage(path.read_bytes()))
    assert f"{path} is damaged" in refusal(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_needed_file_that_is_not_listed_is_named(tmp_path: Path, name: str) -> None:
    edit(make_bundle(tmp_path), lambda m: m["files"].pop(name))
    assert f"does not list {name}" in refusal(tmp_path)


def test_more_exits_than_graphs_are_refused(tmp_path: Path) -> None:
    edit(make_bundle(tmp_path), lambda m: m.update(num_exits=3))
    assert "does not list stages/2.onnx" in refusal(tmp_path)


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    edit(make_bundle(tmp_path), lambda m: m.update(format_version=2))
    assert "bundle.json has format version 2, this program reads 1" in refusal(tmp_path)


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    edit(make_bundle(tmp_path), lambda m: m.update(colour="red"))
    assert "bundle.json is not a bundle manifest: colour" in refusal(tmp_path)


def test_an_unknown_key_inside_is_named(tmp_path: Path) -> None:
    edit(make_bundle(tmp_path), lambda m: m["preprocessing"].update(crop=True))
    assert "preprocessing.image.crop" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "../cats"),
        ("name", ""),
        ("task", "audio"),
        ("classes", ["only"]),
        ("num_exits", 0),
        ("default_budget_ms", 0),
        ("files", {"profile.json": {"bytes": 3}}),
    ],
)
def test_a_bad_value_is_named(tmp_path: Path, key: str, value: object) -> None:
    edit(make_bundle(tmp_path), lambda m: m.update({key: value}))
    assert f"bundle.json is not a bundle manifest: {key}" in refusal(tmp_path)


@pytest.mark.parametrize("key", ["format_version", "name", "files", "training", "preprocessing"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    edit(make_bundle(tmp_path), lambda m: m.pop(key))
    assert f"not a bundle manifest: {key}" in refusal(tmp_path)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe\x00", b"null"])
def test_a_manifest_that_is_no_json_object_is_named(tmp_path: Path, data: bytes) -> None:
    (make_bundle(tmp_path) / "bundle.json").write_bytes(data)
    assert f"{tmp_path}/bundle.json is not a bundle manifest" in refusal(tmp_path)


def test_a_path_above_the_folder_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    (tmp_path / "profile.json").write_bytes((folder / "profile.json").read_bytes())

    def leave(manifest: dict[str, Any]) -> None:
        manifest["files"]["../profile.json"] = manifest["files"]["profile.json"]

    edit(folder, leave)
    assert "'../profile.json', which is outside the bundle" in refusal(folder)


def test_a_way_out_and_back_in_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")

    def detour(manifest: dict[str, Any]) -> None:
        manifest["files"]["../bundle/profile.json"] = manifest["files"]["profile.json"]

    edit(folder, detour)
    assert "'../bundle/profile.json', which is outside the bundle" in refusal(folder)


def test_an_absolute_path_is_refused_even_inside(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)

    def anchor(manifest: dict[str, Any]) -> None:
        manifest["files"][f"{folder}/profile.json"] = manifest["files"]["profile.json"]

    edit(folder, anchor)
    assert f"'{folder}/profile.json', which is outside the bundle" in refusal(folder)


def test_a_path_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    def spoil(manifest: dict[str, Any]) -> None:
        manifest["files"]["a\0b"] = manifest["files"]["profile.json"]

    edit(make_bundle(tmp_path), spoil)
    assert r"'a\x00b'" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["profile.json", "stages"])
def test_a_symlink_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = make_bundle(tmp_path / "bundle")
    (folder / name).rename(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", folder / name)
    sentence = refusal(folder)
    assert "is outside the bundle" in sentence and name in sentence


def test_a_symlink_to_a_bundle_is_followed(tmp_path: Path) -> None:
    make_bundle(tmp_path / "cats-v3")
    os.symlink(tmp_path / "cats-v3", tmp_path / "current")
    assert load_bundle(tmp_path / "current").manifest.name == "cats"


NETWORK = {"arch": "resnet8", "settings": {"num_classes": 2, "exits": [1]}}


def test_a_bundle_may_hold_the_network_for_torch(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    bundle = load_bundle(make_bundle(tmp_path, network=NETWORK))
    assert bundle.torch_weights == tmp_path / "weights.safetensors"
    assert bundle.manifest.network is not None
    assert bundle.manifest.network.model_dump() == NETWORK
    again = rewrite_manifest(bundle, version="2").manifest
    assert again.network == bundle.manifest.network


def test_a_bundle_of_graphs_alone_has_no_weights_for_torch(tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path))
    assert (bundle.torch_weights, bundle.manifest.network) == (None, None)


def test_the_network_and_its_weights_come_together(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    edit(make_bundle(tmp_path, network=NETWORK), lambda m: m.pop("network"))
    assert "network and weights.safetensors must both be there, or neither" in refusal(tmp_path)
    edit(tmp_path, lambda m: m.update(network=NETWORK))
    load_bundle(tmp_path)
    edit(tmp_path, lambda m: m["files"].pop("weights.safetensors"))
    assert "must both be there, or neither" in refusal(tmp_path)
    edit(tmp_path, lambda m: m.update(network={"arch": "resnet8"}))
    assert "network.settings: Field required" in refusal(tmp_path)
