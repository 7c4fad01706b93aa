"""Choose a device of ONNX Runtime, check that it works, and open the backend for it."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import onnxruntime as ort

from models.runtime.onnx_backend import (
    CPU,
    CUDA_PROVIDER,
    HOST,
    Device,
    OnnxBackend,
    Provider,
    open_graph,
)
from models.runtime.onnx_device_backend import DeviceOnnxBackend
from models.runtime.row_graph import TensorType, row_graph

log = logging.getLogger(__name__)


class _DeviceKind(NamedTuple):
    """A kind of device other than the CPU.

    Attributes:
        provider: ONNX Runtime's execution provider for it.
        option: The provider's option that selects one device.
        default: Value of that option unless the user names a device.
        remedy: How to install a runtime with this provider.
        fallbacks: Kinds that run the nodes it cannot run, before the CPU does.
    """

    provider: str
    option: str
    default: str
    remedy: str
    fallbacks: tuple[str, ...] = ()


_GPU = "needs the gpu runtime; install the extra `gpu` instead of `cpu`"
_KINDS = {
    "cuda": _DeviceKind(CUDA_PROVIDER, "device_id", "0", _GPU),
    "tensorrt": _DeviceKind("TensorrtExecutionProvider", "device_id", "0", _GPU, ("cuda",)),
    "openvino": _DeviceKind(
        "OpenVINOExecutionProvider",
        "device_type",
        "CPU",
        "needs the OpenVINO runtime; install onnxruntime-openvino instead of the extra `cpu`",
    ),
}


def open_onnx_backend(
    stages: Sequence[Path],
    heads: Sequence[Path],
    device: str = "auto",
    buckets: Sequence[int] = (),
) -> OnnxBackend | DeviceOnnxBackend:
    """Open the backend that suits a device, given by its name as in `choose_device`.

    `auto` is the CPU if CUDA's provider does not load.

    Raises:
        ValueError: As `open_backend_on`, or if the device is not available.
    """
    return open_backend_on(open_device(device), stages, heads, buckets)


def open_backend_on(
    device: Device,
    stages: Sequence[Path],
    heads: Sequence[Path],
    buckets: Sequence[int] = (),
    *,
    row_independent: bool = True,
    threads_per_run: int = 1,
) -> OnnxBackend | DeviceOnnxBackend:
    """Open the backend that suits a device.

    Args:
        device: A device that is available.
        stages: Files of the K stage graphs.
        heads: Files of the K exit heads.
        buckets: Batch sizes to use on a GPU, increasing; empty: any size.
        row_independent: As for `OnnxBackend`.
        threads_per_run: As for `OnnxBackend`.

    Raises:
        ValueError: If a graph cannot be loaded (the message names its file), or only runs one row
            at a time, for which a GPU has no use.
    """
    if device.memory == HOST:
        return OnnxBackend(
            stages,
            heads,
            device,
            row_independent=row_independent,
            threads_per_run=threads_per_run,
        )
    if not row_independent:
        raise ValueError(
            f"{stages[0]} takes one row at a time, which is slower on {device.name} than on a CPU; "
            f"use --device cpu, or --precision float32"
        )
    return DeviceOnnxBackend(stages, heads, device, buckets, threads_per_run=threads_per_run)


def open_device(device: str) -> Device:
    """Choose a device of the installed runtime and load its provider.

    Raises:
        ValueError: If the runtime has no provider for the device, or the provider does not load.
            `auto` falls back to the CPU instead.
    """
    chosen = choose_device(device, ort.get_available_providers())
    if chosen.memory != HOST:
        ort.preload_dlls()  # CUDA and cuDNN from the wheels of the `gpu` extra
    fault = provider_fault(chosen)
    if fault is None:
        return chosen
    message = f"device {chosen.name!r} is not available: {fault}"
    if device != "auto":
        raise ValueError(message)
    log.info("%s; serving on the CPU", message)
    return CPU


def available_providers() -> list[str]:
    """Return the providers of the installed runtime."""
    providers: list[str] = ort.get_available_providers()
    return providers


def choose_device(device: str, available: Sequence[str]) -> Device:
    """Find the device that a name means, and ONNX Runtime's providers for it.

    Args:
        device: `cpu`, `cuda`, `cuda:N`, `tensorrt`, `tensorrt:N`, `openvino`, `openvino:DEVICE`
            (OpenVINO's name of it), or `auto`: a GPU if the runtime has CUDA's provider.
        available: The providers of the installed runtime.

    Raises:
        ValueError: If the name is unknown, or the runtime has no provider for the device.
    """
    if device == "auto":
        has_cuda = _KINDS["cuda"].provider in available
        if not has_cuda:
            log.info("this ONNX Runtime has no CUDA provider; serving on the CPU")
        device = "cuda" if has_cuda else "cpu"
    if device == "cpu":
        return CPU
    name, _, index = device.partition(":")
    if name not in _KINDS:
        raise ValueError(f"device {device!r} is unknown; use auto, cpu, {', '.join(_KINDS)}")
    kind = _KINDS[name]
    if kind.provider not in available:
        raise ValueError(f"device {device!r} {kind.remedy}")
    index = index or kind.default
    kinds = (kind, *(_KINDS[fallback] for fallback in kind.fallbacks))
    providers: list[Provider] = [(kind.provider, {kind.option: index}) for kind in kinds]
    return Device(f"{name}:{index}", [*providers, *CPU.providers])


def provider_fault(device: Device) -> str | None:
    """Describe why a device's provider does not load; None if it loads.

    A provider that is installed may still lack its libraries or a device, so this runs a small
    graph's set-up on it.
    """
    if device == CPU:
        return None
    provider, reason = device.providers[0][0], ""
    probe = row_graph([TensorType(element_type=1, rank=2)], 1)
    try:
        if provider in open_graph(probe, device).session.get_providers():
            return None
    except ValueError as error:
        reason = f": {error.__cause__}"
    return f"ONNX Runtime's {provider} does not load here{reason.rstrip()}"
