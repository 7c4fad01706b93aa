"""A run: the folder of a trained or imported network."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.data.dataset import DataConfig

RUN_FORMAT_VERSION = 2
RUN_FILE, BEST, LAST = "run.json", "best.safetensors", "last.safetensors"


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training; a resumed run must have the same.

    Attributes:
        epochs: Passes over the training set.
        batch_size: Rows per step.
        optimizer: `sgd` (Nesterov momentum 0.9) or `adamw`.
        peak_lr: Highest learning rate of the one-cycle schedule.
        weight_decay: Weight decay; AdamW's leaves out norms and biases.
        distill_weight: Weight of distillation from the last exit, alpha_KL.
        distill_temperature: Temperature of distillation, tau.
        distill_from: Share of the training after which distillation starts.
        heads_only: Do not train the backbone.
        seed: Seed of initialisation, order and augmentation.
    """

    epochs: int = 20
    batch_size: int = 128
    optimizer: str = "sgd"
    peak_lr: float = 0.1
    weight_decay: float = 5e-4
    distill_weight: float = 0.05
    distill_temperature: float = 3.0
    distill_from: float = 0.0
    heads_only: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "peak_lr", "distill_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.optimizer not in ("sgd", "adamw"):
            raise ValueError(f"optimizer is {self.optimizer!r}; use sgd or adamw")


@dataclass(frozen=True)
class RunConfig:
    """Content of `run.json`.

    Attributes:
        arch: Name of the network's family.
        settings: Settings of the family, as plain JSON values.
        classes: Names of the C classes; none for an imported checkpoint.
        data: The fields of `DataConfig`; None for an imported checkpoint.
        training: Settings of the training; None for an imported checkpoint.
        start: Origin of the weights before training, None if they were random.
        input: Settings of the preprocessing: `mean` and `std` for images, `max_tokens` and
            `pad_id` for texts.
        costs_ms: Latency until each exit, measured elsewhere, (K,), or None.
        label_sets: Whether a row may have several classes.
    """

    arch: str
    settings: dict[str, Any]
    classes: tuple[str, ...]
    input: dict[str, Any]
    data: dict[str, Any] | None = None
    training: TrainConfig | None = None
    start: str | None = None
    costs_ms: tuple[float, ...] | None = None
    label_sets: bool = False

    def to_json(self) -> dict[str, Any]:
        """The content as plain JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {"format_version": RUN_FORMAT_VERSION, **plain}


def read_run(folder: Path) -> RunConfig:
    """Read `run.json`.

    Raises:
        ValueError: If the file is missing, damaged or of another version.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no {RUN_FILE}; give a folder of eenet train, attach or import"
        )
    try:
        values = json.loads(path.read_text())
        version = values.pop("format_version")
        if version == RUN_FORMAT_VERSION:
            training = values["training"] and TrainConfig(**values["training"])
            costs = values["costs_ms"] and tuple(values["costs_ms"])
            # Runs made before a setting existed get its default, or what was done before.
            before = {"stratified": False}
            data = values["data"] and asdict(DataConfig(**before | values["data"]))
            return RunConfig(
                **values
                | {
                    "data": data,
                    "classes": tuple(values["classes"]),
                    "training": training,
                    "costs_ms": costs,
                }
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); make the run again") from error
    raise ValueError(
        f"{path} has format version {version}, this program reads {RUN_FORMAT_VERSION}; make the "
        f"run again"
    )


def create_run_dir(folder: Path, config: RunConfig) -> None:
    """Write `run.json`, or check that the folder already holds this run.

    Raises:
        ValueError: If the folder holds a run with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = config.to_json()
    if (folder / RUN_FILE).exists():
        _compare(folder, _flat(read_run(folder).to_json()), _flat(values))
    write_json(values, folder / RUN_FILE)


def _compare(folder: Path, before: dict[str, Any], values: dict[str, Any]) -> None:
    for name in [*values, *before]:
        if before.get(name) != values.get(name):
            raise ValueError(
                f"{folder} holds a run with {name} = {before.get(name)!r}, not "
                f"{values.get(name)!r}; give another --out, or the same settings to resume it"
            )


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """The settings by name, without their grouping into parts."""
    parts = {name: value for name, value in values.items() if isinstance(value, dict)}
    own = {name: value for name, value in values.items() if name not in parts}
    return {name: value for part in parts.values() for name, value in part.items()} | own


def write_json(value: Any, path: Path) -> None:
    """Write JSON atomically: a kill leaves the old file or the new one, never half of it."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, path)
