import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

import models.bundle
from models.bundle import (
    MANIFEST,
    BundleError,
    Precision,
    graph_files,
    load_bundle,
    rewrite_entry,
    rewrite_manifest,
    write_manifest,
)
from models.preprocess import ImagePreprocessor, TextPreprocessor

OWN = (
    "stages/0.onnx",
    "stages/1.onnx",
    "heads/0.onnx",
    "heads/1.onnx",
    "schedulers/maxprob/scheduler.json",
    "schedulers/maxprob/scheduler.npz",
    "schedulers/stopping/scheduler.json",
    "schedulers/stopping/scheduler.npz",
    "predictions.npz",
    "profile.json",
)
NAMES = tuple(f"{precision}/{name}" for precision in ("int8", "float32") for name in OWN)
IMAGES = {"kind": "image", "height": 8, "width": 9, "mean": (0.5, 0.5, 0.5), "std": (1, 1, 1)}
TEXTS = {"max_tokens": 20, "pad_id": 0, "length_step": 8, "typical_tokens": 16}
TEXT_INPUTS = {"text": {"kind": "text", **TEXTS}}


def entry(precision: str) -> dict[str, Any]:
    return {
        "folder": precision,
        "predictions": f"{precision}/predictions.npz",
        "schedulers": {
            policy: f"{precision}/schedulers/{policy}" for policy in ("maxprob", "stopping")
        },
        "policy": "stopping",
        "default_budget_ms": 1.5,
    }


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
        "inputs": {"image": IMAGES},
        "precisions": {precision: entry(precision) for precision in ("int8", "float32")},
        "training": {"epochs": 3},
    }
    write_manifest(folder, **fields | changes)
    return folder


def make_text_bundle(folder: Path, tokenizer: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return make_bundle(folder, task="text", inputs=TEXT_INPUTS)


def change_entry(folder: Path, precision: str = "int8", /, **changes: object) -> None:
    edit(folder, lambda m: m["precisions"][precision].update(changes))


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
    assert (manifest.format_version, manifest.training) == (2, {"epochs": 3})
    assert set(manifest.files) == set(NAMES)
    assert json.loads((tmp_path / "bundle.json").read_text())["format_version"] == 2


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_a_variant_knows_where_its_files_are(tmp_path: Path, precision: Precision) -> None:
    variant, own = load_bundle(make_bundle(tmp_path)).variant(precision), tmp_path / precision
    assert variant.entry.default_budget_ms == 1.5 and variant.entry.row_independent
    assert variant.stage_files == [own / "stages/0.onnx", own / "stages/1.onnx"]
    assert variant.head_files == [own / "heads/0.onnx", own / "heads/1.onnx"]
    assert (variant.profile, variant.predictions) == (
        own / "profile.json",
        own / "predictions.npz",
    )
    assert variant.scheduler() == own / "schedulers/stopping"
    assert variant.scheduler("maxprob") == own / "schedulers/maxprob"
    assert variant.known_answers is None


def test_the_first_precision_of_the_manifest_is_the_default(tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path))
    assert bundle.precisions == ("int8", "float32")
    assert bundle.variant().precision == "int8"


def test_a_precision_that_is_not_held_is_named_with_the_remedy(tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path))
    with pytest.raises(BundleError, match="holds no float16 network, only int8, float32; build"):
        bundle.variant("float16")


def test_a_policy_that_was_not_fitted_is_named_with_the_remedy(tmp_path: Path) -> None:
    variant = load_bundle(make_bundle(tmp_path)).variant()
    with pytest.raises(BundleError, match="no scheduler 'eenet' for int8, only maxprob, stopping"):
        variant.scheduler("eenet")


def test_a_variant_may_have_known_answers(tmp_path: Path) -> None:
    (tmp_path / "int8").mkdir()
    (tmp_path / "int8/known_answers.npz").write_bytes(b"known")
    bundle = load_bundle(make_bundle(tmp_path))
    assert bundle.variant("int8").known_answers == tmp_path / "int8/known_answers.npz"
    assert bundle.variant("float32").known_answers is None


def test_files_of_the_manifest_are_told(tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path))
    told = bundle.listed(tmp_path / "int8/profile.json")
    assert told is not None and told.bytes == len("content of int8/profile.json")
    assert bundle.listed(tmp_path / "elsewhere.json") is None


def test_the_preprocessor_is_of_the_manifest_and_the_operators_limit(tmp_path: Path) -> None:
    preprocess = load_bundle(make_bundle(tmp_path)).preprocessor(max_pixels=77)
    assert (preprocess.height, preprocess.width, preprocess.max_pixels) == (8, 9, 77)
    assert preprocess.mean == (0.5, 0.5, 0.5)
    assert isinstance(preprocess, ImagePreprocessor) and preprocess.fit == "cover"


def test_a_bundle_of_masks_may_stretch_its_images(tmp_path: Path) -> None:
    make_bundle(tmp_path, task="segmentation", inputs={"image": {**IMAGES, "fit": "stretch"}})
    preprocess = load_bundle(tmp_path).preprocessor(max_pixels=77)
    assert isinstance(preprocess, ImagePreprocessor) and preprocess.fit == "stretch"
    edit(tmp_path, lambda m: m["inputs"]["image"].update(fit="tile"))
    assert "inputs.image.image.fit" in refusal(tmp_path)


def test_images_may_reach_the_first_stage_as_pixels(tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path, inputs={"image": {**IMAGES, "dtype": "uint8"}}))
    preprocess = bundle.preprocessor(max_pixels=77)
    assert isinstance(preprocess, ImagePreprocessor) and preprocess.dtype == "uint8"
    edit(tmp_path, lambda m: m["inputs"]["image"].update(dtype="float64"))
    assert "inputs.image.image.dtype" in refusal(tmp_path)


def test_more_inputs_than_this_version_serves_are_refused(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    edit(tmp_path, lambda m: m["inputs"].update(TEXT_INPUTS))
    assert "inputs are image, text; this version serves one input per request" in refusal(tmp_path)
    edit(tmp_path, lambda m: m.update(inputs={}))
    assert "not a bundle manifest: inputs" in refusal(tmp_path)


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
def test_task_and_input_must_agree(tmp_path: Path, task: str) -> None:
    make_bundle(tmp_path)
    wrong = {"image": IMAGES} if task == "text" else TEXT_INPUTS
    edit(tmp_path, lambda m: m.update(task=task, inputs=wrong))
    assert f"the input does not fit the task {task}" in refusal(tmp_path)
    with pytest.raises(ValueError, match=f"does not fit the task {task}"):
        make_bundle(tmp_path, task=task, inputs=wrong)


@pytest.mark.parametrize("key", TEXTS)
@pytest.mark.parametrize("value", [-1, "many", 1.5, None])
def test_a_bad_value_of_the_texts_is_named(
    tmp_path: Path, tokenizer: Path, key: str, value: object
) -> None:
    edit(make_text_bundle(tmp_path, tokenizer), lambda m: m["inputs"]["text"].update({key: value}))
    assert f"not a bundle manifest: inputs.text.text.{key}" in refusal(tmp_path)


def test_precisions_are_measured_beside_the_network_as_trained(tmp_path: Path) -> None:
    trained = {"accuracy": [0.5, 0.75], "latency_ms": [1.0, 2.0]}
    measured = {"accuracy": [0.5, 0.7], "latency_ms": [1.0, 1.5]}
    make_bundle(tmp_path, trained=trained)
    change_entry(tmp_path, measured=measured, method={"scales": "minmax"}, row_independent=False)
    manifest = load_bundle(tmp_path).manifest
    assert manifest.trained is not None and manifest.trained.accuracy == (0.5, 0.75)
    described = manifest.precisions["int8"]
    assert described.measured is not None and described.measured.latency_ms == (1.0, 1.5)
    assert (described.method, described.row_independent) == ({"scales": "minmax"}, False)


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    edit(tmp_path, lambda m: m["precisions"].update(int4=m["precisions"].pop("int8")))
    assert "not a bundle manifest: precisions.int4" in refusal(tmp_path)
    edit(tmp_path, lambda m: m.update(precisions={}))
    assert "not a bundle manifest: precisions" in refusal(tmp_path)


def test_the_policy_must_be_among_the_schedulers(tmp_path: Path) -> None:
    change_entry(make_bundle(tmp_path), policy="eenet")
    assert "policy 'eenet' is none of schedulers ['maxprob', 'stopping']" in refusal(tmp_path)
    change_entry(tmp_path, policy="eenet", schedulers={})
    assert "precisions.int8.schedulers" in refusal(tmp_path)


OUTSIDE = st.sampled_from(
    ["/etc", "..", "../bundle/int8", "int8/../..", "int8/../../bundle/int8", "int8\0", "/", "./.."]
) | st.lists(st.sampled_from(["..", "int8", "."]), min_size=1, max_size=4).filter(
    lambda parts: ".." in parts
).map("/".join)


@pytest.mark.parametrize("field", ["folder", "predictions", "schedulers"])
def test_no_path_of_a_variant_leaves_the_bundle(tmp_path: Path, field: str) -> None:
    folder = make_bundle(tmp_path / "bundle")

    @hypothesis.given(path=OUTSIDE)
    def check(path: str) -> None:
        change_entry(folder, **{field: {"stopping": path} if field == "schedulers" else path})
        sentence = refusal(folder)
        assert f"precisions.int8.{field}" in sentence and "is outside the bundle" in sentence

    check()


def test_graphs_are_in_the_order_of_exits_beyond_ten() -> None:
    for files in graph_files(Path("int8"), 12):
        assert [int(path.stem) for path in files] == list(range(12))


def test_variants_may_share_files(tmp_path: Path) -> None:
    change_entry(make_bundle(tmp_path), "float32", schedulers=entry("int8")["schedulers"])
    bundle = load_bundle(tmp_path)
    assert bundle.variant("float32").scheduler() == bundle.variant("int8").scheduler()


@pytest.mark.parametrize("policy", ["stopping", "maxprob"])
def test_a_changed_variant_is_described_again_and_all_else_stays(
    tmp_path: Path, policy: str
) -> None:
    before = load_bundle(make_bundle(tmp_path))
    (tmp_path / "int8/schedulers" / policy / "scheduler.json").write_text("another")
    rewrite_entry(before.variant("int8"), policy=policy, default_budget_ms=2.5)
    after = load_bundle(tmp_path)
    assert after.variant("int8").entry == before.variant("int8").entry.model_copy(
        update={"policy": policy, "default_budget_ms": 2.5}
    )
    assert after.variant("float32").entry == before.variant("float32").entry
    assert after.precisions == before.precisions
    changed = after.listed(tmp_path / "int8/schedulers" / policy / "scheduler.json")
    assert changed is not None and changed.bytes == len("another")
    same = {"files", "precisions"}
    assert after.manifest.model_dump(exclude=same) == before.manifest.model_dump(exclude=same)


def test_a_changed_bundle_is_described_again_and_keeps_its_other_fields(
    tmp_path: Path, tokenizer: Path
) -> None:
    before = load_bundle(make_text_bundle(tmp_path, tokenizer))
    (tmp_path / "int8/profile.json").write_text("another")
    rewrite_manifest(before, version="2")
    after = load_bundle(tmp_path).manifest
    assert after.version == "2"
    assert after.files["int8/profile.json"].bytes == len("another")
    same = {"files", "version"}
    assert after.model_dump(exclude=same) == before.manifest.model_dump(exclude=same)


def test_a_manifest_may_leave_the_budget_open(tmp_path: Path) -> None:
    change_entry(make_bundle(tmp_path), default_budget_ms=None)
    assert load_bundle(tmp_path).variant().entry.default_budget_ms is None


@pytest.mark.parametrize("value", [0, -1, "much", float("inf")])
def test_a_default_budget_is_a_number_above_0(tmp_path: Path, value: object) -> None:
    change_entry(make_bundle(tmp_path), default_budget_ms=value)
    assert "precisions.int8.default_budget_ms" in refusal(tmp_path)


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
    assert "does not list int8/stages/2.onnx" in refusal(tmp_path)


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    edit(make_bundle(tmp_path), lambda m: m.update(format_version=3, precisions="others"))
    assert "bundle.json has format version 3, this program reads 1 and 2" in refusal(tmp_path)


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    edit(make_bundle(tmp_path), lambda m: m.update(colour="red"))
    assert "bundle.json is not a bundle manifest: colour" in refusal(tmp_path)


def test_an_unknown_key_inside_is_named(tmp_path: Path) -> None:
    edit(make_bundle(tmp_path), lambda m: m["inputs"]["image"].update(gamma=2.2))
    assert "inputs.image.image.gamma" in refusal(tmp_path)
    change_entry(make_bundle(tmp_path), colour="red")
    assert "precisions.int8.colour" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "../cats"),
        ("name", ""),
        ("task", "audio"),
        ("classes", ["only"]),
        ("num_exits", 0),
        ("files", {"int8/profile.json": {"bytes": 3}}),
    ],
)
def test_a_bad_value_is_named(tmp_path: Path, key: str, value: object) -> None:
    edit(make_bundle(tmp_path), lambda m: m.update({key: value}))
    assert f"bundle.json is not a bundle manifest: {key}" in refusal(tmp_path)


@pytest.mark.parametrize("exits", [1001, 10**9])
def test_more_exits_than_any_network_has_are_refused_before_their_files_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exits: int
) -> None:
    def never(*given: object) -> None:
        raise AssertionError("the names of a billion files take all memory")

    edit(make_bundle(tmp_path), lambda m: m.update(num_exits=exits))
    monkeypatch.setattr(models.bundle, "graph_files", never)
    assert "bundle.json is not a bundle manifest: num_exits" in refusal(tmp_path)


@pytest.mark.parametrize("key", ["format_version", "name", "files", "training", "inputs"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    edit(make_bundle(tmp_path), lambda m: m.pop(key))
    assert f"not a bundle manifest: {key}" in refusal(tmp_path)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe\x00", b"null"])
def test_a_manifest_that_is_no_json_object_is_named(tmp_path: Path, data: bytes) -> None:
    (make_bundle(tmp_path) / "bundle.json").write_bytes(data)
    assert f"{tmp_path}/bundle.json is not a bundle manifest" in refusal(tmp_path)


def test_a_path_above_the_folder_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    (tmp_path / "profile.json").write_bytes((folder / "int8/profile.json").read_bytes())

    def leave(manifest: dict[str, Any]) -> None:
        manifest["files"]["../profile.json"] = manifest["files"]["int8/profile.json"]

    edit(folder, leave)
    assert "'../profile.json', which is outside the bundle" in refusal(folder)


def test_a_way_out_and_back_in_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")

    def detour(manifest: dict[str, Any]) -> None:
        manifest["files"]["../bundle/int8/profile.json"] = manifest["files"]["int8/profile.json"]

    edit(folder, detour)
    assert "'../bundle/int8/profile.json', which is outside the bundle" in refusal(folder)


def test_an_absolute_path_is_refused_even_inside(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)

    def anchor(manifest: dict[str, Any]) -> None:
        manifest["files"][f"{folder}/int8/profile.json"] = manifest["files"]["int8/profile.json"]

    edit(folder, anchor)
    assert f"'{folder}/int8/profile.json', which is outside the bundle" in refusal(folder)


def test_a_path_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    def spoil(manifest: dict[str, Any]) -> None:
        manifest["files"]["a\0b"] = manifest["files"]["int8/profile.json"]

    edit(make_bundle(tmp_path), spoil)
    assert r"'a\x00b'" in refusal(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["int8", "int8/profile.json", "int8/stages", "int8/schedulers", "int8/predictions.npz"],
)
def test_a_symlink_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = make_bundle(tmp_path / "bundle")
    (folder / name).rename(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", folder / name)
    sentence = refusal(folder)
    assert "is outside the bundle" in sentence and name in sentence


def test_a_manifest_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    (folder / MANIFEST).rename(tmp_path / "elsewhere.json")
    os.symlink(tmp_path / "elsewhere.json", folder / MANIFEST)
    assert "is a link out of the bundle" in refusal(folder)


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


OLD = (*OWN[:4], "scheduler.json", "scheduler.npz", "calibration.npz", "profile.json")


def make_old_bundle(folder: Path, **changes: Any) -> Path:
    """Write a bundle of format 1."""
    files = {}
    for name in OLD:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        content = b'{"policy": "maxprob"}' if name == "scheduler.json" else name.encode()
        (folder / name).write_bytes(content)
        files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest = {
        "format_version": 1,
        "name": "cats",
        "version": "1",
        "task": "image",
        "classes": ["cat", "dog"],
        "num_exits": 2,
        "preprocessing": {key: value for key, value in IMAGES.items() if key != "kind"},
        "default_budget_ms": 1.5,
        "training": {"epochs": 3},
        "files": files,
    }
    (folder / "bundle.json").write_text(json.dumps(manifest | changes))
    return folder


def test_format_1_is_read_as_one_precision_in_the_bundles_own_folder(tmp_path: Path) -> None:
    bundle = load_bundle(make_old_bundle(tmp_path))
    assert (bundle.precisions, bundle.manifest.trained) == (("float32",), None)
    variant = bundle.variant()
    assert variant.stage_files == [tmp_path / "stages/0.onnx", tmp_path / "stages/1.onnx"]
    assert variant.predictions == tmp_path / "calibration.npz"
    assert variant.profile == tmp_path / "profile.json"
    assert (variant.entry.policy, variant.scheduler("maxprob")) == ("maxprob", tmp_path)
    assert (variant.entry.default_budget_ms, variant.entry.measured) == (1.5, None)
    assert variant.entry.method == {"storage": "float32"} and variant.entry.row_independent
    preprocess = bundle.preprocessor(max_pixels=77)
    assert isinstance(preprocess, ImagePreprocessor)
    assert (preprocess.height, preprocess.fit, preprocess.dtype) == (8, "cover", "float32")


def test_format_1_told_how_weights_are_stored_and_what_that_costs(tmp_path: Path) -> None:
    float32 = {"accuracy": [0.5, 0.75], "latency_ms": [1.0, 2.0]}
    int8 = {"accuracy": [0.5, 0.7], "latency_ms": [1.0, 1.5]}
    make_old_bundle(tmp_path, weights="int8", measured={"float32": float32, "int8": int8})
    bundle = load_bundle(tmp_path)
    assert bundle.precisions == ("float32",)  # in which it always computes
    assert bundle.manifest.trained is not None
    assert bundle.manifest.trained.accuracy == (0.5, 0.75)
    entry = bundle.variant().entry
    assert entry.measured is not None and entry.measured.accuracy == (0.5, 0.7)
    assert entry.method == {"storage": "int8"}


def test_a_changed_bundle_of_format_1_is_written_in_format_2_where_its_files_are(
    tmp_path: Path,
) -> None:
    before = load_bundle(make_old_bundle(tmp_path))
    rewrite_manifest(before)
    after = load_bundle(tmp_path)
    assert json.loads((tmp_path / "bundle.json").read_text())["format_version"] == 2
    assert (before.manifest.format_version, after.manifest.format_version) == (1, 2)
    assert set(after.manifest.files) == set(OLD)
    same = {"format_version"}
    assert after.manifest.model_dump(exclude=same) == before.manifest.model_dump(exclude=same)


@pytest.mark.parametrize("name", OLD)
def test_a_bundle_of_format_1_needs_all_its_files(tmp_path: Path, name: str) -> None:
    (make_old_bundle(tmp_path) / name).write_bytes(b"damaged")
    assert f"{tmp_path / name} is damaged" in refusal(tmp_path)
    edit(make_old_bundle(tmp_path), lambda m: m["files"].pop(name))
    assert f"does not list {name}" in refusal(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


@pytest.mark.parametrize(
    "key",
    ["preprocessing", "weights", "measured", "default_budget_ms", "task", "num_exits", "files"],
)
def test_no_value_of_format_1_breaks_more_than_the_bundle(tmp_path: Path, key: str) -> None:
    make_old_bundle(tmp_path)

    @hypothesis.given(value=JSON)
    def check(value: object) -> None:
        edit(tmp_path, lambda m: m.update({key: value}))
        with contextlib.suppress(BundleError):
            load_bundle(tmp_path)

    check()


def test_a_scheduler_of_format_1_that_cannot_be_read_is_no_reason_to_refuse_its_bundle(
    tmp_path: Path,
) -> None:
    make_old_bundle(tmp_path)
    content = b"[]"
    (tmp_path / "scheduler.json").write_bytes(content)
    told = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit(tmp_path, lambda m: m["files"].update({"scheduler.json": told}))
    assert load_bundle(tmp_path).variant().entry.policy == "unknown"
