import pytest

from server.trace_settings import TraceSettings, trace_settings
from server.tracing import Sampler

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_SERVICE_NAME": "a"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": " "},
        {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"},
        {**ENDPOINT, "OTEL_SDK_DISABLED": "TRUE"},
    ],
)
def test_nothing_asks_for_traces(environ: dict[str, str]) -> None:
    assert trace_settings(environ) is None


@pytest.mark.parametrize(
    "environ",
    [
        ENDPOINT,
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"},
        {"OTEL_TRACES_EXPORTER": "OTLP"},
        {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_SDK_DISABLED": "no"},
    ],
)
def test_traces_are_asked_for(environ: dict[str, str]) -> None:
    assert trace_settings(environ) == TraceSettings()


def test_bounds_and_sampler_are_read() -> None:
    given = {
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.25",
        "OTEL_BSP_MAX_QUEUE_SIZE": "100",
        "OTEL_BSP_SCHEDULE_DELAY": "250",
    }
    settings = trace_settings({**ENDPOINT, **given})
    assert settings == TraceSettings(Sampler(True, 0.25), 100, 100, 0.25)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("always_on", Sampler(False, 1.0)),
        ("always_off", Sampler(False, 0.0)),
        ("traceidratio", Sampler(False, 1.0)),
        ("parentbased_always_on", Sampler(True, 1.0)),
        ("parentbased_always_off", Sampler(True, 0.0)),
    ],
)
def test_samplers_have_their_standard_names(name: str, sampler: Sampler) -> None:
    settings = trace_settings({**ENDPOINT, "OTEL_TRACES_SAMPLER": name})
    assert settings is not None and settings.sampler == sampler


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "'zipkin' is not available; use otlp or none"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "'grpc' is not available; use http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote", "use one of always_on, "),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many", "'many' is not a number of at least 1"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "of at least 1"),
        ("OTEL_BSP_SCHEDULE_DELAY", "nan", "of at least 1"),
        ("OTEL_BSP_SCHEDULE_DELAY", "inf", "of at least 1"),
    ],
)
def test_what_there_is_not_is_refused(name: str, value: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        trace_settings({**ENDPOINT, name: value})


@pytest.mark.parametrize("share", ["1.5", "-1", "half", "nan"])
def test_a_share_is_from_0_to_1(share: str) -> None:
    given = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": share}
    with pytest.raises(ValueError, match="is not a number from 0 to 1"):
        trace_settings({**ENDPOINT, **given})
