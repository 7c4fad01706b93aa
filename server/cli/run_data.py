"""The data flags of commands that make runs and bundles."""

import argparse
from typing import Any

from models.data.dataset import DataConfig
from models.training.run import RunConfig


def data_of(args: argparse.Namespace, **defaults: Any) -> DataConfig:
    """The dataset that the flags mean; what they leave open is as in `defaults`."""
    given = {
        name: getattr(args, name)
        for name in ("dataset", "text_column", "label_column", "calibration_size", "image_size")
        if getattr(args, name) is not None
    }
    return DataConfig(**defaults | given)


def data_of_run(args: argparse.Namespace, run: RunConfig) -> DataConfig:
    """The dataset that a run is built with: that of its training, unless flags say otherwise.

    Raises:
        ValueError: If the run was imported and no dataset is given, or more rows are to be held
            out than were in training.
    """
    if run.data is None and args.dataset is None:
        raise ValueError(
            f"{args.folder} was imported, not trained here; give --dataset, on which to calibrate"
        )
    if run.data is not None and args.calibration_size is not None:
        before = run.data["calibration_size"]
        if before is None or args.calibration_size > before:
            raise ValueError(
                f"--calibration-size {args.calibration_size} would calibrate on rows that "
                f"{args.folder} was trained on; leave it out, or give at most the training's own "
                f"{before or 'share'}"
            )
    return data_of(args, **run.data or {})
