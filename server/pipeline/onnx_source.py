"""A classifier given as ONNX files, made ready to read what a server makes."""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from models.backend import State
from models.data.dataset import Dataset, Split
from models.export.onnx_graphs import Graphs
from models.onnx_import.batch_axis import fixed_rows, forget_shapes, free_rows
from models.onnx_import.inputs import (
    Task,
    fixed_length,
    image_form,
    input_size,
    take_image,
    take_text,
    task_of,
)
from models.onnx_import.parts import Whole
from models.onnx_import.preprocessing import (
    PROCESSOR,
    Channels,
    ImageSettings,
    read_image_settings,
    read_text_inputs,
)
from models.onnx_import.reading import ReadModel
from models.preprocess import ImagePreprocessor, TextPreprocessor
from models.runtime.onnx_backend import CPU, Graph, OnnxBackend, open_graph
from profiling.recording import first_rows
from server.pipeline.runs import two_sizes

log = logging.getLogger(__name__)

LENGTH_STEP = 8
CHECKED_ROWS = 64
FEW_TOKENS = 5
LIMIT, HALF_LIMIT = 1e-4, 2e-2  # differences of answers that rounding explains


class Reader(NamedTuple):
    """How requests become a network's input.

    Attributes:
        task: What it reads.
        input: The settings, as a run keeps them.
        preprocess: The same, ready to use.
        lengths_vary: Whether it takes texts of several lengths.
        channels: Order of the channels that the network reads.
    """

    task: Task
    input: dict[str, Any]
    preprocess: ImagePreprocessor | TextPreprocessor
    lengths_vary: bool = True
    channels: Channels = "RGB"

    @property
    def images(self) -> ImagePreprocessor | None:
        """How images are decoded; None for texts."""
        return self.preprocess if isinstance(self.preprocess, ImagePreprocessor) else None

    @property
    def tokenizer(self) -> str | None:
        """Content of `tokenizer.json`; None for images."""
        if isinstance(self.preprocess, TextPreprocessor):
            return self.preprocess.tokenizer.read_text()
        return None

    def two_inputs(self) -> tuple[State, State]:
        """Return inputs of two and of three rows."""
        return two_sizes(self.preprocess.example, lengths_vary=self.lengths_vary)


@dataclass(frozen=True)
class FirstGraph:
    """The graph that reads requests: a whole network, or its first stage.

    Attributes:
        name: Its file, for messages.
        given: As it was given, but for its inputs. It takes `rows` rows.
        model: Ready to be taken apart; it takes any number of rows.
        rows: Rows that it was exported for; None if it takes any number.
        reader: How requests become its input.
    """

    name: str
    given: ModelProto
    model: ModelProto
    rows: int | None
    reader: Reader

    @property
    def is_single(self) -> bool:
        """Whether it was given in single precision."""
        return all(
            tensor.data_type != TensorProto.FLOAT16 for tensor in self.given.graph.initializer
        )

    def checked(self) -> Whole:
        """Return the graph with two inputs, once several rows run as each of them alone.

        Raises:
            ValueError: If the graph takes only the rows it was exported for, or mixes them.
        """
        small, large = self.reader.two_inputs()
        self._check_rows(_varied(large))
        return Whole(self.model, small, large)

    def _check_rows(self, several: State) -> None:
        graph = open_graph(self.model.SerializeToString(), CPU)
        count = len(several[0])
        alone = [
            _run(graph, tuple(each[row : row + 1] for each in several)) for row in range(count)
        ]
        try:
            together = _run(graph, several)
        except Exception as error:  # the runtime's types are its own
            was = "any number of rows" if self.rows is None else f"batches of {self.rows}"
            raise ValueError(
                f"{self.name} was exported for {was}, and cannot run {count} rows at once; export "
                f"it with a dynamic batch axis"
            ) from error
        for place, found in enumerate(together):
            single = np.concatenate([each[place] for each in alone])
            if single.shape != found.shape or not np.allclose(single, found, atol=1e-3, rtol=1e-3):
                raise ValueError(
                    f"{self.name} answers a row otherwise when it runs with others; export it in "
                    f"evaluation mode and with a dynamic batch axis"
                )


def _varied(inputs: State) -> State:
    """Fill images with noise, or token ids with the first few of every vocabulary."""
    random = np.random.default_rng(0)
    first, *others = inputs
    if first.dtype == np.float32:
        return (random.normal(size=first.shape).astype(np.float32), *others)
    highest = 256 if first.dtype == np.uint8 else FEW_TOKENS
    return (random.integers(0, highest, first.shape).astype(first.dtype), *others)


def adapt(read: ReadModel, path: Path, preprocessing: Path | None) -> FirstGraph:
    """Let a graph read what a server makes.

    Args:
        read: The graph; its model is changed.
        path: Its file.
        preprocessing: A file of --preprocessing or a folder as Hugging Face writes it. None: such a
            file beside the graph, or for images ImageNet's normalisation.

    Raises:
        ValueError: If it does not read one image or one text, or the settings do not fit it.
    """
    name, model = str(path), read.model
    task = task_of(model.graph.input, name)
    rows = fixed_rows(model)
    reader = (_image_reader if task == "image" else _text_reader)(model, path, preprocessing)
    if rows is None:
        forget_shapes(model)
    else:
        free_rows(model, rows)
    given = read.given
    for each in (given, model):
        if reader.images is None:
            take_text(each)
        else:
            form, size = (
                image_form(each.graph.input[0]),
                (reader.images.height, reader.images.width),
            )
            take_image(each, form, size, reader.channels)
    for value in given.graph.output:
        value.type.tensor_type.ClearField("shape")
    return FirstGraph(name, given, model, rows, reader)


def answers_as_given(models: Sequence[ModelProto], rows: int | None, few: State) -> list[Any]:
    """Run graphs one after the other as they were given, each on what the one before returns.

    Args:
        models: The graphs.
        rows: Rows that they were exported for; None if they take any number.
        few: The input of the first.

    Returns:
        The outputs of the last.

    Raises:
        ValueError: If they cannot run on it.
    """
    graphs = [open_graph(model.SerializeToString(), CPU) for model in models]
    found = list[list[NDArray[Any]]]()
    size = rows or len(few[0])
    for start in range(0, len(few[0]), size):
        part = [each[start : start + size] for each in few]
        count = len(part[0])
        state = [np.concatenate([each, np.repeat(each[-1:], size - count, 0)]) for each in part]
        try:
            for graph in graphs:
                state = _run(graph, tuple(state))
        except Exception as error:  # the runtime's types are its own
            first, *_ = str(error).splitlines()
            raise ValueError(
                f"the network cannot run on the dataset's inputs; check --preprocessing, and for "
                f"texts that the tokenizer is the network's own: {first}"
            ) from error
        found.append([each[:count] for each in state])
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def write_part(model: ModelProto, folder: Path, name: str) -> Path:
    """Write a graph into a folder; returns its path."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def open_in_memory(graphs: Graphs) -> OnnxBackend:
    """Run stages and heads that are not written anywhere."""
    with tempfile.TemporaryDirectory() as folder:
        return OnnxBackend(
            [write_part(g, Path(folder), f"stages/{k}.onnx") for k, g in enumerate(graphs.stages)],
            [write_part(g, Path(folder), f"heads/{k}.onnx") for k, g in enumerate(graphs.heads)],
        )


def few_rows(reader: Reader, split: Split) -> State:
    """Return an input of some real rows."""
    return first_rows(reader.preprocess, split, CHECKED_ROWS)


def in_order_of(
    data: Dataset, names: tuple[str, ...] | None, num_classes: int, file: str
) -> Dataset:
    """Return the dataset with its labels in the network's order of classes.

    Raises:
        ValueError: If there are other or more classes in one of both.
    """
    if len(data.classes) != num_classes:
        raise ValueError(
            f"{file} has {num_classes} classes, the dataset {len(data.classes)}: "
            f"{', '.join(data.classes[:5])}; give the dataset that it was trained on"
        )
    if names is None or names == data.classes:
        return data
    if sorted(names) != sorted(data.classes):
        others = [name for name in names if name not in data.classes]
        described = f"{others[0]!r}, which is no" if others else f"{len(names)} names, not every"
        raise ValueError(
            f"the network's classes (--class-names) have {described} class of the dataset; its "
            f"classes are {', '.join(data.classes)}"
        )
    places = np.array([names.index(name) for name in data.classes])
    return data.map_labels(names, lambda labels: places[labels])


def _image_settings(path: Path, preprocessing: Path | None) -> ImageSettings:
    if preprocessing is not None:
        return read_image_settings(preprocessing)
    if (path.parent / PROCESSOR).is_file():
        return read_image_settings(path.parent / PROCESSOR)
    return ImageSettings()


def _image_reader(model: ModelProto, path: Path, preprocessing: Path | None) -> Reader:
    settings = _image_settings(path, preprocessing)
    beside = path.parent / PROCESSOR
    if preprocessing is None and beside.is_file():
        log.warning("images are prepared as %s says", beside)
    elif preprocessing is None:
        log.warning(
            "no --preprocessing is given: images are scaled to cover the input and normalised as "
            "for ImageNet"
        )
    form = image_form(model.graph.input[0])
    height, width = input_size(form, settings, str(path))
    if form.is_uint8:  # the graph normalises
        normalisation: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "dtype": "uint8"}
    else:
        normalisation = {**settings.normalisation, "dtype": "float32"}
    input = {
        "height": height,
        "width": width,
        **normalisation,
        "fit": settings.resize,
        "crop": settings.crop,
    }
    return Reader("image", input, ImagePreprocessor(**input), channels=settings.channels)


def _text_reader(model: ModelProto, path: Path, preprocessing: Path | None) -> Reader:
    found = read_text_inputs(preprocessing or path.parent)
    length = fixed_length(model.graph.input)
    max_tokens = length or found.max_tokens
    step = length or LENGTH_STEP
    input: dict[str, Any] = {"max_tokens": max_tokens, "pad_id": found.pad_id, "length_step": step}
    preprocess = TextPreprocessor(
        found.tokenizer, **input, typical_tokens=min(2 * step, max_tokens)
    )
    return Reader("text", input, preprocess, lengths_vary=length is None)


def run_graph(model: ModelProto, state: State) -> list[NDArray[Any]]:
    """Run a graph once."""
    return _run(open_graph(model.SerializeToString(), CPU), state)


def _run(graph: Graph, state: State) -> list[NDArray[Any]]:
    given = dict(zip(graph.inputs, state, strict=True))
    return [np.asarray(each) for each in graph.session.run(graph.outputs, given)]
