"""What the variables of OpenTelemetry, OTEL_*, say about traces."""

from collections.abc import Mapping
from typing import NamedTuple

from server.tracing import Sampler

SAMPLERS = ("always_on", "always_off", "traceidratio")
PARENT_BASED = "parentbased_"
PROTOCOL = "http/protobuf"


class TraceSettings(NamedTuple):
    """What OTEL_* variables say about traces.

    Attributes:
        sampler: Chooses the traces.
        most_waiting: Spans that wait to be exported, at most.
        batch: Spans of one export, at most.
        delay_s: Longest time that a span waits for others to be exported with.
    """

    sampler: Sampler = Sampler()
    most_waiting: int = 2048
    batch: int = 512
    delay_s: float = 5.0


def trace_settings(environ: Mapping[str, str]) -> TraceSettings | None:
    """Read the variables of OpenTelemetry; None if nothing asks for traces.

    Traces are asked for by an endpoint (OTEL_EXPORTER_OTLP_ENDPOINT, or the same with TRACES), or
    by OTEL_TRACES_EXPORTER=otlp.

    Raises:
        ValueError: If one asks for what there is not.
    """

    def value(name: str, default: str = "") -> str:
        return environ.get(name, "").strip() or default  # an empty variable counts as unset

    exporter = value("OTEL_TRACES_EXPORTER").lower()
    endpoints = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
    if value("OTEL_SDK_DISABLED").lower() == "true" or exporter == "none":
        return None
    if not exporter and not any(map(value, endpoints)):
        return None
    if exporter not in ("", "otlp"):
        raise ValueError(f"OTEL_TRACES_EXPORTER {exporter!r} is not available; use otlp or none")
    protocols = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"
    name = next(filter(value, protocols), protocols[0])
    if (protocol := value(name, PROTOCOL)) != PROTOCOL:
        raise ValueError(
            f"{name} {protocol!r} is not available; use {PROTOCOL}, for which collectors listen "
            f"on port 4318"
        )
    waiting, batch = [
        _number(name, value(name, default), 1, whole=True)
        for name, default in (
            ("OTEL_BSP_MAX_QUEUE_SIZE", "2048"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "512"),
        )
    ]
    delay = "OTEL_BSP_SCHEDULE_DELAY"
    delay_ms = _number(delay, value(delay, "5000"), 1)
    sampler = _sampler(
        value("OTEL_TRACES_SAMPLER", "parentbased_always_on").lower(),
        value("OTEL_TRACES_SAMPLER_ARG", "1"),
    )
    return TraceSettings(sampler, int(waiting), int(min(batch, waiting)), delay_ms / 1e3)


def _sampler(name: str, share: str) -> Sampler:
    root = name.removeprefix(PARENT_BASED)
    if root not in SAMPLERS:
        names = ", ".join([*SAMPLERS, *(f"{PARENT_BASED}{each}" for each in SAMPLERS)])
        raise ValueError(f"OTEL_TRACES_SAMPLER {name!r} is not available; use one of {names}")
    if root == "traceidratio":
        return Sampler(root != name, _number("OTEL_TRACES_SAMPLER_ARG", share, 0, 1))
    return Sampler(root != name, float(root == "always_on"))


def _number(
    name: str, value: str, least: float, most: float = float("inf"), *, whole: bool = False
) -> float:
    try:
        number = int(value) if whole else float(value)
    except ValueError:
        number = float("nan")
    if not least <= number <= most or number == float("inf"):
        bounds = f"of at least {least:g}" if most == float("inf") else f"from {least:g} to {most:g}"
        raise ValueError(f"{name} {value!r} is not a number {bounds}; correct it or leave it out")
    return number
