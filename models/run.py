"""What a training run is made of: the settings in its `run.json`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


class Conv(NamedTuple):
    """One 3x3 convolution of an exit head: its output channels and its stride."""

    channels: int
    stride: int


@dataclass(frozen=True)
class TrainConfig:
    """What a training run is made of; written to `run.json`, and a resumed run must have the same.

    Attributes:
        depth: Layers of the ResNet, 6n+2.
        exits: Blocks after which an early exit stands; empty for the plain network.
        heads: The convolutions of each early exit's head.
        dataset: Path of the data set.
        calibration_size: Training images held out.
        init: Safetensors of a plain network to start from, or None.
        epochs: Passes over the training images.
        batch_size: Rows per step.
        peak_lr: Highest learning rate of the one-cycle schedule.
        weight_decay: Of SGD with Nesterov momentum 0.9.
        distill_weight: alpha_KL, the weight of the last exit's teaching.
        distill_temperature: tau.
        distill_from: Share of the training after which distillation starts.
        seed: Of initialisation, order, augmentation and the calibration split.
    """

    depth: int
    exits: tuple[int, ...]
    heads: tuple[tuple[Conv, ...], ...]
    dataset: str
    calibration_size: int = 5000
    init: str | None = None
    epochs: int = 20
    batch_size: int = 128
    peak_lr: float = 0.1
    weight_decay: float = 5e-4
    distill_weight: float = 0.05
    distill_temperature: float = 3.0
    distill_from: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "peak_lr", "distill_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")

    def to_json(self) -> dict[str, Any]:
        """The configuration as plain JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainConfig":
        """The configuration from what `to_json` gave."""
        heads = tuple(tuple(Conv(*conv) for conv in head) for head in values["heads"])
        return cls(**{**values, "exits": tuple(values["exits"]), "heads": heads})


def parse_heads(text: str) -> tuple[tuple[Conv, ...], ...]:
    """Read heads written as `CHANNELS/STRIDE,...;...`, exits parted by `;`.

    Raises:
        ValueError: If the text is of another form.
    """
    try:
        heads = tuple(
            tuple(Conv(*map(int, conv.split("/"))) for conv in head.split(",") if conv)
            for head in text.split(";")
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"heads {text!r} are not of the form '32/2,64/2;64/2' (channels/stride)"
        ) from error
    if any(min(conv) < 1 for head in heads for conv in head):
        raise ValueError(f"heads {text!r} have channels or a stride below 1")
    return heads


def heads_text(heads: Sequence[Sequence[Conv]]) -> str:
    """The inverse of `parse_heads`."""
    return ";".join(",".join(f"{conv.channels}/{conv.stride}" for conv in head) for head in heads)
