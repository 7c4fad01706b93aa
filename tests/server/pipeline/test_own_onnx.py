"""From ONNX files to answers over HTTP."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from PIL import Image
from starlette.testclient import TestClient

from models.bundle import load_bundle
from models.onnx_import.preprocessing import ImageSettings
from models.training.run import read_run
from profiling.calibration import load_recorded
from server.app import create_app
from server.cli.main import main
from server.settings import Settings
from tests.onnx_models import (
    COLOURS,
    Maker,
    colour_dataset,
    colour_images,
    exits_net,
    image_input,
    plain_net,
    save,
    save_preprocessing,
)

pytestmark = pytest.mark.usefixtures("quick_builds")

MadeOnce = Callable[[str, Callable[[Path], object]], Path]
SLOW = pytest.mark.slow


@pytest.fixture(scope="session")
def colours(made_once: MadeOnce) -> Path:
    return made_once("data/colours", colour_dataset)


def command(*words: object) -> list[str]:
    return [str(word) for word in words]


def bring_in(out: Path, colours: Path, *flags: object) -> int:
    save_preprocessing(out.parent)
    more = ("--preprocessing", out.parent / "preprocessing.json", "--calibration-size", 60)
    return main(command("import", *flags, "--dataset", colours, "--out", out, *more))


def serve(folder: Path) -> TestClient:
    return TestClient(create_app(Settings(bundle=(folder,), window=50)))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def build(run: Path, *flags: object) -> Path:
    out = run.parent / "bundle"
    assert main(command("build", run, "--out", out, "--policy", "maxprob", *flags)) == 0
    return out


def ask(client: TestClient, pixels: np.ndarray, **options: Any) -> dict[str, Any]:
    response = client.post(
        "/predict", content=png(pixels), headers={"content-type": "image/png"}, params=options
    )
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def probabilities(model: onnx.ModelProto, pixels: np.ndarray) -> list[np.ndarray]:
    """What a file answers of an image from 0 to 1, at each of its outputs."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    planes = (pixels[None] / np.float32(255)).transpose(0, 3, 1, 2).astype(np.float32)
    found = []
    for scores in session.run(None, {session.get_inputs()[0].name: planes}):
        weights = np.exp(scores[0] - scores[0].max())
        found.append(weights / weights.sum())
    return found


@SLOW
def test_exits_of_one_file_are_served_as_the_file_answers(tmp_path: Path, colours: Path) -> None:
    model = exits_net()
    path = save(model, tmp_path / "exits.onnx")
    assert bring_in(tmp_path / "run", colours, "--onnx", path) == 0
    run = read_run(tmp_path / "run")
    assert (run.arch, run.classes) == ("onnx", COLOURS)
    assert run.settings == {"task": "image", "num_exits": 3}
    pixels = colour_images(1, seed=9)["green"][0]
    with serve(build(tmp_path / "run")) as client:
        answer = ask(client, pixels, trace=True, budget_ms=1000)
        expected = probabilities(model, pixels)
        assert answer["num_exits"] == 3
        for entry in answer["trace"]:
            mine = expected[entry["exit"]]
            assert entry["label"] == COLOURS[int(mine.argmax())]
            assert entry["confidence"] == pytest.approx(float(mine.max()), abs=2e-3)


@SLOW
def test_folders_of_stages_and_heads(tmp_path: Path, colours: Path) -> None:
    whole = exits_net(2)
    names = [node.output[0] for node in whole.graph.node]
    first, second = (n.output[0] for n in whole.graph.node if n.op_type == "Add")
    extract = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(whole)).extract_model
    assert first in names
    save(extract(["input"], [first]), tmp_path / "stages/0.onnx")
    save(extract([first], [second]), tmp_path / "stages/1.onnx")
    save(extract([first], ["exit_0"]), tmp_path / "heads/0.onnx")
    save(extract([second], ["exit_1"]), tmp_path / "heads/1.onnx")
    folders = (tmp_path / "stages", tmp_path / "heads")
    assert bring_in(tmp_path / "run", colours, "--onnx", *folders) == 0
    pixels = colour_images(1, seed=9)["red"][0]
    with serve(build(tmp_path / "run", "--precision", "int8", "--max-precision-loss", 1)) as client:
        assert ask(client, pixels)["label"] == "red"
    assert set(load_bundle(tmp_path / "bundle").precisions) == {"int8", "float32"}


@SLOW
def test_exits_on_a_network_of_another_framework(
    tmp_path: Path, colours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(plain_net(), tmp_path / "plain.onnx")
    flags = ("--preprocessing", save_preprocessing(tmp_path), "--epochs", 10)
    sized = ("--calibration-size", 60, "--num-exits", 3)
    out = ("--dataset", colours, "--out", tmp_path / "run")
    assert main(command("attach", "--onnx", path, *flags, *sized, *out, "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["scale"] == "logits" and report["disagreement"] < 1e-4
    assert len(report["test_accuracy"]) == 3 and report["agreement"][-1] == 1
    assert 0 < report["cost_share"][0] < report["cost_share"][1] < report["cost_share"][2] == 1
    assert min(report["test_accuracy"][:2]) > 0.5  # colours are easy to tell in the first layers
    bundle = build(tmp_path / "run")
    recorded = load_recorded(load_bundle(bundle).variant().predictions)
    assert np.allclose(recorded.test.correct.mean(0), report["test_accuracy"], atol=0.03)
    with serve(bundle) as client:
        correct = [
            ask(client, pixels)["label"] == name
            for name, images in colour_images(4, seed=11).items()
            for pixels in images
        ]
    assert np.mean(correct) > 0.6


def test_places_are_listed_without_a_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(plain_net(3), tmp_path / "plain.onnx")
    flags = ("--preprocessing", save_preprocessing(tmp_path), "--num-exits", 2)
    assert main(command("attach", "--onnx", path, *flags)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "place: ms until it, tensor" in lines
    assert [line.split(":")[0].strip() for line in lines[-5:-1]] == ["1", "2", "3", "4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.onnx", "preprocessing.json"]


@SLOW
def test_probabilities_and_logits_of_one_network_give_the_same_answers(
    tmp_path: Path, colours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for softmax in (False, True):
        folder = tmp_path / str(softmax)
        path = save(plain_net(2, softmax=softmax), folder / "plain.onnx")
        flags = ("--preprocessing", save_preprocessing(folder), "--epochs", 1, "--num-exits", 2)
        out = ("--dataset", colours, "--out", folder / "run", "--calibration-size", 60)
        assert main(command("attach", "--onnx", path, *flags, *out)) == 0
        said = "probabilities (softmax already applied)" if softmax else "logits"
        assert f"the output is {said}; stages and file" in capsys.readouterr().out
        session = ort.InferenceSession(folder / "run/heads/1.onnx")
        shape = [3, *(dim for dim in session.get_inputs()[0].shape[1:])]
        state = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        found.append(session.run(None, {session.get_inputs()[0].name: state}))
    for mine, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


def old_net() -> onnx.ModelProto:
    """Opset 11 and one row, with Reshape to a fixed shape before the classifier."""
    make = Maker()
    state = make.block(make.block(make.stem("input")))
    pooled = make.node("GlobalAveragePool", state)
    flat = make.node("Reshape", pooled, make.constant([1, 8], np.int64))
    weights = np.zeros((8, 3))
    weights[:3] = 20 * np.eye(3)
    out = make.node("Gemm", flat, make.constant(weights), make.constant(np.zeros(3)), out="scores")
    return make.model(image_input(1), {out: [1, 3]}, opset=11)


@SLOW
def test_an_old_network_of_one_row_takes_batches(tmp_path: Path, colours: Path) -> None:
    path = save(old_net(), tmp_path / "old.onnx")
    flags = ("--preprocessing", save_preprocessing(tmp_path), "--epochs", 1, "--num-exits", 2)
    out = ("--dataset", colours, "--out", tmp_path / "run", "--calibration-size", 60)
    assert main(command("attach", "--onnx", path, *flags, *out)) == 0
    with serve(build(tmp_path / "run")) as client:
        images = [Image.fromarray(each[0]) for each in colour_images(1, seed=4).values()]
        assert len(images) == 3
        assert ask(client, colour_images(1, seed=9)["blue"][0])["label"] == "blue"


@SLOW
def test_exits_that_the_exporter_of_torch_writes(tmp_path: Path, colours: Path) -> None:
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList(
                nn.Sequential(nn.Conv2d(c, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
                for c in (3, 8)
            )
            self.heads = nn.ModuleList(nn.Linear(8, 3) for _ in range(2))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = []
            for stage, head in zip(self.stages, self.heads, strict=True):
                x = stage(x)
                found.append(head(x.mean((2, 3))))
            return tuple(found)

    torch.manual_seed(0)
    rows = torch.export.Dim("rows")
    torch.onnx.export(
        Net().eval(),
        (torch.rand(2, 3, 16, 16),),
        tmp_path / "torch.onnx",
        dynamic_shapes=({0: rows},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert bring_in(tmp_path / "run", colours, "--onnx", tmp_path / "torch.onnx") == 0
    with serve(build(tmp_path / "run")) as client:
        answer = ask(client, colour_images(1)["red"][0], trace=True)
        assert answer["num_exits"] == 2 and answer["label"] in COLOURS


REFUSED: list[tuple[str, Callable[[], onnx.ModelProto], str]] = []


def refused(
    words: str,
) -> Callable[[Callable[[], onnx.ModelProto]], Callable[[], onnx.ModelProto]]:
    def note(make: Callable[[], onnx.ModelProto]) -> Callable[[], onnx.ModelProto]:
        REFUSED.append((make.__name__, make, words))
        return make

    return note


@refused("differ in their classes: 'early' 3, 'late' 2")
def other_classes() -> onnx.ModelProto:
    make = Maker()
    state = make.block(make.stem("input"))
    early = make.classify(state, "early")
    weights = make.constant(np.zeros((8, 2)))
    flat = make.node("Flatten", make.node("GlobalAveragePool", make.block(state)))
    late = make.node("MatMul", flat, weights, out="late")
    return make.model(image_input(), {early: ["n", 3], late: ["n", 2]})


@refused("has 2 classes, the dataset 3: blue, green, red")
def too_few_classes() -> onnx.ModelProto:
    make = Maker()
    state, outputs = make.stem("input"), {}
    for k in range(2):
        state = make.block(state)
        flat = make.node("Flatten", make.node("GlobalAveragePool", state))
        weights = make.constant(np.ones((8, 2)))
        outputs[make.node("MatMul", flat, weights, out=f"exit_{k}")] = ["n", 2]
    return make.model(image_input(), outputs)


@refused("eenet attach --onnx")
def one_output() -> onnx.ModelProto:
    return plain_net()


@refused("reads input float of 4 dimensions, more float of 2 dimensions; a network is served")
def two_inputs() -> onnx.ModelProto:
    make = Maker()
    scores = make.classify(make.block(make.stem("input")), "scores_")
    out = make.node("Add", scores, "more", out="scores")
    return make.model({**image_input(), "more": (1, ["n", 3])}, {out: ["n", 3]})


@refused("the output 'exit_0' is a sigmoid")
def sigmoids() -> onnx.ModelProto:
    make = Maker()
    state, outputs = make.stem("input"), {}
    for k in range(2):
        state = make.block(state)
        scores = make.classify(state, f"scores_{k}")
        outputs[make.node("Sigmoid", scores, out=f"exit_{k}")] = ["n", 3]
    return make.model(image_input(), outputs)


@refused("batches of 4, and cannot run 3 rows at once")
def fixed_rows_that_stay() -> onnx.ModelProto:
    make = Maker()
    state, outputs = make.stem("input"), {}
    for k in range(2):
        state = make.block(make.node("Add", state, make.constant(np.ones((4, 1, 1, 1)))))
        outputs[make.classify(state, f"exit_{k}")] = [4, 3]
    return make.model(image_input(4), outputs)


@refused("answers a row otherwise when it runs with others")
def rows_that_mix() -> onnx.ModelProto:
    make = Maker()
    state, outputs = make.stem("input"), {}
    for k in range(2):
        mean = make.node("ReduceMean", state, axes=[0], keepdims=1)
        state = make.block(make.node("Sub", state, mean))
        outputs[make.classify(state, f"exit_{k}")] = ["n", 3]
    return make.model(image_input(), outputs)


@refused("the operator my.ops::Conv, which ONNX Runtime does not bring along")
def foreign_operators() -> onnx.ModelProto:
    model = exits_net(2)
    model.opset_import.append(onnx.helper.make_opsetid("my.ops", 1))
    model.graph.node[0].domain = "my.ops"
    return model


@refused("the operator RandomUniformLike, so its answers are random")
def random_answers() -> onnx.ModelProto:
    model = exits_net(2)
    noise = onnx.helper.make_node("RandomUniformLike", ["input"], ["noise"])
    model.graph.node.insert(0, noise)
    return model


@pytest.mark.parametrize(
    ("make", "words"), [each[1:] for each in REFUSED], ids=[e[0] for e in REFUSED]
)
def test_what_cannot_be_served_is_refused_in_one_sentence(
    make: Callable[[], onnx.ModelProto],
    words: str,
    tmp_path: Path,
    colours: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = save(make(), tmp_path / "net.onnx")
    assert bring_in(tmp_path / "run", colours, "--onnx", path) == 2
    said = capsys.readouterr().err.splitlines()
    assert words in said[-1], said
    assert not (tmp_path / "run").exists()


def test_weights_in_other_files_are_refused(
    tmp_path: Path, colours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(exits_net(2), path, save_as_external_data=True, size_threshold=0)
    assert bring_in(tmp_path / "run", colours, "--onnx", path) == 2
    assert "keeps weights in another file, which no hash covers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"\xff\xff\xff nothing", "is not an ONNX file"),
        (b"", "it has no nodes"),
    ],
)
def test_what_is_no_model_is_named(
    content: bytes, words: str, tmp_path: Path, colours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    assert bring_in(tmp_path / "run", colours, "--onnx", path) == 2
    assert words in capsys.readouterr().err


def swapped(order: Sequence[str]) -> onnx.ModelProto:
    """Classes stand in another order than that of the dataset."""
    make = Maker()
    state, outputs = make.stem("input", [(2, 1, 0)[COLOURS.index(name)] for name in order]), {}
    for k in range(2):
        state = make.block(state)
        outputs[make.classify(state, f"exit_{k}")] = ["batch", 3]
    return make.model(image_input(), outputs)


@SLOW
def test_another_order_of_classes_is_noticed(
    tmp_path: Path, colours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(swapped(("green", "red", "blue")), tmp_path / "net.onnx")
    assert bring_in(tmp_path / "first", colours, "--onnx", path) == 0
    assert "give --class-names green,red,blue" in capsys.readouterr().out
    names = ("--class-names", "green,red,blue")
    assert bring_in(tmp_path / "run", colours, "--onnx", path, *names) == 0
    assert "WARNING" not in capsys.readouterr().out
    assert read_run(tmp_path / "run").classes == ("green", "red", "blue")
    with serve(build(tmp_path / "run")) as client:
        assert ask(client, colour_images(1, seed=9)["red"][0])["label"] == "red"


def test_settings_of_images_become_a_normalisation_of_rgb() -> None:
    caffe = ImageSettings(scale=1, mean=(103.0, 116.0, 123.0), std=1.0, channels="BGR")
    found = caffe.normalisation
    assert found["mean"] == pytest.approx((123 / 255, 116 / 255, 103 / 255))
    assert found["std"] == pytest.approx((1 / 255,) * 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("import --out run", "give one network: a CHECKPOINT with --arch and --classes, or --onnx"),
        ("import a.pth --onnx a.onnx --out run", "give one network"),
        ("import --onnx a.onnx --out run", "--onnx needs --dataset"),
        ("import --onnx a.onnx --out run --arch msdnet", "--arch belongs to a checkpoint"),
        ("import a.pth --out run", "a checkpoint needs --arch, its network, and --classes"),
        ("import --onnx a b c --dataset d --out run", "give one file, or a folder of stages and"),
        ("import --onnx a.onnx --dataset d --out run --image-size 8", "the network's own"),
        ("import --onnx a.onnx --dataset d --out run", "a.onnx does not exist; give an .onnx file"),
        ("attach --dataset d --out run", "give one network: --backbone, or --onnx"),
        ("attach --backbone b --exits 1 --class-names a,b", "belong to --onnx"),
        ("attach --onnx a.onnx --dataset d", "--onnx needs --dataset"),
        ("attach --onnx a.onnx --compile", "--compile trains torch networks"),
    ],
)
def test_flags_that_do_not_go_together(
    words: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("exits", "said"),
    [("9", "give rising numbers from 1 to 3"), ("2,1", "--exits is 2,1"), ("0,1", "from 1 to 3")],
)
def test_places_that_a_network_has_not(
    exits: str, said: str, tmp_path: Path, colours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(plain_net(3), tmp_path / "plain.onnx")
    flags = ("--preprocessing", save_preprocessing(tmp_path), "--exits", exits)
    out = ("--dataset", colours, "--out", tmp_path / "run")
    assert main(command("attach", "--onnx", path, *flags, *out)) == 2
    assert said in capsys.readouterr().err


def test_numbered_files_without_gaps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, names in (("stages", ("0", "2")), ("heads", ("0", "1"))):
        for name in names:
            save(plain_net(1), tmp_path / folder / f"{name}.onnx")
    given = command("import", "--onnx", tmp_path / "stages", tmp_path / "heads")
    assert main([*given, "--dataset", "d", "--out", str(tmp_path / "run")]) == 2
    assert "holds no number 1; number the files without gaps" in capsys.readouterr().err
