from __future__ import annotations

from pathlib import Path

import pytest
from onnx import GraphProto

from models.onnx_import.triton import TritonEntry, read_entry
from models.onnx_import.triton_graph import check_graph
from tests.onnx_models import plain_net

INPUT = 'input [{ name: "input" data_type: TYPE_FP32 dims: [3, 16, 16] }]'
OUTPUT = 'output { name: "scores" data_type: TYPE_FP32 dims: 3 }'
LABELS = OUTPUT.replace("dims: 3", 'dims: 3 label_filename: "labels.txt"')


def entry(folder: Path, config: str | None, *versions: str) -> TritonEntry:
    """Read an entry of that configuration; its models are empty files."""
    if config is not None:
        (folder / "config.pbtxt").write_text(config)
    for version in versions or ("1",):
        (folder / version).mkdir()
        (folder / version / "model.onnx").touch()
    return read_entry(folder)


def graph() -> GraphProto:
    return plain_net(1).graph


def test_a_whole_configuration(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("blue\ngreen\r\n red\n\n")
    found = entry(
        tmp_path,
        f'name: "colours" platform: "onnxruntime_onnx" max_batch_size: 8 {INPUT} {LABELS} '
        f"instance_group [{{ count: 2 kind: KIND_GPU }}] "
        f"dynamic_batching {{ preferred_batch_size: [4, 8] }}",
    )
    assert found.name == "colours" and found.version == 1
    assert found.model == tmp_path / "1" / "model.onnx"
    assert found.classes == ("blue", "green", "red")
    assert found.ignored == ("dynamic_batching", "instance_group")
    assert found.inputs[0].dims == (3, 16, 16) and found.outputs[0].name == "scores"
    check_graph(found, graph())


def test_without_a_configuration(tmp_path: Path) -> None:
    found = entry(tmp_path, None)
    assert found.name == tmp_path.name and found.inputs == () and found.classes is None
    check_graph(found, graph())


@pytest.mark.parametrize(
    ("policy", "version"),
    [
        ("", 12),
        ("version_policy: { latest { num_versions: 1 } }", 12),
        ("version_policy { all {} }", 12),
        ("version_policy { specific { versions: [1, 3, 4] } }", 3),
    ],
)
def test_the_highest_version_that_the_policy_allows(
    policy: str, version: int, tmp_path: Path
) -> None:
    versions = ("1", "3", "12", "020", "next", "0")
    assert entry(tmp_path, policy, *versions).version == version


def test_another_file_name(tmp_path: Path) -> None:
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "net.onnx").touch()
    found = entry(tmp_path, 'default_model_filename: "net.onnx" backend: "onnxruntime"', "1")
    assert found.model == tmp_path / "2" / "net.onnx"


@pytest.mark.parametrize(
    ("beside", "found"), [((), None), (("",), "."), (("1",), None), (("", "1"), None)]
)
def test_preprocessing_in_the_entry(
    beside: tuple[str, ...], found: str | None, tmp_path: Path
) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.onnx").touch()
    for folder in beside:
        (tmp_path / folder / "preprocessor_config.json").touch()
    wanted = None if found is None else tmp_path / found
    assert read_entry(tmp_path).preprocessing == wanted


TWO = INPUT.replace("}]", "}, { name: 'b' data_type: TYPE_FP32 dims: 1 }]")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('platform: "tensorrt_plan"', "a plan fits one kind of GPU"),
        ('backend: "python"', "backend is 'python'; only 'onnxruntime' can be imported: Python"),
        ('backend: "mine"', "export the network as ONNX"),
        ('platform: "ensemble" ensemble_scheduling {}', "has ensemble_scheduling: it is an ens"),
        ("sequence_batching {}", "it keeps a state between requests"),
        ("model_transaction_policy { decoupled: true }", "is decoupled"),
        ("batch_input [{ }]", "has batch_input"),
        ("max_batchsize: 8", "unknown field 'max_batchsize'"),
        (TWO, "has the inputs input, b; a network is served that reads one image"),
        (INPUT.replace("FP32", "STRING"), "the server tokenises"),
        (INPUT.replace("FP32", "FP8"), "has the data_type TYPE_FP8"),
        (INPUT.replace("dims", "format: NHWC dims"), "has the format NHWC; give one of FORMAT_"),
        (INPUT.replace("dims", "is_shape_tensor: true dims"), "has is_shape_tensor"),
        (INPUT.replace("dims", "dimensions"), "unknown field 'dimensions'"),
        (OUTPUT.replace("name: 'scores'", "").replace('name: "scores"', ""), "each input and out"),
        (LABELS, "names the labels 'labels.txt', but"),
        (LABELS.replace("labels.txt", "../labels.txt"), "it should lie inside the entry"),
        ('default_model_filename: "/etc/m.onnx"', "it should lie inside the entry"),
        ('default_model_filename: "m.onnx"', "does not exist; the folder holds model.onnx"),
        ("version_policy { specific { versions: 4 } }", "asks for the versions 4; "),
        ("version_policy { newest {} }", "unknown field 'newest'"),
        ("version_policy { }", "should be one of latest, all, specific"),
    ],
)
def test_what_cannot_be_imported(config: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.pbtxt|model") as error:
        entry(tmp_path, config)
    assert said in str(error.value)


def test_labels_that_name_no_classes(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("blue\n\nred\n")
    with pytest.raises(ValueError, match="has empty or equal lines"):
        entry(tmp_path, LABELS)


def test_folders_that_are_no_entry(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no folder"):
        read_entry(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"nor a folder of a version$"):
        read_entry(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.pbtxt").touch()
    with pytest.raises(ValueError, match="it is a repository, give one of its entries mine"):
        read_entry(tmp_path)
    with pytest.raises(ValueError, match="has no folder of a version"):
        read_entry(tmp_path / "mine")
    (tmp_path / "mine" / "1" / "model.onnx").mkdir(parents=True)
    with pytest.raises(ValueError, match="weights in other files"):
        read_entry(tmp_path / "mine")


BATCHED = f"max_batch_size: 8 {INPUT} {OUTPUT}"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (BATCHED, None),
        (BATCHED.replace("[3, 16, 16]", "[-1, 16, 16]"), None),
        (BATCHED.replace("dims: [3", "format: FORMAT_NCHW dims: [3"), None),
        (BATCHED.replace("8", "0"), "has the shape [3, 16, 16]"),
        (BATCHED.replace("8", "0").replace("[3,", "[-1, 3,").replace("s: 3", "s: [-1, 3]"), None),
        (BATCHED.replace("dims: 3", "dims: [1, 3] reshape { shape: [3] }"), None),
        (BATCHED.replace("16, 16]", "32, 32]"), "shape [-1, 3, 32, 32] in config.pbtxt"),
        (BATCHED.replace("dims: 3", "dims: 4"), "the output 'scores' has the shape [-1, 4]"),
        (BATCHED.replace('"input"', '"x"'), "has the input 'x', which"),
        (BATCHED.replace('"scores"', '"x"'), "it has scores"),
        (BATCHED.replace("FP32", "FP16"), "is TYPE_FP16 in config.pbtxt, and float in the graph"),
        (BATCHED.replace("dims: [3", "format: FORMAT_NHWC dims: [3"), "its channels are first"),
    ],
)
def test_configuration_and_graph(config: str, said: str | None, tmp_path: Path) -> None:
    found = entry(tmp_path, config)
    if said is None:
        check_graph(found, graph())
        return
    with pytest.raises(ValueError, match=r"config\.pbtxt") as error:
        check_graph(found, graph())
    assert said in str(error.value)
