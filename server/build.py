"""From a training run to a bundle: export, record, profile, fit."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file

from models.bundle import MANIFEST, Bundle, write_manifest
from models.data import Dataset, load_dataset
from models.export import export_onnx, largest_disagreement
from models.multi_exit import MultiExitModel
from models.onnx_backend import OnnxBackend
from models.preprocess import ImagePreprocessor
from models.resnet import cifar_resnet
from models.run import TrainConfig, heads_text
from models.train import IMAGENET_MEAN, IMAGENET_STD
from profiling.calibration import Recorded, record, save_recorded
from profiling.evaluate import Evaluation, evaluate, spread_budgets
from profiling.latency import measure_latency, save_profile
from scheduler.fit import fit_scheduler
from scheduler.frontier import Frontier
from scheduler.scheduler import save_scheduler

PARITY_IMAGES = 64
PARITY_LIMIT = 1e-4
ACCURACY_GIVEN_UP = 0.005  # by the default budget


class Run(NamedTuple):
    """A finished (or at least once evaluated) training run."""

    config: TrainConfig
    classes: tuple[str, ...]
    model: MultiExitModel


class Built(NamedTuple):
    """A new bundle and what its scheduler makes of the test predictions."""

    bundle: Bundle
    disagreement: float
    exit_accuracy: list[float]
    evaluations: list[Evaluation]


def load_run(folder: Path) -> Run:
    """Read a run folder of `eenet train`.

    Raises:
        ValueError: If it holds no run or no evaluated epoch yet.
    """
    if not (folder / "run.json").is_file():
        raise ValueError(
            f"{folder} holds no run.json; give a folder that `eenet train` has written"
        )
    if not (folder / "best.safetensors").is_file():
        raise ValueError(
            f"{folder} holds no best.safetensors yet; let `eenet train` finish an epoch first"
        )
    try:
        head = json.loads((folder / "run.json").read_text())
        config, classes = TrainConfig.from_json(head["config"]), tuple(head["classes"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'run.json'} is damaged ({error}); train again") from error
    model = cifar_resnet(config.depth, len(classes), config.exits, config.heads)
    model.load_state_dict(load_file(folder / "best.safetensors"))
    return Run(config, classes, model)


def build_bundle(
    run: Run,
    out: Path,
    *,
    name: str,
    dataset: Path | None,
    policy: str,
    say: Callable[[str], None],
) -> Built:
    """Build a bundle; an older one at `out` is replaced only by a finished one.

    Args:
        run: The trained network.
        out: The bundle's folder.
        name: The model's name in requests.
        dataset: Where the data set lies now; None: where it lay in training.
        policy: Which policy to fit, one of `scheduler.fit.POLICIES`.
        say: Told each step.

    Raises:
        ValueError: If `out` holds something else, the data set does not fit, or the graphs differ
            from the network.
    """
    out = out.resolve()
    if out.is_file() or (out.exists() and any(out.iterdir()) and not (out / MANIFEST).is_file()):
        raise ValueError(f"{out} is something else than a bundle; give an empty or new folder")
    say("reading the data set")
    data = load_dataset(
        dataset or Path(run.config.dataset),
        calibration_size=run.config.calibration_size,
        seed=run.config.seed,
    )
    if data.classes != run.classes:
        raise ValueError(
            f"the data set has the classes {data.classes}, the run {run.classes}; give the same "
            f"data set"
        )
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        built = _fill(run, part, data, name, policy, say)
        shutil.rmtree(out, ignore_errors=True)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return built._replace(bundle=Bundle(out, built.bundle.manifest))


def _fill(
    run: Run, folder: Path, data: Dataset, name: str, policy: str, say: Callable[[str], None]
) -> Built:
    height, width = data.test.images.shape[1:3]
    preprocess = ImagePreprocessor(height, width, IMAGENET_MEAN, IMAGENET_STD)
    test_inputs = preprocess.normalise(data.test.images)

    say("exporting one graph per stage and head")
    backend = export_onnx(run.model, torch.from_numpy(test_inputs[:1]), folder)
    disagreement = largest_disagreement(run.model, backend, test_inputs[:PARITY_IMAGES])
    if disagreement > PARITY_LIMIT:
        raise ValueError(
            f"the exported graphs differ from the network by {disagreement:.2g} on real images, "
            f"over {PARITY_LIMIT}"
        )

    say(
        f"recording predictions of {len(data.calibration.labels)} calibration and "
        f"{len(data.test.labels)} test images"
    )
    calibration = record(
        backend, preprocess.normalise(data.calibration.images), data.calibration.labels
    )
    test = record(backend, test_inputs, data.test.labels)
    save_recorded(Recorded(calibration, test), folder / "calibration.npz")

    say("profiling this machine")
    costs_ms = _profile(backend, test_inputs[:1], folder)

    say(f"fitting {policy}")
    scheduler = fit_scheduler(
        policy, calibration.log_probs, calibration.labels, costs_ms, seed=run.config.seed
    )
    save_scheduler(scheduler, folder)

    accuracy = test.correct.mean(0).tolist()
    bundle = write_manifest(
        folder,
        name=name,
        version="1",
        task="image",
        classes=run.classes,
        num_exits=backend.num_exits,
        preprocessing={
            "height": height,
            "width": width,
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
        },
        default_budget_ms=default_budget_ms(scheduler.frontier),
        training={
            "arch": f"resnet{run.config.depth}",
            "exits_after_blocks": list(run.config.exits),
            "heads": heads_text(run.config.heads),
            "epochs": run.config.epochs,
            "dataset": Path(run.config.dataset).stem,
            "calibration_accuracy": [
                round(share, 4) for share in calibration.correct.mean(0).tolist()
            ],
            "test_accuracy": [round(share, 4) for share in accuracy],
        },
    )
    recorded = Recorded(calibration, test)
    return Built(
        bundle, disagreement, accuracy, evaluate(scheduler, recorded, spread_budgets(costs_ms))
    )


def default_budget_ms(frontier: Frontier) -> float:
    """The smallest budget that gives up at most half a point, rounded up to 0.01 ms."""
    good = frontier.expected_accuracy >= frontier.expected_accuracy.max() - ACCURACY_GIVEN_UP
    rounded = math.ceil(float(frontier.expected_costs_ms[good].min()) * 100) / 100
    return min(rounded, float(frontier.costs_ms[-1]))


def _profile(backend: OnnxBackend, example: np.ndarray, folder: Path) -> np.ndarray:
    profile = measure_latency(backend, example)
    save_profile(profile, folder / "profile.json")
    return profile.costs_ms
