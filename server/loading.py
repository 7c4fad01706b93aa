"""From a bundle to what a server runs: backend, policy and frontier at this host's costs."""

import logging
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.backend import StageBackend
from models.bundle import Bundle, BundleError, load_bundle
from models.runtime.onnx_devices import open_onnx_backend
from models.runtime.replay_backend import ReplayBackend
from models.stage_costs import StageCosts, read_stage_costs
from profiling.calibration import load_recorded
from scheduler.fitted import FILES, Scheduler, load_scheduler
from scheduler.frontier import Frontier
from scheduler.monitoring.drift import ScoreDrift
from scheduler.npz import read_arrays
from scheduler.policy import ExitPolicy
from server.settings import Settings

log = logging.getLogger(__name__)

BUCKETS = tuple(2**power for power in range(11))  # batch sizes of devices that want few of them
CALIBRATION = "calibration_log_probs"


def open_backend(bundle: Bundle, settings: Settings) -> StageBackend:
    """Load the backend that the settings ask for.

    Raises:
        ValueError: If the bundle lacks what it needs, or the device is not available.
    """
    if settings.backend == "torch":
        # Imported here because torch is not on the serving path.
        try:
            from models.runtime.torch_backend import open_torch_backend
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{error.name} is not installed, which backend torch needs; run make install"
            ) from error

        buckets = BUCKETS if settings.torch_mode == "cuda-graphs" else ()
        return open_torch_backend(bundle, settings.device, settings.torch_mode, buckets)
    if settings.backend == "replay":
        costs = read_stage_costs(settings.replay_costs or bundle.folder / "profile.json")
        recorded = load_recorded(bundle.folder / "calibration.npz").test
        return ReplayBackend(recorded.log_probs.astype(np.float32), costs)
    return open_onnx_backend(bundle.stage_files, bundle.head_files, settings.device, BUCKETS)


class CalibratedPolicy(NamedTuple):
    """A policy with its frontier at this host's costs, and the bundle that both come from.

    `drift` compares the policy's scores with those of the bundle's calibration set.
    """

    bundle: Bundle
    policy: ExitPolicy
    frontier: Frontier
    drift: ScoreDrift

    @property
    def sha256(self) -> str:
        """Hash of the file that holds the policy's parameters."""
        return self.bundle.manifest.files[FILES[1]].sha256


def read_scheduler(bundle: Bundle) -> Scheduler:
    """Read the scheduler of a verified bundle.

    Raises:
        ValueError: If it cannot be read or does not fit the bundle's network.
    """
    scheduler, num_exits = load_scheduler(bundle.folder), bundle.manifest.num_exits
    if scheduler.policy.num_exits != num_exits:
        raise ValueError(
            f"{bundle.folder}: the scheduler has {scheduler.policy.num_exits} exits, the network "
            f"{num_exits}"
        )
    return scheduler


def calibrate_to_host(bundle: Bundle, scheduler: Scheduler, costs: StageCosts) -> CalibratedPolicy:
    """Move a scheduler to this host's costs; log a warning where they differ too much.

    Raises:
        ValueError: If the bundle's calibration set cannot be read.
    """
    policy, built_on = scheduler
    if moved := built_on.drifted_stages(costs.costs_ms):
        log.warning(
            "%s: stages %s take a share of the time that differs by more than a fifth from the "
            "machine that fitted the scheduler; run `eenet fit` with this host's --costs",
            bundle.manifest.name,
            moved,
        )
    frontier = built_on.with_costs(costs.costs_ms)
    drift = ScoreDrift(policy, frontier, _calibration(bundle), np.random.default_rng(0))
    return CalibratedPolicy(bundle, policy, frontier, drift)


def reload(served: Bundle) -> tuple[Bundle, Scheduler]:
    """Read again the bundle being served, and the scheduler its folder holds now.

    Raises:
        ValueError: If the folder no longer holds a whole bundle of the network being served.
    """
    bundle = load_bundle(served.folder)
    if _network(bundle) != _network(served):
        raise BundleError(
            f"{served.folder} no longer holds the network of {served.manifest.name} that is being "
            f"served; restart the server"
        )
    scheduler = read_scheduler(bundle)
    if load_bundle(served.folder).manifest != bundle.manifest:
        raise BundleError(f"{served.folder} changed while it was being read; try again")
    return bundle, scheduler


def _calibration(bundle: Bundle) -> NDArray[np.floating]:
    """Read the log-probabilities of a bundle's calibration set, (K, N, C) or (K, N, P, C)."""
    path = bundle.folder / "calibration.npz"
    log_probs = read_arrays(path, lambda name: name == CALIBRATION).get(CALIBRATION)
    if log_probs is None or len(log_probs) != bundle.manifest.num_exits:
        raise BundleError(
            f"{path} holds no predictions of the network's {bundle.manifest.num_exits} exits; "
            f"build the bundle again"
        )
    return log_probs


def _network(bundle: Bundle) -> object:
    """Return what must not change while a server runs: the graphs and their interface."""
    manifest = bundle.manifest
    graphs = {
        name: file.sha256
        for name, file in manifest.files.items()
        if name.startswith(("stages/", "heads/")) or name == "weights.safetensors"
    }
    return manifest.name, manifest.task, manifest.classes, manifest.preprocessing, graphs
