"""From a bundle to what a server runs: backend, policy and frontier at this host's costs."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.backend import StageBackend, State
from models.bundle import (
    LABEL_FREE,
    TORCH_WEIGHTS,
    Bundle,
    BundleError,
    File,
    Variant,
    load_bundle,
)
from models.runtime.cascade_backend import open_cascade
from models.runtime.onnx_backend import Device
from models.runtime.onnx_devices import (
    available_providers,
    choose_device,
    open_backend_on,
    open_device,
)
from models.runtime.replay_backend import ReplayBackend
from models.stage_costs import StageCosts, read_stage_costs
from profiling.calibration import load_recorded
from scheduler.combiner import Combiner
from scheduler.fitted import FILES, Scheduler, load_scheduler
from scheduler.frontier import Frontier
from scheduler.label_accuracy import with_label_accuracy
from scheduler.monitoring.drift import ScoreDrift
from scheduler.npz import read_arrays
from scheduler.policy import ExitPolicy
from server.precision import Network, open_network
from server.settings import Settings

log = logging.getLogger(__name__)

BUCKETS = tuple(2**power for power in range(11))  # batch sizes of devices that want few of them
CALIBRATION, LABELS = "calibration_log_probs", "calibration_labels"
CERTIFICATION = "certification_log_probs"


def open_served(bundle: Bundle, settings: Settings, example: State) -> Network:
    """Load the network that the settings and the device ask for.

    Args:
        bundle: A verified bundle.
        settings: Backend, device and precision.
        example: One input row.

    Raises:
        ValueError: If the bundle lacks what it needs, the device is not available, or the network
            does not run as it should on this host.
    """
    named = settings.named_precision
    if settings.backend == "onnx":
        device = _open_device(settings)
        return open_network(
            bundle, device, named, example, lambda variant: _open_on(device, variant, settings)
        )
    if settings.backend == "torch":
        named = named or "float32"
    variant = bundle.variant(named)
    network = Network(variant, open_backend(variant, settings))
    log.info(
        "%s runs in %s (--backend %s)", bundle.manifest.name, variant.precision, settings.backend
    )
    return network


def open_backend(variant: Variant, settings: Settings) -> StageBackend:
    """Load the backend that the settings ask for, whatever precision they name.

    Raises:
        ValueError: If the bundle lacks what it needs, or the device is not available.
    """
    if settings.backend == "torch":
        return _open_torch(variant, settings)
    if settings.backend == "replay":
        costs = read_stage_costs(settings.replay_costs or variant.profile)
        recorded = load_recorded(variant.predictions).test
        return ReplayBackend(recorded.log_probs.astype(np.float32), costs)
    return _open_on(_open_device(settings), variant, settings)


def device_names(settings: Settings) -> tuple[str, ...]:
    """Return what the devices of the settings come to on this host, by the installed providers.

    Raises:
        ValueError: If the runtime has no provider for one.
    """
    if settings.backend == "replay":
        return ("replay",)
    if settings.backend == "torch":
        return settings.devices
    available = available_providers()
    return tuple([choose_device(device, available).name for device in settings.devices])


def _open_device(settings: Settings) -> Device:
    return open_device(settings.one_device).with_memory_limit(settings.gpu_memory_mib)


def _open_on(device: Device, variant: Variant, settings: Settings) -> StageBackend:
    def open_graphs(stages: Sequence[Path], heads: Sequence[Path]) -> StageBackend:
        return open_backend_on(
            device,
            stages,
            heads,
            BUCKETS,
            row_independent=variant.entry.row_independent,
            threads_per_run=settings.threads_per_run,
        )

    return open_cascade(variant, open_graphs)


def _open_torch(variant: Variant, settings: Settings) -> StageBackend:
    if variant.precision != "float32":
        raise ValueError(
            f"the torch backend computes in float32, not in {variant.precision}; leave out "
            f"--precision, or use --backend onnx"
        )
    if variant.bundle.manifest.cascade:
        raise ValueError(
            f"{variant.bundle.folder} is a cascade, which the torch backend does not run; use "
            f"--backend onnx"
        )
    # Imported here because torch is not on the serving path.
    try:
        from models.runtime.torch_backend import open_torch_backend
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is not installed, which backend torch needs; run make install"
        ) from error

    buckets = BUCKETS if settings.torch_mode == "cuda-graphs" else ()
    return open_torch_backend(variant.bundle, settings.one_device, settings.torch_mode, buckets)


class CalibratedPolicy(NamedTuple):
    """A scheduler on this host, and the variant that holds it.

    Attributes:
        variant: The variant.
        name: The scheduler's name there.
        scheduler: As it was fitted.
        frontier: At this host's costs. Its accuracies are always those by labels.
        drift: Compares the policy's scores with those of the variant's calibration set.
    """

    variant: Variant
    name: str
    scheduler: Scheduler
    frontier: Frontier
    drift: ScoreDrift

    @property
    def policy(self) -> ExitPolicy:
        """The policy."""
        return self.scheduler.policy

    @property
    def combiner(self) -> Combiner:
        """Turns outputs of heads into what the policy reads and the server answers."""
        return self.scheduler.combiner

    @property
    def shown_name(self) -> str:
        """The policy's kind, and whether it was fitted without labels."""
        label_free = self.scheduler.frontier.reference == "last_exit"
        return self.policy.kind + (LABEL_FREE if label_free else "")

    @property
    def sha256(self) -> str:
        """Hash of the file that holds the policy's parameters."""
        return _listed(self.variant, self.variant.scheduler(self.name) / FILES[1]).sha256


class ServedSchedulers(NamedTuple):
    """The schedulers that a model switches between.

    Attributes:
        chosen: Serves under a budget.
        keeper: Keeps the promise about answers: the label-free fit of the chosen policy, or the
            chosen one itself if the bundle has none.
    """

    chosen: CalibratedPolicy
    keeper: CalibratedPolicy


def read_schedulers(variant: Variant, policy: str | None) -> dict[str, Scheduler]:
    """Read the schedulers to serve, by name: that for budgets, then that of the promise, if other.

    A promise not to change the network's answers is cheapest kept by the scheduler that was fitted
    to them.

    Args:
        variant: Holds the schedulers.
        policy: The one for budgets; None: the one that the variant names.

    Raises:
        ValueError: If the variant does not hold it, or one cannot be read or does not fit the
            bundle's network.
    """
    chosen = policy or variant.entry.policy
    names = [name for name in (chosen, chosen + LABEL_FREE) if name in variant.entry.schedulers]
    return {name: read_scheduler(variant, name) for name in names or [chosen]}


def read_scheduler(variant: Variant, name: str | None = None) -> Scheduler:
    """Read a scheduler; by default the one that a server starts with.

    Raises:
        ValueError: If it cannot be read or does not fit the bundle's network.
    """
    folder, num_exits = variant.scheduler(name), variant.bundle.manifest.num_exits
    scheduler = load_scheduler(folder)
    if scheduler.policy.num_exits != num_exits:
        raise ValueError(
            f"{folder}: the scheduler has {scheduler.policy.num_exits} exits, the network "
            f"{num_exits}"
        )
    return scheduler


def calibrate_to_host(
    variant: Variant, schedulers: Mapping[str, Scheduler], costs: StageCosts
) -> ServedSchedulers:
    """Move schedulers of `read_schedulers` to this host's costs.

    Logs a warning where the costs differ too much from those that a scheduler was fitted to.

    Raises:
        ValueError: If the variant's predictions cannot be read.
    """
    own_outputs, labels = _calibration(variant)
    calibrated, warned = [], list[list[int]]()
    for name, scheduler in schedulers.items():
        policy, built_on = scheduler.policy, scheduler.frontier
        moved = built_on.drifted_stages(costs.costs_ms)
        if moved and moved not in warned:  # most often all were fitted to the same costs
            warned.append(moved)
            log.warning(
                "%s: stages %s take a share of the time that differs by more than a fifth from the "
                "machine that fitted the scheduler; run `eenet fit` with this host's --costs",
                variant.bundle.manifest.name,
                moved,
            )
        frontier = built_on.with_costs(costs.costs_ms)
        log_probs = scheduler.combiner.combine_all(own_outputs)
        if frontier.reference == "last_exit" and labels is not None:
            frontier = with_label_accuracy(policy, frontier, log_probs, labels)
        drift = ScoreDrift(policy, frontier, log_probs, np.random.default_rng(0))
        calibrated.append(CalibratedPolicy(variant, name, scheduler, frontier, drift))
    return ServedSchedulers(calibrated[0], calibrated[-1])


def reload(served: Variant, policy: str | None) -> tuple[Variant, dict[str, Scheduler]]:
    """Read again the bundle being served, and the schedulers to serve from it, by name.

    Args:
        served: What is being served.
        policy: As in `read_schedulers`.

    Raises:
        ValueError: If the folder no longer holds a whole bundle of the network being served, or
            holds no scheduler of this name.
    """
    folder = served.bundle.folder
    bundle = load_bundle(folder)
    if served.precision not in bundle.precisions or (
        _network(bundle.variant(served.precision)) != _network(served)
    ):
        raise BundleError(
            f"{folder} no longer holds the {served.precision} network of "
            f"{served.bundle.manifest.name} that is being served; restart the server"
        )
    variant = bundle.variant(served.precision)
    schedulers = read_schedulers(variant, policy)
    if load_bundle(folder).manifest != bundle.manifest:
        raise BundleError(f"{folder} changed while it was being read; try again")
    return variant, schedulers


def certification_rows(served: CalibratedPolicy) -> NDArray[np.floating] | None:
    """Read the certification rows of a variant, combined, as `losses_along` takes them.

    None if it has none.
    """
    arrays = read_arrays(served.variant.predictions, CERTIFICATION.__eq__)
    if CERTIFICATION not in arrays:
        return None
    return served.combiner.combine_all(arrays[CERTIFICATION])


def _calibration(variant: Variant) -> tuple[NDArray[np.floating], NDArray[np.int64] | None]:
    """Read a variant's calibration set: (K, N, C) or (K, N, P, C), and (N,) or (N, P) if known."""
    path, num_exits = variant.predictions, variant.bundle.manifest.num_exits
    arrays = read_arrays(path, (CALIBRATION, LABELS).__contains__)
    log_probs, labels = arrays.get(CALIBRATION), arrays.get(LABELS)
    if log_probs is None or len(log_probs) != num_exits:
        raise BundleError(
            f"{path} holds no predictions of the network's {num_exits} exits; build the bundle "
            f"again"
        )
    return log_probs, None if labels is None else labels.astype(np.int64)


def _network(variant: Variant) -> object:
    """Return what must not change while a server runs: the graphs and their interface."""
    manifest = variant.bundle.manifest
    graphs = [_listed(variant, file) for file in (*variant.stage_files, *variant.head_files)]
    torch_weights = manifest.files.get(TORCH_WEIGHTS)
    independent = variant.entry.row_independent
    interface = (manifest.name, manifest.task, manifest.classes, manifest.inputs)
    return interface, manifest.cascade, independent, graphs, torch_weights


def _listed(variant: Variant, path: Path) -> File:
    """Return what the manifest says of a file."""
    return variant.bundle.manifest.files[path.relative_to(variant.bundle.folder).as_posix()]
