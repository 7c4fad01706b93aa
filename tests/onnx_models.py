"""Small classifiers as ONNX files, and images of colours that they tell apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from PIL import Image

COLOURS = ("blue", "green", "red")
SIDE, CHANNELS = 16, 8
PLAIN = {"mean": 0.0, "std": 1.0}
"""Preprocessing of these networks: pixels from 0 to 1."""


class Maker:
    """Puts a graph together node by node; each method returns the name of what it makes."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def node(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        name = out or f"{kind}_{len(self.nodes)}_out"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def stem(self, source: str, order: Sequence[int] = (2, 1, 0)) -> str:
        """A convolution whose first channels are those of `COLOURS`, and its activation."""
        kernel = self.random.normal(0, 0.1, (CHANNELS, 3, 3, 3))
        kernel[:3] = 0
        for channel, colour in enumerate(order):
            kernel[channel, colour, 1, 1] = 1
        made = self.node("Conv", source, self.constant(kernel), pads=[1] * 4)
        return self.node("Relu", made)

    def block(self, source: str) -> str:
        """A residual block that leaves the first three channels as they are."""
        kernel = self.random.normal(0, 0.1, (CHANNELS, CHANNELS, 3, 3))
        kernel[:3] = 0
        made = self.node("Conv", source, self.constant(kernel), pads=[1] * 4)
        made = self.node("Relu", made)
        return self.node("Add", source, made)

    def classify(self, source: str, out: str, gain: float = 20.0, classes: int = 3) -> str:
        """Mean of each channel, and a linear layer that reads the first three."""
        weights = self.random.normal(0, 0.01, (CHANNELS, classes))
        weights[:3, :3] += gain * np.eye(3)
        pooled = self.node("GlobalAveragePool", source)
        flat = self.node("Flatten", pooled)
        bias = self.constant(np.zeros(classes))
        return self.node("Gemm", flat, self.constant(weights), bias, out=out)

    def model(
        self,
        inputs: dict[str, tuple[int, Sequence[int | str]]],
        outputs: dict[str, Sequence[int | str]],
        opset: int = 17,
    ) -> ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "made",
            [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in outputs.items()
            ],
            self.constants,
        )
        ir_version = 6 if opset < 13 else 8
        opsets = [helper.make_opsetid("", opset)]
        made = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
        onnx.checker.check_model(made)
        return made


def image_input(batch: int | str = "batch") -> dict[str, tuple[int, Sequence[int | str]]]:
    return {"input": (TensorProto.FLOAT, [batch, 3, SIDE, SIDE])}


def exits_net(num_exits: int = 3, opset: int = 17) -> ModelProto:
    """One file with several outputs, the exits."""
    make = Maker()
    state, outputs = make.stem("input"), {}
    for k in range(num_exits):
        state = make.block(state)
        gain = 20.0 if k == num_exits - 1 else 4.0 * (k + 1)
        outputs[make.classify(state, f"exit_{k}", gain)] = ["batch", 3]
    return make.model(image_input(), outputs, opset)


def plain_net(blocks: int = 6, *, softmax: bool = False, batch: int | str = "batch") -> ModelProto:
    """A network without exits."""
    make = Maker()
    state = make.stem("input")
    for _ in range(blocks):
        state = make.block(state)
    out = make.classify(state, "scores_" if softmax else "scores")
    if softmax:
        make.node("Softmax", out, out="scores", axis=-1)
    return make.model(image_input(batch), {"scores": [batch, 3]})


def save(model: ModelProto, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def save_preprocessing(folder: Path, **settings: Any) -> Path:
    path = folder / "preprocessing.json"
    path.write_text(json.dumps(settings or PLAIN))
    return path


def colour_images(rows: int, seed: int = 0, side: int = SIDE) -> dict[str, np.ndarray]:
    """Noisy images that are a little redder, greener or bluer, by colour, (rows, side, side, 3)."""
    random = np.random.default_rng(seed)
    found = {}
    for channel, name in zip((2, 1, 0), COLOURS, strict=True):
        images = random.normal(110, 40, (rows, side, side, 3))
        images[..., channel] += random.uniform(2, 40, (rows, 1, 1))
        found[name] = images.clip(0, 255).astype(np.uint8)
    return found


def colour_dataset(folder: Path, train_rows: int = 60, test_rows: int = 40) -> Path:
    """A folder of images train/COLOUR/*.png and test/COLOUR/*.png."""
    for part, rows, seed in (("train", train_rows, 1), ("test", test_rows, 2)):
        for name, images in colour_images(rows, seed).items():
            (folder / part / name).mkdir(parents=True)
            for i, pixels in enumerate(images):
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return folder
