"""Which backend runs a bundle."""

import numpy as np

from models.backend import StageBackend
from models.bundle import Bundle
from models.runtime.onnx_backend import open_onnx_backend
from models.runtime.replay_backend import ReplayBackend
from models.stage_costs import read_stage_costs
from profiling.calibration import load_recorded
from server.settings import Settings

BUCKETS = tuple(2**power for power in range(11))  # batch sizes of devices that want few of them


def open_backend(bundle: Bundle, settings: Settings) -> StageBackend:
    """The backend that the settings ask for, loaded.

    Raises:
        ValueError: If the bundle lacks what it needs, or the device is not to be had.
    """
    if settings.backend == "torch":
        from models.runtime.torch_backend import (
            open_torch_backend,  # torch is not on the serving path
        )

        buckets = BUCKETS if settings.torch_mode == "cuda-graphs" else ()
        return open_torch_backend(bundle, settings.device, settings.torch_mode, buckets)
    if settings.backend == "replay":
        costs = read_stage_costs(settings.replay_costs or bundle.folder / "profile.json")
        recorded = load_recorded(bundle.folder / "calibration.npz").test
        return ReplayBackend(recorded.log_probs.astype(np.float32), costs)
    return open_onnx_backend(bundle.stage_files, bundle.head_files, settings.device, BUCKETS)
