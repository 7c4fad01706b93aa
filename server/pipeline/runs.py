"""Runs: networks that can be built into bundles, as torch modules or as given ONNX graphs."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from safetensors.torch import load_file

from models.backend import State, join_states
from models.bundle import TOKENIZER, Task, graph_files
from models.export.onnx_graphs import Graphs, export_graphs, largest_disagreement, write_graphs
from models.networks.families import Network
from models.networks.label_sets import with_label_sets
from models.networks.multi_exit import MultiExitModel
from models.preprocess import ImagePreprocessor
from models.runtime.onnx_backend import OnnxBackend
from models.training.run import BEST, RunConfig, create_run_dir, read_run

ONNX = "onnx"  # in place of the name of a network's family


class TorchRun(NamedTuple):
    """A network that was trained or imported as a torch module, and its folder."""

    folder: Path
    config: RunConfig
    model: MultiExitModel

    @property
    def task(self) -> Task:
        """The network's task."""
        return Network(self.config.arch).family.task

    @property
    def num_classes(self) -> int | None:
        """C, as far as the settings tell."""
        classes = Network(self.config.arch).family.classes
        count: int | None = self.config.settings.get(classes)
        return count

    @property
    def num_exits(self) -> int:
        """Number of exits, K."""
        return self.model.num_exits

    @property
    def images(self) -> ImagePreprocessor | None:
        """None: images are decoded to the size that the dataset's settings name."""
        return None

    def graphs(self, example: State) -> Graphs:
        """Export the network in single precision.

        Args:
            example: Input of one row.
        """
        return export_graphs(self.model, *two_sizes(example))

    def disagreement(self, graphs: Graphs, few: State) -> float:
        """Return the largest difference of a logit between the network and its graphs."""
        with tempfile.TemporaryDirectory() as trial:
            return largest_disagreement(self.model, write_graphs(graphs, Path(trial)), few)


class OwnRun(TorchRun):
    """A network of a user's own module; its folder holds the tokenizer of one that reads texts."""

    @property
    def task(self) -> Task:
        """The network's task."""
        task: Task = self.config.settings["task"]
        return task

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.config.classes)

    @property
    def images(self) -> ImagePreprocessor | None:
        """How the network's images are decoded; None for texts."""
        return None if self.task == "text" else ImagePreprocessor(**self.config.input)

    def graphs(self, example: State) -> Graphs:
        """Export the network in single precision.

        Args:
            example: Input of one row.

        Raises:
            ValueError: If torch cannot trace it.
        """
        try:
            return super().graphs(example)
        except Exception as error:  # the exporter raises many types
            first, *_ = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(
                f"{self.config.arch} cannot be exported to ONNX: {first}; stages and heads must "
                f"compute the same for every input, without branches on values"
            ) from error


@dataclass(frozen=True)
class OnnxRun:
    """A network that is given as graphs of its stages and heads, and its folder.

    The graphs lie in `stages/` and `heads/` and read what a server makes.
    """

    folder: Path
    config: RunConfig

    @property
    def task(self) -> Task:
        """The network's task."""
        task: Task = self.config.settings["task"]
        return task

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.config.classes)

    @property
    def num_exits(self) -> int:
        """Number of exits, K."""
        count: int = self.config.settings["num_exits"]
        return count

    @property
    def images(self) -> ImagePreprocessor | None:
        """How the network's images are decoded; None for texts."""
        return None if self.task == "text" else ImagePreprocessor(**self.config.input)

    def graphs(self, example: State) -> Graphs:
        """Read the graphs."""
        stages, heads = graph_files(self.folder, self.num_exits)
        return Graphs([onnx.load(path) for path in stages], [onnx.load(path) for path in heads])

    def disagreement(self, graphs: Graphs, few: State) -> float:
        """Return the largest difference of a logit between the run's graphs and those written."""
        given = OnnxBackend(*graph_files(self.folder, self.num_exits))
        with tempfile.TemporaryDirectory() as trial:
            written = write_graphs(graphs, Path(trial))
            return difference(given, written, few)


Run = TorchRun | OnnxRun


def load_run(folder: Path) -> Run:
    """Read a run from its folder.

    Raises:
        ValueError: If the folder holds no run, or it is not complete.
    """
    config = read_run(folder)
    if config.arch == ONNX:
        run = OnnxRun(folder, config)
        for path in (
            *graph_files(folder, run.num_exits)[0],
            *graph_files(folder, run.num_exits)[1],
        ):
            if not path.is_file():
                raise ValueError(f"{path} is missing; import the network again")
        return run
    if not (folder / BEST).is_file():
        raise ValueError(f"{folder} holds no {BEST} yet; let the training finish an epoch first")
    model = Network(config.arch, config.settings).build()
    if config.label_sets:
        model = with_label_sets(model, len(config.classes))
    model.load_state_dict(load_file(folder / BEST))
    return TorchRun(folder, config, model)


def save_onnx_run(
    folder: Path, config: RunConfig, graphs: Graphs, tokenizer: str | None
) -> OnnxRun:
    """Write a run of given graphs.

    Args:
        folder: The run's folder.
        config: Its description, of the architecture `ONNX`.
        graphs: Stages and heads that read what a server makes.
        tokenizer: Content of `tokenizer.json` for a network that reads texts.

    Raises:
        ValueError: If the folder holds another run, or a graph is not valid.
    """
    create_run_dir(folder, config)
    write_graphs(graphs, folder)
    if tokenizer is not None:
        (folder / TOKENIZER).write_text(tokenizer)
    return OnnxRun(folder, config)


def difference(one: OnnxBackend, other: OnnxBackend, few: State) -> float:
    """Return the largest difference of a logit between two networks; infinite if not finite."""
    found, mine, theirs = list[float](), few, few
    for exit in range(one.num_exits):
        mine, theirs = one.run_stage(exit, mine), other.run_stage(exit, theirs)
        logits = one.run_head(exit, mine).logits - other.run_head(exit, theirs).logits
        found.append(float(np.abs(logits).max()))
    return float(np.nan_to_num(np.max(found), nan=np.inf, posinf=np.inf))


def two_sizes(example: State, *, lengths_vary: bool = True) -> tuple[State, State]:
    """Return inputs of two and three rows; those of texts have different lengths too.

    Args:
        example: Input of one row.
        lengths_vary: Whether the network takes texts of several lengths.
    """
    has_length = len(example) > 1 and lengths_vary
    shorter = tuple(array[:, :-1] for array in example) if has_length else example
    return join_states([shorter] * 2), join_states([example] * 3)
