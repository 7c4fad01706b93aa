import pytest

from server.metrics import ROUTES
from server.prediction_paths import route_label, sample_route, takes_samples


@pytest.mark.parametrize(
    ("path", "label", "params"),
    [
        ("/predict", "/predict", {}),
        ("/classify", "/classify", {}),
        ("/v1/models/m:predict", "/v1/models/{model}:predict", {"model": "m", "version": None}),
        (
            "/v1/models/m/versions/2:predict",
            "/v1/models/{model}:predict",
            {"model": "m", "version": "2"},
        ),
        ("/v2/models/m/infer", "/v2/models/{model}/infer", {"model": "m", "version": None}),
        (
            "/v2/models/m.x-1/versions/1/infer",
            "/v2/models/{model}/infer",
            {"model": "m.x-1", "version": "1"},
        ),
    ],
)
def test_routes_that_take_samples(path: str, label: str, params: dict[str, str | None]) -> None:
    found = sample_route(path)
    assert found is not None and (found.label, dict(found.params)) == (label, params)
    assert takes_samples(path) and route_label(path) == label


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/v2/models/m", "/v2/models/{model}"),
        ("/v2/models/m/versions/3/ready", "/v2/models/{model}/ready"),
        ("/v2/models/m/stats", "/v2/models/{model}/stats"),
        ("/v2/models/stats", "/v2/models/stats"),
        ("/v1/models/m", "/v1/models/{model}"),
        ("/health", "/readyz"),
        ("/budget", "/budget"),
    ],
)
def test_metrics_leave_out_the_names_of_models(path: str, label: str) -> None:
    assert not takes_samples(path)
    assert route_label(path) == label
    assert label in ROUTES


@pytest.mark.parametrize(
    "path",
    ["/", "", "/predict/", "/v2/models//infer", "/v2/models/a/b/infer", "/v2/models/m/infer/",
     "/v1/models/:predict", "/v1/models/a/b:predict", "/v2/infer", "/classify/x", "//predict"],
)  # fmt: skip
def test_other_paths_take_none(path: str) -> None:
    assert not takes_samples(path)
